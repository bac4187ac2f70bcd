"""Storing files: how their bytes become pieces and manifests."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence

from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import Batch
from pfsmount.tree.content import Content
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry
from pfsmount.tree.file_hash import Buffers, FileHash
from pfsmount.tree.manifest import HOLE, PIECE_MAX, load_manifest, pieces, write_manifest
from pfsmount.tree.sources import DescriptorSource, OverlaySource, Source, is_regular


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
    batch.name_manifest(file_id, write_manifest(batch, file_id, rows))
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
    with FileHash() as hash:
        return _Ingest(batch, DescriptorSource(fd), previous, hash).run()


def ingest_overlay(
    batch: Batch, fd: int, *, base: Entry, base_size: int, extents: Sequence[tuple[int, int]], size: int
) -> tuple[ObjectId, int]:
    """Add a file of `size` bytes that is `base` (its first `base_size` bytes; zeros behind) with ranges replaced.

    `extents` are (start, end) of the ranges that `fd` holds, at the same offsets. Pieces that did not change are shared.
    Returns the file's id and its size in bytes. Raises NoSpace, OSError, Corrupt, NotFound.
    """
    source = OverlaySource(Content(batch, base), base_size, fd, extents, size)
    with FileHash() as hash:
        return _Ingest(batch, source, base.id, hash).run()


def ingest_source(batch: Batch, source: Source, *, previous: ObjectId | None = None) -> tuple[ObjectId, int]:
    """Add a file that is read from front to back from something that is no descriptor, such as a member of an archive.

    As `ingest_fd` otherwise; raises also what the source raises.
    """
    return _Ingest(batch, source, previous).run()


def _small_file(fd: int) -> bytes | None:
    """The bytes of a regular file of at most 4 MiB, by its stat; None for any other."""
    stat = os.fstat(fd)
    if stat.st_size > PIECE_MAX or not is_regular(stat):
        return None
    data = os.pread(fd, stat.st_size + 1, 0)
    return data if len(data) == stat.st_size else None


class _Ingest:
    """One pass over a large, sparse or endless file."""

    def __init__(self, batch: Batch, source: Source, previous: ObjectId | None, hash: FileHash) -> None:
        self._batch, self._source, self._hash = batch, source, hash
        self._buffers = Buffers(hash, PIECE_MAX)
        self._rows: list[tuple[ObjectId, int]] = []
        self._cuts = _cuts_of(batch, previous)
        self._offset = 0

    def run(self) -> tuple[ObjectId, int]:
        hole = self._source.next_hole(0)
        while True:
            if hole is not None and hole[0] <= self._offset:
                self._take_hole(hole[1] - self._offset)
                hole = self._source.next_hole(self._offset)
                continue
            buffer = self._buffers.take()
            count = self._source.read(buffer[: self._next_length(hole)], self._offset)
            if not count:
                break
            self._take(buffer[:count])
        if not self._rows:
            return EMPTY_FILE_ID, 0
        file_id = self._hash.id()
        if self._offset <= PIECE_MAX:
            self._join_rows(file_id)
        else:
            manifest = write_manifest(self._batch, file_id, self._rows)
            self._batch.name_manifest(file_id, manifest)
        return file_id, self._offset

    def _join_rows(self, file_id: ObjectId) -> None:
        """A file of at most 4 MiB is one piece, however it came in."""
        if self._rows[0][0] != file_id:
            parts = [bytes(count) if id == HOLE else self._batch.get(id) for id, count in self._rows]
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
        self._buffers.hash(data)
        self._rows.append((self._batch.add_piece(data), len(data)))
        self._offset += len(data)

    def _take_hole(self, count: int) -> None:
        self._hash.update_zeros(count)
        self._rows.append((HOLE, count))
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
