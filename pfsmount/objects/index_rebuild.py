"""The object tables of an index, made anew from segments alone.

Records say what `meta` and `tiny` segments hold, tables of contents and footers what `data` segments hold, tombstones what gc has freed. A place that
was freed is never used again, so a tombstone counts whatever stands before or behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pfsmount.errors import Corrupt
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Index, Table
from pfsmount.objects.layout import StoreInfo, disk_errors
from pfsmount.objects.object_look import ProgressBar, decode_tombstone
from pfsmount.objects.open_segments import open_key
from pfsmount.objects.segment import (
    BLOCK,
    RECORD_BYTES,
    Location,
    Record,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    align,
    decode_footer,
    decode_header,
    record_header,
    segment_path,
)
from pfsmount.objects.segment_scan import advise_sequential, is_object, object_id_at, read_range, scan_segment

_ROWS_AT_ONCE = 20_000
_HEADER_BYTES = 64
_NO_FILE = bytes(ID_BYTES)

Row = tuple[ObjectId, Location]


@dataclass(slots=True)
class Counts:
    """What a rebuilt index has."""

    objects: int = 0
    segments: int = 0
    problems: list[str] = field(default_factory=list)
    """What could not be taken over."""


@dataclass(slots=True)
class _Tables:
    """What is known of a data segment from elsewhere."""

    places: list[tuple[int, int, int]] = field(default_factory=list)
    """Start of a table of contents, the meta segment that has it, offset of its payload."""


class ObjectRebuild:
    """Fills the object tables of a new index."""

    def __init__(self, info: StoreInfo, index: Index, nonces: dict[int, bytes], bar: ProgressBar) -> None:
        """`nonces`: those that another source knows, for segments whose header is lost."""
        self._info, self._index, self._nonces, self._bar = info, index, nonces, bar
        self._directory = info.path / "segments"
        self._tables: dict[int, _Tables] = {}
        self._freed: dict[int, list[tuple[int, int]]] = {}
        self._last = 0
        self._pending: list[Row] = []
        self.counts = Counts()
        self.roots: dict[ObjectId, list[tuple[Location, ObjectId]]] = {}
        """Large file → the roots of its manifests, and their own ids."""

    def run(self) -> None:
        """All segments. Raises NoSpace, PermissionDenied."""
        files = sorted(self._files())
        self._bar.total = sum(path.stat().st_size for kind, _, path in files if kind is not SegmentKind.DATA)
        rows: dict[int, SegmentRow] = {}
        with disk_errors("reading segments"):
            for kind, number, path in files:
                if kind is not SegmentKind.DATA:
                    self._last = max(self._last, number)
                    rows[number] = self._records(kind, number, path)
            for kind, number, path in files:
                if kind is SegmentKind.DATA:
                    self._last = max(self._last, number)
                    rows[number] = self._data(number, path)
        self._write_rows()
        for number in self._tables.keys() - rows.keys():
            if not self._is_freed(number, self._tables[number]):
                self.counts.problems.append(f"the data segment {number:08x} is missing, with all that was in it")
        self._write_segments(rows)

    def _is_freed(self, number: int, tables: _Tables) -> bool:
        """Whether gc has freed a whole segment."""
        del tables
        return any(offset == 0 for offset, _ in self._freed.get(number, ()))

    def _files(self) -> Iterator[tuple[SegmentKind, int, Path]]:
        for path in self._directory.iterdir():
            kind = next((kind for kind in SegmentKind if f".{kind.suffix}" == path.suffix), None)
            try:
                number = int(path.stem, 16)
            except ValueError:
                continue
            if kind is not None and path == segment_path(self._directory, number, kind):
                yield kind, number, path

    # Records

    def _records(self, kind: SegmentKind, number: int, path: Path) -> SegmentRow:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            advise_sequential(fd)
            size = os.fstat(fd).st_size
            nonce = self._nonce(kind, number, fd)
            row = SegmentRow(kind, False, 0, 0, nonce or os.urandom(16))
            at = 0
            for record in scan_segment(fd, size, nonce, lambda offset, length: None):
                if record.intact:
                    row.end = align(record.payload_offset + len(record.payload), 8)
                    row.sealed = record.kind is RecordKind.SEAL
                    self._take(number, record)
                    self._bar.add(record.offset - at)
                    at = record.offset
            self._bar.add(size - at)
            if nonce is None and row.end:
                row.sealed = True  # nobody may append to a segment whose checks cannot be made
                text = f"the header of segment {number:08x} is lost; what is in it was found by its hashes"
                self.counts.problems.append(text)
            return row
        finally:
            os.close(fd)

    def _nonce(self, kind: SegmentKind, number: int, fd: int) -> bytes | None:
        """The nonce with which the records of a segment can be checked; None when neither its header nor another source has it."""
        start = read_range(fd, 0, _HEADER_BYTES + RECORD_BYTES, lambda *_: None)
        candidates = []
        try:
            found, its_number, store, nonce = decode_header(start)
            if (found, its_number, store) == (kind, number, self._info.id):
                candidates.append(nonce)
        except Corrupt:
            pass
        candidates += [self._nonces[number]] if number in self._nonces else []
        if len(start) < _HEADER_BYTES + RECORD_BYTES:
            return candidates[0] if candidates else None
        for nonce in candidates:  # a header has no checksum: the first record shows whether it is right
            if record_header(start, _HEADER_BYTES, _HEADER_BYTES, nonce) is not None:
                return nonce
        return None if record_header(start, _HEADER_BYTES, _HEADER_BYTES, None) or not candidates else candidates[0]

    def _take(self, segment: int, record: Record) -> None:
        if is_object(record.kind):
            place = Location(segment, record.payload_offset, record.kind, len(record.payload))
            self._add(record.id, place)
            if record.kind is RecordKind.MANIFEST and object_id_at(record.payload) != _NO_FILE:
                self._add(object_id_at(record.payload), place)
                self.roots.setdefault(object_id_at(record.payload), []).append((place, record.id))
        elif record.kind is RecordKind.CONTENTS:
            table = TableOfContents.decode(record.payload)
            self._last = max(self._last, table.segment)
            known = self._tables.setdefault(table.segment, _Tables())
            known.places.append((table.start, segment, record.payload_offset))
        if record.kind is RecordKind.TOMBSTONE:
            number, ranges = decode_tombstone(record.payload)
            self._last = max(self._last, number)
            self._freed.setdefault(number, []).extend(ranges)

    # Data

    def _data(self, number: int, path: Path) -> SegmentRow:
        row = SegmentRow(SegmentKind.DATA, False, 0, 0, bytes(16))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            places = sorted(self._tables.get(number, _Tables()).places)
            if places:
                row.contents_segment, row.contents_offset = places[-1][1:]
            cut = 0
            for _, meta, offset in places:
                for id, place in self._table(meta, offset).locations():
                    if place.offset + place.length > size:
                        cut += 1
                        continue
                    self._add(id, place)
                    row.end = align(place.offset + place.length, BLOCK)
            footer = self._footer(fd)
            if footer is not None:
                row.sealed, row.end = True, size
                for id, place in footer.locations():
                    if id != _NO_FILE:
                        self._add(id, place)
            if cut:
                self.counts.problems.append(f"segment {number:08x} is cut short: {cut:,} pieces are lost")
            row.end = min(row.end, size)
            return row
        finally:
            os.close(fd)

    def _table(self, meta: int, offset: int) -> TableOfContents:
        fd = os.open(segment_path(self._directory, meta, SegmentKind.META), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            length = int.from_bytes(os.pread(fd, 4, offset - RECORD_BYTES + 8), "little")
            return TableOfContents.decode(read_range(fd, offset, length, lambda *_: None))
        finally:
            os.close(fd)

    def _footer(self, fd: int) -> TableOfContents | None:
        try:
            return decode_footer(fd)
        except (Corrupt, OSError, OverflowError):
            return None

    # Rows

    def _add(self, id: ObjectId, place: Location) -> None:
        self._pending.append((id, place))
        if len(self._pending) >= _ROWS_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        """Add what is pending; of two copies of an object the first that can be read stays."""
        rows: dict[ObjectId, Location] = {}
        for id, place in self._pending:
            if not self._was_freed(place) and (id not in rows or not self._is_intact(id, rows[id])):
                rows[id] = place
        with self._index.read() as txn:
            known = txn.get_many(Table.OBJECTS, sorted(rows))
        doubles = [(ObjectId(id), raw) for id, raw in known.items() if rows[ObjectId(id)].encode() != raw]
        doubles = [(id, raw) for id, raw in doubles if not self._is_intact(id, Location.decode(raw))]
        with self._index.write() as txn:
            fresh = sorted((id, place.encode()) for id, place in rows.items() if id not in known)
            txn.put_new(Table.OBJECTS, fresh)
            for id, _ in doubles:
                txn.put(Table.OBJECTS, id, rows[id].encode())
        self.counts.objects += len(fresh)
        self._pending.clear()

    def _was_freed(self, place: Location) -> bool:
        return any(at <= place.offset < at + length for at, length in self._freed.get(place.segment, ()))

    def _is_intact(self, id: ObjectId, place: Location) -> bool:
        if place.kind is not RecordKind.PIECE:
            return True  # the scan has checked it
        for kind in (SegmentKind.DATA, SegmentKind.TINY):
            path = segment_path(self._directory, place.segment, kind)
            if path.exists():
                with path.open("rb") as file:
                    return hash_bytes(os.pread(file.fileno(), place.length, place.offset)) == id
        return False

    def choose_manifests(self) -> None:
        """Let large files be found by the newest of their manifests that is there; to be called when incomplete ones were dropped."""
        several = [(id, roots) for id, roots in self.roots.items() if len(roots) > 1]
        for at in range(0, len(several), _ROWS_AT_ONCE):
            with self._index.write() as txn:
                for id, roots in several[at : at + _ROWS_AT_ONCE]:
                    for place, own in sorted(roots, reverse=True):
                        if txn.get(Table.OBJECTS, own) == place.encode():
                            txn.put(Table.OBJECTS, id, place.encode())
                            break

    def _write_segments(self, rows: dict[int, SegmentRow]) -> None:
        self.counts.segments = len(rows)
        with self._index.write() as txn:
            for number, row in sorted(rows.items()):
                row.freed = sum(length for _, length in set(self._freed.get(number, ())))
                key = number.to_bytes(4, "big")
                txn.put(Table.SEGMENTS, key, row.encode())
                if not row.sealed:
                    txn.put(Table.META, open_key(row.kind, int.from_bytes(key, "big")), b"")
            txn.put(Table.META, b"segment", self._last.to_bytes(8, "little"))
