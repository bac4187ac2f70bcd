"""The pieces of data segments: their tables of contents, footers and, with `--data`, every byte.

Which pieces the index has where a table says was noted when the table was read (`objects.record_check`), so the index is not asked again. A segment
is read once, from front to back; who hashes large files as wholes (`Visitor.wanted`) gets their pieces as they go by.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import ID_BYTES
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.object_look import Segment
from pfsmount.objects.open_segments import merge_contents
from pfsmount.objects.parts import Part
from pfsmount.objects.record_check import RecordCheck
from pfsmount.objects.segment import (
    NO_SEGMENT,
    RECORD_BYTES,
    Location,
    PieceColumns,
    RecordKind,
    TableOfContents,
    contents_entries,
    read_footer,
)
from pfsmount.objects.segment_scan import PieceScan, Window, unpadded_pieces, windows, wrong_pieces
from pfsmount.objects.windows_ahead import is_small


class PieceCheck(RecordCheck):
    """The part of a check that is about data segments."""

    def _pieces(self, segments: Sequence[Segment], *, data: bool) -> None:
        """What tables of contents say of data segments, and with `data` every piece in them."""
        with PieceScan() as scan:
            for segment in segments:
                self._chain(segment)
                fd = self._open(segment) if segment.size else -1
                if fd < 0:
                    continue
                try:
                    self._footer(segment, fd)
                    if data:
                        self._data(segment, fd, scan)
                finally:
                    os.close(fd)

    def _data(self, segment: Segment, fd: int, scan: PieceScan) -> None:
        """Every piece that the index has in a segment."""
        at = 0
        unreadable = self._unreadable(segment)
        left: list[Window] = []
        for window, found in scan.read(fd, self._windows(segment), unreadable, self._is_left):
            if found is not None:
                self._window(segment, window, *found)
            elif self._visitor.wanted.isdisjoint(window.ids):
                if not self._is_right(window):
                    left.append(window)
            else:  # with the end of a large file, which only this process hashes
                self._window(segment, window, *scan.read_now(fd, window, unreadable))
            self.bytes_checked += sum(window.lengths)
            self._progress.add(max(window.end - at, 0))
            at = max(window.end, at)
        for window in left:
            if not self._is_right(window):
                self._window(segment, window, *scan.read_now(fd, window, unreadable))
        self._progress.add(segment.size - at)

    def _is_left(self, window: Window) -> bool:
        """Whether another process looks at a window."""
        return self._ahead is not None and window.mark >= 0 and self._ahead.leave(window.mark)

    def _is_right(self, window: Window) -> bool:
        return self._ahead is not None and self._ahead.is_right(window.mark)

    def _window(self, segment: Segment, window: Window, data: memoryview, part: Part) -> None:
        wrong = wrong_pieces(window, data)
        unpadded = unpadded_pieces(window, data)
        for i in sorted({*wrong, *unpadded}):
            id, place = window.ids[i], Location(segment.number, window.offsets[i], RecordKind.PIECE, window.lengths[i])
            if i in wrong:
                self._damaged(id, place)
            else:
                text = f"segment {segment.number:08x} has no zeros behind the piece at byte {place.offset}"
                self._found(Invariant.PADDING, text, id=id, place=place)
        if self._visitor.wanted.isdisjoint(window.ids):
            return
        for i, (id, offset, length) in enumerate(zip(*window[:3], strict=True)):
            if id in self._visitor.wanted and i not in wrong:
                begin = offset - window.start
                part.users += self._visitor.piece(id, data[begin : begin + length])

    def _windows(self, segment: Segment) -> Iterator[Window]:
        """The pieces that tables of contents and the index both know, in order."""
        for place in sorted(segment.tables):
            if self._ahead is not None and not self._visitor.wanted:
                right = self._ahead.right_bytes(place.meta, place.offset)
                if right:
                    self.bytes_checked += right
                    continue
            table = self._table(place.meta, place.offset)
            if table is None:
                continue
            ids, offsets, lengths = table.ids, table.offsets, table.lengths
            mark = -1 if self._ahead is None else self._ahead.mark(place.meta, place.offset, len(ids))
            there = segment.agreeing(offsets)
            if len(there) < len(offsets):
                mark = -1
                ids, offsets, lengths = (
                    [ids[i] for i in there],
                    [offsets[i] for i in there],
                    [lengths[i] for i in there],
                )
            for window in windows(ids, offsets, lengths):
                yield window if mark < 0 or not is_small(window.lengths) else window._replace(mark=mark)
                mark += len(window.ids) if mark >= 0 else 0

    def _table(self, meta: int, offset: int) -> PieceColumns | None:
        payload = self._payload(meta, offset)
        try:
            return None if payload is None else PieceColumns.decode(payload)
        except Corrupt:
            return None

    def _payload(self, meta: int, offset: int) -> bytes | None:
        """An intact table of contents, encoded."""
        try:
            reader = self._objects.segment(meta)
            length = int.from_bytes(reader.read(offset - RECORD_BYTES + 8, 4), "little")
            payload = reader.read(offset, length)
            return payload if hash_bytes(payload, HashKind.RECORD) == reader.read(offset - ID_BYTES, ID_BYTES) else None
        except (PfsError, OSError):
            return None

    def _chain(self, segment: Segment) -> None:
        """Whether the tables of contents can be followed from the last one to the first."""
        row = segment.row
        known = {(table.meta, table.offset): table.previous for table in segment.tables}
        where = row.contents_segment, row.contents_offset
        seen = set()
        while where[0] != NO_SEGMENT:
            before = None if where in seen else known.get(where) or self._previous(segment, *where)
            if before is None:
                if self._fresh_row_is_other(segment):
                    return
                text = f"the tables of contents of segment {segment.number:08x} break off in segment {where[0]:08x}"
                self._found(Invariant.CONTENTS_CHAIN, text, segment=segment.number)
                return
            seen.add(where)
            where = before

    def _previous(self, segment: Segment, meta: int, offset: int) -> tuple[int, int] | None:
        """Where the table before one is, which the look at metadata did not meet: newer than that, or damaged (None)."""
        table = self._table(meta, offset)
        return None if table is None or table.segment != segment.number else table.previous

    def _footer(self, segment: Segment, fd: int) -> None:
        if not segment.row.sealed or segment.number in self.damage.short:
            return
        try:
            right = self._footer_is_right(segment, fd)
        except (PfsError, OSError, ValueError):
            right = False
        if not right:
            text = f"the footer of segment {segment.number:08x} is damaged; the tables of contents elsewhere are not"
            self._found(Invariant.FOOTER, text, segment=segment.number)

    def _footer_is_right(self, segment: Segment, fd: int) -> bool:
        """Whether it says what all tables of contents say. Raises Corrupt."""
        payload = read_footer(fd)
        if payload is None:
            return False
        tables = sorted(segment.tables)
        if [table.start for table in tables] == [0, *(table.end for table in tables)][: len(tables)]:
            each = [self._payload(table.meta, table.offset) for table in tables]
            if contents_entries(payload) == b"".join([contents_entries(one or b"") for one in each]):
                return True
        whole = merge_contents(self._objects, segment.number, segment.row)
        return list(TableOfContents.decode(payload).pieces) == list(whole.pieces)
