"""Files that become data segments as they are, by a second name instead of a copy.

A data segment has no header, so a file whose pieces begin on blocks is one already: it needs a number, a name in `segments/` and tables of contents. In order:

1. `announce`: a number and a row with nothing published in it, not listed as open, so that nobody appends; held, so that gc leaves it alone.
2. `link`: the second name, durable. The file itself was made durable before. Until the batch is published it is still the other name's, and nobody relies on it.
3. The batch's tables of contents name its pieces; its last transaction publishes them and lists the segment as open: an unsealed segment like any other, but for its
   second name, as long as that is there. Nobody appends to a segment with two names (`SegmentWriter`).
4. Whoever had the file takes the first name away; the segment is sealed.

Before 3 the batch can be given up, or the process die: then `withdraw` (of the store), by the batch, by gc, or by the next owner of the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EMLINK, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.holds import Hold
from pfsmount.objects.index import Index, Table
from pfsmount.objects.layout import fsync_directory
from pfsmount.objects.segment import (
    BLOCK,
    NO_SEGMENT,
    SEGMENT_BLOCKS_MAX,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    align,
    segment_path,
)

PIECES_MAX = 1 << 18
"""Pieces of adopted files that one commit publishes (1 TiB): all in its last transaction, for before that a crash must leave the file to its owner."""
_RUNS_MAX = 1000

Piece = tuple[ObjectId, int, int]
"""Id, offset in the file, length."""


@dataclass(slots=True)
class Adoption:
    """A file on its way to being a segment."""

    number: int
    row: SegmentRow
    size: int
    runs: list[list[Piece]]
    """Pieces that follow each other without a hole."""
    recorded: bool = False
    """Tables of contents name it."""

    def locations(self) -> list[tuple[ObjectId, Location]]:
        """Where each piece is."""
        return [
            (id, Location(self.number, offset, RecordKind.PIECE, length))
            for run in self.runs
            for id, offset, length in run
        ]

    def table(self, run: Sequence[Piece]) -> TableOfContents:
        """The next table of contents."""
        row = self.row
        before = None if row.contents_segment == NO_SEGMENT else (row.contents_segment, row.contents_offset)
        return TableOfContents(self.number, run[0][1], [(id, length) for id, _, length in run], before)


def runs_of(pieces: Sequence[Piece]) -> list[list[Piece]] | None:
    """Pieces of a file cut where a hole is; None when they do not lie as those of a segment must."""
    runs: list[list[Piece]] = []
    end = 0
    for piece in pieces:
        _, offset, length = piece
        if offset % BLOCK or offset + length > SEGMENT_BLOCKS_MAX * BLOCK:
            return None
        if runs and offset == end:
            runs[-1].append(piece)
        else:
            runs.append([piece])
        end = align(offset + length, BLOCK)
    return runs if 0 < len(runs) <= _RUNS_MAX else None


def announce(index: Index, hold: Hold, size: int, runs: list[list[Piece]]) -> Adoption:
    """Take a number. Raises NoSpace."""
    row = SegmentRow(SegmentKind.DATA, False, 0, 0, os.urandom(16))
    with index.write() as txn:
        number = txn.increment(b"segment")
        hold.add_segment(number, 0)  # before the row can be seen: a row like this that nobody holds is a crash's
        txn.put(Table.SEGMENTS, number.to_bytes(4, "big"), row.encode())
    return Adoption(number, row, size, runs)


def link(directory: Path, adoption: Adoption, source: Path) -> bool:
    """Give the file its name as a segment, durable. False where that cannot be. Raises OSError."""
    try:
        os.link(source, segment_path(directory, adoption.number, SegmentKind.DATA))
    except OSError as error:
        if error.errno in (EXDEV, EMLINK, EPERM, EOPNOTSUPP):
            return False
        raise
    fsync_directory(directory)
    return True


def is_announced(row: SegmentRow) -> bool:
    """Whether nothing of a data segment was ever published: it is announced for a file, or new and listed as open."""
    return row.kind is SegmentKind.DATA and not row.sealed and not row.end


def segments_of(directory: Path, inode: int) -> list[int]:
    """Numbers of the data segments that are names of an inode."""
    found = []
    with os.scandir(directory) as files:
        for file in files:
            stem, _, suffix = file.name.partition(".")
            if file.inode() == inode and suffix == SegmentKind.DATA.suffix:
                with suppress(ValueError):
                    found.append(int(stem, 16))
    return found
