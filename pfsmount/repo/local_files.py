"""Local files, read into a batch: what `put` does before it knows anything of a branch.

A directory is read in the order of its names, in runs of small files: a run is read, hashed, and looked up in the index as one, for what is done
once a file is what it costs. Anything else (a large file, xattrs, a symlink, a directory) ends the run and is read for itself.

Directories are held open and files opened relative to them, so that paths may be of any length and nobody can exchange a directory meanwhile.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ENOTSUP

from pfsmount.errors import InvalidInput, NotFound, PermissionDenied, PfsError
from pfsmount.ids import ObjectId, display
from pfsmount.objects.layout import error_for
from pfsmount.objects.store import Batch
from pfsmount.repo.stat_cache import StatCache
from pfsmount.tree.directory import DirectorySummary, directory_entry, lookup
from pfsmount.tree.edit import DirectoryBuilder
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, encode_file, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_fd
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.node import LeafItem, entry_item
from pfsmount.tree.xattrs import with_xattrs

_RUN_FILES = 512
_RUN_BYTES = 4 << 20
_OPEN_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_OPEN_DIRECTORY = _OPEN_FILE | os.O_DIRECTORY
_FILE, _DIRECTORY, _SYMLINK, _OTHER = b"fdlo"
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


@dataclass(slots=True)
class IngestReport:
    """What was read so far."""

    files: int = 0
    size: int = 0
    skipped: list[bytes] = field(default_factory=list)
    """Local paths of sockets, FIFOs and devices, which are not versioned."""


Progress = Callable[[IngestReport], None]
Exclude = Callable[[bytes, bool], bool]
"""Given a path relative to the source and whether it is a directory: True leaves it out, with all below it."""


class LocalFiles:
    """Reads local files into a batch."""

    def __init__(
        self,
        batch: Batch,
        progress: Progress | None = None,
        *,
        cache: StatCache | None = None,
        exclude: Exclude | None = None,
    ) -> None:
        self.batch = batch
        self.cache = cache
        self.exclude = exclude
        self.report = IngestReport()
        self._progress = progress

    def path(self, path: bytes, previous: Entry | None = None) -> Entry:
        """A file, or a directory with everything in it; a symlink given here is followed, those below are kept.

        `previous` is what the target has now: large files are cut as it was. Raises NotFound, PermissionDenied, NoSpace.
        """
        with _reading(path):
            info = os.stat(path)
            if not stat.S_ISDIR(info.st_mode) and not stat.S_ISREG(info.st_mode):
                raise InvalidInput(f"{display(path)} is neither a file nor a directory")
            fd = os.open(path, _OPEN_FILE & ~os.O_NOFOLLOW)
            try:
                if stat.S_ISDIR(info.st_mode):
                    return self.directory(fd, path, b"", previous)
                return self.file(fd, os.fstat(fd), previous)
            finally:
                os.close(fd)

    def stream(self, fd: int) -> Entry:
        """A file from a pipe or terminal, until its end. Raises NoSpace, PfsError."""
        with _reading(b"standard input"):
            id, size = ingest_fd(self.batch, fd)
        self.count(1, size)
        return file_entry(id, size, mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime_ns=time.time_ns())

    def count(self, files: int, size: int) -> None:
        """Report what was read."""
        self.report.files += files
        self.report.size += size
        if self._progress is not None:
            self._progress(self.report)

    def directory(self, fd: int, path: bytes, relative: bytes, previous: Entry | None) -> Entry:
        """An open directory; `path` is how errors name it, `relative` how exclusions do."""
        summary = _DirectoryReader(self, fd, path, relative, previous).read()
        info = os.fstat(fd)
        entry = directory_entry(
            summary,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
        )
        return self._with_xattrs(fd, entry)

    def file(self, fd: int, info: os.stat_result, previous: Entry | None) -> Entry:
        """An open regular file of any size, with its xattrs."""
        before = previous.id if previous is not None and previous.kind is Kind.FILE else None
        id, size = ingest_fd(self.batch, fd, previous=before)
        self.count(1, size)
        entry = file_entry(
            id,
            size,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
        )
        return self._with_xattrs(fd, entry)

    def _with_xattrs(self, fd: int, entry: Entry) -> Entry:
        names = _xattrs_kept(fd)
        return with_xattrs(self.batch, entry, {name: os.getxattr(fd, name) for name in names}) if names else entry


class _DirectoryReader:
    """Reads one directory."""

    def __init__(self, files: LocalFiles, fd: int, path: bytes, relative: bytes, previous: Entry | None) -> None:
        self._files, self._fd, self._path, self._relative = files, fd, path, relative
        self._batch = files.batch
        self._previous = previous if previous is not None and previous.kind is Kind.DIRECTORY else None
        self._builder = DirectoryBuilder(files.batch)
        self._cache = files.cache if files.cache is not None and files.cache.serves(fd) else None
        self._now_ns = 0
        self._run: list[tuple[bytes, os.stat_result, ObjectId | None]] = []
        """Small files that were read: name, stat and, when the cache knew it, id."""
        self._data: list[bytes] = []
        """The bytes of those without an id."""
        self._data_bytes = 0

    def read(self) -> DirectorySummary:
        """All entries, as an immutable directory."""
        names: list[bytes] = []
        for name, kind in self._names():
            if kind == _FILE:
                names.append(name)
                if len(names) < _RUN_FILES:
                    continue
            self._read_files(names)
            names.clear()
            if kind != _FILE:
                self._read_other(name, kind)
        self._read_files(names)
        return DirectorySummary.of(self._builder.finish())

    def _names(self) -> Iterator[tuple[bytes, int]]:
        """Names and kinds in bytewise order. One string an entry: there may be millions, and sorting needs all."""
        with os.scandir(self._fd) as scan:
            found = sorted(item.name.encode(_ENCODING, _ERRORS) + _tag_of(item) for item in scan)
        exclude = self._files.exclude
        for text in found:
            name, kind = text[:-2], text[-1]
            if exclude is None or not exclude(self._relative + name, kind == _DIRECTORY):
                yield name, kind

    def _read_files(self, names: list[bytes]) -> None:
        if not names:
            return
        self._now_ns = time.time_ns()
        known = self._look_up(names)
        for name in names:
            found = known.get(name)
            if found is not None:
                self._run.append((name, *found))
            else:
                self._read_file(name)
        self._end_run()

    def _look_up(self, names: list[bytes]) -> dict[bytes, tuple[os.stat_result, ObjectId]]:
        """What the cache and the store know of these files; nothing when the first is unknown, for then most are."""
        found: dict[bytes, tuple[os.stat_result, ObjectId]] = {}
        if self._cache is None:
            return found
        for part in (names[:1], names[1:]):
            infos = [self._stat(name) for name in part]
            ids = self._cache.find(infos)
            stored = self._batch.reuse([id for id in ids if id is not None])
            for name, info, id in zip(part, infos, ids, strict=True):
                if id is not None and (id in stored or id == EMPTY_FILE_ID):
                    found[name] = info, id
            if not found:
                break
        return found

    def _stat(self, name: bytes) -> os.stat_result:
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            raise reading_error(error, self._of(name)) from error

    def _read_file(self, name: bytes) -> None:
        try:
            fd = os.open(name, _OPEN_FILE, dir_fd=self._fd)
            try:
                info = os.fstat(fd)
                size = info.st_size
                if size <= PIECE_MAX and stat.S_ISREG(info.st_mode):
                    data = os.read(fd, size + 1)
                    if len(data) == size and not _xattrs_kept(fd):
                        self._run.append((name, info, None))
                        self._data.append(data)
                        self._data_bytes += size
                        if self._data_bytes >= _RUN_BYTES:
                            self._end_run()
                        return
                self._end_run()
                self._read_any(name, fd, info)
            finally:
                os.close(fd)
        except OSError as error:
            raise reading_error(error, self._of(name)) from error

    def _read_any(self, name: bytes, fd: int, info: os.stat_result) -> None:
        """A file that is large, has xattrs, or changes while it is read."""
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(
                f"{display(self._of(name))} was a file and is none any more; nothing was committed",
                hint="run the command again when nothing changes there",
            )
        previous = self._before(name) if info.st_size > PIECE_MAX else None
        entry = self._files.file(fd, info, previous)
        if self._cache is not None and entry.size == info.st_size and not entry.xattrs and entry.xattrs_id is None:
            self._cache.remember(info, entry.id, self._now_ns)
        self._builder.add(entry_item(name, entry))

    def _end_run(self) -> None:
        """Store the small files that were read."""
        if not self._run:
            return
        ids = iter(self._batch.add_pieces(self._data))
        leaves, total = [], 0
        for name, info, id in self._run:
            if id is None:
                id = next(ids)
                if self._cache is not None:
                    self._cache.remember(info, id, self._now_ns)
            total += info.st_size
            leaves.append(LeafItem(name, encode_file(info, id), b""))
        self._builder.add_leaves(leaves)
        self._files.count(len(leaves), total)
        self._run, self._data, self._data_bytes = [], [], 0

    def _read_other(self, name: bytes, kind: int) -> None:
        """A directory, a symlink, or what is not versioned."""
        if kind == _OTHER:
            self._files.report.skipped.append(self._of(name))
            return
        try:
            if kind == _SYMLINK:
                info = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                target = os.readlink(name, dir_fd=self._fd)
                entry = symlink_entry(target, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)
                self._files.count(1, 0)
            else:
                fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self._fd)
                try:
                    below = self._relative + name + b"/"
                    entry = self._files.directory(fd, self._of(name), below, self._before(name))
                finally:
                    os.close(fd)
        except OSError as error:
            raise reading_error(error, self._of(name)) from error
        self._builder.add(entry_item(name, entry))

    def _before(self, name: bytes) -> Entry | None:
        return None if self._previous is None else lookup(self._batch, self._previous.id, name)

    def _of(self, name: bytes) -> bytes:
        return os.path.join(self._path, name)


def _tag_of(item: os.DirEntry[str]) -> bytes:
    """What follows a name in a list of names and kinds: NUL, so that names sort as if it were not there, and the kind."""
    if item.is_file(follow_symlinks=False):
        return b"\0f"
    if item.is_dir(follow_symlinks=False):
        return b"\0d"
    return b"\0l" if item.is_symlink() else b"\0o"


def _xattrs_kept(fd: int) -> list[bytes]:
    """The names of an open file's xattrs that are versioned: those of the user."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == ENOTSUP:
            return []  # a filesystem without xattrs
        raise
    if not names:
        return []
    return [os.fsencode(name) for name in names if name.startswith("user.") and not name.startswith("user.pfs.")]


@contextmanager
def _reading(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise reading_error(error, path) from error


def reading_error(error: OSError, path: bytes) -> PfsError:
    """The error that a user sees for a local file that cannot be read."""
    where = display(path)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"there is no file {where}; nothing was committed")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{where} cannot be read: {error.strerror}; nothing was committed")
    return error_for(error, f"reading {where}")
