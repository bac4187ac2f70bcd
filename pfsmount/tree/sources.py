"""What large files are read from when they are stored."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from pfsmount.tree.content import Content
from pfsmount.tree.manifest import HOLE_MIN, PIECE_MAX


class Source(Protocol):
    """What a large file is read from."""

    def read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`; fewer bytes only at the end."""

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """Start and end of the first hole of at least 64 KiB that ends after `offset`."""


def pread_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view`; fewer bytes only at the end of the file, never because a read was short. Raises OSError."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


class DescriptorSource:
    """A file descriptor as a source; a regular file up to `end` at most, when that is given."""

    def __init__(self, fd: int, end: int | None = None) -> None:
        stat = os.fstat(fd)
        self._fd = fd
        self.is_regular = is_regular(stat)
        self._end = end
        self._size = stat.st_size if end is None else min(stat.st_size, end)
        self._sparse = self.is_regular and self._size > PIECE_MAX and _may_have_holes(stat)

    def read(self, view: memoryview, offset: int) -> int:
        if self.is_regular:
            if self._end is not None:
                view = view[: max(0, self._end - offset)]
            return pread_into(self._fd, view, offset)
        done = 0
        while done < len(view):
            count = os.readv(self._fd, [view[done:]])
            if not count:
                break
            done += count
        return done

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        while self._sparse and offset < self._size:
            start = _seek(self._fd, offset, os.SEEK_HOLE)
            if start is None or start >= self._size:
                return None
            end = _seek(self._fd, start, os.SEEK_DATA)
            end = self._size if end is None else end
            if end - start >= HOLE_MIN:
                return start, end
            offset = end
        return None


class OverlaySource:
    """An earlier version with some ranges replaced by those of a sparse file."""

    def __init__(self, base: Content, base_size: int, fd: int, extents: Sequence[tuple[int, int]], size: int) -> None:
        self._base, self._base_size, self._fd, self._size = base, min(base_size, base.size), fd, size
        self._extents = sorted(extents)

    def read(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self._size - offset))
        done = 0
        while done < count:
            at = offset + done
            fresh, stop = self._part_at(at)
            stop = min(stop, offset + count)
            part = view[done : done + stop - at]
            if fresh:
                got = pread_into(self._fd, part, at)
                part[got:] = bytes(len(part) - got)
            else:
                old = self._base.read(at, max(0, min(stop, self._base_size) - at))
                part[: len(old)] = old
                part[len(old) :] = bytes(len(part) - len(old))
            done += stop - at
        return count

    def _part_at(self, offset: int) -> tuple[bool, int]:
        """Whether a byte comes from the new ranges, and where that ends."""
        i = bisect_right(self._extents, (offset, self._size + 1)) - 1
        if i >= 0 and offset < self._extents[i][1]:
            return True, self._extents[i][1]
        return False, self._extents[i + 1][0] if i + 1 < len(self._extents) else self._size

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """Ranges behind the old end that nothing was written to."""
        offset = max(offset, self._base_size)
        while offset < self._size:
            fresh, stop = self._part_at(offset)
            stop = min(stop, self._size)
            if not fresh and stop - offset >= HOLE_MIN:
                return offset, stop
            offset = stop
        return None


def is_regular(stat: os.stat_result) -> bool:
    return stat.st_mode & 0o170000 == 0o100000


def _may_have_holes(stat: os.stat_result) -> bool:
    return stat.st_size >= HOLE_MIN and stat.st_blocks * 512 <= stat.st_size - HOLE_MIN


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError:
        return None  # ENXIO: no data, or no hole, behind this
