"""Checks what a store is made of: segments, the index's rows about them, and every object's bytes.

Nothing is locked and nothing changed; others read and write meanwhile. What a writer is just doing is no damage, by two rules: a segment is
read up to the end that was published when the check began, and **a suspicion is only reported when a fresh look confirms it** (`objects.row_check`).

Segments are read in order, first meta, then tiny, then data; each record or table of contents is looked up in the index, some thousands at a
time. A bit for each place that the index and the segment agree on is kept (4 KiB of data or 48 bytes of metadata), then the index is read in order, and
rows that point elsewhere are looked at one by one. So memory does not grow with the number of objects beyond that bit.
"""

from __future__ import annotations

import os

from pfsmount.errors import Corrupt
from pfsmount.objects.adoption import is_announced
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Invariant, Severity
from pfsmount.objects.object_look import Segment
from pfsmount.objects.piece_check import PieceCheck
from pfsmount.objects.segment import SegmentKind, SegmentRow


class ObjectCheck(PieceCheck):
    """One check of one store's objects."""

    def run(self, *, data: bool) -> None:
        """Check everything; with `data` also every piece against its hash."""
        self._take_segments()
        self._progress.total = self._rows_total() + sum(
            segment.size for segment in self.segments.values() if data or segment.row.kind is not SegmentKind.DATA
        )
        for kind in (SegmentKind.META, SegmentKind.TINY):
            self._progress.what = f"checking {kind.suffix} segments"
            for segment in self._of(kind):
                self._records(segment)
        self._progress.what = "checking data" if data else "checking tables of contents"
        self._pieces(self._of(SegmentKind.DATA), data=data)
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
