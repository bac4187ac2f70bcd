"""Storing a large file of a worktree: by a second name where all of it is new, else piece by piece.

It is read once, to be hashed. Nothing is stored until it is known what it has in common with the store: when that is more than an eighth, the file is
stored as any other. Else it becomes a segment as it is (`objects.adoption`), after an fsync that runs beside the hashing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.adoption import Piece
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import Hasher, hash_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.parts import Part
from pfsmount.objects.segment import BLOCK
from pfsmount.tree.file_hash import FileHash
from pfsmount.tree.ingest import Ingest
from pfsmount.tree.manifest import HOLE, PIECE_MAX
from pfsmount.tree.sources import DescriptorSource

_SHARED_MAX = 8
"""One part in so many may be in the store already: it then takes its space twice, until gc gives back what is in the file."""


class HashedStart(NamedTuple):
    """What is known of the first bytes of a file: the ids of its pieces of 4 MiB, and the hash of all of them together so far."""

    ids: tuple[ObjectId, ...]
    hasher: Hasher


def adopt_fd(
    batch: Batch, fd: int, path: Path, *, previous: ObjectId | None, start: HashedStart | None = None
) -> tuple[ObjectId, int, bool]:
    """Add the file that is open at `fd`, whose name is `path` and which does not change meanwhile.

    Returns id, size in bytes, and whether the file itself is on its way to being a segment, so that it must not change any more (see `Batch.adopt`).
    Raises NoSpace, OSError (reading).
    """
    source = DescriptorSource(fd)
    if start is not None and (previous is not None or _has_hole(source, len(start.ids) * PIECE_MAX)):
        start = None  # it is cut elsewhere
    hash = FileHash() if start is None else FileHash(start.hasher)
    with hash, ThreadPoolExecutor(1, "file sync") as syncer:
        ingest = _Adopting(batch, source, fd, path, previous, hash, syncer)
        if start is not None:
            ingest.go_on_from(start.ids)
        id, size = ingest.run()
        return id, size, ingest.is_adopted


def _has_hole(source: DescriptorSource, end: int) -> bool:
    hole = source.next_hole(0)
    return hole is not None and hole[0] < end


class _Adopting(Ingest):
    """As any ingest, but pieces that are new wait until all is read."""

    def __init__(
        self,
        batch: Batch,
        source: DescriptorSource,
        fd: int,
        path: Path,
        previous: ObjectId | None,
        hash: FileHash,
        syncer: ThreadPoolExecutor,
    ) -> None:
        super().__init__(batch, source, previous, hash, None, search=True)
        self.is_adopted = False
        self._fd, self._path, self._syncer = fd, path, syncer
        self._size = os.fstat(fd).st_size
        self._waiting: dict[ObjectId, tuple[int, int]] | None = {}
        """New pieces, by id: where, and how long. None: everything is stored as it comes."""
        self._shared = 0
        self._sync: Future[None] | None = None

    def go_on_from(self, ids: Sequence[ObjectId]) -> None:
        """Take pieces of 4 MiB from the start of the file whose hashes are known."""
        for id in ids:
            if self._waiting is not None:
                self._consider(PIECE_MAX, id)
            elif not self._batch.has(id):
                self._copy(id, self._offset, PIECE_MAX)
            self._rows.append((id, PIECE_MAX))
            self._proceed(PIECE_MAX)

    def _store(self, part: Part, count: int, id: ObjectId) -> None:
        if self._waiting is None:
            super()._store(part, count, id)
        else:
            self._consider(count, id)

    def _consider(self, count: int, id: ObjectId) -> None:
        assert self._waiting is not None
        if id in self._waiting or self._batch.has(id):
            self._shared += count
        else:
            self._waiting[id] = (self._offset, count)
        if self._shared > self._size // _SHARED_MAX:
            self._store_waiting()
        elif self._sync is None and self._offset > self._size // _SHARED_MAX:
            self._sync = self._syncer.submit(os.fdatasync, self._fd)

    def _store_rest(self) -> None:
        if self._waiting is None or not self._waiting:
            return
        if self._sync is None:
            self._sync = self._syncer.submit(os.fdatasync, self._fd)
        with disk_errors("making a file durable"):
            self._sync.result()
        if any(offset % BLOCK for _, offset, _ in self._pieces()):
            self._cut_anew()
        is_whole = self._offset == self._size
        self.is_adopted = is_whole and self._batch.adopt(self._path, self._size, self._pieces())
        if not self.is_adopted:
            self._store_waiting()

    def _pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        offset = 0
        for id, length in self._rows:
            if id != HOLE:
                pieces.append((id, offset, length))
            offset += length
        return pieces

    def _cut_anew(self) -> None:
        """The cuts are those of an earlier version that has little in common with this one, and not on blocks."""
        rows: list[tuple[ObjectId, int]] = []
        data, start = self._parts.take().memory, 0
        for is_hole, group in groupby(self._rows, lambda row: row[0] == HOLE):
            end = start + sum(length for _, length in group)
            if is_hole:
                rows.append((HOLE, end - start))
            for at in [] if is_hole else range(start, end, PIECE_MAX):
                length = min(PIECE_MAX, end - at)
                self._source.read(data[:length], at)
                rows.append((hash_bytes(data[:length]), length))
            start = end
        self._rows = rows
        known = self._batch.reuse([id for id, _ in rows])
        self._waiting = {id: (offset, length) for id, offset, length in self._pieces() if id not in known}

    def _store_waiting(self) -> None:
        """Store after all what was only hashed. It is read once more, most likely from the page cache."""
        assert self._waiting is not None
        waiting, self._waiting = self._waiting, None
        for id, (offset, length) in waiting.items():
            self._copy(id, offset, length)

    def _copy(self, id: ObjectId, offset: int, length: int) -> None:
        part = self._parts.take()
        data = part.memory[:length]
        if self._source.read(data, offset) != length or hash_bytes(data) != id:
            raise PfsError("a file of a worktree did not read twice the same; nothing was committed")
        super()._store(part, length, id)
