"""The data files of a worktree: `data/<number>`, opened as needed.

Any number of files can be changed and open at once while file descriptors are limited (20 000 is a common hard limit), so descriptors are a
cache here: the one not used for longest is closed and opened again when needed. A descriptor that another thread works with is pinned.
Numbers are never used twice, and a file is deleted only when no node needs it, so opening it again finds the same file.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pfsmount.objects.layout import fsync_directory
from pfsmount.repo.ahead import FileAhead, Follower
from pfsmount.repo.overlay_nodes import FileStat, Stale

_OPEN_MAX = 1024
_COPY_BYTES = 1 << 20
_SYNC_ROUNDS = 4


class DataFiles:
    """The directory `data/` of one worktree. One thread at a time, but for work with a pinned descriptor."""

    def __init__(self, path: Path, *, limit: int = _OPEN_MAX) -> None:
        self.path = path
        self._limit = limit
        self._directory = -1
        self._open: OrderedDict[int, int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._late: dict[int, list[int]] = {}
        """Descriptors to close when nobody has the number pinned any more."""
        self._created = 0
        self._created_durable = 0
        self._unsynced: dict[int, int] = {}
        """Files that must be durable before the journal's lines about them are; each with a count of when it became one."""
        self._unsynced_count = 0
        self._unsynced_lock = threading.Lock()
        self._trash: list[int] = []
        self._follower = Follower()
        self.sync_failed = False
        """An fsync failed once. The kernel reports a lost page once only, so no other fsync here says that a file is on the disk."""

    def _at(self) -> int:
        if self._directory < 0:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self._directory

    def create(self, number: int) -> int:
        """A new empty file; returns its descriptor. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(str(number), flags, 0o600, dir_fd=self._at())
        except FileExistsError:  # left by a crash between this file and its journal line
            self.delete(number)
            fd = os.open(str(number), flags, 0o600, dir_fd=self._at())
        self._created += 1
        self._remember(number, fd)
        return fd

    def fd(self, number: int) -> int:
        """The descriptor of an existing file, valid until the next call here. Raises Stale, OSError."""
        fd = self._open.get(number)
        if fd is not None:
            self._open.move_to_end(number)
            return fd
        try:
            fd = os.open(str(number), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._at())
        except FileNotFoundError:
            raise Stale("the changes that the file was part of are committed or gone") from None
        except PermissionError:  # a read-only look at another's worktree
            fd = os.open(str(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._at())
        self._remember(number, fd)
        return fd

    def _remember(self, number: int, fd: int) -> None:
        old = self._open.pop(number, None)
        if old is not None:
            self._close_fd(number, old)
        self._open[number] = fd
        if len(self._open) > self._limit:
            for other in self._open:
                if other not in self._pins and other != number:
                    os.close(self._open.pop(other))
                    break

    def _close_fd(self, number: int, fd: int) -> None:
        if number in self._pins:
            self._late.setdefault(number, []).append(fd)
        else:
            os.close(fd)

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
            for fd in self._late.pop(number, ()):
                os.close(fd)

    def release(self, number: int) -> None:
        """Nobody has the file open any more: its descriptor may go."""
        if number not in self._pins:
            fd = self._open.pop(number, None)
            if fd is not None:
                os.close(fd)

    def delete(self, number: int) -> None:
        """Delete a file, if it is there; whoever has it pinned can go on."""
        self.release(number)
        self._forget_unsynced(number)
        with suppress(FileNotFoundError):
            os.unlink(str(number), dir_fd=self._at())

    def delete_later(self, number: int) -> None:
        """Delete a file with the next `empty_trash`; a commit gives up thousands at once."""
        self.release(number)
        self._forget_unsynced(number)
        self._trash.append(number)

    def empty_trash(self) -> None:
        """Delete what `delete_later` named; in any thread.

        No error: what these files were part of is committed or gone, and the next owner of the worktree deletes what stays.
        """
        while self._trash:
            number = self._trash.pop()
            with suppress(OSError):
                os.unlink(str(number), dir_fd=self._at())

    def numbers(self) -> list[int]:
        """All files there are."""
        if self._directory < 0 and not self.path.exists():
            return []
        return [int(name) for name in os.listdir(self._at()) if name.isdigit()]

    def bytes_on_disk(self) -> int:
        """What all of them hold, without holes; in any thread."""
        total = 0
        with suppress(FileNotFoundError), os.scandir(self.path) as files:
            for file in files:
                with suppress(FileNotFoundError):
                    found = file.stat(follow_symlinks=False)
                    total += min(found.st_size, 512 * found.st_blocks)
        return total

    def stat(self, number: int) -> FileStat:
        """Size, time and blocks of a file. Raises Stale, OSError."""
        fd = self._open.get(number)
        try:
            found = os.stat(str(number), dir_fd=self._at()) if fd is None else os.fstat(fd)
        except FileNotFoundError:
            raise Stale("the changes that the file was part of are committed or gone") from None
        return FileStat(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_blocks)

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

    def sync(self, fd: int) -> None:
        """Make one file durable; in any thread. Raises OSError."""
        try:
            os.fsync(fd)
        except OSError:
            self.sync_failed = True
            raise

    def follow(self, number: int, ahead: FileAhead) -> None:
        """Let a file that grows be hashed and go to the disk. Does not wait. No error: the commit can do without."""
        with suppress(OSError, RuntimeError):
            self._follower.follow(ahead, self.fd(number))

    def links(self, number: int) -> int:
        """How many names a file has. Raises OSError."""
        return os.stat(str(number), dir_fd=self._at()).st_nlink

    def inode(self, number: int) -> int:
        """The file's inode number. Raises OSError."""
        return os.stat(str(number), dir_fd=self._at()).st_ino

    def separate(self, number: int, free: int) -> None:
        """Put a durable copy into the place of a file that has another name too; `free` is a number that nothing has. Raises OSError."""
        stat = self.stat(number)
        source = self.fd(number)
        self.fill(free, stat.size, stat.mtime_ns, lambda offset, size: read_all(source, offset, size))
        os.fsync(self.fd(free))
        self.release(free)
        self.release(number)
        os.replace(str(free), str(number), src_dir_fd=self._at(), dst_dir_fd=self._at())
        os.fsync(self._at())

    def sync_names(self) -> None:
        """Make the names of created files durable. Raises OSError."""
        created = self._created  # before: a file created meanwhile counts further
        if created > self._created_durable:
            os.fsync(self._at())
            if not self._created_durable:
                fsync_directory(self.path.parent)  # this directory may be new itself
            self._created_durable = max(created, self._created_durable)

    def sync_first(self, number: int) -> None:
        """The journal is about to say that a file shows its data instead of the base's: then the data must be durable before the line."""
        with self._unsynced_lock:
            self._unsynced_count += 1
            self._unsynced[number] = self._unsynced_count

    def _forget_unsynced(self, number: int) -> None:
        with self._unsynced_lock:
            self._unsynced.pop(number, None)

    def sync_contents(self, besides: Collection[int] = ()) -> None:
        """Make all files durable that `sync_first` named, but for those in `besides`; in any thread. Raises OSError."""
        for _ in range(
            _SYNC_ROUNDS
        ):  # more files may come meanwhile; whoever writes without a pause does not hold this up for ever
            with self._unsynced_lock:
                todo = [(number, count) for number, count in self._unsynced.items() if number not in besides]
            if not todo:
                return
            for number, count in todo:
                with suppress(FileNotFoundError):
                    fd = os.open(self.path / str(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        self.sync(fd)
                    finally:
                        os.close(fd)
                with self._unsynced_lock:  # not before: another fsync must not return while this one is at it
                    if self._unsynced.get(number) == count:
                        del self._unsynced[number]

    def close(self) -> None:
        """Close all descriptors, pinned ones when they are unpinned; any number of times."""
        self._follower.close()
        if self._trash:
            self.empty_trash()
        while self._open:
            self._close_fd(*self._open.popitem())
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


def read_all(fd: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes, fewer only at the end of the file. Raises OSError."""
    part = os.pread(fd, size, offset)
    if len(part) == size or not part:
        return part
    parts = [part]
    count = len(part)
    while count < size and (part := os.pread(fd, size - count, offset + count)):
        parts.append(part)
        count += len(part)
    return b"".join(parts)


def read_nowait(fd: int, offset: int, size: int) -> bytes | bytearray | None:
    """Up to `size` bytes, fewer only at the end of the file; None when that would wait for the disk. Raises OSError."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError:  # a filesystem without RWF_NOWAIT
        return read_all(fd, offset, size)
    if count == size:
        return buffer
    if offset + count < os.fstat(fd).st_size:
        return None
    return buffer[:count]
