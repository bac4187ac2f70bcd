"""Checks what a store is made of: segments, the index's rows about them, and every object's bytes.

Nothing is locked and nothing changed; others read and write meanwhile. What a writer is just doing is no damage, by two rules: a segment is
read up to the end that was published when the check began, and **a suspicion is only reported when a fresh look confirms it** (`_confirm`).

Segments are read in order, first meta, then tiny, then data; each record or table of contents is looked up in the index, some thousands at a
time. A bit for each place that the index and the segment agree on is kept (4 KiB of data or 48 bytes of metadata), then the index is read in order, and
rows that point elsewhere are looked at one by one. So memory does not grow with the number of objects beyond that bit.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pfsmount.errors import Corrupt, NotFound, PfsError
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant, Severity
from pfsmount.objects.segment import (
    BLOCK,
    FSCK_HINT,
    NO_SEGMENT,
    RECORD_BYTES,
    Location,
    Record,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    decode_footer,
    encode_header,
    segment_path,
)
from pfsmount.objects.segment_scan import (
    PieceScan,
    advise_sequential,
    is_object,
    object_id_at,
    read_range,
    scan_segment,
)
from pfsmount.objects.store import ObjectStore, merge_contents, read_object

_AT_ONCE = 4096
_ROWS_AT_ONCE = 20_000
_UNINDEXED_MAX = 200_000
_MISFITS_MAX = 10_000
_HEADER_BYTES = 64
_NO_FILE = bytes(ID_BYTES)


class Reference(NamedTuple):
    """What an object says of another."""

    id: ObjectId
    kinds: frozenset[RecordKind]
    size: int | None = None
    """Bytes of a file or piece; None for others."""


class Visitor:
    """Looks into objects for the layers above. Called with each intact object that the index names, in the order of segments."""

    def visit(self, kind: RecordKind, id: ObjectId, payload: bytes) -> Sequence[Reference]:
        """Check an object by itself; what it refers to."""
        raise NotImplementedError


class ProgressBar:
    """Counts bytes of work towards a total."""

    def __init__(self, show: Callable[[str, int, int], None] | None = None) -> None:
        self._show = show
        self.what, self.done, self.total = "", 0, 0

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self.done += count
        if self._show is not None:
            self._show(self.what, self.done, self.total)


@dataclass(slots=True)
class Segment:
    """A segment as the index knew it when the check began."""

    number: int
    row: SegmentRow
    size: int = 0
    """Bytes that the file has, or the published end where that is less."""
    tables: list[tuple[int, int, int]] = field(default_factory=list)
    """Tables of contents of a data segment that meta segments have: start, meta segment, payload offset."""
    holes: list[tuple[int, int]] = field(default_factory=list)
    """Offset and length of ranges that gc freed."""
    agreed: bytearray = field(default_factory=bytearray)
    """A bit for each place that the index and the segment agree on."""
    matches: int = 0
    """Rows of the index that a look at the segment found right."""

    @property
    def unit(self) -> int:
        return BLOCK if self.row.kind is SegmentKind.DATA else RECORD_BYTES

    def agree(self, offset: int) -> None:
        """Note a place."""
        slot = offset // self.unit
        self.agreed[slot >> 3] |= 1 << (slot & 7)

    def agrees(self, offset: int) -> bool:
        """Whether a place was noted."""
        slot = offset // self.unit
        return slot >> 3 < len(self.agreed) and bool(self.agreed[slot >> 3] & 1 << (slot & 7))


class ObjectCheck:
    """One check of one store's objects."""

    def __init__(
        self, objects: ObjectStore, findings: Findings, damage: Damage, visitor: Visitor, progress: ProgressBar
    ) -> None:
        self._objects = objects
        self.findings, self.damage = findings, damage
        self._visitor = visitor
        self._progress = progress
        self.segments: dict[int, Segment] = {}
        self.counts: Counter[RecordKind] = Counter()
        """Objects that are in the index, by kind."""
        self.bytes_checked = 0
        self.unindexed: dict[ObjectId, Location] = {}
        """Intact objects that the index does not name: left by a crash, or lost by the index."""
        self._missing: dict[ObjectId, ObjectId] = {}
        self._misfits: list[tuple[ObjectId, Reference]] = []
        self.large_files: list[tuple[ObjectId, Location]] = []

    def run(self, *, data: bool) -> None:
        """Check everything; with `data` also every piece against its hash."""
        self._take_segments()
        self._progress.total = sum(
            segment.size for segment in self.segments.values() if data or segment.row.kind is not SegmentKind.DATA
        )
        for kind in (SegmentKind.META, SegmentKind.TINY):
            self._progress.what = f"checking {kind.suffix} segments"
            for segment in self._of(kind):
                self._records(segment)
        self._progress.what = "checking data" if data else "checking tables of contents"
        for segment in self._of(SegmentKind.DATA):
            self._pieces(segment, data=data)
        self._progress.what = "checking the index"
        self._rows()
        self._report_missing()
        self._report_misfits()

    def _of(self, kind: SegmentKind) -> list[Segment]:
        return [segment for _, segment in sorted(self.segments.items()) if segment.row.kind is kind]

    # Segments as files

    def _take_segments(self) -> None:
        """What the index knows of segments, and what their files are."""
        with self._objects.index.read() as txn:
            rows = list(txn.scan(Table.SEGMENTS))
            open_rows = {key[5:] for key, _ in txn.scan(Table.META, b"open")}
            last = txn.counter(b"segment")
        unsealed = set()
        for key, raw in rows:
            try:
                segment = Segment(int.from_bytes(key, "big"), SegmentRow.decode(raw))
            except Corrupt:
                self._found(Invariant.SEGMENT_KNOWN, f"the row of segment {key.hex()} in the index is damaged")
                continue
            if not segment.row.sealed:
                unsealed.add(key)
            self._take_file(segment, key)
        for key in unsealed ^ open_rows:
            if self._fresh_row(int.from_bytes(key, "big")) is not None or key in open_rows:
                self._open_listed(key)
        self._unknown_files(last)

    def _open_listed(self, key: bytes) -> None:
        """An unsealed segment that is not listed as open, or the reverse, unless it has changed since."""
        with self._objects.index.read() as txn:
            raw = txn.get(Table.SEGMENTS, key)
            listed = {k[5:] for k, _ in txn.scan(Table.META, b"open")}
        if (raw is not None and not SegmentRow.decode(raw).sealed) != (key in listed):
            what = "listed as open but is not" if key in listed else "open but not listed, so nobody will fill it"
            self._found(Invariant.SEGMENT_OPEN, f"segment {key.hex()} is {what}", segment=int.from_bytes(key, "big"))

    def _path(self, segment: Segment) -> str:
        return os.fspath(segment_path(self._objects.directory, segment.number, segment.row.kind))

    def _take_file(self, segment: Segment, key: bytes) -> None:
        row = segment.row
        try:
            size = os.stat(self._path(segment)).st_size
        except OSError:
            size = 0
            if row.end and not self._fresh_row_is_other(segment):
                self.damage.short[segment.number] = 0
                self._found(
                    Invariant.SEGMENT_PRESENT,
                    f"the file '{self._path(segment)}' is missing: {row.end:,} bytes",
                    segment=segment.number,
                )
        else:
            if size < row.end and not self._fresh_row_is_other(segment):
                self.damage.short[segment.number] = size
                self._found(
                    Invariant.SEGMENT_LENGTH,
                    f"'{self._path(segment)}' is cut short: {size:,} of {row.end:,} bytes",
                    segment=segment.number,
                    offset=size,
                )
        segment.size = min(size, row.end)
        segment.agreed = bytearray(segment.size // segment.unit // 8 + 1)
        self.segments[segment.number] = segment

    def _fresh_row(self, number: int) -> SegmentRow | None:
        raw = self._objects.index.get(Table.SEGMENTS, number.to_bytes(4, "big"))
        return None if raw is None else SegmentRow.decode(raw)

    def _fresh_row_is_other(self, segment: Segment) -> bool:
        """Whether somebody dropped the segment (gc) since the check began."""
        return self._fresh_row(segment.number) is None

    def _unknown_files(self, last: int) -> None:
        for name in sorted(os.listdir(self._objects.directory)):
            stem, _, suffix = name.partition(".")
            try:
                number = int(stem, 16)
            except ValueError:
                number = -1
            kind = next((kind for kind in SegmentKind if kind.suffix == suffix), None)
            if kind is None or number < 0:
                text = f"'{name}' in 'segments' is no segment"
                self._found(Invariant.SEGMENT_KNOWN, text, severity=Severity.HARMLESS)
            elif number not in self.segments and self._fresh_row(number) is None:
                taken = number > last
                why = "its number will be given away again" if taken else "left by a crash, or by gc"
                severity = None if taken else Severity.HARMLESS
                text = f"the segment file '{name}' is not in the index: {why}"
                self._found(Invariant.SEGMENT_KNOWN, text, segment=number, severity=severity)

    def _found(
        self,
        invariant: Invariant,
        message: str,
        *,
        id: ObjectId | None = None,
        place: Location | None = None,
        segment: int | None = None,
        offset: int | None = None,
        severity: Severity | None = None,
    ) -> None:
        self.findings.add(
            Finding.of(invariant, message, object=id, place=place, segment=segment, offset=offset, severity=severity)
        )

    def _open(self, segment: Segment) -> int:
        try:
            return os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if segment.number not in self.damage.short and not self._fresh_row_is_other(segment):
                self._found(
                    Invariant.SEGMENT_READABLE,
                    f"'{self._path(segment)}' cannot be opened: {error.strerror}",
                    segment=segment.number,
                )
            return -1

    def _unreadable(self, segment: Segment) -> Callable[[int, int], None]:
        def report(offset: int, length: int) -> None:
            text = f"the disk cannot read {length} bytes of segment {segment.number:08x} at byte {offset}"
            self._found(Invariant.SEGMENT_READABLE, text, segment=segment.number, offset=offset)

        return report

    # Records

    def _records(self, segment: Segment) -> None:
        """All records of a tiny or meta segment, and what they hold."""
        if not segment.size:
            return
        fd = self._open(segment)
        if fd < 0:
            return
        try:
            advise_sequential(fd)
            self._header(segment, fd)
            records: list[Record] = []
            at = 0
            for record in scan_segment(fd, segment.size, segment.row.nonce, self._unreadable(segment)):
                if record.intact:
                    if is_object(record.kind):
                        records.append(record)
                    self._other_record(segment, record)
                if len(records) >= _AT_ONCE:
                    self._look_up_records(segment, records)
                    records = []
                    self._progress.add(record.offset - at)
                    at = record.offset
            self._look_up_records(segment, records)
            self._progress.add(segment.size - at)
            self.bytes_checked += segment.size
        finally:
            os.close(fd)

    def _header(self, segment: Segment, fd: int) -> None:
        row = segment.row
        right = encode_header(row.kind, segment.number, self._objects.info.id, row.nonce)
        if read_range(fd, 0, _HEADER_BYTES, self._unreadable(segment)) != right:
            text = f"the header of segment {segment.number:08x} is damaged; its objects are not"
            self._found(Invariant.SEGMENT_HEADER, text, segment=segment.number, offset=0)

    def _other_record(self, segment: Segment, record: Record) -> None:
        if record.kind is RecordKind.CONTENTS:
            table = TableOfContents.decode(record.payload)
            data = self.segments.get(table.segment)
            if data is not None:
                data.tables.append((table.start, segment.number, record.payload_offset))
        elif record.kind is RecordKind.TOMBSTONE:
            number, ranges = decode_tombstone(record.payload)
            freed = self.segments.get(number)
            if freed is not None:
                freed.holes += ranges

    def _look_up_records(self, segment: Segment, records: Sequence[Record]) -> None:
        """Compare records with the index, and look into those that it names."""
        named: list[tuple[ObjectId, Location]] = []
        for record in records:
            place = Location(segment.number, record.payload_offset, record.kind, len(record.payload))
            named.append((record.id, place))
            if record.kind is RecordKind.MANIFEST and object_id_at(record.payload) != _NO_FILE:
                named.append((object_id_at(record.payload), place))
        matched = self._match(segment, named)
        references: list[tuple[ObjectId, Reference]] = []
        for record in records:
            if record.id in matched:
                self.counts[record.kind] += 1
                for reference in self._visitor.visit(record.kind, record.id, record.payload):
                    references.append((record.id, reference))
                if record.kind is RecordKind.MANIFEST and object_id_at(record.payload) in matched:
                    place = Location(segment.number, record.payload_offset, record.kind, len(record.payload))
                    self.large_files.append((object_id_at(record.payload), place))
        self._check_references(references)

    def _match(self, segment: Segment, named: Sequence[tuple[ObjectId, Location]]) -> set[ObjectId]:
        """Those that the index has just there; others are noted as not indexed if it does not know them at all."""
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.OBJECTS, sorted(id for id, _ in named))
        matched = set()
        for id, place in named:
            raw = rows.get(id)
            if raw is None:
                if len(self.unindexed) < _UNINDEXED_MAX and id != _NO_FILE:
                    self.unindexed[id] = place
            elif raw == place.encode():
                matched.add(id)
                segment.agree(place.offset)
                segment.matches += 1
        return matched

    def _check_references(self, references: Sequence[tuple[ObjectId, Reference]]) -> None:
        wanted = sorted({reference.id for _, reference in references})
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.OBJECTS, wanted)
        for source, reference in references:
            raw = rows.get(reference.id)
            if raw is None:
                self._missing.setdefault(reference.id, source)
                continue
            if self._misfit(reference, raw) and len(self._misfits) < _MISFITS_MAX:
                self._misfits.append((source, reference))

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

    # Pieces

    def _pieces(self, segment: Segment, *, data: bool) -> None:
        """What tables of contents say of a data segment, and with `data` every piece in it."""
        self._chain(segment)
        fd = self._open(segment) if segment.size else -1
        scan = PieceScan(fd, self._unreadable(segment)) if fd >= 0 else None
        seen = 0
        try:
            if fd >= 0:
                self._footer(segment, fd)
            for pieces in self._listed(segment):
                matched = self._match(segment, pieces)
                self.counts[RecordKind.PIECE] += len(matched)
                if scan is None or not data:
                    continue
                held = [(id, place) for id, place in pieces if id in matched and not _in_ranges(segment.holes, place)]
                for id, place, right, padded in scan.check(held, self._progress.add):
                    seen += place.length
                    if not right:
                        self._damaged(id, place)
                    elif not padded:
                        text = f"segment {segment.number:08x} has no zeros behind the piece at byte {place.offset}"
                        self._found(Invariant.PADDING, text, id=id, place=place)
            if data:
                self.bytes_checked += seen
                self._progress.add(0)
        finally:
            if fd >= 0:
                os.close(fd)

    def _listed(self, segment: Segment) -> Iterator[list[tuple[ObjectId, Location]]]:
        """The pieces of a data segment by its tables of contents, in order, some thousands at a time."""
        batch: list[tuple[ObjectId, Location]] = []
        for _, meta, offset in sorted(segment.tables):
            table = self._table(meta, offset)
            if table is None:
                continue
            for id, place in table.locations():
                if place.offset + place.length <= segment.size and place.length:
                    batch.append((id, place))
                if len(batch) >= _AT_ONCE:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _table(self, meta: int, offset: int) -> TableOfContents | None:
        try:
            reader = self._objects.segment(meta)
            length = int.from_bytes(reader.read(offset - RECORD_BYTES + 8, 4), "little")
            payload = reader.read(offset, length)
            if hash_bytes(payload, HashKind.RECORD) != reader.read(offset - ID_BYTES, ID_BYTES):
                return None
            return TableOfContents.decode(payload)
        except (PfsError, OSError):
            return None

    def _chain(self, segment: Segment) -> None:
        """Whether the tables of contents can be followed from the last one to the first."""
        row = segment.row
        where = None if row.contents_segment == NO_SEGMENT else (row.contents_segment, row.contents_offset)
        seen = set()
        while where is not None:
            table = self._table(*where) if where not in seen else None
            if table is None or table.segment != segment.number:
                if self._fresh_row_is_other(segment):
                    return
                text = f"the tables of contents of segment {segment.number:08x} break off in segment {where[0]:08x}"
                self._found(Invariant.CONTENTS_CHAIN, text, segment=segment.number)
                return
            seen.add(where)
            where = table.previous

    def _footer(self, segment: Segment, fd: int) -> None:
        if not segment.row.sealed or segment.number in self.damage.short:
            return
        try:
            found = decode_footer(fd)
            whole = merge_contents(self._objects, segment.number, segment.row)
        except (PfsError, OSError, ValueError):
            found, whole = None, None
        if found is None or (whole is not None and list(found.pieces) != list(whole.pieces)):
            text = f"the footer of segment {segment.number:08x} is damaged; the tables of contents elsewhere are not"
            self._found(Invariant.FOOTER, text, segment=segment.number)

    def _damaged(self, id: ObjectId, place: Location) -> None:
        """An object whose bytes are wrong, unless it was moved or dropped meanwhile."""
        if self._objects.index.get(Table.OBJECTS, id) == place.encode():
            self.damage.objects[id] = Invariant.OBJECT_HASH
            kind = "data" if place.kind is RecordKind.PIECE else place.kind.name.lower()
            text = f"{kind} {id.hex()} is damaged: segment {place.segment:08x}, byte {place.offset}, {place.length:,} bytes"
            self._found(Invariant.OBJECT_HASH, text, id=id, place=place)

    # The index

    def _rows(self) -> None:
        """Every row about an object: each that no look at a segment found right is looked at by itself."""
        counts: Counter[int] = Counter()
        for rows in chunks(self._objects, Table.OBJECTS):
            suspects = []
            before = b""
            for key, raw in rows:
                if key <= before and before:
                    self._found(Invariant.INDEX_READABLE, f"keys of the index are out of order at {key.hex()}")
                before = key
                number, offset = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:10], "little")
                segment = self.segments.get(number)
                if len(raw) == 16 and segment is not None and segment.agrees(offset):
                    counts[number] += 1
                else:
                    suspects.append((key, raw))
            for key, raw in suspects:
                self._confirm(key, raw)
        doubtful = {number for number, count in counts.items() if count != self.segments[number].matches}
        if doubtful:
            self._rows_of(doubtful)

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

    def _is_at(self, id: ObjectId, place: Location) -> bool:
        """Whether an object really is where a record or table of contents says."""
        try:
            read_object(self._objects, id, place)
        except (PfsError, OSError):
            return False
        return True

    def _report_missing(self) -> None:
        """What was referred to and not in the index; it may have been collected together with what referred to it."""
        for id, source in self._missing.items():
            if self._knows(id) or not self._knows(source):
                continue
            self.damage.objects[id] = Invariant.OBJECT_PRESENT
            place = self.unindexed.get(id)
            if place is not None and self._is_at(id, place):
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


