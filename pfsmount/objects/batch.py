"""Objects on their way into the store.

The order of a batch is: append data and tiny files → fsync → append tables of contents behind the metadata → fsync → publish locations in bounded
transactions. What a crash leaves behind is bytes that nothing names, or names that nothing uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

from pfsmount.errors import Collected, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.adoption import PIECES_MAX, Adoption, Piece, announce, is_announced, link, runs_of
from pfsmount.objects.hashing import Buffer, hash_bytes
from pfsmount.objects.holds import Hold, IdHold
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.lane import Ticket
from pfsmount.objects.layout import disk_errors, error_for, fsync_directory
from pfsmount.objects.open_segments import acquire_writer, open_key, seal
from pfsmount.objects.reading import OpenObjects, read_object
from pfsmount.objects.segment import (
    NO_SEGMENT,
    TINY_MAX,
    WHOLE,
    Location,
    RecordKind,
    SegmentKind,
    SegmentReader,
    SegmentRow,
    TableOfContents,
    encode_tombstone,
    segment_path,
)
from pfsmount.objects.segment_writer import SegmentWriter

_FRESH_BYTES_MAX = 2 << 20
_LARGE_BYTES = 1 << 20
_LARGE_ENTRIES = 500
_CHECKED_AT_ONCE = 5000
_COLLECTED_TRIES = 5

T = TypeVar("T")


class Batch:
    """Objects on their way into the store. Readable here at once, by others after `publish`.

    Use as a context manager: leaving it gives back what was not published. One thread at a time.
    """

    def __init__(self, store: OpenObjects, *, repeatable: bool = True) -> None:
        """Unless `repeatable` (what is stored comes from a stream), gc is told of each object that is used again, so `publish` never raises Collected for one."""
        self.store = store
        self._repeatable = repeatable
        self._id_hold: IdHold | None = None
        self.decoded = store.decoded
        self.verified = store.verified
        self._writers: dict[SegmentKind, SegmentWriter] = {}
        self._pending: dict[ObjectId, Location] = {}
        self._contents: list[tuple[ObjectId, Location]] = []
        self._reused = bytearray()
        self._relied: dict[Table, bytearray] = {}
        self._manifests: dict[ObjectId, ObjectId] = {}
        """File id → the root of its manifest."""
        self._starts: dict[int, int] = {}
        """Segment → from where on this batch has appended to it; not those that `_hold` has."""
        self._hold: Hold | None = None
        self._adoptions: list[Adoption] = []
        self.adopted: list[int] = []
        """Segments that files became, and that are published."""
        self._touched: dict[int, SegmentRow] = {}
        self._fresh: dict[ObjectId, bytes] = {}
        self._fresh_bytes = 0
        self._unsynced_bytes = 0
        with store.index.read() as txn:
            self._gc_generation = txn.counter(b"gc")
        self.bytes_added = 0
        self.objects_added = 0

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was not published; any number of times. May wait for the disk."""
        for writer in self._writers.values():
            with suppress(OSError):
                writer.rollback()
            writer.close()
        self._writers.clear()
        for adoption in self._adoptions:
            with suppress(PfsError, OSError):  # then gc does it
                withdraw(self.store, adoption.number, recorded=adoption.recorded)
        self._adoptions.clear()
        self._pending.clear()
        self._contents.clear()
        self._fresh.clear()
        for hold in (self._hold, self._id_hold):
            if hold is not None:
                hold.close()
        self._hold = self._id_hold = None

    # Reading

    def locate(self, id: ObjectId) -> Location | None:
        return self._pending.get(id) or self.store.locate(id)

    def get(self, id: ObjectId) -> bytes:
        fresh = self._fresh.get(id)
        if fresh is not None:
            return fresh
        location = self._pending.get(id)
        if location is None:
            return self.store.get(id)
        writer = self._writer_of(location.segment)
        if writer is None:
            return read_object(self.store, id, location)
        return writer.read(location.offset, location.length)

    def segment(self, number: int) -> SegmentReader:
        writer = self._writer_of(number)
        if writer is not None:
            writer.flush_buffer()
        return self.store.segment(number)

    def _writer_of(self, segment: int) -> SegmentWriter | None:
        return next((w for w in self._writers.values() if w.number == segment), None)

    # Adding

    def has(self, id: ObjectId) -> bool:
        """True when the object need not be added; it is then kept from gc until this batch ends."""
        if id in self._pending:
            return True
        if self.store.index.get(Table.OBJECTS, id) is None:
            return False
        if not self._repeatable and not self._keep([id]):
            return False
        self._reused += id
        return True

    def reuse(self, ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Which of the ids need not be added, as `has`, with one look into the index for all."""
        if not ids:
            return set()
        with self.store.index.read() as txn:
            known = cast("set[ObjectId]", txn.known(Table.OBJECTS, ids))
        if not self._repeatable and known:
            known = self._keep(list(known))
        self._reused += b"".join(known)
        return known.union(id for id in ids if id in self._pending) if self._pending else known

    def _keep(self, ids: Sequence[ObjectId]) -> set[ObjectId]:
        """Keep objects from gc until this batch ends; returns those that are still there then. Raises NoSpace."""
        with self._ids().nothing_dropped():
            self._ids().add(ids)
            with self.store.index.read() as txn:
                return cast("set[ObjectId]", txn.known(Table.OBJECTS, ids))

    def _ids(self) -> IdHold:
        if self._id_hold is None:
            self._id_hold = IdHold(self.store.path)
        return self._id_hold

    def add_piece(self, data: Buffer, id: ObjectId | None = None) -> ObjectId:
        """Add a file of at most 4 MiB, or a piece of one, whose id may be known already. Raises NoSpace."""
        id = hash_bytes(data) if id is None else id
        if len(data) and not self.has(id):
            self._append_piece(id, data)
        return id

    def add_pieces(self, ids: Sequence[ObjectId], data: Callable[[int], Buffer]) -> None:
        """Add files of at most 4 MiB whose ids are known, with one look into the index for all. Raises NoSpace.

        `data` gives the bytes of the one at an index; it is asked only for those that are new.
        """
        known = self.reuse(ids)
        for i, id in enumerate(ids):
            if id not in known and id not in self._pending and len(new := data(i)):
                self._append_piece(id, new)

    def _append_piece(self, id: ObjectId, data: Buffer) -> None:
        ticket = self._append(id, data)
        if ticket is not None:
            ticket.wait()

    def lend_piece(self, data: Buffer, id: ObjectId, *, cached: bool = True) -> Ticket | None:
        """As `add_piece`, but large data is written beside the caller, and must stay as it is until the ticket was waited for.

        Unless `cached`, it is not kept in the page cache.
        """
        return self._append(id, data, cached=cached) if len(data) and not self.has(id) else None

    def _append(self, id: ObjectId, data: Buffer, *, cached: bool = True) -> Ticket | None:
        ticket = None
        try:
            if len(data) <= TINY_MAX:
                location = self._writer(SegmentKind.TINY).append_record(RecordKind.PIECE, id, data)
            else:
                location, ticket = self._writer(SegmentKind.DATA).lend_piece(data, cached=cached)
                self._contents.append((id, location))
        except OSError as error:
            raise error_for(error, "adding data to the store") from error
        self._added(id, location)
        return ticket

    def adopt(self, source: Path, size: int, pieces: Sequence[Piece]) -> bool:
        """Let a file become a data segment as it is, instead of adding its pieces; False where that cannot be. Raises NoSpace.

        The file is durable. It must not change until this batch has ended, and never again if it was published; then whoever has it takes its old name away and
        calls `seal_adopted`. From now on this batch publishes nothing but all at once, at its end: until then the file is not the store's.
        """
        runs = runs_of(pieces)
        count = sum(len(run) for adoption in self._adoptions for run in adoption.runs)
        if runs is None or count + len(pieces) > PIECES_MAX:
            return False
        with disk_errors("making a file a part of the store"):
            adoption = announce(self.store.index, self._holding(), size, runs)
            self._adoptions.append(adoption)
            if not link(self.store.directory, adoption, source):
                self._adoptions.remove(adoption)
                withdraw(self.store, adoption.number, recorded=False)
                return False
        for id, location in adoption.locations():
            if self._pending.setdefault(id, location) is location:
                self.bytes_added += location.length
                self.objects_added += 1
        return True

    def add_object(self, kind: RecordKind, payload: bytes) -> ObjectId:
        """Add a node, manifest, commit or xattrs object. Raises NoSpace."""
        id = hash_bytes(payload, kind.hash_kind)
        if not self.has(id):
            try:
                location = self._writer(SegmentKind.META).append_record(kind, id, payload)
            except OSError as error:
                raise error_for(error, "adding metadata to the store") from error
            self._remember(id, payload)
            self._added(id, location)
        return id

    def _remember(self, id: ObjectId, payload: bytes) -> None:
        """Keep in memory what was written last: a commit reads the nodes that it has just made."""
        self._fresh_bytes += len(payload)
        if self._fresh_bytes > _FRESH_BYTES_MAX:
            self._fresh.clear()
            self._fresh_bytes = len(payload)
        self._fresh[id] = payload

    def rely_on(self, table: Table, key: bytes) -> None:
        """Let `publish` look whether gc has dropped a row (with a key of 32 bytes) whose tree is used as a whole, without its objects being looked up."""
        self._relied.setdefault(table, bytearray()).extend(key)

    def name_manifest(self, file_id: ObjectId, manifest: ObjectId) -> None:
        """Let `file_id` be found as the file that the manifest root describes.

        It takes the place of another manifest of the same file: of this one it is known that all of it is there, of an older one, which gc may be about
        to drop, it is not.
        """
        location = self.locate(manifest)
        assert location is not None
        self._pending[file_id] = location
        self._manifests[file_id] = manifest

    def _added(self, id: ObjectId, location: Location) -> None:
        self._pending[id] = location
        self.bytes_added += location.length
        self.objects_added += 1
        self._unsynced_bytes += location.length
        settings = self.store.settings
        if self._adoptions:
            if self._unsynced_bytes >= settings.batch_bytes:
                self.prepare()
        elif len(self._pending) >= settings.publish_entries or self._unsynced_bytes >= settings.batch_bytes:
            self.prepare()
            self._hold_segments()
            with self.store.index.write() as txn:
                self._publish_pending(txn)
            self.published()

    def _hold_segments(self) -> None:
        """Keep from gc what is published before a commit names it."""
        hold = self._holding()
        for number, start in self._starts.items():
            hold.add_segment(number, start)
        self._starts.clear()

    def _holding(self) -> Hold:
        if self.store.hold is not None:
            return self.store.hold
        if self._hold is None:
            self._hold = Hold(self.store.path)
        return self._hold

    def _unsynced(self) -> int:
        return sum(writer.unsynced for writer in self._writers.values())

    def _writer(self, kind: SegmentKind) -> SegmentWriter:
        writer = self._writers.get(kind)
        if writer is not None and writer.end >= self.store.settings.segment_size and not self._pending:
            seal(self.store, self._writers.pop(kind))
            writer = None
        if writer is None:
            writer = self._writers[kind] = acquire_writer(self.store, kind)
            self._starts.setdefault(writer.number, writer.end)
        return writer

    # Making durable

    def prepare(self) -> None:
        """Make everything added so far durable; `publish` may follow. Raises NoSpace."""
        with disk_errors("making new objects durable"):
            for kind, writer in self._writers.items():
                if kind is not SegmentKind.META:
                    writer.sync()
            if self._contents:
                self._append_contents()
            for adoption in self._adoptions:
                if not adoption.recorded:
                    self._append_adopted(adoption)
            meta = self._writers.get(SegmentKind.META)
            if meta is not None:
                meta.sync()
        self._unsynced_bytes = 0
        for writer in self._writers.values():
            writer.row.end = max(writer.row.end, writer.end)
            self._touched[writer.number] = writer.row

    def _append_contents(self) -> None:
        """One table for each stretch of pieces that follow each other in the data segment."""
        data = self._writers[SegmentKind.DATA]
        pieces = [(id, location.length) for id, location in self._contents]
        row = data.row
        before = None if row.contents_segment == NO_SEGMENT else (row.contents_segment, row.contents_offset)
        self._append_table(row, TableOfContents(data.number, self._contents[0][1].offset, pieces, before))
        self._contents.clear()

    def _append_adopted(self, adoption: Adoption) -> None:
        adoption.recorded = True  # before: half of it may be there when one fails
        for run in adoption.runs:
            self._append_table(adoption.row, adoption.table(run))

    def _append_table(self, row: SegmentRow, contents: TableOfContents) -> None:
        table = contents.encode()
        id = hash_bytes(table, RecordKind.CONTENTS.hash_kind)
        location = self._writer(SegmentKind.META).append_record(RecordKind.CONTENTS, id, table)
        row.contents_segment, row.contents_offset = location.segment, location.offset

    def _publish_pending(self, txn: Transaction) -> None:
        manifests = self._manifests
        pairs = [(id, location.encode()) for id, location in sorted(self._pending.items()) if id not in manifests]
        if not txn.put_new(Table.OBJECTS, pairs):  # somebody else's were first, which gc may be about to drop
            there = txn.get_many(Table.OBJECTS, [id for id, _ in pairs])
            others = [id for id, raw in pairs if there[id] != raw]
            self._reused += b"".join(others)
            if not self._repeatable:
                self._ids().add(others)
        for file_id, manifest in manifests.items():
            where = txn.get(Table.OBJECTS, manifest)
            if where is None:
                raise _collected()
            if txn.get(Table.OBJECTS, file_id) != where:
                txn.put(Table.OBJECTS, file_id, where)
        for number, row in self._touched.items():
            txn.put(Table.SEGMENTS, number.to_bytes(4, "big"), row.encode())
        for adoption in self._adoptions:
            self._publish_adopted(txn, adoption)

    def _publish_adopted(self, txn: Transaction, adoption: Adoption) -> None:
        key = adoption.number.to_bytes(4, "big")
        raw = txn.get(Table.SEGMENTS, key)
        if raw is None or not is_announced(SegmentRow.decode(raw)) or not adoption.recorded:
            raise AssertionError("an adopted file was withdrawn before it was published")
        adoption.row.end = adoption.size
        txn.put(Table.SEGMENTS, key, adoption.row.encode())
        txn.put(Table.META, open_key(SegmentKind.DATA, adoption.number), b"")

    def publish(self, txn: Transaction) -> None:
        """Publish, as part of a transaction of the caller's, what `prepare` made durable.

        Raises Collected when gc removed an object that this batch relied on: nothing is changed, do the work again.
        """
        if self._unsynced() or self._contents or any(writer.failed for writer in self._writers.values()):
            raise AssertionError("publish before prepare, or after it failed")
        generation = txn.counter(b"gc")
        if generation != self._gc_generation:
            self._check_reused(txn)
            self._gc_generation = generation
        self._publish_pending(txn)
        txn.increment(b"roots")
        if self.store.hold is not None:
            self._hold_segments()

    def _check_reused(self, txn: Transaction) -> None:
        for table, ids in ((Table.OBJECTS, self._reused), *self._relied.items()):
            for start in range(0, len(ids), 32 * _CHECKED_AT_ONCE):
                part = bytes(ids[start : start + 32 * _CHECKED_AT_ONCE])
                wanted = {part[at : at + 32] for at in range(0, len(part), 32)}
                lost = wanted.difference(txn.known(table, sorted(wanted)))
                if any(id not in self._pending for id in lost):
                    raise _collected()

    def published(self) -> None:
        """To be called when the transaction given to `publish` has ended well."""
        self._pending.clear()
        self._manifests.clear()
        self.adopted += [adoption.number for adoption in self._adoptions]
        self._adoptions.clear()

    def flush(self) -> None:
        """Make everything added so far durable and publish it (not with adopted files); the batch stays open for more. Raises NoSpace."""
        self.prepare()
        if self._adoptions:
            return
        self._hold_segments()
        with self.store.index.write() as txn:
            self.publish(txn)
        self.published()

    def flush_if_large(self) -> None:
        """`flush` when the transaction that follows would take long; what is little costs that one nothing, and a flush two waits for the disk."""
        if self._unsynced() >= _LARGE_BYTES or len(self._pending) >= _LARGE_ENTRIES:
            self.flush()


def again_if_collected(work: Callable[[], T]) -> T:
    """Do something that stores and publishes; again from the start when gc dropped what it had found there and was about to use again."""
    for _ in range(_COLLECTED_TRIES):
        with suppress(Collected):
            return work()
    return work()


def _collected() -> Collected:
    return Collected(
        "a garbage collection removed data that was about to be used again; nothing was changed",
        hint="run the command again",
    )


def withdraw(store: OpenObjects, number: int, *, recorded: bool = True) -> None:
    """Give up a segment that was announced for a file and never published; any number of times. Raises NoSpace, PermissionDenied.

    `recorded`: tables of contents may name it, so a tombstone must say that it is gone.
    """
    with store.index.read() as txn:
        if _is_published(txn, number):
            return
    if recorded:
        with Batch(store) as batch:
            batch.add_object(RecordKind.TOMBSTONE, encode_tombstone(number, [WHOLE]))
            batch.flush()
    with store.index.write() as txn:
        if _is_published(txn, number):
            return
        txn.delete(Table.SEGMENTS, number.to_bytes(4, "big"))
    with disk_errors("giving up a segment"):
        with suppress(FileNotFoundError):
            os.unlink(segment_path(store.directory, number, SegmentKind.DATA))
        fsync_directory(store.directory)
    store.forget_segment(number)


def _is_published(txn: Transaction, number: int) -> bool:
    """Whether a data segment is more than announced for a file."""
    raw = txn.get(Table.SEGMENTS, number.to_bytes(4, "big"))
    listed = txn.get(Table.META, open_key(SegmentKind.DATA, number)) is not None
    return listed or (raw is not None and not is_announced(SegmentRow.decode(raw)))
