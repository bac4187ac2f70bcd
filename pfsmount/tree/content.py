"""Files: how their bytes become pieces and manifests, and how they are read.

A file of at most 4 MiB without holes is one piece. Any other is a manifest, a tree of nodes over its pieces and holes:

| magic `PM`, version u8 (1), level u8 | count u32 | size covered u64 | file id 32 (root; else zeros) | entries: id 32, length u64 |

A leaf's entry is a piece, or a hole (id of zeros). A node ends after an id whose first byte is zero (not a hole's), after 4096 entries, or with the
file. Tree entries hold the file's id only; the index maps it to the root of a manifest.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pfsmount.config import MIB
from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Hasher, file_hasher, hash_bytes
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.objects.store import Batch, Reader
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry

PIECE_MAX = 4 * MIB
HOLE_MIN = 64 * 1024
_HEADER = struct.Struct("<2sBBIQ32s")
_MAGIC = b"PM"
_VERSION = 1
_ENTRY = struct.Struct("<32sQ")
_HOLE = ObjectId(bytes(32))
_NODE_ENTRIES_MAX = 4096
_LEVEL_MAX = 8
_VERIFIED_MAX = 500_000
_NOWAIT_VERIFY_MAX = 128 * 1024


@dataclass(frozen=True, slots=True)
class Manifest:
    """A decoded manifest node."""

    level: int
    size: int
    file_id: ObjectId
    ids: tuple[ObjectId, ...]
    starts: tuple[int, ...]
    """Where each entry starts, relative to the node; one more at the end."""

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Raises Corrupt."""
        try:
            magic, version, level, count, size, file_id = _HEADER.unpack_from(raw)
            rows = list(_ENTRY.iter_unpack(raw[_HEADER.size :]))
            starts = [0]
            for _, length in rows:
                starts.append(starts[-1] + length)
            if magic != _MAGIC or version != _VERSION or level > _LEVEL_MAX or len(rows) != count:
                raise ValueError
            if starts[-1] != size or any(length == 0 for _, length in rows):
                raise ValueError
        except (struct.error, ValueError):
            raise Corrupt("the manifest of a large file is damaged") from None
        return cls(level, size, ObjectId(file_id), tuple(ObjectId(id) for id, _ in rows), tuple(starts))

    def index_at(self, offset: int) -> int:
        """Which entry holds a byte."""
        return bisect_right(self.starts, offset) - 1

    def length(self, i: int) -> int:
        """Bytes of the i-th entry."""
        return self.starts[i + 1] - self.starts[i]


def _encode_manifest(level: int, file_id: ObjectId, rows: list[tuple[ObjectId, int]]) -> bytes:
    size = sum(length for _, length in rows)
    header = _HEADER.pack(_MAGIC, _VERSION, level, len(rows), size, file_id)
    return header + b"".join(_ENTRY.pack(id, length) for id, length in rows)


def _write_manifest(batch: Batch, file_id: ObjectId, rows: list[tuple[ObjectId, int]]) -> ObjectId:
    """Write all levels; the root names the file."""
    level = 0
    while True:
        groups = list(_split_rows(rows))
        if len(groups) == 1:
            return batch.add_object(RecordKind.MANIFEST, _encode_manifest(level, file_id, rows))
        rows = [
            (
                batch.add_object(RecordKind.MANIFEST, _encode_manifest(level, _HOLE, group)),
                sum(length for _, length in group),
            )
            for group in groups
        ]
        level += 1


def _split_rows(rows: list[tuple[ObjectId, int]]) -> Iterator[list[tuple[ObjectId, int]]]:
    group: list[tuple[ObjectId, int]] = []
    for row in rows:
        group.append(row)
        if (row[0][0] == 0 and row[0] != _HOLE) or len(group) >= _NODE_ENTRIES_MAX:
            yield group
            group = []
    if group:
        yield group


