"""What is done for the commit of a large file while the file is still being written: its bytes go to the disk, and are hashed.

Only for a file that a commit would adopt (`tree.adoption`), and only while it grows at its end. One thread for all files of a worktree follows the writers, some MiB
behind; what it has not done by then, the commit does.

A hash counts as long as nothing below its end was written. A writer says so after its bytes are in the file (`FileAhead.wrote`), on the thread of the event loop, and the cut of
a commit comes after all writers: so what counts at the cut is right, whatever the thread has read meanwhile.
"""

from __future__ import annotations

import logging
import os
from queue import SimpleQueue
from threading import Lock, Thread

from pfsmount.config import MIB
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import file_hasher, hash_bytes
from pfsmount.objects.parts import Part
from pfsmount.objects.writeback import start_writing
from pfsmount.tree.adoption import HashedStart
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.sources import pread_into

log = logging.getLogger(__name__)
_STEP = 16 * MIB
_RESTARTS_MAX = 2


class FileAhead:
    """How far the thread is with one file."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._end = 0
        """Bytes of the file."""
        self._asked = 0
        """Up to where the thread was asked to go."""
        self._waits = False
        """It was asked, and has not begun."""
        self._started = 0
        """Up to where bytes are on their way to the disk."""
        self._claimed = 0
        """Up to where the thread has read or is reading."""
        self._age = 0
        self._ids: list[ObjectId] = []
        self._hasher = file_hasher(aside=True)

    def wrote(self, start: int, end: int) -> bool:
        """These bytes were written. True when there is enough for the thread to be asked for."""
        with self._lock:
            self._forget(start)
            self._end = max(self._end, end)
            if self._waits or self._end < self._asked + _STEP:
                return False
            self._asked, self._waits = self._end, True
            return True

    def wrote_in_part(self, start: int) -> None:
        """A write failed, and nobody knows how far it came."""
        with self._lock:
            self._forget(start)

    def resized(self, size: int) -> None:
        """The file has this size now."""
        with self._lock:
            self._forget(size)
            self._end, self._asked, self._started = size, min(self._asked, size), min(self._started, size)

    def _forget(self, start: int) -> None:
        """What is behind `start` is not what it was."""
        if start < self._claimed:
            self._age += 1
            self._claimed, self._ids, self._hasher = 0, [], file_hasher(aside=True)

    def hashed(self) -> HashedStart:
        """What is known of the file's start. The thread does no more."""
        with self._lock:
            self._age += _RESTARTS_MAX + 1
            return HashedStart(tuple(self._ids), self._hasher.copy())

    # In the thread

    def advance(self, fd: int, part: Part) -> None:
        """Do what can be done now."""
        with self._lock:
            start, self._started, self._waits = self._started, self._end, False
            length = self._started - start
        start_writing(fd, start, length)
        while self._hash_next(fd, part) and not self._waits:  # else there is more to bring to the disk first
            pass

    def _hash_next(self, fd: int, part: Part) -> bool:
        with self._lock:
            age, hasher, start = self._age, self._hasher, self._claimed
            if age > _RESTARTS_MAX or start + PIECE_MAX > self._end:
                return False
            self._claimed += PIECE_MAX
        data = part.memory[:PIECE_MAX]
        if pread_into(fd, data, start) != PIECE_MAX:
            return False
        id, whole = hash_bytes(data), hasher.copy()
        whole.update(data)
        with self._lock:
            if self._age != age:
                return self._age <= _RESTARTS_MAX
            self._ids.append(id)
            self._hasher = whole
            return True


class Follower:
    """The thread. It begins with the first file that is large enough, and ends with `close`."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[FileAhead, int] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def follow(self, ahead: FileAhead, fd: int) -> None:
        """Let it go on with a file. Does not wait. Raises OSError, RuntimeError: no descriptor or thread is left."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name="ahead of a commit", daemon=True)
            self._thread.start()
        self._asked.put((ahead, os.dup(fd)))

    def _work(self) -> None:
        part: Part | None = None
        while (asked := self._asked.get()) is not None:
            ahead, fd = asked
            try:
                part = Part(PIECE_MAX) if part is None else part
                ahead.advance(fd, part)
            except OSError:
                pass  # the commit will meet it
            except Exception:
                log.exception("hashing a file ahead of its commit failed; the commit does it")
            finally:
                os.close(fd)

    def close(self) -> None:
        """End the thread after what it was asked for; does not wait. Any number of times."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread = None