def decode_location(raw: bytes) -> Location | None:
    """The location in a row; None for a damaged row."""
    try:
        return Location.decode(raw)
    except Corrupt:
        return None


def decode_tombstone(payload: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Segment, and offset and length of each range that was freed."""
    ranges = [
        (int.from_bytes(payload[at : at + 8], "little"), int.from_bytes(payload[at + 8 : at + 16], "little"))
        for at in range(8, len(payload) - 15, 16)
    ]
    return int.from_bytes(payload[:4], "little"), ranges


def _in_ranges(ranges: Sequence[tuple[int, int]], place: Location) -> bool:
    return any(offset <= place.offset < offset + length for offset, length in ranges)


def chunks(objects: ObjectStore, table: Table) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows of a table in order, some at a time: no transaction stays open meanwhile."""
    start = b""
    while True:
        with objects.index.read() as txn:
            rows = list(islice(_scan(txn, table, start), _ROWS_AT_ONCE))
        if rows:
            yield rows
        if len(rows) < _ROWS_AT_ONCE:
            return
        if rows[-1][0] < start:
            raise Corrupt(f"keys of the table '{table.value.decode()}' are out of order", hint=FSCK_HINT)
        start = rows[-1][0] + b"\0"


def _scan(txn: Transaction, table: Table, start: bytes) -> Iterator[tuple[bytes, bytes]]:
    return txn.scan(table, start=start)
