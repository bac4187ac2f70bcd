"""What there is to do for a local directory that is put, in order: planned some steps ahead of the reading (`local_files`).

A tree is gone through in the order of its names, in runs of small files, which are looked up in the cache and given to the reading process as they are
planned. Directories are held open and opened relative to each other, so that paths may be of any length and nobody can exchange a directory meanwhile. Of
a deep tree only the last ones are open (`descent`).
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EINVAL, ELOOP, ENOTDIR
from typing import NamedTuple

from pfsmount.errors import InvalidInput, NotFound, PermissionDenied, PfsError
from pfsmount.ids import ID_BYTES, ObjectId, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import error_for
from pfsmount.repo.descent import OPEN_MAX, Identity, identity_of, open_above
from pfsmount.repo.reading_process import ReadingProcess
from pfsmount.repo.reading_worker import OPEN_FILE, RUN_FILES, SLOTS
from pfsmount.repo.stat_cache import StatCache
from pfsmount.tree.directory import lookup
from pfsmount.tree.edit import DirectoryBuilder
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, sizes_of
from pfsmount.tree.manifest import PIECE_MAX, reuse_file

_STEPS_AHEAD = 32
_WORTH_A_PROCESS = 2000
"""Files after which a second process pays: it takes 0.1 s to start, in which the first one reads about so many."""
_RUNS_TO_ONE = 4
"""Of so many runs one is read here. *Measured*, 100 000 files again: 2.4 s with every other one, 2.0 s with one in four, 2.4 s with none."""
_OPEN_DIRECTORY = OPEN_FILE | os.O_DIRECTORY
_FILE, _DIRECTORY, _SYMLINK, OTHER = b"fdlo"
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

Exclude = Callable[[bytes, bool], bool]
"""Given a path relative to the source and whether it is a directory: True leaves it out, with all below it."""


@dataclass(slots=True, eq=False)
class Directory:
    """A directory that is being read: open, with the builder of its entries."""

    fd: int
    """-1 while it is closed, because work goes on far below it."""
    name: bytes
    """Of the first one: the path, as errors name it."""
    builder: DirectoryBuilder
    parent: Directory | None = None
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


class Run(NamedTuple):
    """Files that follow each other in a directory."""

    directory: Directory
    names: list[bytes]
    now_ns: int
    known: dict[bytes, bytes]
    """The fixed parts of the entries of those that the cache and the store have."""
    asked: bool
    """The reading process was asked for the others."""


class Enter(NamedTuple):
    directory: Directory


class Leave(NamedTuple):
    directory: Directory


class Other(NamedTuple):
    """A symlink, or what is not versioned."""

    directory: Directory
    name: bytes
    kind: int


Step = Run | Enter | Leave | Other


class Steps:
    """The steps for a directory and all below it, in order: an iterator that plans some ahead. Leaving the context closes what is open."""

    def __init__(
        self,
        top: Directory,
        batch: Batch,
        *,
        cache: StatCache | None,
        process: ReadingProcess | None,
        exclude: Exclude | None,
    ) -> None:
        self._top, self._batch = top, batch
        self._cache, self._process, self._exclude = cache, process, exclude
        self._open: set[Directory] = set()
        self._seen = 0
        self._turn = 0
        self._all = self._steps()
        self._ahead: deque[Step] = deque()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        for directory in self._open:
            os.close(directory.fd)
        self._open.clear()

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Step:
        """The next step. Raises PfsError."""
        while not self._is_enough() and (step := next(self._all, None)) is not None:
            self._ahead.append(step)
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def close(self, directory: Directory) -> None:
        """Close a directory that is done."""
        self._open.remove(directory)
        os.close(directory.fd)

    def _is_enough(self) -> bool:
        """True when no more steps should be planned now.

        With a second process: when it has as many runs as it takes. One run in four is read here, for storing what it read is less work than
        reading, and both should be busy.
        """
        process = self._process
        return len(self._ahead) >= _STEPS_AHEAD or (process is not None and process.asked >= SLOTS - 1)

    def _steps(self) -> Iterator[Step]:
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
                    yield Other(directory, name, kind)
            if below is not None:
                yield Enter(below)
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
                yield Leave(directory)

    def _list(self, directory: Directory) -> Iterator[tuple[bytes, int]]:
        """Names and kinds in bytewise order. One string an entry: there may be millions, and sorting needs all."""
        with reading(lambda: directory.path), os.scandir(directory.fd) as scan:
            found = sorted(
                item.name.encode(_ENCODING, _ERRORS)
                + (b"\0f" if item.is_file(follow_symlinks=False) else _tag_of(item))
                for item in scan
            )
        items = ((text[:-2], text[-1]) for text in found)
        exclude = self._exclude
        if exclude is None:
            return items
        relative = directory.relative
        return (item for item in items if not exclude(relative + item[0], item[1] == _DIRECTORY))

    def _descend(self, directory: Directory, name: bytes) -> Directory:
        with reading(lambda: directory.of(name)):
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=directory.fd)
        below = Directory(fd, name, DirectoryBuilder(self._batch), directory)
        self._open.add(below)
        return below

    def _close_meanwhile(self, directory: Directory) -> None:
        """Close a directory that is so far above that no planned step is about it."""
        directory.identity = identity_of(directory.fd)
        self._open.remove(directory)
        os.close(directory.fd)
        directory.fd = -1

    def _open_again(self, directory: Directory, below: Directory) -> None:
        if directory.fd < 0:
            with reading(lambda: directory.path):
                above = open_above(below.fd, directory.identity)
            if above is None:
                raise InvalidInput(
                    f"{display(below.path)} was moved to another directory while it was read; nothing was committed",
                    hint="run the command again when nothing changes there",
                )
            directory.fd = above
            self._open.add(directory)

    def _plan(self, directory: Directory, names: list[bytes]) -> Run:
        now_ns = time.time_ns()
        known = self._look_up(directory, names)
        process, asked = self._process, False
        if process is not None and len(known) < len(names):
            self._seen += len(names) - len(known)
            if self._seen > _WORTH_A_PROCESS:
                process.start()
                self._turn += 1
                if self._turn % _RUNS_TO_ONE and process.is_free:
                    asked = process.ask(directory.fd, [name for name in names if name not in known])
        return Run(directory, names, now_ns, known, asked)

    def _look_up(self, directory: Directory, names: list[bytes]) -> dict[bytes, bytes]:
        """The fixed parts of entries that the cache knows, of contents that the store has; none when the first is unknown, for then most are."""
        found: dict[bytes, bytes] = {}
        cache = self._cache
        if cache is None or not cache.serves(directory.fd):
            return found
        for part in (names[:1], names[1:]):
            try:
                infos = [os.stat(name, dir_fd=directory.fd, follow_symlinks=False) for name in part]
            except OSError as error:
                raise reading_error(error, directory.of(os.fsencode(error.filename))) from error
            cached = [(name, fixed) for name, fixed in zip(part, cache.find(infos), strict=True) if fixed is not None]
            stored = self._batch.reuse([ObjectId(fixed[-ID_BYTES:]) for _, fixed in cached])
            sizes = zip(cached, sizes_of([fixed for _, fixed in cached]), strict=True)
            for id in (ObjectId(item[1][-ID_BYTES:]) for item, size in sizes if size > PIECE_MAX):
                if not reuse_file(self._batch, id):
                    stored.discard(id)
            stored.add(EMPTY_FILE_ID)
            found.update(item for item in cached if item[1][-ID_BYTES:] in stored)
            if not found:
                break
        return found


def _tag_of(item: os.DirEntry[str]) -> bytes:
    """What follows the name of what is no file in a list of names and kinds: NUL, so that names sort as if it were not there, and the kind."""
    if item.is_dir(follow_symlinks=False):
        return b"\0d"
    return b"\0l" if item.is_symlink() else b"\0o"


@contextmanager
def reading(path: bytes | Callable[[], bytes]) -> Iterator[None]:
    """Turn an OSError inside into the error that a user sees for this local path."""
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