def _load_child(objects: Reader, manifest: Manifest, i: int) -> Manifest:
    """The i-th node below an inner one. Raises NotFound, Corrupt (also when it does not fit its place: no cycles, no gaps)."""
    child = load_manifest(objects, manifest.ids[i])
    if child.level != manifest.level - 1 or child.size != manifest.length(i):
        raise Corrupt("the manifest of a large file is damaged: a node does not fit where it stands")
    return child


def load_manifest(objects: Reader, id: ObjectId) -> Manifest:
    """Read, verify and decode a manifest node, by its own id or (a root) by the file's. Raises NotFound, Corrupt."""
    manifest = objects.decoded.get(id)
    if manifest is None:
        manifest = Manifest.decode(objects.get(id))
        objects.decoded.put(id, manifest)
    assert isinstance(manifest, Manifest)
    return manifest


def pieces(objects: Reader, manifest: Manifest, start: int = 0) -> Iterator[tuple[int, ObjectId | None, int]]:
    """Offset, piece id (None: a hole) and length of all pieces, in order."""
    for i, id in enumerate(manifest.ids):
        offset, length = start + manifest.starts[i], manifest.length(i)
        if manifest.level:
            yield from pieces(objects, _load_child(objects, manifest, i), offset)
        else:
            yield offset, None if id == _HOLE else id, length


# Writing


def ingest_bytes(batch: Batch, data: bytes) -> ObjectId:
    """Add a file that is in memory and return its id. Raises NoSpace."""
    if len(data) <= PIECE_MAX:
        return batch.add_piece(data)
    view = memoryview(data)
    rows = []
    for offset in range(0, len(data), PIECE_MAX):
        part = view[offset : offset + PIECE_MAX]
        rows.append((batch.add_piece(part), len(part)))
    file_id = hash_bytes(data)
    batch.name_manifest(file_id, _write_manifest(batch, file_id, rows))
    return file_id


def ingest_fd(batch: Batch, fd: int, *, previous: ObjectId | None = None) -> tuple[ObjectId, int]:
    """Add the file that is open at `fd`, from its offset 0 or, when it cannot seek, from where it is.

    Reads to the end, whatever fstat says, in pieces of 4 MiB; cuts where `previous`, an earlier version, was cut, so that
    unchanged pieces are found again. Holes of at least 64 KiB stay holes. Returns the file's id and its size in
    bytes. Raises NoSpace, OSError (reading).
    """
    small = _small_file(fd)
    if small is not None:
        return batch.add_piece(small), len(small)
    return _Ingest(batch, _Descriptor(fd), previous).run()


def ingest_overlay(
    batch: Batch, fd: int, *, base: Entry, base_size: int, extents: Sequence[tuple[int, int]], size: int
) -> tuple[ObjectId, int]:
    """Add a file of `size` bytes that is `base` (its first `base_size` bytes; zeros behind) with ranges replaced.

    `extents` are (start, end) of the ranges that `fd` holds, at the same offsets. Pieces that did not change are shared.
    Returns the file's id and its size in bytes. Raises NoSpace, OSError, Corrupt, NotFound.
    """
    source = _Overlay(Content(batch, base), base_size, fd, extents, size)
    return _Ingest(batch, source, base.id).run()


def _small_file(fd: int) -> bytes | None:
    """The bytes of a regular file of at most 4 MiB, by its stat; None for any other."""
    stat = os.fstat(fd)
    if stat.st_size > PIECE_MAX or not _is_regular(stat):
        return None
    data = os.pread(fd, stat.st_size + 1, 0)
    return data if len(data) == stat.st_size else None


def _is_regular(stat: os.stat_result) -> bool:
    return stat.st_mode & 0o170000 == 0o100000


def _may_have_holes(stat: os.stat_result) -> bool:
    return stat.st_size >= HOLE_MIN and stat.st_blocks * 512 <= stat.st_size - HOLE_MIN


