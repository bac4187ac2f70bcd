"""Who runs which datum at the moment: two jobs at once do not run the same one twice.

A claim is a lock on one byte of the file `run/claims` of the store, at an offset that the datum's key gives. The kernel lets go of it when the
runner ends, however it ends. A claim is held until the result is durable, so whoever gets it next finds the result.

Two datums can have the same offset (once in 2^62): then one waits for the other, which is no harm.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.layout import disk_errors

# struct flock of Linux on 64-bit machines: type, whence, start, length, pid
_FLOCK = struct.Struct("@hhqqi4x")
_OFFSETS = 1 << 62


class Claims:
    """The claims of one job. Thread-safe; a context manager."""

    def __init__(self, place: Path) -> None:
        """Raises NoSpace, PermissionDenied."""
        with disk_errors("opening the claims of jobs"):
            self._fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def take(self, key: ObjectId) -> bool:
        """Claim a datum; False when another job has it."""
        try:
            self._lock(fcntl.F_WRLCK, key)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def release(self, key: ObjectId) -> None:
        """Let others have a datum."""
        self._lock(fcntl.F_UNLCK, key)

    def _lock(self, kind: int, key: ObjectId) -> None:
        offset = int.from_bytes(key[:8], "big") % _OFFSETS
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
