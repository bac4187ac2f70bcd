"""The data files of a worktree: `data/<number>`, opened as needed.

Any number of files can be changed and open at once while file descriptors are limited (20 000 is a common hard limit), so descriptors are a
cache here: the one not used for longest is closed and opened again when needed. A descriptor that another thread works with is pinned.
Numbers are never used twice, and a file is deleted only when no node needs it, so opening it again finds the same file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pfsmount.repo.overlay_nodes import FileStat, Stale

_OPEN_MAX = 1024
_COPY_BYTES = 1 << 20


class DataFiles:
    """The directory `data/` of one worktree. One thread at a time, but for work with a pinned descriptor."""

    def __init__(self, path: Path, *, limit: int = _OPEN_MAX) -> None:
        self.path = path
        self._limit = limit
        self._directory = -1
        self._open: OrderedDict[int, int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._names_dirty = False
        self._trash: list[int] = []

    def _at(self) -> int:
        if self._directory < 0:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._directory

    def create(self, number: int) -> int:
        """A new empty file; returns its descriptor. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(str(number), flags, 0o600, dir_fd=self._at())
        except FileExistsError:  # left by a crash between this file and its journal line
            self.delete(number)
            fd = os.open(str(number), flags, 0o600, dir_fd=self._at())
        self._names_dirty = True
        self._remember(number, fd)
        return fd

    def fd(self, number: int) -> int:
        """The descriptor of an existing file, valid until the next call here. Raises Stale, OSError."""
        fd = self._open.get(number)
        if fd is not None:
            self._open.move_to_end(number)
            return fd
        try:
            fd = os.open(str(number), os.O_RDWR | os.O_CLOEXEC, dir_fd=self._at())
        except FileNotFoundError:
            raise Stale("the changes that the file was part of are committed or gone") from None
        except PermissionError:  # a read-only look at another's worktree
            fd = os.open(str(number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._at())
        self._remember(number, fd)
        return fd

    def _remember(self, number: int, fd: int) -> None:
        self._open[number] = fd
        if len(self._open) > self._limit:
            for other in self._open:
                if other not in self._pins and other != number:
                    os.close(self._open.pop(other))
                    break

    def pin(self, number: int) -> int:
        """As `fd`, but it stays open until `unpin`: for work in another thread."""
        fd = self.fd(number)
        self._pins[number] = self._pins.get(number, 0) + 1
        return fd

    def unpin(self, number: int) -> None:
        """End one `pin`."""
        count = self._pins[number] - 1
        if count:
            self._pins[number] = count
        else:
            del self._pins[number]

    def release(self, number: int) -> None:
        """Nobody has the file open any more: its descriptor may go."""
        if number not in self._pins:
            fd = self._open.pop(number, None)
            if fd is not None:
                os.close(fd)

    def delete(self, number: int) -> None:
        """Delete a file, if it is there; whoever has it pinned can go on."""
        self.release(number)
        with suppress(FileNotFoundError):
            os.unlink(str(number), dir_fd=self._at())

    def delete_later(self, number: int) -> None:
        """Delete a file with the next `empty_trash`; a commit gives up thousands at once."""
        self.release(number)
        self._trash.append(number)

    def empty_trash(self) -> None:
        """Delete what `delete_later` named; in any thread."""
        while self._trash:
            number = self._trash.pop()
            with suppress(FileNotFoundError):
                os.unlink(str(number), dir_fd=self._at())

    def numbers(self) -> list[int]:
        """All files there are."""
        if self._directory < 0 and not self.path.exists():
            return []
        return [int(name) for name in os.listdir(self._at()) if name.isdigit()]

    def stat(self, number: int) -> FileStat:
        """Size, time and blocks of a file. Raises Stale, OSError."""
        fd = self._open.get(number)
        try:
            found = os.stat(str(number), dir_fd=self._at()) if fd is None else os.fstat(fd)
        except FileNotFoundError:
            raise Stale("the changes that the file was part of are committed or gone") from None
        return FileStat(found.st_size, found.st_mtime_ns, found.st_blocks)

    def set_mtime(self, number: int, mtime_ns: int) -> None:
        """Set the time of a file. Raises OSError."""
        os.utime(self.fd(number), ns=(mtime_ns, mtime_ns))

    def truncate(self, number: int, size: int) -> None:
        """Set the size of a file. Raises OSError."""
        os.ftruncate(self.fd(number), size)

    def fill(self, number: int, size: int, mtime_ns: int, read: Callable[[int, int], bytes]) -> None:
        """Put content into a new file: `read(offset, size)` gives it. Raises OSError and what `read` raises."""
        fd = self.create(number)
        try:
            offset = 0
            while offset < size:
                block = read(offset, min(_COPY_BYTES, size - offset))
                if not block:
                    break
                write_all(fd, block, offset)
                offset += len(block)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        except BaseException:
            self.delete(number)
            raise

    def sync_names(self) -> None:
        """Make the names of created files durable. Raises OSError."""
        if self._names_dirty:
            self._names_dirty = False  # before: a file created meanwhile sets it again
            try:
                os.fsync(self._at())
            except BaseException:
                self._names_dirty = True
                raise

    def close(self) -> None:
        """Close all descriptors; any number of times."""
        if self._trash:
            self.empty_trash()
        while self._open:
            os.close(self._open.popitem()[1])
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def write_all(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write until everything is written, or an error comes after some of it was; returns how much. Raises OSError."""
    count = os.pwrite(fd, data, offset)
    if count == len(data):
        return count
    view = memoryview(data)
    while count < len(view):
        try:
            more = os.pwrite(fd, view[count:], offset + count)
        except OSError:
            break
        if not more:
            break
        count += more
    return count


def read_nowait(fd: int, offset: int, size: int) -> bytes | bytearray | None:
    """Up to `size` bytes, fewer only at the end of the file; None when that would wait for the disk. Raises OSError."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError:  # a filesystem without RWF_NOWAIT
        return os.pread(fd, size, offset)
    if count == size:
        return buffer
    if offset + count < os.fstat(fd).st_size:
        return None
    return buffer[:count]
