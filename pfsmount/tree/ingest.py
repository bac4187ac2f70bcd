"""Storing files: how their bytes become pieces and manifests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from pfsmount.config import MIB
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.parts import Part, Parts
from pfsmount.tree.content import Content
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry
from pfsmount.tree.file_hash import FileHash
from pfsmount.tree.manifest import HOLE, PIECE_MAX, write_manifest
from pfsmount.tree.matching import HEAD, WINDOW, Previous
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


Progress = Callable[[int], None]
"""Is told how many bytes were taken since it was last called."""


def ingest_fd(
    batch: Batch,
    fd: int,
    *,
    previous: ObjectId | None = None,
    progress: Progress | None = None,
    end: int | None = None,
) -> tuple[ObjectId, int]:
    """Add the file that is open at `fd`, from its offset 0 or, when it cannot seek, from where it is.

    Reads to the end, whatever fstat says, or a regular file to its byte `end`, in pieces of 4 MiB; what it has in common with `previous`, an earlier version, is
    found again and shared. Holes of at least 64 KiB stay holes. Returns the file's id and its size in bytes. Raises NoSpace,
    OSError (reading).
    """
    small = _small_file(fd, end)
    if small is not None:
        if progress is not None:
            progress(len(small))
        return batch.add_piece(small), len(small)
    source = DescriptorSource(fd, end)
    with FileHash() as hash:
        return Ingest(batch, source, previous, hash, progress, search=source.is_regular).run()


def ingest_overlay(
    batch: Batch, fd: int, *, base: Entry, base_size: int, extents: Sequence[tuple[int, int]], size: int
) -> tuple[ObjectId, int]:
    """Add a file of `size` bytes that is `base` (its first `base_size` bytes; zeros behind) with ranges replaced.

    `extents` are (start, end) of the ranges that `fd` holds, at the same offsets. Pieces that did not change are shared.
    Returns the file's id and its size in bytes. Raises NoSpace, OSError, Corrupt, NotFound.
    """
    source = OverlaySource(Content(batch, base), base_size, fd, extents, size)
    with FileHash() as hash:
        return Ingest(batch, source, base.id, hash, None, search=True).run()


def ingest_source(
    batch: Batch, source: Source, *, previous: ObjectId | None = None, progress: Progress | None = None
) -> tuple[ObjectId, int]:
    """Add a file that is read from front to back from something that is no descriptor, such as a member of an archive.

    As `ingest_fd` otherwise; raises also what the source raises.
    """
    with FileHash() as hash:
        return Ingest(batch, source, previous, hash, progress, search=False).run()


def _small_file(fd: int, end: int | None) -> bytes | None:
    """The bytes of a regular file of at most 4 MiB, by its stat or by `end`; None for any other."""
    stat = os.fstat(fd)
    size = stat.st_size if end is None else end
    if size > PIECE_MAX or not is_regular(stat):
        return None
    data = os.pread(fd, size + 1 if end is None else size, 0)
    return data if len(data) == size else None


_AHEAD = HEAD + WINDOW
"""Bytes behind a piece that are searched with it: an old piece may begin in its last bytes."""
_HOLE_AT_ONCE = 256 * MIB
_CACHED_BYTES = 64 * MIB
"""How much of a large file stays in the page cache; the rest goes straight to the disk. *Measured*, 2 GiB: the copy into the cache takes 0.75 s of
processor time, and up to 8 s on a virtual machine whose host takes free memory back; without it 0.15 s."""


class Ingest:
    """One pass over a large, sparse or endless file.

    Everything is read once from front to back, and what may be an old piece (`search`: the source can be read anywhere) ahead of that.
    """

    def __init__(
        self,
        batch: Batch,
        source: Source,
        previous: ObjectId | None,
        hash: FileHash,
        progress: Progress | None,
        *,
        search: bool,
    ) -> None:
        self._batch, self._source, self._hash, self._search = batch, source, hash, search
        self._progress = progress
        self._previous = Previous(batch, previous)
        self._parts = Parts(PIECE_MAX + _AHEAD)
        self._rows: list[tuple[ObjectId, int]] = []
        self._offset = 0

    def run(self) -> tuple[ObjectId, int]:
        hole = self._source.next_hole(self._offset)
        while True:
            if hole is not None and hole[0] <= self._offset:
                self._take_hole(hole[1] - self._offset)
                hole = self._source.next_hole(self._offset)
            elif not self._take_piece(None if hole is None else hole[0]):
                break
        if not self._rows:
            return EMPTY_FILE_ID, 0
        file_id = self._hash.id()
        self._store_rest()
        if self._offset <= PIECE_MAX:
            self._join_rows(file_id)
        else:
            manifest = write_manifest(self._batch, file_id, self._rows)
            self._batch.name_manifest(file_id, manifest)
        return file_id, self._offset

    def _store_rest(self) -> None:
        """Store what is not yet, now that all is read."""

    def _join_rows(self, file_id: ObjectId) -> None:
        """A file of at most 4 MiB is one piece, however it came in."""
        if self._rows[0][0] != file_id:
            parts = [bytes(count) if id == HOLE else self._batch.get(id) for id, count in self._rows]
            self._batch.add_piece(b"".join(parts), file_id)

    def _take_piece(self, end: int | None) -> bool:
        """Store what comes next, up to the next hole; False at the end of the file."""
        length = self._previous.next_length(self._offset)
        if end is not None:
            length = min(length, end - self._offset)
        part = self._parts.take()
        count = self._source.read(part.memory[:length], self._offset)
        if not count:
            return False
        id = hash_bytes(part.memory[:count])
        expected = self._previous.is_expected(self._offset, count, id)
        if expected or not self._search or not self._take_old_piece(part, count, end):
            self._add(part, count, id)
        return True

    def _take_old_piece(self, part: Part, count: int, end: int | None) -> bool:
        """Store a piece of the previous version that begins in data which was not expected, and what is before it. False when there is none."""
        ahead = self._source.read(part.memory[count : count + _AHEAD], self._offset + count)
        other: Part | None = None
        for position, piece in self._previous.find(part.memory[: count + ahead], self._offset):
            start = self._offset + position
            if position > count or (end is not None and start + piece.length > end):
                continue
            other = self._parts.take() if other is None else other
            data = other.memory[: piece.length]
            got = self._source.read(data, start)
            id = hash_bytes(data)
            if (got, id) == (piece.length, piece.id):
                self._previous.matched(start, piece)
                if position:
                    self._add(part, position, hash_bytes(part.memory[:position]))
                self._add(other, got, id)
                return True
            self._previous.doubted()
        return False

    def _add(self, part: Part, count: int, id: ObjectId) -> None:
        part.users.append(self._hash.update(part.memory[:count]))
        self._store(part, count, id)
        self._rows.append((id, count))
        self._proceed(count)

    def _store(self, part: Part, count: int, id: ObjectId) -> None:
        writing = self._batch.lend_piece(part.memory[:count], id, cached=self._offset < _CACHED_BYTES)
        if writing is not None:
            part.users.append(writing)

    def _take_hole(self, count: int) -> None:
        self._rows.append((HOLE, count))
        for start in range(0, count, _HOLE_AT_ONCE):
            part = min(_HOLE_AT_ONCE, count - start)
            self._hash.update_zeros(part)
            self._proceed(part)

    def _proceed(self, count: int) -> None:
        self._offset += count
        if self._progress is not None:
            self._progress(count)
