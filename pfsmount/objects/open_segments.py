"""Segments that are not sealed: who writes to one, how it ends, and what its tables of contents say meanwhile."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.layout import disk_errors, fsync_directory
from pfsmount.objects.reading import OpenObjects
from pfsmount.objects.segment import (
    FSCK_HINT,
    NO_SEGMENT,
    RECORD_BYTES,
    RECORD_MAX,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    encode_footer,
    segment_path,
)
from pfsmount.objects.segment_writer import SegmentWriter

_LENGTH = struct.Struct("<I")


def seal_adopted(store: OpenObjects, numbers: Sequence[int]) -> None:
    """Seal segments that files became and that have no other name any more. No error: else the next who would append does it."""
    for number in numbers:
        with suppress(PfsError, OSError):
            row = store.segment_row(number)
            if row is not None and not row.sealed:
                writer = _take_writer(store, number, row)
                if writer is not None:
                    seal(store, writer)


def seal(store: OpenObjects, writer: SegmentWriter) -> None:
    """End a segment whose contents are all published; it never changes again. Raises NoSpace."""
    try:
        _seal(store, writer)
    finally:
        writer.close()


def _seal(store: OpenObjects, writer: SegmentWriter) -> None:
    with disk_errors("sealing a segment"):
        if writer.row.kind is SegmentKind.DATA:
            whole = merge_contents(store, writer.number, writer.row)
            writer.append_footer(encode_footer(whole.encode(), writer.end, store.info.id))
        else:
            writer.append_record(RecordKind.SEAL, hash_bytes(b"", RecordKind.SEAL.hash_kind), b"")
        writer.sync()
    writer.row.end, writer.row.sealed = writer.end, True
    with store.index.write() as txn:
        txn.put(Table.SEGMENTS, writer.number.to_bytes(4, "big"), writer.row.encode())
        txn.delete(Table.META, open_key(writer.row.kind, writer.number))


def merge_contents(store: OpenObjects, number: int, row: SegmentRow) -> TableOfContents:
    """All pieces of a data segment, gathered along the chain of its tables of contents.

    Stretches that no table names (left by a crash) appear as a piece with an id of zeros. Raises Corrupt.
    """
    tables: list[TableOfContents] = []
    where = None if row.contents_segment == NO_SEGMENT else (row.contents_segment, row.contents_offset)
    while where is not None:
        table = _read_contents(store, *where)
        tables.append(table)
        where = table.previous
    pieces: list[tuple[ObjectId, int]] = []
    end = 0
    for table in reversed(tables):
        gap = table.start - end
        while gap > 0:
            part = min(gap, 1 << 31)
            pieces.append((ObjectId(bytes(32)), part))
            gap -= part
        for id, location in table.locations():
            pieces.append((id, location.length))
            end = location.offset + location.length
        end = -(-end // 4096) * 4096
    return TableOfContents(number, 0, pieces)


def contents_chain(store: OpenObjects, row: SegmentRow) -> Iterator[Location]:
    """Where the tables of contents of a data segment lie, the last one first; only their first bytes are read. Raises Corrupt, NotFound."""
    where = None if row.contents_segment == NO_SEGMENT else (row.contents_segment, row.contents_offset)
    seen: set[tuple[int, int]] = set()
    while where is not None:
        if where in seen or where[1] < RECORD_BYTES:
            raise Corrupt("the tables of contents of a segment lead in a circle, or nowhere", hint=FSCK_HINT)
        seen.add(where)
        segment, offset = where
        head = store.segment(segment).read(offset - 40, 64)
        (length,) = _LENGTH.unpack_from(head)
        yield Location(segment, offset, RecordKind.CONTENTS, length)
        where = TableOfContents.decode(head[40:]).previous


def _read_contents(store: OpenObjects, segment: int, offset: int) -> TableOfContents:
    """The table whose payload starts at `offset` of a meta segment."""
    reader = store.segment(segment)
    (length,) = _LENGTH.unpack(reader.read(max(0, offset - 40), 4))
    if length > RECORD_MAX or offset < RECORD_BYTES:
        raise Corrupt(f"a table of contents in segment {segment:08x} is damaged")
    id = reader.read(offset - 32, 32)
    payload = reader.read(offset, length)
    if hash_bytes(payload, RecordKind.CONTENTS.hash_kind) != id:
        raise Corrupt(f"a table of contents in segment {segment:08x} is damaged")
    return TableOfContents.decode(payload)


def acquire_writer(store: OpenObjects, kind: SegmentKind) -> SegmentWriter:
    """Lock an unsealed segment that nobody else writes to, or make a new one. Raises NoSpace, PermissionDenied."""
    with disk_errors("opening a segment for writing"):
        for number, row in list(_open_segments(store, kind)):
            writer = _take_writer(store, number, row)
            if writer is not None and writer.end >= store.settings.segment_size:
                seal(store, writer)
            elif writer is not None:
                return writer
        return _new_segment(store, kind)


def _take_writer(store: OpenObjects, number: int, row: SegmentRow) -> SegmentWriter | None:
    """Lock a segment that was unsealed a moment ago; None when somebody else has it or it is sealed."""
    try:
        writer = SegmentWriter(segment_path(store.directory, number, row.kind), number, row, store.info.id)
    except BlockingIOError:
        return None
    writer.row = store.segment_row(number) or row  # it may have changed before we had the lock
    if not writer.row.end:  # whoever made the file may have died before its name was durable
        fsync_directory(store.directory)
    if writer.row.sealed:
        writer.close()
        return None
    return writer


def _open_segments(store: OpenObjects, kind: SegmentKind) -> Iterator[tuple[int, SegmentRow]]:
    with store.index.read() as txn:
        prefix = b"open" + bytes([kind])
        for key, _ in txn.scan(Table.META, prefix):
            raw = txn.get(Table.SEGMENTS, key[len(prefix) :])
            if raw is not None:
                yield int.from_bytes(key[len(prefix) :], "big"), SegmentRow.decode(raw)


def open_key(kind: SegmentKind, number: int) -> bytes:
    """The key in the table `meta` that says that a segment is not sealed."""
    return b"open" + bytes([kind]) + number.to_bytes(4, "big")


def _new_segment(store: OpenObjects, kind: SegmentKind) -> SegmentWriter:
    row = SegmentRow(kind, False, 0, 0, os.urandom(16))
    while True:
        with store.index.write() as txn:
            number = txn.increment(b"segment")
            txn.put(Table.SEGMENTS, number.to_bytes(4, "big"), row.encode())
            txn.put(Table.META, open_key(kind, number), b"")
        try:
            writer = SegmentWriter(segment_path(store.directory, number, kind), number, row, store.info.id)
        except BlockingIOError:
            continue  # another process saw the row first and has the segment
        fsync_directory(store.directory)
        return writer
