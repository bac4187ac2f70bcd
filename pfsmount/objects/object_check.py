"""Checks what a store is made of: segments, the index's rows about them, and every object's bytes.

Nothing is locked and nothing changed; others read and write meanwhile. What a writer is just doing is no damage, by two rules: a segment is
read up to the end that was published when the check began, and **a suspicion is only reported when a fresh look confirms it** (`objects.row_check`).

Segments are read in order, first meta, then tiny, then data; each record or table of contents is looked up in the index, some thousands at a
time. A bit for each place that the index and the segment agree on is kept (4 KiB of data or 48 bytes of metadata), then the index is read in order, and
rows that point elsewhere are looked at one by one. So memory does not grow with the number of objects beyond that bit.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.adoption import is_announced
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Damage, Findings, Invariant, Severity
from pfsmount.objects.object_look import ProgressBar, Reference, Segment, Visitor, decode_tombstone
from pfsmount.objects.row_check import RowCheck
from pfsmount.objects.segment import (
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
from pfsmount.objects.store import ObjectStore, merge_contents

_AT_ONCE = 4096
_UNINDEXED_MAX = 200_000
_MISFITS_MAX = 10_000
_HEADER_BYTES = 64
_NO_FILE = bytes(ID_BYTES)


class ObjectCheck(RowCheck):
    """One check of one store's objects."""

    def __init__(
        self, objects: ObjectStore, findings: Findings, damage: Damage, visitor: Visitor, progress: ProgressBar
    ) -> None:
        super().__init__(objects, findings, damage)
        self._visitor = visitor
        self._progress = progress
        self.counts: Counter[RecordKind] = Counter()
        """Objects that are in the index, by kind."""
        self.bytes_checked = 0
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
        row = None if raw is None else SegmentRow.decode(raw)
        if row is not None and is_announced(row) and key not in listed:
            return  # for a file that a commit is about to adopt, or was when it died
        if (row is not None and not row.sealed) != (key in listed):
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


def _in_ranges(ranges: Sequence[tuple[int, int]], place: Location) -> bool:
    return any(offset <= place.offset < offset + length for offset, length in ranges)
