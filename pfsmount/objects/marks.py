"""A set of stored objects that is small: one bit for each place in a segment where one can begin.

One bit for 4 KiB of data and one for 48 bytes of metadata or tiny files (no two records begin within 48 bytes). So a pass over any number of
files needs 32 MiB of memory for each TiB of data that it meets, 2.7 MiB for each GiB of metadata, and no set of ids. A file with a manifest
and the root of that manifest are one place, so they are in or out together.
"""

from __future__ import annotations

from collections.abc import Mapping

from pfsmount.errors import Corrupt
from pfsmount.objects.segment import (
    BLOCK,
    LOCATION,
    RECORD_BYTES,
    Location,
    RecordKind,
    SegmentKind,
    align,
)
from pfsmount.objects.store import ObjectStore

_PIECE = int(RecordKind.PIECE)


class Marks:
    """A set of places in segments."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._bits: dict[int, bytearray] = {}
        self._units: dict[int, int] = {}

    def add(self, place: Location) -> bool:
        """Put in; False when it was there. Raises Corrupt."""
        bits, byte, bit = self._find(place)
        if byte >= len(bits):
            bits.extend(bytes(max(byte + 1 - len(bits), len(bits), 512)))
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        return True

    def add_pieces(self, found: Mapping[bytes, bytes]) -> tuple[int, int, list[bytes]]:
        """Put in those of `found` (id → location) that are pieces. How many were not there, their bytes, and the ids of what is no piece. Raises Corrupt.

        As `add` for each, without an object for each: a fifth of the time.
        """
        new, size, others = 0, 0, []
        bits, unit, last = bytearray(), 0, -1
        for id, raw in found.items():
            segment, low, high, kind, length = LOCATION.unpack(raw)
            if kind != _PIECE:
                others.append(id)
                continue
            if segment != last:
                unit, last = self._unit(segment), segment
                bits = self._bits.setdefault(segment, bytearray())
            slot = (low | high << 32) // unit
            byte, bit = slot >> 3, 1 << (slot & 7)
            if byte >= len(bits):
                bits.extend(bytes(max(byte + 1 - len(bits), len(bits), 512)))
            if not bits[byte] & bit:
                bits[byte] |= bit
                new += 1
                size += length
        return new, size, others

    def __contains__(self, place: Location) -> bool:
        bits, byte, bit = self._find(place)
        return byte < len(bits) and bool(bits[byte] & bit)

    def stored_size(self, place: Location) -> int:
        """Bytes of its segment that an object takes. Raises Corrupt."""
        if self._unit(place.segment) == BLOCK:
            return align(place.length, BLOCK)
        return RECORD_BYTES + align(place.length, 8)

    def _unit(self, segment: int) -> int:
        unit = self._units.get(segment)
        if unit is None:
            row = self._objects.segment_row(segment)
            if row is None:
                raise Corrupt(f"the index names segment {segment:08x}, which it does not know")
            unit = BLOCK if row.kind is SegmentKind.DATA else RECORD_BYTES
            self._units[segment] = unit
        return unit

    def _find(self, place: Location) -> tuple[bytearray, int, int]:
        bits = self._bits.get(place.segment)
        if bits is None:
            bits = self._bits[place.segment] = bytearray()
        slot = place.offset // self._unit(place.segment)
        return bits, slot >> 3, 1 << (slot & 7)
