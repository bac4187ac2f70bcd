"""Local files, read into a batch: what `put` does before it knows anything of a branch.

A tree is read in the order of its names, in runs of small files: a run is read, hashed, and looked up in the index as one, for what is done once a
file is what it costs. Anything else (a large file, xattrs, a symlink, a directory) is read for itself. When there is much to read, a second process reads runs
ahead (`reading_process`).

Directories are held open and files opened relative to them, so that paths may be of any length and nobody can exchange a directory meanwhile. Of a deep
tree only the last ones are open (`descent`).
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR
from typing import NamedTuple, cast

from pfsmount.errors import InvalidInput, NotFound, PermissionDenied, PfsError
from pfsmount.ids import ID_BYTES, ObjectId, display
from pfsmount.objects.hashing import Buffer, hash_bytes
from pfsmount.objects.layout import error_for
from pfsmount.objects.store import Batch
from pfsmount.repo.descent import OPEN_MAX, Identity, identity_of, open_above
from pfsmount.repo.reading_process import ReadFile, ReadingProcess, ReadRecord
from pfsmount.repo.reading_worker import OPEN_FILE, RUN_FILES, SLOTS, has_changed, is_whole, kept_xattrs
from pfsmount.repo.stat_cache import StatCache
from pfsmount.tree.directory import DirectorySummary, directory_entry, lookup
from pfsmount.tree.edit import DirectoryBuilder
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, encode_file, file_entry, sizes_of, symlink_entry
from pfsmount.tree.ingest import ingest_fd
from pfsmount.tree.manifest import PIECE_MAX, reuse_file
from pfsmount.tree.node import entry_item
from pfsmount.tree.xattrs import with_xattrs

_RUN_BYTES = 4 << 20
_STEPS_AHEAD = 32
_TRIES = 3
"""Times that a file is read while somebody writes to it."""
_WORTH_A_PROCESS = 2000
"""Files after which a second process pays: it takes 0.1 s to start, in which the first one reads about so many."""
_RUNS_TO_ONE = 4
"""Of so many runs one is read here. *Measured*, 100 000 files again: 2.4 s with every other one, 2.0 s with one in four, 2.4 s with none."""
_OPEN_DIRECTORY = OPEN_FILE | os.O_DIRECTORY
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
        process: ReadingProcess | None = None,
        exclude: Exclude | None = None,
    ) -> None:
        self.batch = batch
        self.cache = cache
        self.process = process
        self.exclude = exclude
        self.report = IngestReport()
        self._progress = progress

    def path(self, path: bytes, previous: Entry | None = None) -> Entry:
        """A file, or a directory with everything in it; a symlink given here is followed, those below are kept.

        `previous` is what the target has now: large files are cut as it was. Raises NotFound, PermissionDenied, NoSpace.
        """
        try:
            info = os.stat(path)
        except OSError as error:
            if error.errno in (ENOTDIR, ELOOP):
                raise NotFound(f"there is no file {display(path)}: {error.strerror}; nothing was committed") from None
            if error.errno == ENOENT and os.path.islink(path):
                target = display(os.readlink(path))
                raise NotFound(
                    f"{display(path)} is a symlink to {target}, which is not there; nothing was committed",
                    hint="a symlink that is given to put is followed; one in a directory that is given is kept as it is",
                ) from None
            raise reading_error(error, path) from error
        with _reading(path):
            if not stat.S_ISDIR(info.st_mode) and not stat.S_ISREG(info.st_mode):
                raise InvalidInput(f"{display(path)} is neither a file nor a directory")
            fd = os.open(path, OPEN_FILE & ~os.O_NOFOLLOW)
            try:
                if not stat.S_ISDIR(info.st_mode):
                    return self.file(fd, os.fstat(fd), previous, path)
                top = _Directory(fd, path, DirectoryBuilder(self.batch), previous=previous)
                _Walk(self, top).carry_out()
                return self.directory(fd, top.builder)
            finally:
                os.close(fd)

    def stream(self, fd: int) -> Entry:
        """A file from a pipe or terminal, until its end. Raises NoSpace, PfsError."""
        with _reading(b"standard input"):
            id, size = ingest_fd(self.batch, fd, progress=self._count_bytes)
        self.count(1, 0)
        return file_entry(id, size, mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime_ns=time.time_ns())

    def count(self, files: int, size: int) -> None:
        """Report what was read."""
        self.report.files += files
        self.report.size += size
        if self._progress is not None:
            self._progress(self.report)

    def _count_bytes(self, size: int) -> None:
        self.count(0, size)

    def directory(self, fd: int, builder: DirectoryBuilder) -> Entry:
        """The entry of an open directory whose contents were read. Raises OSError."""
        info = os.fstat(fd)
        entry = directory_entry(
            DirectorySummary.of(builder.finish()),
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
        )
        return self._with_xattrs(fd, entry)

    def file(self, fd: int, info: os.stat_result, previous: Entry | None, path: bytes) -> Entry:
        """An open regular file of any size, with its xattrs; `info` is what fstat says now.

        It is read again when somebody writes to it meanwhile. What is appended meanwhile is left for the next time: logs grow, some as fast as
        they are read. Raises OSError, NoSpace, InvalidInput (it is no regular file, or changes each time).
        """
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(
                f"{display(path)} was a file and is none any more; nothing was committed",
                hint="run the command again when nothing changes there",
            )
        before = previous.id if previous is not None and previous.kind is Kind.FILE else None
        has_size = info.st_size > 0 or not os.pread(fd, 1, 0)
        if not has_size:  # it begins to grow, or is one of /proc, which have bytes and a size of 0
            info = os.fstat(fd)
            has_size = info.st_size > 0
        for _ in range(_TRIES):
            end = info.st_size if has_size else None
            id, size = ingest_fd(self.batch, fd, previous=before, progress=self._count_bytes, end=end)
            now = os.fstat(fd)
            if not has_changed(info, now) or (size == info.st_size < now.st_size):
                break
            info = now
        else:
            raise InvalidInput(
                f"{display(path)} is being written to: it changed each time that it was read; nothing was committed",
                hint="run the command again when nobody writes to it, or leave it out with --exclude",
            )
        self.count(1, 0)
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
        names = kept_xattrs(fd)
        return with_xattrs(self.batch, entry, {name: os.getxattr(fd, name) for name in names}) if names else entry


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory that is being read: open, with the builder of its entries."""

    fd: int
    """-1 while it is closed, because work goes on far below it."""
    name: bytes
    """Of the first one: the path, as errors name it."""
    builder: DirectoryBuilder
    parent: _Directory | None = None
    previous: Entry | None = None
    """What the target has there now."""
    identity: Identity = (0, 0)
    """While it is closed: what it was."""

    # Paths are put together when they are asked for: those of a deep tree would be as long as it is deep, each.

    @property
    def path(self) -> bytes:
        """How errors name it."""
        top, names = self._names()
        return os.path.join(top, *names)

    @property
    def relative(self) -> bytes:
        """How exclusions name what is in it: the path from the source, with a `/` at its end."""
        return b"".join(name + b"/" for name in self._names()[1])

    def _names(self) -> tuple[bytes, list[bytes]]:
        names = []
        at = self
        while at.parent is not None:
            names.append(at.name)
            at = at.parent
        return at.name, names[::-1]

    def of(self, name: bytes) -> bytes:
        """The path of an entry."""
        return os.path.join(self.path, name)

    def before(self, batch: Batch, name: bytes) -> Entry | None:
        """What the target has under that name now."""
        if self.previous is None or self.previous.kind is not Kind.DIRECTORY:
            return None
        return lookup(batch, self.previous.id, name)


