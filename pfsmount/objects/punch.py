"""Giving ranges of a file back to the filesystem."""

from __future__ import annotations

import ctypes
import os
from errno import EINTR, ENOSYS, EOPNOTSUPP
from functools import lru_cache

_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@lru_cache(maxsize=1)
def _fallocate() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int
    return function


def punch(fd: int, start: int, length: int) -> bool:
    """Make a range a hole; the size of the file stays. False where the filesystem cannot. Raises OSError."""
    function = _fallocate()
    if function is None:
        return False
    while function(fd, _PUNCH_HOLE | _KEEP_SIZE, start, length):
        number = ctypes.get_errno()
        if number in (EOPNOTSUPP, ENOSYS):
            return False
        if number != EINTR:
            raise OSError(number, os.strerror(number))
    return True
