"""Reading past the page cache, for who goes over a whole store once: what others have in memory stays there, and a read costs next to no processor time.

A buffered reader that shares its processors with threads that hash is woken many times for each window, and waits for a processor each time; this one once.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_CACHESTAT = 451
"""The number of the system call, on all architectures (Linux 6.5). The C library has no name for it."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


_syscall = ctypes.CDLL(None, use_errno=True).syscall


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """Pages of a range of a file that are in the page cache; None where the kernel does not say."""
    pages = _Pages()
    failed = _syscall(_CACHESTAT, fd, ctypes.byref(_Range(offset, length)), ctypes.byref(pages), 0)
    return None if failed else int(pages.cached)


class Uncached:
    """A file that is read past the page cache, where that is possible and the cache has nothing of what is read. Thread-safe."""

    def __init__(self, fd: int) -> None:
        """`fd`: the file, which stays open as long as this."""
        self._fd, self._direct = fd, -1
        if cached_pages(fd, 0, 1) is not None:
            with suppress(OSError):  # no /proc, or a filesystem that cannot
                self._direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def read_into(self, memory: memoryview, offset: int) -> int:
        """Fill memory that begins on a page, as far as this can; bytes read: what is left, and why, a buffered read finds out. All are multiples of the block."""
        if self._direct < 0 or cached_pages(self._fd, offset, len(memory)) != 0:
            return 0
        with suppress(OSError):
            return os.preadv(self._direct, [memory], offset)
        return 0

    def close(self) -> None:
        """After the last read; any number of times."""
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)

    __del__ = close
