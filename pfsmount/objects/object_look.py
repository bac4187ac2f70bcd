"""What the parts of a check of objects share: segments as the index knew them, findings, and the look at a row that confirms a suspicion."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from pfsmount.errors import Corrupt
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant, Severity
from pfsmount.objects.lane import Ticket
from pfsmount.objects.segment import (
    BLOCK,
    FSCK_HINT,
    RECORD_BYTES,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    segment_path,
)
from pfsmount.objects.store import ObjectStore
from pfsmount.objects.windows_ahead import WindowsAhead

_ROWS_AT_ONCE = 20_000
FILE_KINDS = frozenset({RecordKind.PIECE, RecordKind.MANIFEST})


class Reference(NamedTuple):
    """What an object says of another."""

    id: ObjectId
    kinds: frozenset[RecordKind]
    size: int | None = None
    """Bytes of a file or piece; None for others."""


class FileReferences(NamedTuple):
    """What a leaf of nothing but plain files refers to, in columns."""

    ids: Sequence[ObjectId]
    sizes: Sequence[int]

    def one_by_one(self) -> list[Reference]:
        """The same as of any other object."""
        return [Reference(id, FILE_KINDS, size) for id, size in zip(self.ids, self.sizes, strict=True)]


References = list[Reference] | FileReferences


def referred_ids(references: References) -> Sequence[ObjectId]:
    """The ids in them."""
    return references.ids if isinstance(references, FileReferences) else [reference.id for reference in references]


class Visitor:
    """Looks into objects for the layers above."""

    @property
    def wanted(self) -> Set[ObjectId]:
        """Pieces whose bytes it asks for."""
        return frozenset()

    def visit(self, kind: RecordKind, id: ObjectId, payload: bytes) -> References:
        """Check an object by itself; what it refers to. Called with each intact object that the index names, in the order of segments."""
        raise NotImplementedError

    def large_file(self, id: ObjectId, place: Location) -> None:
        """A manifest that the index names as this file. Called after `visit`, and before any piece is read."""

    def piece(self, id: ObjectId, data: Buffer) -> Sequence[Ticket]:
        """An intact piece that was wanted; `data` stays as it is until these were waited for."""
        return ()


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


class TablePlace(NamedTuple):
    """An intact table of contents: where its pieces begin and end, where it is, and where the one before it."""

    start: int
    end: int
    meta: int
    offset: int
    previous: tuple[int, int]


@dataclass(slots=True)
class Segment:
    """A segment as the index knew it when the check began."""

    number: int
    row: SegmentRow
    size: int = 0
    """Bytes that the file has, or the published end where that is less."""
    tables: list[TablePlace] = field(default_factory=list)
    """Tables of contents of a data segment that meta segments have."""
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

    def agree_blocks(self, offsets: Sequence[int]) -> None:
        """Note many places of a data segment."""
        agreed = self.agreed
        for offset in offsets:
            agreed[offset >> 15] |= 1 << (offset >> 12 & 7)

    def agreeing(self, offsets: Sequence[int]) -> list[int]:
        """Which of the places of a data segment were noted."""
        agreed, end = self.agreed, len(self.agreed) << 15
        return [
            i for i, offset in enumerate(offsets) if offset < end and agreed[offset >> 15] >> (offset >> 12 & 7) & 1
        ]

    def agrees(self, offset: int) -> bool:
        """Whether a place was noted."""
        slot = offset // self.unit
        return slot >> 3 < len(self.agreed) and bool(self.agreed[slot >> 3] & 1 << (slot & 7))


class ObjectLook:
    """What a check of a store's objects has seen so far."""

    def __init__(
        self,
        objects: ObjectStore,
        findings: Findings,
        damage: Damage,
        visitor: Visitor,
        progress: ProgressBar,
        ahead: WindowsAhead | None = None,
    ) -> None:
        self._objects = objects
        self.findings, self.damage = findings, damage
        self._visitor = visitor
        self._progress = progress
        self._ahead = ahead
        self.counts: Counter[RecordKind] = Counter()
        """Objects that are in the index, by kind."""
        self.bytes_checked = 0
        self.segments: dict[int, Segment] = {}
        self.unindexed: dict[ObjectId, Location] = {}
        """Intact objects that the index does not name: left by a crash, or lost by the index."""
        self._missing: dict[ObjectId, ObjectId] = {}
        """What is referred to and not in the index → what refers to it."""
        self._misfits: list[tuple[ObjectId, Reference]] = []

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

    def _fresh_row(self, number: int) -> SegmentRow | None:
        return self._objects.segment_row(number)

    def _damaged(self, id: ObjectId, place: Location) -> None:
        """An object whose bytes are wrong, unless it was moved or dropped meanwhile."""
        if self._objects.index.get(Table.OBJECTS, id) == place.encode():
            self.damage.objects[id] = Invariant.OBJECT_HASH
            kind = "data" if place.kind is RecordKind.PIECE else place.kind.name.lower()
            text = f"{kind} {id.hex()} is damaged: segment {place.segment:08x}, byte {place.offset}, {place.length:,} bytes"
            self._found(Invariant.OBJECT_HASH, text, id=id, place=place)

    # Segments as files

    def _path(self, segment: Segment) -> str:
        return os.fspath(segment_path(self._objects.directory, segment.number, segment.row.kind))

    def _fresh_row_is_other(self, segment: Segment) -> bool:
        """Whether somebody dropped the segment (gc) since the check began."""
        return self._fresh_row(segment.number) is None

    def _open(self, segment: Segment) -> int:
        try:
            return os.open(self._path(segment), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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


def chunks(objects: ObjectStore, table: Table) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows of a table in order, some at a time: no transaction stays open meanwhile."""
    start = b""
    while True:
        with objects.index.read() as txn:
            rows = txn.some(table, start, _ROWS_AT_ONCE)
        if rows:
            yield rows
        if len(rows) < _ROWS_AT_ONCE:
            return
        if rows[-1][0] < start:
            raise Corrupt(f"keys of the table '{table.value.decode()}' are out of order", hint=FSCK_HINT)
        start = rows[-1][0] + b"\0"