class _Source(Protocol):
    """What a large file is read from."""

    def read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`; fewer bytes only at the end."""

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """Start and end of the first hole of at least 64 KiB that ends after `offset`."""


def _pread_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view`; fewer bytes only at the end of the file, never because a read was short. Raises OSError."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


class _Descriptor:
    """A file descriptor as a source."""

    def __init__(self, fd: int) -> None:
        stat = os.fstat(fd)
        self._fd = fd
        self._regular = _is_regular(stat)
        self._size = stat.st_size
        self._sparse = self._regular and stat.st_size > PIECE_MAX and _may_have_holes(stat)

    def read(self, view: memoryview, offset: int) -> int:
        if self._regular:
            return _pread_into(self._fd, view, offset)
        done = 0
        while done < len(view):
            count = os.readv(self._fd, [view[done:]])
            if not count:
                break
            done += count
        return done

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        while self._sparse and offset < self._size:
            start = _seek(self._fd, offset, os.SEEK_HOLE)
            if start is None or start >= self._size:
                return None
            end = _seek(self._fd, start, os.SEEK_DATA)
            end = self._size if end is None else end
            if end - start >= HOLE_MIN:
                return start, end
            offset = end
        return None


class _Overlay:
    """An earlier version with some ranges replaced by those of a sparse file."""

    def __init__(self, base: Content, base_size: int, fd: int, extents: Sequence[tuple[int, int]], size: int) -> None:
        self._base, self._base_size, self._fd, self._size = base, min(base_size, base.size), fd, size
        self._extents = sorted(extents)

    def read(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self._size - offset))
        done = 0
        while done < count:
            at = offset + done
            fresh, stop = self._part_at(at)
            stop = min(stop, offset + count)
            part = view[done : done + stop - at]
            if fresh:
                got = _pread_into(self._fd, part, at)
                part[got:] = bytes(len(part) - got)
            else:
                old = self._base.read(at, max(0, min(stop, self._base_size) - at))
                part[: len(old)] = old
                part[len(old) :] = bytes(len(part) - len(old))
            done += stop - at
        return count

    def _part_at(self, offset: int) -> tuple[bool, int]:
        """Whether a byte comes from the new ranges, and where that ends."""
        i = bisect_right(self._extents, (offset, self._size + 1)) - 1
        if i >= 0 and offset < self._extents[i][1]:
            return True, self._extents[i][1]
        return False, self._extents[i + 1][0] if i + 1 < len(self._extents) else self._size

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """Ranges behind the old end that nothing was written to."""
        offset = max(offset, self._base_size)
        while offset < self._size:
            fresh, stop = self._part_at(offset)
            stop = min(stop, self._size)
            if not fresh and stop - offset >= HOLE_MIN:
                return offset, stop
            offset = stop
        return None


