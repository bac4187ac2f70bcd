"""Who runs which datum at the moment: two jobs at once do not run the same one twice.

A claim is a lock on one byte of the file `run/claims` of the store, at an offset that the datum's key gives. The kernel lets go of it when the
runner ends, however it ends. A claim is held until the result is durable, so whoever gets it next finds the result.

Two datums can have the same offset (once in 2^62): then one waits for the other, which is no harm.
"""

from __future__ import annotations

import os
from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.locks import is_locked, try_lock, unlock

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
        return try_lock(self._fd, _offset(key))

    def is_taken(self, key: ObjectId) -> bool:
        """Whether another job has a datum at this moment."""
        return is_locked(self._fd, _offset(key))

    def release(self, key: ObjectId) -> None:
        """Let others have a datum."""
        unlock(self._fd, _offset(key))


def _offset(key: ObjectId) -> int:
    return int.from_bytes(key[:8], "big") % _OFFSETS
