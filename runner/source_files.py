"""Which files of the local disk are the program: found in its directory, read once, kept in the store.

See docs/decisions/003-code-in-the-datum-key.md for the rules and the reasons.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pfsmount.config import MIB
from pfsmount.errors import InvalidInput
from pfsmount.ids import EntryName, RepoPath, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import disk_errors
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_fd

SOURCE_SUFFIXES = frozenset(
    b".py .pyi .pyx .so .sh .bash .R .r .Rmd .pl .pm .rb .js .mjs .ts .jl .lua .m .java .jar .awk .sed .sql .c .h .cc "
    b".cpp .hpp .rs .go .wdl .nf .smk".split()
)
ENTRIES_MAX = 5_000
BYTES_MAX = 64 * MIB
_NOT_CODE = frozenset((b"__pycache__", b"node_modules"))
_VERSION_CONTROL = frozenset((b".git", b".hg", b".svn", b".bzr", b"CVS", b".jj"))
_COMPILED = (b".pyc", b".pyo")
_FIXED_NS = 946_684_800 * 10**9
_Test = Callable[["os.DirEntry[bytes]", int], bool]


class TooMuch(Exception):
    """The directory is larger than what can be read at the start of every job."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the program: where it is, and its path below the program's directory."""

    place: bytes
    path: RepoPath
    is_symlink: bool = False
    """Kept as a link; only in a directory that was named as the code."""


def find_sources(directory: Path, home: Path) -> list[SourceFile]:
    """The source files in a script's directory, sorted by path. Raises TooMuch."""
    if directory in (Path("/"), Path("/tmp"), Path("/var/tmp"), home):
        raise TooMuch(f"{directory} is a directory for everything")
    found = []
    size = 0
    for i, (item, path) in enumerate(_scan(os.fsencode(directory), _is_no_code)):
        if i >= ENTRIES_MAX:
            raise TooMuch(f"{directory} has more than {ENTRIES_MAX:,} files")
        if os.path.splitext(item.name)[1] in SOURCE_SUFFIXES and _is_regular(item):
            size += item.stat().st_size
            if size > BYTES_MAX:
                raise TooMuch(f"{directory} has more than {BYTES_MAX // MIB} MiB of source files")
            found.append(SourceFile(item.path, path))
    return sorted(found, key=lambda file: file.path)


def find_code(directory: Path) -> list[SourceFile]:
    """Everything in a directory that was named as the code, without version control, caches and environments.

    Raises InvalidInput when it is not a directory.
    """
    if not directory.is_dir():
        raise InvalidInput(f"the code directory '{display(os.fspath(directory))}' does not exist")
    found = []
    for item, path in _scan(os.fsencode(directory), _is_cache):
        if item.is_symlink():
            found.append(SourceFile(item.path, path, is_symlink=True))
        elif item.is_file() and not item.name.endswith(_COMPILED):
            found.append(SourceFile(item.path, path))
    return sorted(found, key=lambda file: file.path)


def _scan(root: bytes, passed_by: _Test) -> Iterator[tuple[os.DirEntry[bytes], RepoPath]]:
    """All entries below `root` but those in directories that are passed by; unreadable directories are, too."""
    device = os.stat(root).st_dev
    todo: list[tuple[bytes, RepoPath]] = [(root, ())]
    while todo:
        directory, path = todo.pop()
        try:
            scan = os.scandir(directory)
        except OSError:
            continue
        with scan:
            for item in scan:
                here = (*path, EntryName(item.name))
                yield item, here
                if item.is_dir(follow_symlinks=False) and not passed_by(item, device):
                    todo.append((item.path, here))


def _is_no_code(item: os.DirEntry[bytes], device: int) -> bool:
    return (
        item.name.startswith(b".")
        or item.name in _NOT_CODE
        or _is_cache(item, device)
        or os.path.exists(item.path + b"/store.json")
        or item.stat(follow_symlinks=False).st_dev != device
    )


def _is_cache(item: os.DirEntry[bytes], device: int) -> bool:
    return item.name in _VERSION_CONTROL or item.name == b"__pycache__" or os.path.exists(item.path + b"/pyvenv.cfg")


def _is_regular(item: os.DirEntry[bytes]) -> bool:
    try:
        return item.is_file()
    except OSError:
        return False


def store_sources(batch: Batch, sources: list[SourceFile]) -> Entry:
    """A tree of the files as they are now, with fixed times and owners. Raises NoSpace, PfsError."""
    root = _directory()
    changes: dict[RepoPath, Entry | None] = {}
    for source in sources:
        with disk_errors(f"reading the code {display(source.place)}"):
            changes[source.path] = (
                symlink_entry(os.readlink(source.place), mtime_ns=_FIXED_NS)
                if source.is_symlink
                else _file(batch, source.place)
            )
    return edit_paths(batch, root, changes)


def _file(batch: Batch, place: bytes) -> Entry:
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        executable = bool(os.fstat(fd).st_mode & stat.S_IXUSR)
        id, size = ingest_fd(batch, fd)
    finally:
        os.close(fd)
    return file_entry(id, size, mode=0o755 if executable else 0o644, mtime_ns=_FIXED_NS)


def _directory() -> Entry:
    return directory_entry(EMPTY_DIRECTORY, mtime_ns=_FIXED_NS)