class _Ingest:
    """One pass over a large, sparse or endless file."""

    def __init__(self, batch: Batch, source: _Source, previous: ObjectId | None) -> None:
        self._batch, self._source = batch, source
        self._hasher = file_hasher()
        self._rows: list[tuple[ObjectId, int]] = []
        self._buffer = memoryview(bytearray(PIECE_MAX))
        self._cuts = _cuts_of(batch, previous)
        self._offset = 0

    def run(self) -> tuple[ObjectId, int]:
        hole = self._source.next_hole(0)
        while True:
            if hole is not None and hole[0] <= self._offset:
                self._take_hole(hole[1] - self._offset)
                hole = self._source.next_hole(self._offset)
                continue
            count = self._source.read(self._buffer[: self._next_length(hole)], self._offset)
            if not count:
                break
            self._take(self._buffer[:count])
        if not self._rows:
            return EMPTY_FILE_ID, 0
        file_id = ObjectId(self._hasher.digest())
        if self._offset <= PIECE_MAX:
            self._join_rows(file_id)
        else:
            manifest = _write_manifest(self._batch, file_id, self._rows)
            self._batch.name_manifest(file_id, manifest)
        return file_id, self._offset

    def _join_rows(self, file_id: ObjectId) -> None:
        """A file of at most 4 MiB is one piece, however it came in."""
        if self._rows[0][0] != file_id:
            parts = [bytes(count) if id == _HOLE else self._batch.get(id) for id, count in self._rows]
            self._batch.add_piece(b"".join(parts), file_id)

    def _next_length(self, hole: tuple[int, int] | None) -> int:
        """Up to the next hole, the next cut of the earlier version, or 4 MiB."""
        i = bisect_right(self._cuts, self._offset)
        stop = self._offset + PIECE_MAX
        if i < len(self._cuts):
            stop = min(stop, self._cuts[i])
        if hole is not None:
            stop = min(stop, hole[0])
        return stop - self._offset

    def _take(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._rows.append((self._batch.add_piece(data), len(data)))
        self._offset += len(data)

    def _take_hole(self, count: int) -> None:
        _hash_zeros(self._hasher, count)
        self._rows.append((_HOLE, count))
        self._offset += count


def _cuts_of(batch: Batch, previous: ObjectId | None) -> list[int]:
    """Where an earlier version was cut other than every 4 MiB."""
    if previous is None or previous == EMPTY_FILE_ID:
        return []
    location = batch.locate(previous)
    if location is None or location.kind is not RecordKind.MANIFEST:
        return []
    cuts = [offset + n for offset, _, n in pieces(batch, load_manifest(batch, previous))]
    return [] if all(cut % PIECE_MAX == 0 for cut in cuts[:-1]) else cuts


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError:
        return None  # ENXIO: no data, or no hole, behind this


_ZEROS = bytes(MIB)


def _hash_zeros(hasher: Hasher, count: int) -> None:
    while count:
        part = min(count, len(_ZEROS))
        hasher.update(_ZEROS if part == len(_ZEROS) else _ZEROS[:part])
        count -= part


# Reading


class Content:
    """An open file of the store: immutable, readable at any offset from any thread.

    Each piece is checked against its hash when a part of it is first read in this process.
    """

    __slots__ = ("_location", "_manifest", "_objects", "_pieces", "id", "size")

    def __init__(self, objects: Reader, entry: Entry) -> None:
        """Raises NotFound, Corrupt."""
        self._objects = objects
        self.id, self.size = entry.id, entry.size
        self._manifest: Manifest | None = None
        self._location: Location | None = None
        self._pieces: dict[ObjectId, Location] = {}
        if self.size:
            location = objects.locate(entry.id)
            if location is None:
                raise NotFound(f"the data of a file ({entry.id.hex()}) is not in the store")
            if location.kind is RecordKind.MANIFEST:
                self._manifest = load_manifest(objects, entry.id)
            else:
                self._location = location
            found = self._manifest.size if self._manifest else location.length
            if found != self.size:
                raise Corrupt(f"a file ({entry.id.hex()}) has {found} bytes where its directory says {self.size}")

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer only at the end. May wait for the disk. Raises Corrupt, NotFound."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self._location is not None:
            return self._read_piece(self.id, self._location, offset, size)
        parts = [
            bytes(count) if id is None else self._read_piece(id, self._locate(id, length), at, count)
            for id, length, at, count in self._spans(offset, size)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def parts(self, size: int) -> Iterator[tuple[range, bytes | None]]:
        """The whole file from front to back in parts of at most `size` bytes; None for (a part of) a hole.

        Raises Corrupt, NotFound.
        """
        if self._manifest is None:
            for offset in range(0, self.size, size):
                data = self.read(offset, size)
                yield range(offset, offset + len(data)), data
            return
        for offset, id, length in pieces(self._objects, self._manifest):
            if id is None:
                yield range(offset, offset + length), None
                continue
            for at in range(0, length, size):
                data = self._read_piece(id, self._locate(id, length), at, min(size, length - at))
                yield range(offset + at, offset + at + len(data)), data

    def read_nowait(self, offset: int, size: int) -> bytes | None:
        """As `read`, but None when that would wait for the disk or for hashing more than 128 KiB."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self._location is not None:
            return self._read_piece_nowait(self.id, self._location, offset, size)
        parts = []
        for id, length, at, count in self._spans(offset, size):
            part = bytes(count) if id is None else self._read_piece_nowait(id, self._locate(id, length), at, count)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _spans(self, offset: int, size: int) -> Iterator[tuple[ObjectId | None, int, int, int]]:
        """Piece id (None: a hole) and length, offset inside it and count, for a range."""
        assert self._manifest is not None
        end = offset + size
        while offset < end:
            node, start = self._manifest, 0
            i = node.index_at(offset)
            while node.level:
                start += node.starts[i]
                node = _load_child(self._objects, node, i)
                i = node.index_at(offset - start)
            at = offset - start - node.starts[i]
            count = min(end - offset, node.length(i) - at)
            yield None if node.ids[i] == _HOLE else node.ids[i], node.length(i), at, count
            offset += count

    def _locate(self, id: ObjectId, length: int) -> Location:
        location = self._pieces.get(id)
        if location is None:
            location = self._objects.locate(id)
            if location is None:
                raise NotFound(f"a piece ({id.hex()}) of the file {self.id.hex()} is not in the store")
            if location.kind is not RecordKind.PIECE or location.length != length:
                raise Corrupt(f"the manifest of the file {self.id.hex()} is damaged: a piece has another length")
            if len(self._pieces) > 4096:
                self._pieces.clear()
            self._pieces[id] = location
        return location

    def _read_piece(self, id: ObjectId, location: Location, at: int, count: int) -> bytes:
        segment = self._objects.segment(location.segment)
        if id in self._objects.verified:
            return segment.read(location.offset + at, count)
        whole = segment.read(location.offset, location.length)
        self._check(id, whole, location)
        return whole if count == len(whole) else whole[at : at + count]

    def _read_piece_nowait(self, id: ObjectId, location: Location, at: int, count: int) -> bytes | None:
        verified = id in self._objects.verified
        if not verified:
            if location.length > _NOWAIT_VERIFY_MAX:
                return None
            at_piece, wanted = 0, location.length
        else:
            at_piece, wanted = at, count
        data = self._objects.segment(location.segment).read_nowait(location.offset + at_piece, wanted)
        if data is None or verified:
            return data
        self._check(id, data, location)
        return data if count == len(data) else data[at : at + count]

    def _check(self, id: ObjectId, whole: bytes, location: Location) -> None:
        if hash_bytes(whole) != id:
            raise Corrupt(
                f"the data of a file is damaged: piece {id.hex()}, segment {location.segment:08x}, "
                f"byte {location.offset}",
                hint="restore the store's segment from a copy",
            )
        verified = self._objects.verified
        if len(verified) >= _VERIFIED_MAX:
            verified.clear()
        verified.add(id)


def open_content(objects: Reader, entry: Entry) -> Content:
    """Open a file for reading. Raises NotFound, Corrupt."""
    return Content(objects, entry)


def read_small(objects: Reader, entry: Entry, limit: int = 16 * MIB) -> bytes:
    """All bytes of a file that is known to be small. Raises Corrupt when it is larger than `limit` bytes."""
    if entry.size > limit:
        raise Corrupt(f"a file of {entry.size} bytes stands where at most {limit} are expected")
    if not entry.size:
        return b""
    location = objects.locate(entry.id)
    if location is not None and location.kind is RecordKind.MANIFEST:
        manifest = load_manifest(objects, entry.id)
        return b"".join(bytes(n) if id is None else objects.get(id) for _, id, n in pieces(objects, manifest))
    return objects.get(entry.id)
