"""The object store: put bytes in, get them back by id.

Invariants
1. The index names only bytes that were fsynced before.
2. Data is durable before the table of contents that names it, that before the index entry, that before any ref.
3. Nothing that is published moves or changes, except by gc.

So the order of a batch is: append data and tiny files → fsync → append tables of contents behind the metadata → fsync → publish
locations in bounded transactions. What a crash leaves behind is bytes that nothing names, or names that nothing uses.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import Collected, Corrupt, NotFound, PfsError
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.adoption import PIECES_MAX, Adoption, Piece, announce, is_announced, link, runs_of
from pfsmount.objects.hashing import Buffer, hash_bytes
from pfsmount.objects.holds import Hold, IdHold
from pfsmount.objects.index import Index, Table, Transaction
from pfsmount.objects.lane import Ticket
from pfsmount.objects.layout import disk_errors, error_for, fsync_directory, read_store_info
from pfsmount.objects.segment import (
    FSCK_HINT,
    NO_SEGMENT,
    RECORD_BYTES,
    RECORD_MAX,
    TINY_MAX,
    WHOLE,
    Location,
    RecordKind,
    SegmentKind,
    SegmentReader,
    SegmentRow,
    TableOfContents,
    encode_footer,
    encode_tombstone,
    segment_path,
)
from pfsmount.objects.segment_writer import SegmentWriter

_OPEN_SEGMENTS_MAX = 512
_LENGTH = struct.Struct("<I")
_DECODED_MAX = 8192
_FRESH_BYTES_MAX = 2 << 20
_LARGE_BYTES = 1 << 20
_LARGE_ENTRIES = 500
_CHECKED_AT_ONCE = 5000
_COLLECTED_TRIES = 5

T = TypeVar("T")


class DecodedCache:
    """A bounded cache of decoded immutable objects by id, least recently used out first. Thread-safe."""

    def __init__(self, limit: int = _DECODED_MAX) -> None:
        self._items: OrderedDict[ObjectId, Any] = OrderedDict()
        self._limit = limit
        self._lock = Lock()

    def get(self, id: ObjectId) -> Any:
        """The decoded object, or None."""
        with self._lock:
            item = self._items.get(id)
            if item is not None:
                self._items.move_to_end(id)
            return item

    def put(self, id: ObjectId, item: Any) -> None:
        """Remember a decoded object."""
        with self._lock:
            self._items[id] = item
            if len(self._items) > self._limit:
                self._items.popitem(last=False)


class Reader(Protocol):
    """Whatever objects can be read from: a store, or a batch on its way into one."""

    @property
    def decoded(self) -> DecodedCache:
        """Decoded objects of this store."""

    @property
    def verified(self) -> set[ObjectId]:
        """Pieces whose hash was checked in this process."""

    def get(self, id: ObjectId) -> bytes:
        """The verified bytes of an object. Raises NotFound, Corrupt."""

    def locate(self, id: ObjectId) -> Location | None:
        """Where an object is, or None."""

    def segment(self, number: int) -> SegmentReader:
        """An open segment, for reads at offsets. Raises NotFound."""


class ObjectStore:
    """One process' opening of a store's objects. Thread-safe; not usable after a fork."""

    def __init__(self, path: Path, settings: StoreSettings = DEFAULT_SETTINGS, index: Index | None = None) -> None:
        """Open, with another index than its own perhaps. Raises NotAStore, StoreTooNew, Busy, Corrupt, PermissionDenied."""
        self.info = read_store_info(path)
        self.path = path
        self.settings = settings
        self.decoded = DecodedCache()
        self.index = Index(path / "index", settings.map_size) if index is None else index
        self.verified: set[ObjectId] = set()
        self._segments: OrderedDict[int, SegmentReader] = OrderedDict()
        self._lock = Lock()
        self.hold: Hold | None = None
        """While set: keeps what batches of this process publish from gc, beyond their end."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Until the end of the block gc keeps all that this process stores, named by a commit or not. Raises NoSpace, PermissionDenied."""
        self.hold = hold = Hold(self.path)
        try:
            yield
        finally:
            self.hold = None
            hold.close()

    def close(self) -> None:
        """Close; any number of times."""
        self._segments.clear()
        self.index.close()

    def locate(self, id: ObjectId) -> Location | None:
        raw = self.index.get(Table.OBJECTS, id)
        return None if raw is None else Location.decode(raw)

    def get(self, id: ObjectId) -> bytes:
        location = self.locate(id)
        if location is None:
            raise NotFound(f"the object {id.hex()} is not in the store", hint=FSCK_HINT)
        return read_object(self, id, location)

    def get_nowait(self, id: ObjectId) -> bytes | None:
        """As `get`, but None when that would wait for the disk. Raises NotFound, Corrupt."""
        location = self.locate(id)
        if location is None:
            raise NotFound(f"the object {id.hex()} is not in the store", hint=FSCK_HINT)
        before = _before(location)
        data = self.segment(location.segment).read_nowait(location.offset - before, location.length + before)
        return None if data is None else _verified(id, location, data)

    def segment(self, number: int) -> SegmentReader:
        with self._lock:
            reader = self._segments.get(number)
            if reader is not None:
                self._segments.move_to_end(number)
                return reader
        row = self.segment_row(number)
        if row is None:
            raise Corrupt(f"the index names segment {number:08x}, which it does not know", hint=FSCK_HINT)
        reader = SegmentReader(segment_path(self.directory, number, row.kind), number)
        with self._lock:
            self._segments[number] = reader
            if len(self._segments) > _OPEN_SEGMENTS_MAX:
                self._segments.popitem(last=False)
        return reader

    def forget_segment(self, number: int) -> None:
        """Close a segment whose file is gone."""
        with self._lock:
            self._segments.pop(number, None)

    def segment_row(self, number: int) -> SegmentRow | None:
        """What the index says of a segment. Raises Corrupt."""
        raw = self.index.get(Table.SEGMENTS, number.to_bytes(4, "big"))
        return None if raw is None else SegmentRow.decode(raw)

    def batch(self, *, repeatable: bool = True) -> Batch:
        """A new batch of objects (a context manager)."""
        return Batch(self, repeatable=repeatable)

    @property
    def directory(self) -> Path:
        """Where the segments lie."""
        return self.path / "segments"


