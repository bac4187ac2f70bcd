"""`pfs put`, `get`: files, directories and tar archives in and out."""

from __future__ import annotations

import os
import resource
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from pfsmount.cli import interruption, output
from pfsmount.cli.files import MessageOption, Place, entry_at, say_commit, writable_branch
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput, IsADirectory, NotADirectory, NotFound, PfsError, Unavailable
from pfsmount.ids import display
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.archive import ArchiveReport
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.excludes import Excludes
    from pfsmount.repo.local_files import IngestReport

_READ_AT_ONCE = 1 << 20
_NAMED_MAX = 20
_WRITABLE = "give a directory that exists and that you may write to"


def put(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Files and directories; '-' is standard input.", metavar="SOURCE…")
    ] = None,
    target: Annotated[str, typer.Argument(help="REPO@BRANCH[:/PATH]")] = "",
    message: MessageOption = None,
    tar: Annotated[
        str | None,
        typer.Option(
            "--tar",
            metavar="ARCHIVE",
            help="Put the members of a tar archive; '-' is standard input. gzip, bzip2 and xz are recognised.",
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Mirror: also delete what the source directory does not have.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Leave out what matches: a name anywhere, or with a '/' a path from the source's top. Repeatable.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Read every file, also one whose size and times are what they were.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Copy files into a branch, as one commit.

    A directory becomes the target itself (as 'cp -rT'): its files are added or overwrite, nothing is deleted. Several sources, or a
    target with a '/' at its end, go into the target. The members of an archive go into the target too, as with 'tar -C':

    pfs put --tar photos.tar.gz images@master:/2026

    Kept are contents, names, modes, owners (as numbers), times, symlinks, user.* attributes and holes. Devices, FIFOs and sockets are
    left out and named; hard links become files with the same content.
    """
    interruption.if_interrupted("nothing was committed")
    sources = sources or []
    if tar is not None and sources:
        raise InvalidInput("put takes either files or an archive", hint="pfs put --tar ARCHIVE REPO@BRANCH:/PATH")
    if not target or (tar is None and not sources):
        raise InvalidInput("put needs what to put, and where", hint="pfs put FILE… REPO@BRANCH:/PATH")
    if delete and exclude:
        raise InvalidInput(
            "--delete would also delete what --exclude leaves out; nothing was changed",
            hint="put with --exclude alone, and 'pfs rm' what is to go",
        )
    place = parse_target(target)
    excludes = None
    if exclude:
        from pfsmount.repo.excludes import Excludes

        excludes = Excludes(exclude)
    commit: Commit | None
    report: ArchiveReport | IngestReport
    if tar is not None:
        branch, commit, report = _put_archive(tar, place, message, delete, excludes)
    else:
        branch, commit, report = _put_files(sources, target, message, delete, excludes, not no_cache)
    if json:
        output.print_json(
            {
                "repo": place.repo,
                "branch": branch,
                "commit": None if commit is None else commit.id.hex(),
                "files": report.files,
                "size": report.size,
                "skipped": [os.fsdecode(path) for path in report.skipped],
            }
        )
        return
    did = f"put {output.plural(report.files, 'file')} ({output.human_size(report.size)})"
    say_commit(commit, place.repo, branch, did)


def _put_files(
    sources: list[str], target: str, message: str | None, delete: bool, excludes: Excludes | None, cache: bool
) -> tuple[str, Commit | None, IngestReport]:
    from pfsmount.repo.ingest import put as put_files

    if any(":" in source and "@" in source and not os.path.lexists(source) for source in sources):
        raise InvalidInput(
            "put copies local files into a repo; its target comes last",
            hint="'pfs get' copies out, 'pfs cp' between repos",
        )
    place = parse_target(target)
    into = target.endswith("/") or not place.path
    if "-" in sources and (len(sources) > 1 or into):
        raise InvalidInput("standard input needs the name of a file", hint="pfs put - images@master:/name.txt")
    with output.open_store() as store, output.Progress("putting", _total_size(sources)) as bar:
        branch = writable_branch(store, place)
        commit, report = put_files(
            store,
            [sys.stdin.fileno() if source == "-" else os.fsencode(source) for source in sources],
            place.repo,
            branch,
            place.path or (),
            into=into and sources != ["-"],
            message=message or f"put {' '.join(sources[:3])}{' …' if len(sources) > 3 else ''}",
            delete=delete,
            origin={"how": "put", "from": os.getcwd(), "sources": sources[:100]},
            progress=lambda report: bar.transfer(report.files, report.size),
            exclude=excludes,
            cache=cache,
        )
    for path in report.skipped[:_NAMED_MAX]:
        output.note(f"pfs: {display(path)} is a socket, FIFO or device and was left out")
    _note_more(len(report.skipped))
    return branch, commit, report


def _note_more(count: int) -> None:
    if count > _NAMED_MAX:
        output.note(f"pfs: {count - _NAMED_MAX:,} more sockets, FIFOs and devices were left out")


def _total_size(sources: list[str]) -> int | None:
    """Bytes, where they are known without walking a tree."""
    total = 0
    for source in sources:
        with suppress(OSError):
            info = os.stat(sys.stdin.fileno() if source == "-" else source)
            if stat.S_ISREG(info.st_mode):
                total += info.st_size
                continue
        return None
    return total


def _put_archive(
    archive: str, place: Target, message: str | None, delete: bool, excludes: Excludes | None
) -> tuple[str, Commit | None, ArchiveReport]:
    from pfsmount.repo.archive import put_archive

    name = "standard input" if archive == "-" else f"'{display(archive)}'"
    with output.open_store() as store, _opened_archive(archive) as raw:
        branch = writable_branch(store, place)
        info = os.fstat(raw.fileno())
        total = info.st_size if stat.S_ISREG(info.st_mode) else None
        with output.Progress("putting", total) as bar:
            commit, report = put_archive(
                store,
                BufferedReader(raw, _READ_AT_ONCE),
                name,
                place.repo,
                branch,
                place.path or (),
                message=message or f"put --tar {archive}",
                delete=delete,
                origin={"how": "put", "from": os.getcwd(), "sources": [archive], "format": "tar"},
                exclude=None if excludes is None else excludes.covers,
                progress=lambda report: bar.transfer(report.files, report.size, 0 if total is None else raw.tell()),
            )
    if report.absolute:
        output.note(f"pfs: the leading '/' was taken off {output.plural(report.absolute, 'name')}")
    for path in report.skipped[:_NAMED_MAX]:
        output.note(f"pfs: {display(path)} is a FIFO or device and was left out")
    _note_more(report.skipped_count)
    if report.has_more:
        output.note(f"pfs: {name} goes on behind the archive's end marker; that was not read")
    return branch, commit, report


def _opened_archive(archive: str) -> FileIO:
    """Raises InvalidInput, NotFound, IsADirectory, OSError."""
    if archive == "-":
        if sys.stdin.isatty():
            raise InvalidInput(
                "standard input is a terminal, not an archive", hint="tar -c DIR | pfs put --tar - TARGET"
            )
        return FileIO(sys.stdin.fileno(), closefd=False)
    try:
        return FileIO(archive)
    except FileNotFoundError:
        raise NotFound(f"there is no file {display(archive)}; nothing was committed") from None
    except IsADirectoryError:
        raise IsADirectory(f"{display(archive)} is a directory", hint="without --tar it is put as it is") from None


def get(
    source: Place,
    destination: Annotated[
        str | None, typer.Argument(help="A file or directory; '-' is standard output.", metavar="DESTINATION")
    ] = None,
    tar: Annotated[
        str | None,
        typer.Option(
            "--tar",
            metavar="ARCHIVE",
            help="Write a tar archive instead; '-' is standard output. The name's end (.gz, .bz2, .xz) says how to compress.",
        ),
    ] = None,
    owners: Annotated[
        bool, typer.Option("--owners/--no-owners", help="Restore owners too, which only root can; default: as root.")
    ] = True,
) -> None:
    """Copy a file or directory out of a repo.

    A directory becomes the destination itself, as 'cp -rT': files are added or overwrite, nothing is deleted, directories that are there
    already stay as they are. A file goes into a destination that is a directory.

    Restored are contents, names, modes, times, symlinks, user.* attributes and holes, as by 'cp -a'; owners by root only. An archive
    has all of it, is in pax format, and the same bytes for the same version:

    pfs get images@master:/2026 --tar - | ssh host tar -x -C /photos
    """
    target = parse_target(source)
    if (tar is None) == (destination is None):
        raise InvalidInput(
            "get needs either a destination or an archive",
            hint="pfs get SOURCE DESTINATION, or pfs get SOURCE --tar ARCHIVE",
        )
    if tar is not None:
        _get_archive(target, tar)
    else:
        assert destination is not None
        _get_files(target, destination, owners)


def _get_files(target: Target, destination: str, owners: bool) -> None:
    from pfsmount.repo.export import Export

    if not destination:
        raise InvalidInput("the destination has no name", hint="'.' is the directory that you are in")
    _allow_open_files()
    with output.open_store() as store:
        entry = entry_at(store, target)
        with (
            output.place_to_write(_WRITABLE),
            output.Progress("getting", entry.size, printing=destination == "-") as bar,
        ):
            export = Export(store.objects, lambda report: bar.transfer(report.files, report.size), owners=owners)
            to = os.fsencode(destination)
            if destination == "-":
                if entry.is_directory:
                    raise IsADirectory(f"{display(str(target))} is a directory", hint="--tar - writes it as an archive")
                sys.stdout.flush()
                export.stream(entry, sys.stdout.fileno())
                return
            if entry.is_directory:
                there = os.path.lexists(to)
                interruption.if_interrupted(
                    f"each file in {display(to)} is either whole or as it was" if there else "nothing was written"
                )
                export.directory(entry, to)
            else:
                interruption.if_interrupted("nothing was written")
                name = (target.path or ())[-1]
                if to.endswith(b"/") or os.path.isdir(to):
                    _make_directory(to)
                    export.file(entry, to, name)
                else:
                    export.file(entry, os.path.dirname(to) or b".", os.path.basename(to))
    report = export.report
    output.say(f"got {output.plural(report.files, 'file')} ({output.human_size(report.size)}) into {display(to)}")


def _make_directory(path: bytes) -> None:
    """Raises NotADirectory, PfsError."""
    from pfsmount.objects.layout import disk_errors

    try:
        with disk_errors(f"making the directory {display(path)}"):
            os.makedirs(path, exist_ok=True)
    except PfsError as error:
        if isinstance(error.__cause__, FileExistsError | NotADirectoryError):
            raise NotADirectory(f"{display(path)} is not a directory") from None
        raise


def _allow_open_files() -> None:
    """Each level of a directory takes a descriptor while it is written, and paths can have 2 000 levels."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _get_archive(target: Target, archive: str) -> None:
    from pfsmount.repo.archive_write import ArchiveWriteReport, write_archive

    if archive == "-" and sys.stdout.isatty():
        raise InvalidInput("an archive is nothing for a terminal", hint="name a file, or pipe it somewhere")
    if archive != "-" and (not archive or os.path.isdir(archive)):
        raise IsADirectory(
            f"'{display(archive)}' is no name for an archive",
            hint=f"give one: --tar {os.path.join(archive, 'NAME.tar')}",
        )
    with output.open_store() as store, output.place_to_write(_WRITABLE):
        entry = entry_at(store, target)
        name = None if entry.is_directory else (target.path or ())[-1]
        with output.Progress("writing", entry.size, printing=archive == "-") as bar:

            def progress(report: ArchiveWriteReport) -> None:
                bar.transfer(report.files, report.size)

            if archive == "-":
                sys.stdout.flush()
                write_archive(store.objects, entry, name, _Descriptor(sys.stdout.fileno()), progress)
                return
            interruption.if_interrupted(f"{display(archive)} was not written")
            with _new_file(os.fsencode(archive)) as fd, _compressor(archive, fd) as sink:
                report = write_archive(store.objects, entry, name, sink, progress)
    output.say(f"wrote {output.plural(report.files, 'file')} ({output.human_size(report.size)}) to {display(archive)}")


class _Descriptor:
    """Writes whole buffers to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return len(data)


@contextmanager
def _compressor(name: str, fd: int) -> Iterator[IO[bytes] | _Descriptor]:
    """What writes to a descriptor as the end of a file's name says. Raises Unavailable."""
    plain = _Descriptor(fd)
    end = os.path.splitext(name)[1]
    if end in (".gz", ".tgz"):
        import gzip

        # neither time nor name: the same version gives the same bytes
        with gzip.GzipFile("", "wb", 6, cast(IO[bytes], plain), mtime=0) as zipped:
            yield cast(IO[bytes], zipped)
    elif end in (".bz2", ".tbz2", ".tbz"):
        import bz2

        with bz2.BZ2File(cast(IO[bytes], plain), "wb") as packed:
            yield packed
    elif end in (".xz", ".txz"):
        import lzma

        with lzma.LZMAFile(cast(IO[bytes], plain), "wb") as packed_small:
            yield packed_small
    elif end in (".zst", ".tzst"):
        raise Unavailable("pfs does not write zstd", hint=f"pfs get SOURCE --tar - | zstd > {display(name)}")
    else:
        yield plain


@contextmanager
def _new_file(path: bytes) -> Iterator[int]:
    """A descriptor to write to; the file appears under its name when all was written. Raises OSError, PfsError."""
    from pfsmount.objects.layout import disk_errors

    with disk_errors(f"writing {display(path)}"):
        if os.path.exists(path) and not os.path.isfile(path):  # a FIFO, /dev/null
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
            return
        temporary = os.path.join(os.path.dirname(path), b".pfs-get-" + os.urandom(8).hex().encode("ascii"))
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                yield fd
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
