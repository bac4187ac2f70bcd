"""The records of tiny and meta segments: each against its check and its id, then, some thousands at a time, against the index, with all that they refer to.

A table of contents names the pieces of the files whose directories lie beside it, so the ids of both are looked up at once, in the order of keys, and each only
once. What is right, which is nearly everything, is compared in columns: a loop over a million pieces in Python takes longer than reading them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from pfsmount.errors import Corrupt
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.object_look import (
    FileReferences,
    References,
    Segment,
    TablePlace,
    referred_ids,
)
from pfsmount.objects.row_check import RowCheck
from pfsmount.objects.segment import (
    LOCATION,
    Location,
    PieceColumns,
    Record,
    RecordKind,
    encode_header,
)
from pfsmount.objects.segment_scan import advise_sequential, is_object, object_id_at, read_range, scan_segment

_RECORDS_AT_ONCE = 4096
_NAMED_AT_ONCE = 50_000
"""Ids that are looked up at once."""
_UNINDEXED_MAX = 200_000
_MISFITS_MAX = 10_000
_HEADER_BYTES = 64
_NO_FILE = bytes(ID_BYTES)
_LENGTHS = struct.Struct("<12xI")


class RecordCheck(RowCheck):
    """The part of a check that reads metadata and small files."""

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
            tables: list[tuple[Record, PieceColumns]] = []
            at = named = 0
            for record in scan_segment(fd, segment.size, segment.row.nonce, self._unreadable(segment)):
                if not record.intact:
                    continue
                if is_object(record.kind):
                    records.append(record)
                    named += len(record.payload) // 64  # of a directory: its files
                if record.kind is RecordKind.CONTENTS:
                    tables += self._contents(segment, record)
                    named += len(record.payload) // 36
                if len(records) >= _RECORDS_AT_ONCE or named >= _NAMED_AT_ONCE:
                    self._look_up(segment, records, tables)
                    records, tables, named = [], [], 0
                    self._progress.add(record.offset - at)
                    at = record.offset
            self._look_up(segment, records, tables)
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

    def _contents(self, segment: Segment, record: Record) -> Sequence[tuple[Record, PieceColumns]]:
        """Take note of a table of contents."""
        try:
            table = PieceColumns.decode(record.payload)
        except Corrupt:
            return ()  # the chain of tables breaks off there, which is found
        data = self.segments.get(table.segment)
        if data is None:
            return ()
        data.tables.append(TablePlace(table.start, table.end, segment.number, record.payload_offset, table.previous))
        return ((record, table),)

    # What records name

    def _look_up(
        self, segment: Segment, records: Sequence[Record], tables: Sequence[tuple[Record, PieceColumns]]
    ) -> None:
        """Compare records and tables with the index, and look into those records that it names."""
        named = _named(segment, records)
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.OBJECTS, sorted([id for id, _, _ in named]))
        matched = self._match(segment, named, rows)
        referred: list[tuple[ObjectId, References]] = []
        wanted: set[ObjectId] = set()
        for record in records:
            if record.id in matched:
                self.counts[record.kind] += 1
                if record.kind is not RecordKind.PIECE:
                    references = self._visit(segment, record, matched)
                    referred.append((record.id, references))
                    wanted.update(referred_ids(references))
        for _, table in tables:
            wanted.update(table.ids)
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.OBJECTS, sorted(wanted))
        for record, table in tables:
            if self._table_matches(self.segments[table.segment], table, rows) and self._ahead is not None:
                place = segment.number, record.payload_offset, len(record.payload)
                self._ahead.ask(table, *place, record.id)
        self._references(referred, rows)

    def _match(
        self, segment: Segment, named: Iterable[tuple[ObjectId, int, bytes]], rows: Mapping[bytes, bytes]
    ) -> set[ObjectId]:
        """Those that the index has just there; others are noted as not indexed if it does not know them at all."""
        matched = set()
        for id, offset, right in named:
            raw = rows.get(id)
            if raw == right:
                matched.add(id)
                segment.agree(offset)
                segment.matches += 1
            elif raw is None and len(self.unindexed) < _UNINDEXED_MAX and id != _NO_FILE:
                self.unindexed[id] = Location.decode(right)
        return matched

    def _visit(self, segment: Segment, record: Record, matched: set[ObjectId]) -> References:
        references = self._visitor.visit(record.kind, record.id, record.payload)
        if record.kind is RecordKind.MANIFEST:
            file = object_id_at(record.payload)
            if file in matched:
                place = Location(segment.number, record.payload_offset, record.kind, len(record.payload))
                self._visitor.large_file(file, place)
        return references

    def _table_matches(self, data: Segment, table: PieceColumns, rows: Mapping[bytes, bytes]) -> bool:
        """Note the pieces of a table that the index has where the table says; whether those are all."""
        right = table.rows()
        there = all(table.lengths) and (not right or table.offsets[-1] + table.lengths[-1] <= data.size)
        if there and list(map(rows.get, table.ids)) == right:
            data.agree_blocks(table.offsets)
            data.matches += len(right)
            self.counts[RecordKind.PIECE] += len(right)
            return True
        named = [
            (id, offset, row)
            for id, offset, length, row in zip(table.ids, table.offsets, table.lengths, right, strict=True)
            if length and offset + length <= data.size
        ]
        self.counts[RecordKind.PIECE] += len(self._match(data, named, rows))
        return False

    def _references(self, referred: Sequence[tuple[ObjectId, References]], rows: Mapping[bytes, bytes]) -> None:
        for source, references in referred:
            if isinstance(references, FileReferences):
                if _are_pieces(references, rows):
                    continue
                references = references.one_by_one()
            for reference in references:
                raw = rows.get(reference.id)
                if raw is None:
                    self._missing.setdefault(reference.id, source)
                elif self._misfit(reference, raw) and len(self._misfits) < _MISFITS_MAX:
                    self._misfits.append((source, reference))


def _named(segment: Segment, records: Sequence[Record]) -> list[tuple[ObjectId, int, bytes]]:
    """Ids under which the index should have records, where their payloads are, and the row that says so."""
    named = []
    number, pack = segment.number, LOCATION.pack
    for record in records:
        offset, payload = record.payload_offset, record.payload
        row = pack(number, offset & 0xFFFFFFFF, offset >> 32, record.kind, len(payload))
        named.append((record.id, offset, row))
        if record.kind is RecordKind.MANIFEST:
            file = object_id_at(payload)
            if file != _NO_FILE:
                named.append((file, offset, row))
    return named


def _are_pieces(files: FileReferences, rows: Mapping[bytes, bytes]) -> bool:
    """Whether each file is one piece of its size."""
    count = len(files.ids)
    try:
        raw = b"".join([rows[id] for id in files.ids])
    except KeyError:
        return False
    return (
        raw[10::16] == b"\1" * count
        and raw[11::16] == bytes(count)
        and [length for (length,) in _LENGTHS.iter_unpack(raw)] == list(files.sizes)
    )