def read_object(reader: Reader, id: ObjectId, location: Location) -> bytes:
    """Read and verify one object. Raises NotFound, Corrupt."""
    before = _before(location)
    segment = reader.segment(location.segment)
    return _verified(id, location, segment.read(location.offset - before, location.length + before))


def _before(location: Location) -> int:
    """How many bytes to read before a payload: the root of a manifest is found by its file's id, its own stands in the record."""
    return ID_BYTES if location.kind is RecordKind.MANIFEST else 0


def _verified(id: ObjectId, location: Location, data: bytes) -> bytes:
    if location.kind is RecordKind.MANIFEST:
        own, data = data[:ID_BYTES], data[ID_BYTES:]
        if hash_bytes(data, location.kind.hash_kind) == own and id in (own, data[16:48]):
            return data
    elif hash_bytes(data, location.kind.hash_kind) == id:
        return data
    raise Corrupt(
        f"the object {id.hex()} is damaged: segment {location.segment:08x}, byte {location.offset}",
        hint=FSCK_HINT,
    )


class Batch:
    """Objects on their way into the store. Readable here at once, by others after `publish`.

    Use as a context manager: leaving it gives back what was not published. One thread at a time.
    """

    def __init__(self, store: ObjectStore, *, repeatable: bool = True) -> None:
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


def withdraw(store: ObjectStore, number: int, *, recorded: bool = True) -> None:
    """Give up a segment that was announced for a file and never published; any number of times. Raises NoSpace, PermissionDenied.

    `recorded`: tables of contents may name it, so a tombstone must say that it is gone.
    """
    with store.index.read() as txn:
        if _is_published(txn, number):
            return
    if recorded:
        with store.batch() as batch:
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


def seal_adopted(store: ObjectStore, numbers: Sequence[int]) -> None:
    """Seal segments that files became and that have no other name any more. No error: else the next who would append does it."""
    for number in numbers:
        with suppress(PfsError, OSError):
            row = store.segment_row(number)
            if row is not None and not row.sealed:
                writer = _take_writer(store, number, row)
                if writer is not None:
                    seal(store, writer)


def seal(store: ObjectStore, writer: SegmentWriter) -> None:
    """End a segment whose contents are all published; it never changes again. Raises NoSpace."""
    try:
        _seal(store, writer)
    finally:
        writer.close()


def _seal(store: ObjectStore, writer: SegmentWriter) -> None:
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


def merge_contents(store: ObjectStore, number: int, row: SegmentRow) -> TableOfContents:
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


def contents_chain(store: ObjectStore, row: SegmentRow) -> Iterator[Location]:
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


def _read_contents(store: ObjectStore, segment: int, offset: int) -> TableOfContents:
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


def acquire_writer(store: ObjectStore, kind: SegmentKind) -> SegmentWriter:
    """Lock an unsealed segment that nobody else writes to, or make a new one. Raises NoSpace, PermissionDenied."""
    with disk_errors("opening a segment for writing"):
        for number, row in list(_open_segments(store, kind)):
            writer = _take_writer(store, number, row)
            if writer is not None and writer.end >= store.settings.segment_size:
                seal(store, writer)
            elif writer is not None:
                return writer
        return _new_segment(store, kind)


def _take_writer(store: ObjectStore, number: int, row: SegmentRow) -> SegmentWriter | None:
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


def _open_segments(store: ObjectStore, kind: SegmentKind) -> Iterator[tuple[int, SegmentRow]]:
    with store.index.read() as txn:
        prefix = b"open" + bytes([kind])
        for key, _ in txn.scan(Table.META, prefix):
            raw = txn.get(Table.SEGMENTS, key[len(prefix) :])
            if raw is not None:
                yield int.from_bytes(key[len(prefix) :], "big"), SegmentRow.decode(raw)


def open_key(kind: SegmentKind, number: int) -> bytes:
    """The key in the table `meta` that says that a segment is not sealed."""
    return b"open" + bytes([kind]) + number.to_bytes(4, "big")


def _new_segment(store: ObjectStore, kind: SegmentKind) -> SegmentWriter:
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


@contextmanager
def open_objects(path: Path, settings: StoreSettings = DEFAULT_SETTINGS) -> Iterator[ObjectStore]:
    """An object store for the length of a block."""
    store = ObjectStore(path, settings)
    try:
        yield store
    finally:
        store.close()
