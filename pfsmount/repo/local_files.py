"""Local files, read into a batch: what `put` does before it knows anything of a branch.

A tree is read in the order of its names, in runs of small files (`local_steps`): a run is read, hashed, and looked up in the index as one, for what is done
once a file is what it costs. Anything else (a large file, xattrs, a symlink, a directory) is read for itself. When there is much to read, a second process
reads runs ahead (`reading_process`).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT, ENOTDIR
from typing import cast

from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import ID_BYTES, ObjectId, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import Buffer, hash_bytes
from pfsmount.repo.local_steps import (
    OTHER,
    Directory,
    Enter,
    Exclude,
    Leave,
    Other,
    Run,
    Step,
    Steps,
    reading,
    reading_error,
)
from pfsmount.repo.reading_process import ReadFile, ReadingProcess, ReadRecord
from pfsmount.repo.reading_worker import OPEN_FILE, has_changed, is_whole, kept_xattrs
from pfsmount.repo.stat_cache import StatCache
from pfsmount.tree.directory import DirectorySummary, directory_entry
from pfsmount.tree.edit import DirectoryBuilder
from pfsmount.tree.entry import Entry, Kind, encode_file, file_entry, sizes_of, symlink_entry
from pfsmount.tree.ingest import ingest_fd
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.node import entry_item
from pfsmount.tree.xattrs import with_xattrs

_RUN_BYTES = 4 << 20
_TRIES = 3
"""Times that a file is read while somebody writes to it."""


@dataclass(slots=True)
class IngestReport:
    """What was read so far."""

    files: int = 0
    size: int = 0
    skipped: list[bytes] = field(default_factory=list)
    """Local paths of sockets, FIFOs and devices, which are not versioned."""


Progress = Callable[[IngestReport], None]


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
        with reading(path):
            if not stat.S_ISDIR(info.st_mode) and not stat.S_ISREG(info.st_mode):
                raise InvalidInput(f"{display(path)} is neither a file nor a directory")
            fd = os.open(path, OPEN_FILE & ~os.O_NOFOLLOW)
            try:
                if not stat.S_ISDIR(info.st_mode):
                    return self.file(fd, os.fstat(fd), previous, path)
                top = Directory(fd, path, DirectoryBuilder(self.batch), previous=previous)
                _Walk(self).carry_out(top)
                return self.directory(fd, top.builder)
            finally:
                os.close(fd)

    def stream(self, fd: int) -> Entry:
        """A file from a pipe or terminal, until its end. Raises NoSpace, PfsError."""
        with reading(b"standard input"):
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


class _Walk:
    """Reads a directory with all below it."""

    def __init__(self, files: LocalFiles) -> None:
        self._files, self._batch = files, files.batch
        self._names: list[bytes] = []
        self._fixed: list[bytes] = []
        """The entries of this run's files that are known now: names and fixed parts."""
        self._ids: list[ObjectId] = []
        self._data: list[Buffer] = []
        """Ids and bytes of those of them that may be new to the store."""
        self._data_bytes = 0

    def carry_out(self, top: Directory) -> None:
        """Add all entries to the builder of the top directory. Raises OSError, PfsError."""
        files = self._files
        with Steps(top, self._batch, cache=files.cache, process=files.process, exclude=files.exclude) as steps:
            for step in steps:
                self._carry_out(steps, step)

    def _carry_out(self, steps: Steps, step: Step) -> None:
        match step:
            case Run():
                self._read_run(step)
            case Enter(directory):
                assert directory.parent is not None
                directory.previous = directory.parent.before(self._batch, directory.name)
            case Leave(directory):
                assert directory.parent is not None
                with reading(lambda: directory.path):
                    entry = self._files.directory(directory.fd, directory.builder)
                directory.parent.builder.add(entry_item(directory.name, entry))
                steps.close(directory)
            case Other():
                self._read_other(step)

    def _read_run(self, run: Run) -> None:
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

    def _take(self, run: Run, memory: memoryview, reads: list[ReadRecord]) -> None:
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

    def _read_file(self, run: Run, name: bytes) -> None:
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

    def _read_any(self, run: Run, name: bytes, fd: int, info: os.stat_result) -> None:
        """A file that is large, has xattrs, or changes while it is read."""
        directory = run.directory
        previous = directory.before(self._batch, name) if info.st_size > PIECE_MAX else None
        entry = self._files.file(fd, info, previous, directory.of(name))
        if entry.size == info.st_size and not entry.has_xattrs:
            self._remember(run, info, entry.encode()[0])
        directory.builder.add(entry_item(name, entry))

    def _remember(self, run: Run, info: os.stat_result, fixed: bytes) -> None:
        cache = self._files.cache
        if cache is not None and cache.serves(run.directory.fd):
            cache.remember(info, fixed, run.now_ns)

    def _end_run(self, run: Run) -> None:
        """Store the small files that were read."""
        if self._names:
            self._batch.add_pieces(self._ids, self._data.__getitem__)
            run.directory.builder.add_files(self._names, self._fixed)
            self._files.count(len(self._names), sum(sizes_of(self._fixed)))
            self._names, self._fixed, self._ids, self._data, self._data_bytes = [], [], [], [], 0

    def _read_other(self, step: Other) -> None:
        directory, name, kind = step
        if kind == OTHER:
            self._files.report.skipped.append(directory.of(name))
            return
        with reading(lambda: directory.of(name)):
            info = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=directory.fd)
        entry = symlink_entry(target, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)
        directory.builder.add(entry_item(name, entry))
        self._files.count(1, 0)
