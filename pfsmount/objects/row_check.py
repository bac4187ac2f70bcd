"""The rows of the index about objects: each is what a segment confirmed, or is looked at by itself."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from operator import lt

from pfsmount.errors import Corrupt, NotFound, PfsError
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.object_look import ObjectLook, Reference, Segment, chunks, decode_location
from pfsmount.objects.reading import read_object
from pfsmount.objects.segment import Location, RecordKind, SegmentKind
from pfsmount.objects.store import ObjectStore

_PLACES = struct.Struct("<IQ4x")
_ROW_BYTES = _PLACES.size
_ROW_WORK = 100
"""Bytes of metadata that take about as long as a row."""
_OFFSET_MASK = (1 << 48) - 1
_NOWHERE = (bytearray(), 1)


class RowCheck(ObjectLook):
    """The part of a check that goes through the index."""

    def _rows_total(self) -> int:
        """What the rows count for in the progress, in bytes."""
        with self._objects.index.read() as txn:
            return txn.count(Table.OBJECTS) * _ROW_WORK

    def _rows(self) -> None:
        """Every row about an object: each that no look at a segment found right is looked at by itself."""
        counts: Counter[int] = Counter()
        before = b""
        for rows in chunks(self._objects, Table.OBJECTS):
            keys = [key for key, _ in rows]
            if keys[0] <= before or not all(map(lt, keys, keys[1:])):
                for key, above in zip(keys, [before, *keys], strict=False):
                    if key <= above:
                        self._found(Invariant.INDEX_READABLE, f"keys of the index are out of order at {key.hex()}")
            before = keys[-1]
            for key, raw in self._suspects(rows, counts):
                self._confirm(key, raw)
            self._progress.add(len(rows) * _ROW_WORK)
        doubtful = {number for number, count in counts.items() if count != self.segments[number].matches}
        if doubtful:
            self._rows_of(doubtful)

    def _suspects(self, rows: Sequence[tuple[bytes, bytes]], counts: Counter[int]) -> list[tuple[bytes, bytes]]:
        """Rows that no segment agrees with; the others are counted by segment."""
        odd = [row for row in rows if len(row[1]) != _ROW_BYTES]
        if odd:
            rows = [row for row in rows if len(row[1]) == _ROW_BYTES]
        agreed = {number: (segment.agreed, segment.unit) for number, segment in self.segments.items()}
        numbers = []
        for row, (number, place) in zip(rows, _PLACES.iter_unpack(b"".join([raw for _, raw in rows])), strict=True):
            # Segment.agrees, here without four calls a row: it is done for each object of the store
            bits, unit = agreed.get(number, _NOWHERE)
            slot = (place & _OFFSET_MASK) // unit
            if slot >> 3 < len(bits) and bits[slot >> 3] >> (slot & 7) & 1:
                numbers.append(number)
            else:
                odd.append(row)
        counts.update(numbers)
        return odd

    def _rows_of(self, numbers: set[int]) -> None:
        """Rows of segments of which more rows speak than were found right: one of them has a wrong id."""
        for rows in chunks(self._objects, Table.OBJECTS):
            for key, raw in rows:
                if int.from_bytes(raw[:4], "little") in numbers:
                    self._confirm(key, raw)

    def _confirm(self, key: bytes, raw: bytes) -> None:
        """Look at the object of a row, as the index has it now."""
        id = ObjectId(key)
        fresh = self._objects.index.get(Table.OBJECTS, key)
        if fresh is None or id in self.damage.objects:
            return
        if len(key) != ID_BYTES:
            self._found(Invariant.OBJECT_LOCATION, f"the index has a key of {len(key)} bytes for an object")
            return
        place = decode_location(fresh)
        if place is None:
            self._wrong_row(id, None, "its row is damaged")
            return
        segment = self.segments.get(place.segment)
        row = self._fresh_row(place.segment) if segment is None else segment.row
        if row is None:
            self._wrong_row(id, place, f"its segment {place.segment:08x} is unknown")
            return
        if segment is None or place.offset >= segment.row.end:
            current = self._fresh_row(place.segment)
            if current is not None and place.offset + place.length <= current.end:
                return  # newer than this check
            self._wrong_row(id, place, f"it points behind the end of segment {place.segment:08x}")
            return
        if self.damage.reason(id, place) is not None:
            self.damage.objects[id] = Invariant.SEGMENT_LENGTH
            return
        self._look_at(id, place, segment)

    def _look_at(self, id: ObjectId, place: Location, segment: Segment) -> None:
        try:
            read_object(self._objects, id, place)
        except (Corrupt, NotFound, OSError):
            if any(found == place for found in self.unindexed.values()):
                self._wrong_row(id, place, "another object is there")
            else:
                self._damaged(id, place)
            return
        if segment.agrees(place.offset):
            return
        if segment.row.kind is SegmentKind.DATA:
            text = f"data {id.hex()} is readable, but no table of contents names it: a rebuilt index would not find it"
            self._found(Invariant.CONTENTS, text, id=id, place=place)
        else:
            text = f"object {id.hex()} is readable, but the header of its record is damaged: a rebuilt index would not find it"
            self._found(Invariant.RECORD_CHECK, text, id=id, place=place)

    def _wrong_row(self, id: ObjectId, place: Location | None, why: str) -> None:
        if not self._knows(id):
            return
        self.damage.objects[id] = Invariant.OBJECT_LOCATION
        self._found(Invariant.OBJECT_LOCATION, f"the index is wrong about object {id.hex()}: {why}", id=id, place=place)

    def _knows(self, id: ObjectId) -> bool:
        return self._objects.index.get(Table.OBJECTS, id) is not None

    def _report_missing(self) -> None:
        """What was referred to and not in the index; it may have been collected together with what referred to it."""
        for id, source in self._missing.items():
            if self._knows(id) or not self._knows(source):
                continue
            self.damage.objects[id] = Invariant.OBJECT_PRESENT
            place = self.unindexed.get(id)
            if place is not None and is_at(self._objects, id, place):
                self.damage.objects[id] = Invariant.OBJECT_INDEXED
                text = f"object {id.hex()} is in segment {place.segment:08x}, but the index does not name it"
                self._found(Invariant.OBJECT_INDEXED, text, id=id, place=place)
            else:
                text = f"object {id.hex()} is missing, which {source.hex()[:16]} refers to"
                self._found(Invariant.OBJECT_PRESENT, text, id=id)

    def _report_misfits(self) -> None:
        """Objects of another kind or size than is said of them, where that is not because their row is wrong."""
        for source, reference in self._misfits:
            raw = self._objects.index.get(Table.OBJECTS, reference.id)
            problem = "" if raw is None or reference.id in self.damage.objects else self._misfit(reference, raw)
            if problem:
                self.damage.objects[reference.id] = Invariant.REFERENCE_FITS
                text = f"{source.hex()[:16]} refers to {reference.id.hex()}, which {problem}"
                self._found(Invariant.REFERENCE_FITS, text, id=reference.id)

    def _misfit(self, reference: Reference, raw: bytes) -> str:
        place = decode_location(raw)
        if place is None:
            return ""  # the row itself is found damaged when the index is read
        if place.kind not in reference.kinds:
            return f"is a {place.kind.name.lower()}"
        if reference.size is None:
            return ""
        size = place.length
        if place.kind is RecordKind.MANIFEST:
            try:
                payload = read_object(self._objects, reference.id, place)
            except PfsError:
                return ""  # damaged, which is found elsewhere
            size = int.from_bytes(payload[8:16], "little")
        return "" if size == reference.size else f"has {size} bytes and not {reference.size}"


def is_at(objects: ObjectStore, id: ObjectId, place: Location) -> bool:
    """Whether an object really is where a record or table of contents says."""
    try:
        read_object(objects, id, place)
    except (PfsError, OSError):
        return False
    return True
