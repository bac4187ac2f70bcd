"""Objects by id out of the segments of an opened store: located, read, verified."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.holds import Hold
from pfsmount.objects.index import Index, Table
from pfsmount.objects.layout import read_store_info
from pfsmount.objects.segment import FSCK_HINT, Location, RecordKind, SegmentReader, SegmentRow, segment_path

_OPEN_SEGMENTS_MAX = 512
_DECODED_MAX = 8192


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


class OpenObjects:
    """One process' opening of a store's objects, for reading. Thread-safe; not usable after a fork."""

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
        return None if data is None else _verified(id, location, bytes(data))

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

    @property
    def directory(self) -> Path:
        """Where the segments lie."""
        return self.path / "segments"


def get_as(reader: Reader, id: ObjectId, kind: RecordKind) -> bytes:
    """The verified bytes of an object of a kind. Raises NotFound, Corrupt: also for one of another kind, whose bytes may mean something as this one, too."""
    payload = reader.get(id)
    place = reader.locate(id)
    if place is not None and place.kind is not kind:
        raise Corrupt(
            f"{id.hex()} is a {place.kind.name.lower()}, where a {kind.name.lower()} should be", hint=FSCK_HINT
        )
    return payload


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
