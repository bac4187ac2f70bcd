"""Locks that say who lives: of a worktree, a mount, a job, a turn.

Open file description locks, on one byte: like flock the kernel takes them back from the dead, and unlike flock they can be looked at without being taken, so that
no look makes somebody else's try fail. Linux fcntl(2), F_OFD_SETLK.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


def try_lock(fd: int, byte: int = 0) -> bool:
    """Take the lock, exclusively, for as long as this open file (opened for writing) is open. False when somebody has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(fd: int, byte: int = 0) -> None:
    """Give the lock back, when this open file has it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(byte, fcntl.F_UNLCK))


def is_locked(fd: int, byte: int = 0) -> bool:
    """Whether somebody has the lock through another open file."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_path_locked(path: Path) -> bool:
    """Whether somebody has the lock on the file at `path`; no file, no lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def _flock(byte: int, kind: int = fcntl.F_WRLCK) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
