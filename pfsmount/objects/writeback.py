"""Letting the kernel bring a range of a file to the disk, without waiting for it."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: begin, and do not wait. It takes no error away from the fsync that comes later."""


@lru_cache(maxsize=1)
def _sync_file_range() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        function.restype = ctypes.c_int
    return function


def start_writing(fd: int, offset: int, length: int) -> None:
    """Begin to write what is dirty in a range; it stays in the page cache, which `POSIX_FADV_DONTNEED` does not promise.

    Waits only where the disk takes no more: for a thread. Advice, so no error: what goes wrong is the fsync's to say.
    """
    function = _sync_file_range()
    if function is not None:
        function(fd, offset, length, _WRITE)
    else:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
