"""Which blocks of segments hold something that is alive, and what of the rest takes space on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from errno import ENXIO

from pfsmount.objects.segment import BLOCK, RECORD_BYTES, Location, SegmentKind, align

_RUNS = re.compile(rb"\x00+|\xff+|[^\x00\xff]", re.DOTALL)


class Coverage:
    """A bit for each block of each segment that was met: 32 MiB of memory for a TiB."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def __contains__(self, segment: int) -> bool:
        """Whether anything in a segment is alive."""
        return segment in self._bits

    def add(self, kind: SegmentKind, place: Location) -> None:
        """An object is alive, with the header of its record."""
        if kind is SegmentKind.DATA:
            self.add_range(place.segment, place.offset, place.offset + place.length)
        else:
            self.add_range(place.segment, place.offset - RECORD_BYTES, align(place.offset + place.length, 8))

    def add_range(self, segment: int, start: int, end: int) -> None:
        """The bytes from `start` up to `end` are alive."""
        if start >= end:
            return
        first, last = start // BLOCK, (end - 1) // BLOCK
        bits = self._bits.setdefault(segment, bytearray())
        if (last >> 3) >= len(bits):
            bits.extend(bytes(max((last >> 3) + 1 - len(bits), len(bits), 64)))
        head, tail = first >> 3, last >> 3
        if head == tail:
            bits[head] |= (0xFF << (first & 7) & 0xFF) & (0xFF >> (7 - (last & 7)))
            return
        bits[head] |= 0xFF << (first & 7) & 0xFF
        bits[tail] |= 0xFF >> (7 - (last & 7))
        if tail - head > 1:
            bits[head + 1 : tail] = b"\xff" * (tail - head - 1)

    def gaps(self, segment: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of whole blocks before the byte `end` that hold nothing alive: start and end in bytes, in order."""
        blocks = end // BLOCK
        bits = self._bits.get(segment, bytearray())
        start = -1
        for first, count, free in _runs(bits, blocks):
            if free and start < 0:
                start = first
            elif not free and start >= 0:
                yield start * BLOCK, first * BLOCK
                start = -1
            if first + count >= blocks:
                break
        if start >= 0:
            yield start * BLOCK, blocks * BLOCK


def _runs(bits: bytearray, blocks: int) -> Iterator[tuple[int, int, bool]]:
    """First block, number of blocks, whether they are free; up to `blocks`."""
    for match in _RUNS.finditer(bits):
        first, length = match.start() * 8, (match.end() - match.start()) * 8
        if first >= blocks:
            return
        value = bits[match.start()]
        if value in (0, 0xFF):
            yield first, min(length, blocks - first), value == 0
            continue
        for i in range(min(8, blocks - first)):
            yield first + i, 1, not value >> i & 1
    known = len(bits) * 8
    if known < blocks:
        yield known, blocks - known, True


def allocated(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range of a file that take space on disk."""
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == ENXIO:
                return
            raise
        if first >= end:
            return
        start = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        yield first, start
