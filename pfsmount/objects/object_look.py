"""What the parts of a check of objects share: segments as the index knew them, findings, and the look at a row that confirms a suspicion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pfsmount.errors import Corrupt
from pfsmount.ids import ObjectId
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant, Severity
from pfsmount.objects.segment import BLOCK, FSCK_HINT, RECORD_BYTES, Location, RecordKind, SegmentKind, SegmentRow
from pfsmount.objects.store import ObjectStore

_ROWS_AT_ONCE = 20_000


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


class ObjectLook:
    """What a check of a store's objects has seen so far."""

    def __init__(self, objects: ObjectStore, findings: Findings, damage: Damage) -> None:
        self._objects = objects
        self.findings, self.damage = findings, damage
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
