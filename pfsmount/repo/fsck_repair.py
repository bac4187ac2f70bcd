"""Mending what a check found, from the store itself and from another one.

What is mended is appended anew, and then its row in the index points there, in one transaction: nothing in a segment is overwritten. Each step is whole by
itself, so a kill leaves a store that is at worst as damaged as before, and the same command goes on.

An object that cannot be read stands in the way of storing it again: whoever puts the same file is told that the store has it. So what
cannot be mended is dropped from the index (`forget`), never silently and only when asked.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.object_look import ProgressBar, chunks, referred_ids
from pfsmount.objects.open_segments import open_key
from pfsmount.objects.reading import read_object
from pfsmount.objects.row_check import is_at
from pfsmount.objects.segment import (
    BLOCK,
    NO_SEGMENT,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    align,
    encode_header,
    segment_path,
)
from pfsmount.objects.segment_scan import object_id_at
from pfsmount.objects.store import ObjectStore
from pfsmount.objects.sweep import bury
from pfsmount.repo.fsck import Report, visitor_of
from pfsmount.repo.store import Store
from pfsmount.tree.manifest import HOLE, Manifest

_BYTES_AT_ONCE = 64 << 20
_ROWS_AT_ONCE = 5000
_HEALABLE = frozenset(
    {
        Invariant.OBJECT_HASH,
        Invariant.OBJECT_PRESENT,
        Invariant.OBJECT_LOCATION,
        Invariant.OBJECT_INDEXED,
        Invariant.SEGMENT_PRESENT,
        Invariant.SEGMENT_LENGTH,
        Invariant.SEGMENT_READABLE,
    }
)
_NO_FILE = bytes(32)


@dataclass(slots=True)
class Repaired:
    """What was mended."""

    healed: int = 0
    """Objects that can be read again."""
    healed_bytes: int = 0
    forgotten: int = 0
    """Objects that were dropped from the index: putting the same files again stores them."""
    done: list[str] = field(default_factory=list)
    """What else was done."""
    remaining: int = 0
    """Objects that still cannot be read."""


class Repair:
    """Mends the damage of a report."""

    def __init__(self, store: Store, report: Report, bar: ProgressBar) -> None:
        self._store, self._objects, self._report, self._bar = store, store.objects, report, bar
        self._todo = [id for id, why in report.damage.objects.items() if why in _HEALABLE]
        self.result = Repaired()

    def locally(self) -> None:
        """What the store itself has: objects that the index lost, damaged headers. Raises NoSpace, PermissionDenied."""
        self._find_unindexed()
        for finding in self._report.findings:
            if finding.invariant is Invariant.CONTENTS_CHAIN and finding.segment is not None:
                self._cut_chain(finding.segment)
        weak = [
            finding.object
            for finding in self._report.findings
            if finding.invariant in (Invariant.RECORD_CHECK, Invariant.CONTENTS) and finding.object is not None
        ]
        self._copy(self._objects, weak)
        for finding in self._report.findings:
            if finding.invariant is Invariant.SEGMENT_HEADER and finding.segment is not None:
                self._write_header(finding.segment)
            elif finding.invariant is Invariant.RESULTS_TARGET and finding.object is not None:
                with self._objects.index.write() as txn:
                    txn.delete(Table.RESULTS, finding.object)
                self.result.done.append(
                    f"the result of the datum {finding.object.hex()[:12]} was dropped: it will run again"
                )

    def from_store(self, other: Store) -> None:
        """What another store has. Raises NoSpace, PermissionDenied."""
        visitor = visitor_of(other.objects)
        seen = set(self._todo)
        todo = list(self._todo)
        self._bar.what, self._bar.total = "repairing", 0
        while todo:
            healed = self._copy(other.objects, todo)
            todo = []
            for id in healed:  # what a healed directory names may be missing as well, unknown until now
                place = self._objects.locate(id)
                if place is None or place.kind is RecordKind.PIECE:
                    continue
                payload = self._objects.get(id)
                own = hash_bytes(payload, place.kind.hash_kind)
                for named in referred_ids(visitor.visit(place.kind, own, payload)):
                    if named not in seen and self._objects.index.get(Table.OBJECTS, named) is None:
                        seen.add(named)
                        todo.append(named)

    def forget(self) -> None:
        """Drop what cannot be read from the index. Raises NoSpace."""
        left = [id for id in self._todo if not self._is_readable(id)]
        self._bury([id for id in left if self._report.damage.objects[id] is Invariant.OBJECT_HASH])
        for at in range(0, len(left), _ROWS_AT_ONCE):
            self.result.forgotten += self._drop(left[at : at + _ROWS_AT_ONCE])
        if self.result.forgotten:
            drop_incomplete(self._objects)

    def finish(self) -> Repaired:
        """What is left of segments that are gone or cut, and the result."""
        self._settle_segments()
        self.result.remaining = sum(1 for id in self._todo if not self._is_readable(id))
        return self.result

    # Objects

    def _is_readable(self, id: ObjectId) -> bool:
        try:
            self._objects.get(id)
        except (PfsError, OSError):
            return False
        return True

    def _find_unindexed(self) -> None:
        rows = [(id, place) for id in self._todo if (place := self._report.unindexed.get(id)) is not None]
        rows = [(id, place) for id, place in rows if is_at(self._objects, id, place)]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            with self._objects.index.write() as txn:
                for id, place in rows[start : start + _ROWS_AT_ONCE]:
                    txn.put(Table.OBJECTS, id, place.encode())
        self.result.healed += len(rows)

    def _copy(self, source: ObjectStore, ids: Iterable[ObjectId]) -> list[ObjectId]:
        """Store objects anew as another store has them; those that it had."""
        healed: list[ObjectId] = []
        for group in _groups(_read(source, ids)):
            with _NewCopies(self._objects) as batch:
                names: list[ObjectId] = []
                for id, kind, payload in group:
                    names += _add(batch, id, kind, payload)
                    self.result.healed_bytes += len(payload)
                    self._bar.add(len(payload))
                batch.prepare()
                with self._objects.index.write() as txn:  # from the old place to the new one in one step
                    for name in names:
                        txn.delete(Table.OBJECTS, name)
                    batch.publish(txn)
                batch.published()
            healed += [id for id, _, _ in group]
        self.result.healed += len(healed)
        return healed

    def _drop(self, ids: Iterable[ObjectId]) -> int:
        """Drop rows of the index; batches that relied on them notice it by the counter of gc."""
        with self._objects.index.write() as txn:
            txn.increment(b"gc")
            return sum(txn.delete(Table.OBJECTS, id) for id in ids)

    def _bury(self, ids: Iterable[ObjectId]) -> None:
        """Write down that damaged data is no data, or a rebuilt index would have it again. Records in other segments say so themselves.

        Not for what lies behind a cut: there new data may come.
        """
        ranges: dict[int, list[tuple[int, int]]] = {}
        for id in ids:
            place = self._objects.locate(id)
            row = None if place is None else self._objects.segment_row(place.segment)
            if place is not None and row is not None and row.kind is SegmentKind.DATA:
                end = align(place.offset + place.length, BLOCK)
                ranges.setdefault(place.segment, []).append((place.offset, end))
        if ranges:
            bury(self._objects, ranges)

    # Segments

    def _write_header(self, number: int) -> None:
        row = self._objects.segment_row(number)
        if row is None or row.kind is SegmentKind.DATA:
            return
        header = encode_header(row.kind, number, self._objects.info.id, row.nonce)
        with disk_errors("writing the header of a segment"):
            fd = os.open(segment_path(self._objects.directory, number, row.kind), os.O_RDWR | os.O_CLOEXEC)
            try:
                os.pwrite(fd, header, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        self.result.done.append(f"the header of segment {number:08x} was written again")

    def _cut_chain(self, number: int) -> None:
        """Begin a new chain of tables of contents for a data segment where the old one breaks off: else it could never be sealed."""
        key, row = number.to_bytes(4, "big"), self._objects.segment_row(number)
        if row is not None and self._is_free(key, row):
            row.contents_segment, row.contents_offset = NO_SEGMENT, 0
            with self._objects.index.write() as txn:
                txn.put(Table.SEGMENTS, key, row.encode())
            self.result.done.append(f"segment {number:08x} begins a new chain of tables of contents")

    def _is_free(self, key: bytes, row: SegmentRow) -> bool:
        """Whether nobody writes to a segment now."""
        path = segment_path(self._objects.directory, int.from_bytes(key, "big"), row.kind)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False
        finally:
            os.close(fd)

    def _settle_segments(self) -> None:
        """A segment whose file is gone is dropped, one that is cut short ends where it does, once nothing of the index points to what is not there."""
        short = dict(self._report.damage.short)
        if not short:
            return
        for rows in chunks(self._objects, Table.OBJECTS):
            for _, raw in rows:
                number = int.from_bytes(raw[:4], "little")
                if number in short:
                    place = Location.decode(raw)
                    if place.offset + place.length > short[number]:
                        del short[number]
            if not short:
                return
        for number, size in short.items():
            self._settle(number, size)

    def _settle(self, number: int, size: int) -> None:
        key, row = number.to_bytes(4, "big"), self._objects.segment_row(number)
        if row is None or not self._is_free(key, row):
            return
        listed = open_key(row.kind, number)
        with self._objects.index.write() as txn:
            if size:
                row.end, row.sealed = size - size % row.kind.alignment, False
                row.contents_segment, row.contents_offset = NO_SEGMENT, 0
                txn.put(Table.SEGMENTS, key, row.encode())
                txn.put(Table.META, listed, b"")
            else:
                txn.delete(Table.SEGMENTS, key)
                txn.delete(Table.META, listed)
        self.result.done.append(
            f"segment {number:08x} {'ends at its cut' if size else 'was dropped: nothing needs it'}"
        )


def drop_incomplete(objects: ObjectStore) -> int:
    """Drop manifests of which a part is missing; how many rows.

    Whoever puts a large file whose id the index knows stores nothing: so that id may only stand for a file that is whole.
    """
    dropped = 0
    while ids := [id for id in _manifests(objects) if not _is_complete(objects, id)]:
        with objects.index.write() as txn:
            txn.increment(b"gc")
            dropped += sum(txn.delete(Table.OBJECTS, id) for id in ids)
    return dropped


def _manifests(objects: ObjectStore) -> Iterator[ObjectId]:
    for rows in chunks(objects, Table.OBJECTS):
        for key, raw in rows:
            if int.from_bytes(raw[10:12], "little") == RecordKind.MANIFEST:
                yield ObjectId(key)


def _is_complete(objects: ObjectStore, id: ObjectId) -> bool:
    """Whether what a manifest node names is in the index."""
    try:
        manifest = Manifest.decode(objects.get(id))
    except (PfsError, OSError):
        return True  # damaged, which is another matter
    wanted = sorted({part for part in manifest.ids if part != HOLE})
    with objects.index.read() as txn:
        return len(txn.known(Table.OBJECTS, wanted)) == len(wanted)


Found = tuple[ObjectId, RecordKind, bytes]


def _read(source: ObjectStore, ids: Iterable[ObjectId]) -> Iterator[Found]:
    """Those of the objects that a store has intact."""
    for id in ids:
        try:
            place = source.locate(id)
            if place is not None:
                yield id, place.kind, read_object(source, id, place)
        except (PfsError, OSError):
            continue


def _groups(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Some objects at a time: a bounded transaction, a bounded memory."""
    group: list[Found] = []
    size = 0
    for one in found:
        group.append(one)
        size += len(one[2])
        if size >= _BYTES_AT_ONCE or len(group) >= _ROWS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


class _NewCopies(Batch):
    """Stores everything it is given, also what the index says that it has."""

    def has(self, id: ObjectId) -> bool:
        """Only what this batch itself has."""
        return id in self._pending


def _add(batch: Batch, id: ObjectId, kind: RecordKind, payload: bytes) -> list[ObjectId]:
    """Add an object; all ids by which it is found."""
    if kind is RecordKind.PIECE:
        return [batch.add_piece(payload, id)]
    own = batch.add_object(kind, payload)
    file = object_id_at(payload) if kind is RecordKind.MANIFEST else ObjectId(_NO_FILE)
    others = [ObjectId(name) for name in {id, file} - {own, _NO_FILE}]
    for name in others:
        batch.name_manifest(name, own)
    return [own, *others]
