"""What running processes keep from gc: files in `run/holds/`, each locked by the process that wrote it for as long as it counts.

| line | what is kept |
|---|---|
| `segment <number> <start>` | all that lies in this segment from this byte on: objects that a batch has published before its commit |
| `commit <64 hex>` | a commit with its history: somebody reads it, whatever becomes of its branch |

A file `*.ids` is ids and nothing else, 32 bytes each: objects that a batch which cannot be repeated (its source was a stream) has found in the store and uses again.

The lock, not the file, says that it counts, so a kill leaves nothing that keeps anything; gc deletes such files.

Why gc misses none (the order of each step is what matters):

* **segment**: the line is written before the transaction that publishes. gc takes the published ends first and reads the lines afterwards. If the ends include
  the batch's objects, its line was there before. Where the line has gone again, the batch has ended: either it was given up, or its
  last transaction has come, which gc notices by the counter `roots` before it drops anything.
* **ids**: written, and looked up in the index once more, both under the shared lock; gc holds it exclusively from reading them to the end of each transaction that drops anything. So
  either gc sees the id, or the batch sees that the object is gone, and stores it.
* **commit**: the line is written and the commit is looked for in the index, both under a shared lock on `run/holds/lock`; gc holds it exclusively while it reads the
  lines and drops commits. So either gc sees the line, or the commit is seen to be gone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from pfsmount.errors import NoSpace, PermissionDenied
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.layout import disk_errors

_DIRECTORY = "holds"
_LOCK = "lock"
_IDS = ".ids"


@dataclass(slots=True)
class Held:
    """What all running processes hold."""

    commits: set[ObjectId] = field(default_factory=set)
    segments: dict[int, int] = field(default_factory=dict)
    """Segment number → from which byte on."""
    ids: bytearray = field(default_factory=bytearray)
    """Objects, 32 bytes each."""


class Hold:
    """A file of this process. It counts until `close`, or the end of the process."""

    def __init__(self, store: Path, suffix: str = "") -> None:
        """Raises NoSpace, PermissionDenied."""
        directory = _directory(store)
        with disk_errors("registering what is in use"):
            while True:
                self._path = directory / (secrets.token_hex(8) + suffix)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if os.fstat(self._fd).st_nlink:
                    break
                os.close(self._fd)  # a gc came between the two and took it for a dead one's
        self._written = 0

    def add_segment(self, number: int, start: int) -> None:
        """Hold what lies in a segment from a byte on. Raises NoSpace."""
        self._add(b"segment %d %d\n" % (number, start))

    def add_commit(self, id: ObjectId) -> None:
        """Hold a commit; to be called within `commits_stay`. Raises NoSpace."""
        self._add(b"commit %s\n" % id.hex().encode("ascii"))

    def _add(self, data: bytes) -> None:
        # One pwrite at a known place: what a full disk has torn is written again, and readers skip half a line.
        with disk_errors("registering what is in use"):
            count = os.pwrite(self._fd, data, self._written)
            while count < len(data):
                count += os.pwrite(self._fd, data[count:], self._written + count)
        self._written += len(data)

    def close(self) -> None:
        """Hold nothing any more. Any number of times."""
        if self._fd >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._fd)
            self._fd = -1


class IdHold(Hold):
    """Objects, by their ids."""

    def __init__(self, store: Path) -> None:
        """Raises NoSpace, PermissionDenied."""
        super().__init__(store, _IDS)
        self._lock = _open_lock(store)

    def add(self, ids: Iterable[ObjectId]) -> None:
        """Hold objects; to be called within `nothing_dropped`, before looking for them, or in a transaction that changes the index. Raises NoSpace."""
        self._add(b"".join(ids))

    @contextmanager
    def nothing_dropped(self) -> Iterator[None]:
        """As `commits_stay`, for a caller who asks for each object."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._lock)
        super().close()


class CommitHold:
    """The commits that one process has open. Thread-safe. A full disk, or a store that cannot be written to, only means that they are not held."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._hold: Hold | None = None
        self._counts: dict[ObjectId, int] = {}
        self._stale = 0
        self._removed: deque[ObjectId] = deque()
        self._lock = Lock()

    def add(self, id: ObjectId, is_there: Callable[[ObjectId], bool]) -> bool:
        """Hold a commit, once more; False when it has gone. May wait for a gc that drops commits just now."""
        with self._lock:
            self._let_go()
            if id not in self._counts:
                try:
                    with commits_stay(self._store):
                        if self._hold is None:
                            self._hold = Hold(self._store)
                        self._hold.add_commit(id)
                        if not is_there(id):
                            return False
                except (NoSpace, PermissionDenied):
                    return is_there(id)
            self._counts[id] = self._counts.get(id, 0) + 1
            return True

    def holds(self, id: ObjectId) -> bool:
        """Whether it is held."""
        return id in self._counts

    def remove(self, id: ObjectId) -> None:
        """Undo one `add`. Waits for nothing: where it would have to, the commit stays held until the next call."""
        self._removed.append(id)
        if self._lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        """Carry out what `remove` was asked for; the file is written anew from time to time. Under the lock."""
        while self._removed:
            id = self._removed.popleft()
            self._counts[id] = self._counts.get(id, 0) - 1
            if self._counts[id] <= 0:
                del self._counts[id]
                self._stale += 1
        if self._hold is None or self._stale <= len(self._counts):
            return
        with suppress(NoSpace, PermissionDenied, BlockingIOError), commits_stay(self._store, wait=False):
            fresh = Hold(self._store) if self._counts else None
            for held in self._counts:
                assert fresh is not None
                fresh.add_commit(held)
            self._hold.close()
            self._hold, self._stale = fresh, 0

    def close(self) -> None:
        """Hold nothing any more. Any number of times."""
        with self._lock:
            if self._hold is not None:
                self._hold.close()
                self._hold = None


def _directory(store: Path) -> Path:
    directory = store / "run" / _DIRECTORY
    with disk_errors("registering what is in use"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _open_lock(store: Path) -> int:
    with disk_errors("registering what is in use"):
        return os.open(_directory(store) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def commits_stay(store: Path, *, exclusive: bool = False, wait: bool = True) -> Iterator[None]:
    """While this is held no commit is dropped, nor any other object; `exclusive`: for gc, which drops them. Raises BlockingIOError without `wait`."""
    fd = _open_lock(store)
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def read_holds(store: Path, seen: dict[str, int] | None = None) -> Held:
    """What is held now; files of dead processes are deleted. `seen` remembers which ids were read before; they are left out. Raises PermissionDenied."""
    held = Held()
    seen = {} if seen is None else seen
    with disk_errors("reading what is in use"):
        for path in _directory(store).iterdir():
            if path.name != _LOCK:
                _read(path, held, seen)
    return held


def _read(path: Path, held: Held, seen: dict[str, int]) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            size = os.fstat(fd).st_size
            if path.suffix == _IDS:
                start, end = seen.get(path.name, 0), size - size % ID_BYTES
                held.ids += os.pread(fd, end - start, start)
                seen[path.name] = end
                return
            for line in os.pread(fd, size, 0).decode("ascii", "replace").split("\n")[:-1]:
                read_line(line, held)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
    finally:
        os.close(fd)


def read_line(line: str, held: Held) -> None:
    """Add what a line holds; one that makes no sense holds nothing."""
    with suppress(ValueError):
        match line.split(" "):
            case ["segment", number, start]:
                known = held.segments.get(int(number))
                held.segments[int(number)] = int(start) if known is None else min(known, int(start))
            case ["commit", digits] if len(digits) == 64:
                held.commits.add(ObjectId(bytes.fromhex(digits)))
