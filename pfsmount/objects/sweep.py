"""Dropping what is dead from the index, and giving its space back.

Invariants
1. Only what lay before the horizon can be dead: it was published before gc looked at what is alive, and by no batch that still runs.
2. An entry is dropped in a transaction in which nothing can have become alive that was not marked (`Sweep` is handed that transaction).
3. Space is computed from what is alive, not from what was dropped, so what a killed gc left is freed by the next.
4. Before a range is freed a tombstone is durable that says so, and before that the index does not name it any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pfsmount.errors import NoSpace, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.adoption import is_announced
from pfsmount.objects.batch import withdraw
from pfsmount.objects.coverage import Coverage, allocated
from pfsmount.objects.holds import Held
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.layout import disk_errors, fsync_directory
from pfsmount.objects.marks import Marks
from pfsmount.objects.open_segments import contents_chain, open_key
from pfsmount.objects.punch import punch
from pfsmount.objects.segment import (
    BLOCK,
    WHOLE,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    decode_seal,
    encode_tombstone,
    segment_path,
)
from pfsmount.objects.store import ObjectStore

_ROWS_AT_ONCE = 20_000
_DROPPED_AT_ONCE = 5000
_RANGES_MAX = 4096
Change = Callable[[Transaction], None]
InStep = Callable[[Change], None]
"""Carries out a change in a write transaction in which everything that is alive is marked."""


class Amount(NamedTuple):
    """So many objects, and their bytes."""

    objects: int = 0
    size: int = 0


class Horizon:
    """Up to where each segment is older than the plan. Take it before reading any root, and what is held after it."""

    def __init__(self, objects: ObjectStore) -> None:
        with objects.index.read() as txn:
            self.last = txn.counter(b"segment")
            self.rows = {int.from_bytes(key, "big"): SegmentRow.decode(raw) for key, raw in txn.scan(Table.SEGMENTS)}
        self.ends = {number: row.end for number, row in self.rows.items()}

    def respect(self, held: Held) -> None:
        """What running batches have published is new."""
        for number, start in held.segments.items():
            if number in self.ends:
                self.ends[number] = min(self.ends[number], start)


@dataclass(slots=True)
class Freed:
    """A segment with ranges that nothing needs."""

    number: int
    kind: SegmentKind
    whole: bool
    """Nothing in it is alive, and nobody will write to it any more: the file goes."""
    ranges: list[tuple[int, int]]
    """Start and end in bytes of what takes space on disk."""
    size: int
    """Bytes on disk."""


@dataclass(slots=True)
class Survey:
    """What is dead, and what that frees."""

    dead: dict[RecordKind, Amount] = field(default_factory=dict)
    commits: list[ObjectId] = field(default_factory=list)
    """Dead commits."""
    coverage: Coverage = field(default_factory=Coverage)

    def count_dead(self, id: bytes, place: Location) -> None:
        count, size = self.dead.get(place.kind, Amount())
        self.dead[place.kind] = Amount(count + 1, size + place.length)
        if place.kind is RecordKind.COMMIT:
            self.commits.append(ObjectId(id))


class Sweep:
    """Goes over all of the index, in short transactions."""

    def __init__(
        self, objects: ObjectStore, marks: Marks, horizon: Horizon, progress: Callable[[int], None] | None = None
    ) -> None:
        self._objects, self._marks, self._horizon, self._progress = objects, marks, horizon, progress

    def is_dead(self, place: Location) -> bool:
        """True for what nothing needs."""
        return (
            place.kind is not RecordKind.TOMBSTONE
            and place.offset < self._horizon.ends.get(place.segment, 0)
            and place not in self._marks
        )

    def survey(self) -> Survey:
        """What is dead. Changes nothing. Raises Corrupt."""
        found = Survey()
        for rows in self._rows():
            for id, place in rows:
                if self.is_dead(place):
                    found.count_dead(id, place)
                else:
                    self._keep(found, place)
        return found

    def drop(self, in_step: InStep) -> Survey:
        """Drop what is dead from the index. Raises Corrupt, NoSpace."""
        found = Survey()
        for rows in self._rows():
            dead = [row for row in rows if self.is_dead(row[1])]
            dropped: set[bytes] = set()
            at, count = 0, _DROPPED_AT_ONCE
            while at < len(dead):
                try:
                    dropped |= self._drop(dead[at : at + count], in_step)
                    at += count
                except NoSpace:  # a change of the index needs a few free pages of it, and gives back more
                    if count == 1:
                        raise
                    count = max(1, count // 8)
            for id, place in rows:
                if id in dropped:
                    found.count_dead(id, place)
                else:
                    self._keep(found, place)
        return found

    def _drop(self, dead: list[tuple[bytes, Location]], in_step: InStep) -> set[bytes]:
        dropped: set[bytes] = set()

        def change(txn: Transaction) -> None:
            dropped.clear()
            txn.increment(b"gc")
            for id, place in dead:
                # marked since, or moved by a commit that stored it anew
                if place not in self._marks and txn.get(Table.OBJECTS, id) == place.encode():
                    txn.delete(Table.OBJECTS, id)
                    dropped.add(id)

        in_step(change)
        return dropped

    def _keep(self, found: Survey, place: Location) -> None:
        row = self._horizon.rows.get(place.segment)
        if row is not None:
            found.coverage.add(row.kind, place)

    def _rows(self) -> Iterator[list[tuple[bytes, Location]]]:
        start = b""
        while True:
            with self._objects.index.read() as txn:
                rows = list(islice(txn.scan(Table.OBJECTS, start=start), _ROWS_AT_ONCE))
            yield [(id, Location.decode(raw)) for id, raw in rows]
            if len(rows) < _ROWS_AT_ONCE:
                return
            start = rows[-1][0] + b"\0"
            if self._progress is not None:
                self._progress(len(rows))


# Space


def plan_space(objects: ObjectStore, horizon: Horizon, coverage: Coverage) -> list[Freed]:
    """What can be given back, from what is alive (`coverage`, which gets what the index does not name). Raises Corrupt, OSError."""
    rows = horizon.rows
    used = {number for number, row in rows.items() if number in coverage or not row.sealed}
    for number, row in rows.items():  # tables of contents of data that is still there
        if row.kind is SegmentKind.DATA and number in used:
            with suppress(NotFound):
                for place in contents_chain(objects, row):
                    coverage.add(SegmentKind.META, place)
                    used.add(place.segment)
    freed = []
    for number, row in sorted(rows.items()):
        with suppress(FileNotFoundError):
            found = _space_of(objects, number, row, horizon.ends[number], coverage, whole=number not in used)
            if found.size or found.whole:
                freed.append(found)
    return freed


def _space_of(
    objects: ObjectStore, number: int, row: SegmentRow, end: int, coverage: Coverage, *, whole: bool
) -> Freed:
    path = segment_path(objects.directory, number, row.kind)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if whole:
            return Freed(number, row.kind, True, [WHOLE], info.st_blocks * 512)
        if row.kind is not SegmentKind.DATA:
            coverage.add_range(number, 0, BLOCK)  # the header
        if row.sealed:
            start = decode_seal(fd) if row.kind is SegmentKind.DATA else info.st_size - BLOCK
            coverage.add_range(number, max(0, start), info.st_size)
        ranges = [
            part for start, stop in coverage.gaps(number, min(end, info.st_size)) for part in allocated(fd, start, stop)
        ]
        return Freed(number, row.kind, False, ranges, sum(stop - start for start, stop in ranges))
    finally:
        os.close(fd)


def free_space(objects: ObjectStore, freed: list[Freed], progress: Callable[[int], None] | None = None) -> int:
    """Give back what was planned; the index does not name it any more. Returns bytes. Raises NoSpace, PermissionDenied."""
    total = 0
    for one in freed:
        bury(objects, {one.number: one.ranges})
        with disk_errors("freeing space"):
            total += _unlink(objects, one) if one.whole else _punch(objects, one)
        if progress is not None:
            progress(total)
    return total


def bury(objects: ObjectStore, ranges: Mapping[int, Sequence[tuple[int, int]]]) -> None:
    """Write down which ranges (start, end in bytes) of segments a rebuild of the index must not look for; durable when this returns. Raises NoSpace."""
    with objects.batch() as batch:
        for segment, found in ranges.items():
            for at in range(0, len(found), _RANGES_MAX):
                batch.add_object(RecordKind.TOMBSTONE, encode_tombstone(segment, found[at : at + _RANGES_MAX]))
        batch.flush()


def _unlink(objects: ObjectStore, one: Freed) -> int:
    with objects.index.write() as txn:
        txn.delete(Table.SEGMENTS, one.number.to_bytes(4, "big"))
    with suppress(FileNotFoundError):
        os.unlink(segment_path(objects.directory, one.number, one.kind))
    fsync_directory(objects.directory)
    return one.size


def _punch(objects: ObjectStore, one: Freed) -> int:
    fd = os.open(segment_path(objects.directory, one.number, one.kind), os.O_RDWR | os.O_CLOEXEC)
    size = 0
    try:
        for start, end in one.ranges:
            if not punch(fd, start, end - start):
                break
            size += end - start
    finally:
        os.close(fd)
    key = one.number.to_bytes(4, "big")
    with objects.index.write() as txn:
        raw = txn.get(Table.SEGMENTS, key)
        if raw is not None:
            row = SegmentRow.decode(raw)
            row.freed += size
            txn.put(Table.SEGMENTS, key, row.encode())
    return size


def withdraw_leftovers(objects: ObjectStore, horizon: Horizon, held: Held) -> None:
    """Withdraw what was announced for a file by a process that died before it was published. Raises NoSpace, PermissionDenied."""
    for number, row in horizon.rows.items():
        listed = objects.index.get(Table.META, open_key(row.kind, number)) is not None
        if is_announced(row) and not listed and number not in held.segments:
            withdraw(objects, number)


def delete_leftovers(objects: ObjectStore, last: int) -> int:
    """Delete the files of segments up to number `last` whose rows a killed gc has dropped. Returns bytes. Raises PermissionDenied."""
    size = 0
    with disk_errors("freeing space"), os.scandir(objects.directory) as files:
        for file in files:
            stem, _, suffix = file.name.partition(".")
            with suppress(ValueError, KeyError, FileNotFoundError):
                number, _ = int(stem, 16), SegmentKind[suffix.upper()]
                if number <= last and objects.index.get(Table.SEGMENTS, number.to_bytes(4, "big")) is None:
                    size += file.stat().st_blocks * 512
                    os.unlink(file.path)
    return size