class _Run(NamedTuple):
    """Files that follow each other in a directory."""

    directory: _Directory
    names: list[bytes]
    now_ns: int
    known: dict[bytes, bytes]
    """The fixed parts of the entries of those that the cache and the store have."""
    asked: bool
    """The reading process was asked for the others."""


class _Enter(NamedTuple):
    directory: _Directory


class _Leave(NamedTuple):
    directory: _Directory


class _Other(NamedTuple):
    """A symlink, or what is not versioned."""

    directory: _Directory
    name: bytes
    kind: int


_Step = _Run | _Enter | _Leave | _Other


class _Walk:
    """Reads a directory with all below it, in steps that are planned some ahead: looked up in the cache, given to the reading process."""

    def __init__(self, files: LocalFiles, top: _Directory) -> None:
        self._files, self._batch, self._top = files, files.batch, top
        self._open: set[_Directory] = set()
        self._seen = 0
        self._turn = 0
        self._names: list[bytes] = []
        self._fixed: list[bytes] = []
        """The entries of this run's files that are known now: names and fixed parts."""
        self._ids: list[ObjectId] = []
        self._data: list[Buffer] = []
        """Ids and bytes of those of them that may be new to the store."""
        self._data_bytes = 0

    def carry_out(self) -> None:
        """Add all entries to the builder of the top directory. Raises OSError, PfsError."""
        steps = self._steps()
        ahead: deque[_Step] = deque()
        try:
            while True:
                while not self._is_enough(ahead) and (step := next(steps, None)) is not None:
                    ahead.append(step)
                if not ahead:
                    return
                self._carry_out(ahead.popleft())
        finally:
            for directory in self._open:
                os.close(directory.fd)

    # Planning

    def _is_enough(self, ahead: deque[_Step]) -> bool:
        """True when no more steps should be planned now.

        With a second process: when it has as many runs as it takes. One run in four is read here, for storing what it read is less work than
        reading, and both should be busy.
        """
        process = self._files.process
        return len(ahead) >= _STEPS_AHEAD or (process is not None and process.asked >= SLOTS - 1)

    def _steps(self) -> Iterator[_Step]:
        """What there is to do, in order. With a stack of its own: trees may be deeper than Python's."""
        stack = [(self._top, self._list(self._top))]
        names: list[bytes] = []
        while stack:
            directory, items = stack[-1]
            below = None
            for name, kind in items:
                if kind == _FILE:
                    names.append(name)
                    if len(names) < RUN_FILES:
                        continue
                if names:
                    yield self._plan(directory, names)
                    names = []
                if kind == _DIRECTORY:
                    below = self._descend(directory, name)
                    break
                if kind != _FILE:
                    yield _Other(directory, name, kind)
            if below is not None:
                yield _Enter(below)
                stack.append((below, self._list(below)))
                if len(stack) > OPEN_MAX + 1:
                    self._close_meanwhile(stack[-OPEN_MAX - 1][0])
                continue
            if names:
                yield self._plan(directory, names)
                names = []
            stack.pop()
            if stack:
                self._open_again(stack[-1][0], directory)
                yield _Leave(directory)

    def _list(self, directory: _Directory) -> Iterator[tuple[bytes, int]]:
        """Names and kinds in bytewise order. One string an entry: there may be millions, and sorting needs all."""
        with _reading(lambda: directory.path), os.scandir(directory.fd) as scan:
            found = sorted(
                item.name.encode(_ENCODING, _ERRORS)
                + (b"\0f" if item.is_file(follow_symlinks=False) else _tag_of(item))
                for item in scan
            )
        items = ((text[:-2], text[-1]) for text in found)
        exclude = self._files.exclude
        if exclude is None:
            return items
        relative = directory.relative
        return (item for item in items if not exclude(relative + item[0], item[1] == _DIRECTORY))

    def _descend(self, directory: _Directory, name: bytes) -> _Directory:
        with _reading(lambda: directory.of(name)):
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=directory.fd)
        below = _Directory(fd, name, DirectoryBuilder(self._batch), directory)
        self._open.add(below)
        return below

    def _close_meanwhile(self, directory: _Directory) -> None:
        """Close a directory that is so far above that no planned step is about it."""
        directory.identity = identity_of(directory.fd)
        self._open.remove(directory)
        os.close(directory.fd)
        directory.fd = -1

    def _open_again(self, directory: _Directory, below: _Directory) -> None:
        if directory.fd < 0:
            with _reading(lambda: directory.path):
                above = open_above(below.fd, directory.identity)
            if above is None:
                raise InvalidInput(
                    f"{display(below.path)} was moved to another directory while it was read; nothing was committed",
                    hint="run the command again when nothing changes there",
                )
            directory.fd = above
            self._open.add(directory)

    def _plan(self, directory: _Directory, names: list[bytes]) -> _Run:
        now_ns = time.time_ns()
        known = self._look_up(directory, names)
        process, asked = self._files.process, False
        if process is not None and len(known) < len(names):
            self._seen += len(names) - len(known)
            if self._seen > _WORTH_A_PROCESS:
                process.start()
                self._turn += 1
                if self._turn % _RUNS_TO_ONE and process.is_free:
                    asked = process.ask(directory.fd, [name for name in names if name not in known])
        return _Run(directory, names, now_ns, known, asked)

    def _look_up(self, directory: _Directory, names: list[bytes]) -> dict[bytes, bytes]:
        """The fixed parts of entries that the cache knows, of contents that the store has; none when the first is unknown, for then most are."""
        found: dict[bytes, bytes] = {}
        cache = self._files.cache
        if cache is None or not cache.serves(directory.fd):
            return found
        for part in (names[:1], names[1:]):
            try:
                infos = [os.stat(name, dir_fd=directory.fd, follow_symlinks=False) for name in part]
            except OSError as error:
                raise reading_error(error, directory.of(os.fsencode(error.filename))) from error
            cached = [(name, fixed) for name, fixed in zip(part, cache.find(infos), strict=True) if fixed is not None]
            stored = self._batch.reuse([ObjectId(fixed[-ID_BYTES:]) for _, fixed in cached])
            for _, fixed in cached:
                if sizes_of([fixed]) > PIECE_MAX and not reuse_file(self._batch, ObjectId(fixed[-ID_BYTES:])):
                    stored.discard(ObjectId(fixed[-ID_BYTES:]))
            stored.add(EMPTY_FILE_ID)
            found.update(item for item in cached if item[1][-ID_BYTES:] in stored)
            if not found:
                break
        return found

    # Carrying out

    def _carry_out(self, step: _Step) -> None:
        match step:
            case _Run():
                self._read_run(step)
            case _Enter(directory):
                assert directory.parent is not None
                directory.previous = directory.parent.before(self._batch, directory.name)
            case _Leave(directory):
                assert directory.parent is not None
                with _reading(lambda: directory.path):
                    entry = self._files.directory(directory.fd, directory.builder)
                directory.parent.builder.add(entry_item(directory.name, entry))
                self._open.remove(directory)
                os.close(directory.fd)
            case _Other():
                self._read_other(step)

    def _read_run(self, run: _Run) -> None:
        process = self._files.process
        answer = process.answer() if run.asked and process is not None else None
        if len(run.known) == len(run.names):
            self._names, self._fixed = run.names, [run.known[name] for name in run.names]
        elif answer is None:
            for name in run.names:
                fixed = run.known.get(name)
                if fixed is None:
                    self._read_file(run, name)
                else:
                    self._names.append(name)
                    self._fixed.append(fixed)
        else:
            self._take(run, *answer)
        self._end_run(run)

    def _take(self, run: _Run, memory: memoryview, reads: list[ReadRecord]) -> None:
        """What the reading process read. A file has 7 µs here: what can be done there is, and what can be done for all at once."""
        cache = self._files.cache
        if cache is not None and cache.serves(run.directory.fd):
            for read in reads:
                if read[0]:
                    cache.remember(ReadFile(*read), read[3], run.now_ns)
        if not run.known and all(read[0] for read in reads):
            fixed = [read[3] for read in reads]
            ids = cast("list[ObjectId]", [part[-ID_BYTES:] for part in fixed])
            self._batch.add_pieces(ids, lambda i: memory[reads[i][1] : reads[i][1] + reads[i][2]])
            self._names, self._fixed = run.names, fixed
            return
        answers = iter(reads)
        for name in run.names:
            known = run.known.get(name)
            if known is None:
                done, at, size, known = next(answers)[:4]
                if not done:
                    self._read_file(run, name)
                    continue
                self._ids.append(ObjectId(known[-ID_BYTES:]))
                self._data.append(memory[at : at + size])
            self._names.append(name)
            self._fixed.append(known)

    def _read_file(self, run: _Run, name: bytes) -> None:
        directory = run.directory
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=directory.fd)
            try:
                info = os.fstat(fd)
                size = info.st_size
                if size <= PIECE_MAX and stat.S_ISREG(info.st_mode):
                    data = os.read(fd, size + 1)
                    if len(data) == size and not kept_xattrs(fd) and is_whole(fd, info, run.now_ns):
                        id = hash_bytes(data)
                        fixed = encode_file(info, id)
                        self._names.append(name)
                        self._fixed.append(fixed)
                        self._ids.append(id)
                        self._data.append(data)
                        self._data_bytes += size
                        self._remember(run, info, fixed)
                        if self._data_bytes >= _RUN_BYTES:
                            self._end_run(run)
                        return
                    info = os.fstat(fd)
                self._end_run(run)
                self._read_any(run, name, fd, info)
            finally:
                os.close(fd)
        except OSError as error:
            raise reading_error(error, directory.of(name)) from error

    def _read_any(self, run: _Run, name: bytes, fd: int, info: os.stat_result) -> None:
        """A file that is large, has xattrs, or changes while it is read."""
        directory = run.directory
        previous = directory.before(self._batch, name) if info.st_size > PIECE_MAX else None
        entry = self._files.file(fd, info, previous, directory.of(name))
        if entry.size == info.st_size and not entry.has_xattrs:
            self._remember(run, info, entry.encode()[0])
        directory.builder.add(entry_item(name, entry))

    def _remember(self, run: _Run, info: os.stat_result, fixed: bytes) -> None:
        cache = self._files.cache
        if cache is not None and cache.serves(run.directory.fd):
            cache.remember(info, fixed, run.now_ns)

    def _end_run(self, run: _Run) -> None:
        """Store the small files that were read."""
        if self._names:
            self._batch.add_pieces(self._ids, self._data.__getitem__)
            run.directory.builder.add_files(self._names, self._fixed)
            self._files.count(len(self._names), sizes_of(self._fixed))
            self._names, self._fixed, self._ids, self._data, self._data_bytes = [], [], [], [], 0

    def _read_other(self, step: _Other) -> None:
        directory, name, kind = step
        if kind == _OTHER:
            self._files.report.skipped.append(directory.of(name))
            return
        with _reading(lambda: directory.of(name)):
            info = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=directory.fd)
        entry = symlink_entry(target, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)
        directory.builder.add(entry_item(name, entry))
        self._files.count(1, 0)


def _tag_of(item: os.DirEntry[str]) -> bytes:
    """What follows the name of what is no file in a list of names and kinds: NUL, so that names sort as if it were not there, and the kind."""
    if item.is_dir(follow_symlinks=False):
        return b"\0d"
    return b"\0l" if item.is_symlink() else b"\0o"


@contextmanager
def _reading(path: bytes | Callable[[], bytes]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise reading_error(error, path if isinstance(path, bytes) else path()) from error


def reading_error(error: OSError, path: bytes) -> PfsError:
    """The error that a user sees for a local file that cannot be read."""
    where = display(path)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"there is no file {where}; nothing was committed")
    if error.errno in (ENOTDIR, ELOOP, EINVAL):
        return InvalidInput(
            f"{where} is not what it was when its directory was read ({error.strerror}); nothing was committed",
            hint="run the command again when nothing changes there",
        )
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{where} cannot be read: {error.strerror}; nothing was committed")
    return error_for(error, f"reading {where}")
