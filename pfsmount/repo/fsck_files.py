"""The large files of a store, each hashed from front to back, because its id is the hash of the whole.

Nearly always the pieces of a file lie in its order, so it is hashed from the bytes that the check of the pieces has just read, in a thread beside it: the
disk is read once. Files that begin with the same pieces, as versions of one file do, are one hash up to where they differ. What is left
when all segments were read (a piece that lies before the one that it follows, or is damaged) is read on from there, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from functools import partial
from types import TracebackType

from pfsmount.config import MIB
from pfsmount.errors import NotFound, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer, Hasher, file_hasher
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant
from pfsmount.objects.lane import Lane, Ticket
from pfsmount.objects.object_look import ProgressBar
from pfsmount.objects.segment import TINY_MAX, Location
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.manifest import Piece, load_manifest, piece_at, pieces

_ZEROS = bytes(MIB)
_ZEROS_MAX = 64 * MIB
"""A hole that is hashed in passing; a longer one waits for the end, where the progress counts it."""
_MORE_MAX = 64
"""Pieces that are hashed together with one, because they need not be read."""
_STARTED_MAX = 4096
"""Files that are in the middle of their hash, at 2 KiB each."""
_READ_AHEAD = 2
_File = tuple[ObjectId, Location]
"""A file, and where the index had its manifest."""


class _Hash:
    """A hash in the making. Only the lane touches the hasher."""

    __slots__ = ("hasher",)

    def __init__(self) -> None:
        self.hasher: Hasher | None = None

    def update(self, zeros: int, data: Buffer) -> None:
        """Hash a hole, and what follows it."""
        if self.hasher is None:
            self.hasher = file_hasher(
                aside=True
            )  # the other half of the work is the hash of the pieces, in another thread
        while zeros:
            count = min(zeros, len(_ZEROS))
            self.hasher.update(_ZEROS[:count])
            zeros -= count
        self.hasher.update(data)

    def become(self, other: _Hash) -> None:
        """Go on from where another one is."""
        self.hasher = None if other.hasher is None else other.hasher.copy()

    def digest(self) -> bytes:
        """The hash of all that it was given."""
        return (self.hasher or file_hasher()).digest()


class _Prefix:
    """What some files begin with, hashed as far as that went."""

    __slots__ = ("done", "files", "hash", "next")

    def __init__(self, hash: _Hash | None, done: int, next: Piece | None, files: Sequence[_File]) -> None:
        self.hash = hash
        self.done = done
        """Bytes that are hashed."""
        self.next = next
        """The piece that is waited for; None for the end."""
        self.files = files


class LargeFiles:
    """Hashes large files while their pieces go by. Used by one thread; leaving the context ends the thread that hashes."""

    def __init__(self, objects: ObjectStore, findings: Findings, damage: Damage) -> None:
        self._objects = objects
        self._findings, self._damage = findings, damage
        self._waiting: dict[ObjectId, list[_Prefix]] = {}
        self._started: dict[_Prefix, None] = {}
        """Those of the waiting that have a hash, the one that waits longest first."""
        self._later: list[_Prefix] = []
        self._wrong: list[_File] = []
        self._lane = Lane("file hash")

    def __enter__(self) -> LargeFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lane.close()

    @property
    def wanted(self) -> Set[ObjectId]:
        """The pieces with which some file goes on."""
        return self._waiting.keys()

    def add(self, id: ObjectId, place: Location) -> None:
        """A large file that is to be checked. Before any of its pieces."""
        with suppress(PfsError, OSError):  # a damaged manifest, which is found by whoever looks at it
            self._wait(_Prefix(None, 0, self._next(id, 0), [(id, place)]))

    def piece(self, id: ObjectId, data: Buffer) -> Sequence[Ticket]:
        """An intact piece. It must stay as it is until these were waited for."""
        tickets: list[Ticket] = []
        ready: list[tuple[_Prefix, Buffer]] = [(prefix, data) for prefix in self._waiting.pop(id, [])]
        most = len(ready) + _MORE_MAX
        while ready:
            prefix, part = ready.pop()
            assert prefix.next is not None
            self._started.pop(prefix, None)
            hash = prefix.hash or _Hash()
            tickets.append(self._lane.do(partial(hash.update, prefix.next.start - prefix.done, part)))
            for longer in self._longer(hash, prefix.next.start + prefix.next.length, prefix.files):
                more = None if len(tickets) > most else self._at_hand(longer.next, id, data)
                if more is None:
                    self._wait(longer)
                else:
                    ready.append((longer, more))
        return tickets

    def _at_hand(self, piece: Piece | None, last: ObjectId, data: Buffer) -> Buffer | None:
        """The bytes of a piece that need not be waited for: the same once more, or so few that they lie in a tiny segment."""
        if piece is None or piece.id is None:
            return None
        if piece.id == last:
            return data
        if piece.length > TINY_MAX:
            return None
        try:
            return self._objects.get(piece.id)
        except (PfsError, OSError):
            return None  # found already; the end finds it again, and leaves the file alone

    def _next(self, id: ObjectId, done: int) -> Piece | None:
        """The first piece of a file from a byte on; None for the end. Raises NotFound, Corrupt."""
        manifest = load_manifest(self._objects, id)
        piece = piece_at(self._objects, manifest, done)
        while piece is not None and piece.id is None:
            piece = piece_at(self._objects, manifest, piece.start + piece.length)
        return piece

    def _longer(self, hash: _Hash, done: int, files: Sequence[_File]) -> Iterator[_Prefix]:
        """How files go on that are the same up to here."""
        groups: dict[Piece | None, list[_File]] = {}
        for file in files:
            with suppress(PfsError, OSError):
                groups.setdefault(self._next(file[0], done), []).append(file)
        for i, (piece, group) in enumerate(groups.items()):
            own = hash if i == len(groups) - 1 else _Hash()
            if own is not hash:
                self._lane.do(partial(own.become, hash))
            yield _Prefix(own, done, piece, group)

    def _wait(self, prefix: _Prefix) -> None:
        """Wait for the next piece of a prefix, or end it."""
        piece = prefix.next
        if piece is None or piece.id is None or piece.start - prefix.done > _ZEROS_MAX:
            if piece is None and len(prefix.files) == 1 and self._size(prefix.files[0][0]) == prefix.done:
                self._lane.do(partial(self._compare, prefix.hash, prefix.files[0]))
            else:
                self._later.append(prefix)
            return
        self._waiting.setdefault(piece.id, []).append(prefix)
        if prefix.hash is not None:
            self._started[prefix] = None
            if len(self._started) > _STARTED_MAX:
                self._give_up(next(iter(self._started)))

    def _give_up(self, prefix: _Prefix) -> None:
        """Files whose next piece has not come for long: their hash takes memory."""
        del self._started[prefix]
        assert prefix.next is not None
        assert prefix.next.id is not None
        same = self._waiting[prefix.next.id]
        same.remove(prefix)
        if not same:
            del self._waiting[prefix.next.id]
        self._later.append(_Prefix(None, 0, None, prefix.files))

    def _size(self, id: ObjectId) -> int:
        try:
            return load_manifest(self._objects, id).size
        except (PfsError, OSError):
            return -1

    def _compare(self, hash: _Hash | None, file: _File) -> None:
        if (hash or _Hash()).digest() != file[0]:
            self._wrong.append(file)

    # What is left

    def finish(self, bar: ProgressBar) -> None:
        """Read on what has not come, and report files that are not what their ids say."""
        left = [prefix for same in self._waiting.values() for prefix in same] + self._later
        self._waiting, self._later, self._started = {}, [], {}
        parts = [(prefix, file, self._size(file[0]) - prefix.done) for prefix in left for file in prefix.files]
        if parts:
            bar.what = "checking large files"
            bar.total += sum(size for _, _, size in parts if size > 0)
        self._lane.wait()
        for prefix, file, size in parts:
            before = bar.done
            if size >= 0 and file[0] not in self._damage.objects:
                self._rest(prefix, file, bar)
            bar.add(before + max(size, 0) - bar.done)
        for id, place in self._wrong:
            if id not in self._damage.objects and self._objects.locate(id) == place:
                self._damage.objects[id] = Invariant.FILE_HASH
                text = f"the pieces of the large file {id.hex()} are each right, but are not this file"
                self._findings.add(Finding.of(Invariant.FILE_HASH, text, object=id, place=place))

    def _rest(self, prefix: _Prefix, file: _File, bar: ProgressBar) -> None:
        hash = _Hash()
        if prefix.hash is not None:
            hash.become(prefix.hash)
        try:
            for data, zeros in self._parts(file[0], prefix.done):
                self._lane.do(partial(hash.update, zeros, data)).ahead(_READ_AHEAD)
                bar.add(zeros or len(data))
        except (PfsError, OSError):
            self._lane.wait()
            return  # a part of it is damaged, which was found already: the walk will say which files it is in
        self._lane.wait()
        self._compare(hash, file)

    def _parts(self, id: ObjectId, done: int) -> Iterator[tuple[bytes, int]]:
        """What is behind a byte of a file: bytes, or so many zeros. Raises NotFound, Corrupt, OSError."""
        manifest = load_manifest(self._objects, id)
        if done == manifest.size:
            return
        for _, piece, length in pieces(self._objects, manifest, since=done):
            if piece is None:
                for at in range(0, length, _ZEROS_MAX):
                    yield b"", min(length - at, _ZEROS_MAX)
                continue
            where = self._objects.locate(piece)
            if where is None or self._damage.reason(piece, where) is not None:
                raise NotFound("a piece of the file is damaged")
            yield self._objects.segment(where.segment).read(where.offset, where.length), 0
