"""Space for `pfs gc` and deletions to run where there is none: a file that only takes it up, and gives it back then.

To free space the index needs new pages first, and segments need tombstones. `reserve` in the store's directory is 4 MiB, or a 16th of the
index up to 64 MiB. Losing it harms nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RESERVE_FILE = "reserve"
_BYTES_MIN = 4 << 20
_BYTES_MAX = 64 << 20
_NEARLY_FULL = 4
"""Less free space than this many times the reserve: then it is given back, or not made."""


def make_reserve(store: Path) -> None:
    """Take up the space, unless there is little left. Raises no error: without it, everything but a gc on a full disk works."""
    with suppress(OSError):
        size = _size(store)
        if _available(store) >= _NEARLY_FULL * size:
            _take_up(store, size)


@contextmanager
def reserve_lent(store: Path) -> Iterator[None]:
    """Where space is short, give the reserve back for the length of a block, and take up again afterwards what can be had."""
    lent = False
    with suppress(OSError):
        if _available(store) < _NEARLY_FULL * _size(store):
            (store / RESERVE_FILE).unlink()
            lent = True
    try:
        yield
    finally:
        if lent:
            with suppress(OSError):
                _take_up(store, min(_size(store), _available(store)))
        else:
            make_reserve(store)


def _take_up(store: Path, size: int) -> None:
    path = store / RESERVE_FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.posix_fallocate(fd, 0, size)
    except OSError:
        path.unlink()
    finally:
        os.close(fd)


def _size(store: Path) -> int:
    index = (store / "index" / "data.mdb").stat().st_size
    return max(_BYTES_MIN, min(index // 16, _BYTES_MAX))


def _available(store: Path) -> int:
    found = os.statvfs(store)
    return found.f_bavail * found.f_frsize
