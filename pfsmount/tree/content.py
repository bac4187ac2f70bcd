"""Reading a file of the store, at any offset."""

from __future__ import annotations

from collections.abc import Iterator

from pfsmount.config import MIB
from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer, hash_bytes
from pfsmount.objects.parts import Pool
from pfsmount.objects.reading import Reader
from pfsmount.objects.segment import BLOCK, FSCK_HINT, Location, RecordKind, align
from pfsmount.tree.entry import Entry
from pfsmount.tree.manifest import PIECE_MAX, Manifest, load_manifest, piece_at, pieces

_VERIFIED_MAX = 500_000
_NOWAIT_VERIFY_MAX = 128 * 1024


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
                raise NotFound(f"the data of a file ({entry.id.hex()}) is not in the store", hint=FSCK_HINT)
            if location.kind is RecordKind.MANIFEST:
                self._manifest = load_manifest(objects, entry.id)
            else:
                self._location = location
            found = self._manifest.size if self._manifest else location.length
            if found != self.size or location.length > PIECE_MAX:
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

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray | None:
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

    def unchecked(self, offset: int, size: int) -> PieceCheck | None:
        """The first piece in a range that must be checked before `read_nowait` has any of it; None when all are, or are small."""
        size = min(size, self.size - offset)
        if size <= 0:
            return None
        if self._location is not None:
            return self._unchecked(self.id, self._location, 0, range(offset, offset + size), whole=True)
        for id, length, at, count in self._spans(offset, size):
            if id is not None:
                wanted = range(at, at + count)
                check = self._unchecked(id, self._locate(id, length), offset - at, wanted, whole=count == size)
                if check is not None:
                    return check
            offset += count
        return None

    def pieces_of(self, offset: int, size: int) -> list[PieceCheck]:
        """The large pieces that together have all of a range, checked or not; none if something else has a part of it."""
        size = min(size, self.size - offset)
        if size <= 0 or self._manifest is None:
            return []
        found = []
        for id, length, at, count in self._spans(offset, size):
            if id is None or length <= _NOWAIT_VERIFY_MAX:
                return []
            wanted = range(at, at + count)
            found.append(PieceCheck(self, id, self._locate(id, length), offset - at, wanted, whole=True))
            offset += count
        return found

    def _unchecked(
        self, id: ObjectId, location: Location, start: int, wanted: range, *, whole: bool
    ) -> PieceCheck | None:
        if location.length <= _NOWAIT_VERIFY_MAX or id in self._objects.verified:
            return None
        return PieceCheck(self, id, location, start, wanted, whole)

    def _spans(self, offset: int, size: int) -> Iterator[tuple[ObjectId | None, int, int, int]]:
        """Piece id (None: a hole) and length, offset inside it and count, for a range."""
        assert self._manifest is not None
        end = offset + size
        while offset < end:
            piece = piece_at(self._objects, self._manifest, offset)
            assert piece is not None
            at = offset - piece.start
            count = min(end - offset, piece.length - at)
            yield piece.id, piece.length, at, count
            offset += count

    def is_checked(self, id: ObjectId) -> bool:
        """Whether a piece was compared with its hash in this process."""
        return id in self._objects.verified

    def check_piece_uncached(self, id: ObjectId, location: Location, memory: memoryview) -> Buffer | None:
        """Read a piece past the page cache, into memory that begins on a page, and compare it with its hash. None where that is not possible. Raises Corrupt, NotFound."""
        room = memory[: align(location.length, BLOCK)]
        if self._objects.segment(location.segment).read_uncached(location.offset, room) < location.length:
            return None
        data = room[: location.length]
        self.check(id, data, location)
        return data

    def check_piece(self, id: ObjectId, location: Location, *, onward: bool) -> bytes:
        """Read a piece and compare it with its hash. With `onward` the disk begins with as much behind it. Raises Corrupt, NotFound."""
        segment = self._objects.segment(location.segment)
        segment.will_need(location.offset, location.length * (2 if onward else 1))
        data = segment.read(location.offset, location.length)
        self.check(id, data, location)
        return data

    def _locate(self, id: ObjectId, length: int) -> Location:
        location = self._pieces.get(id)
        if location is None:
            location = self._objects.locate(id)
            if location is None:
                raise NotFound(f"a piece ({id.hex()}) of the file {self.id.hex()} is not in the store", hint=FSCK_HINT)
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
        self.check(id, whole, location)
        return whole if count == len(whole) else whole[at : at + count]

    def _read_piece_nowait(self, id: ObjectId, location: Location, at: int, count: int) -> bytearray | None:
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
        self.check(id, data, location)
        return data if count == len(data) else data[at : at + count]

    def check(self, id: ObjectId, whole: Buffer, location: Location) -> None:
        """Note that a piece is right. Raises Corrupt."""
        if hash_bytes(whole) != id:
            raise Corrupt(
                f"the data of a file is damaged: piece {id.hex()}, segment {location.segment:08x}, "
                f"byte {location.offset}",
                hint=FSCK_HINT,
            )
        verified = self._objects.verified
        if len(verified) >= _VERIFIED_MAX:
            verified.clear()
        verified.add(id)


class PieceCheck:
    """The check of one piece, for another thread. All parts of a piece that the kernel asks for at once wait for the same one."""

    __slots__ = ("_content", "_location", "_start", "_wanted", "_whole", "id")

    def __init__(
        self, content: Content, id: ObjectId, location: Location, start: int, wanted: range, whole: bool
    ) -> None:
        """`start`: where in the file the piece is. `wanted`: which of its bytes are, and whether they are all that is (`whole`)."""
        self._content, self.id, self._location, self._start = content, id, location, start
        self._wanted, self._whole = wanted, whole

    @property
    def is_done(self) -> bool:
        """Whether it was found right already."""
        return self._content.is_checked(self.id)

    @property
    def is_from_start(self) -> bool:
        """Whether the beginning of the piece is wanted."""
        return not self._wanted.start

    def run(self, *, onward: bool = False) -> bytes:
        """Read the piece, which leaves it in the page cache, and compare. `onward`: whoever reads is likely to go on. Raises Corrupt, NotFound."""
        return self._content.check_piece(self.id, self._location, onward=onward)

    def run_uncached(self, memory: Pool) -> Buffer | None:
        """The same past the page cache, for who has a use for all of the piece; None where that is not possible. Raises Corrupt, NotFound."""
        return self._content.check_piece_uncached(self.id, self._location, memory.take())

    def before(self) -> PieceCheck | None:
        """The check of the piece before, which whoever goes through the file has come from; None when it is done, or there is none."""
        return self._content.unchecked(self._start - 1, 1) if self._start else None

    def after(self) -> PieceCheck | None:
        """The check of the piece behind, done or not; None for anything but a large piece."""
        found = self._content.pieces_of(self._start + self._location.length, 1)
        return found[0] if found else None

    @property
    def is_first(self) -> bool:
        """Whether the file begins with the piece."""
        return not self._start

    def part(self, piece: Buffer) -> memoryview | None:
        """What is wanted, if the piece has all of it."""
        return memoryview(piece)[self._wanted.start : self._wanted.stop] if self._whole else None


def open_content(objects: Reader, entry: Entry) -> Content:
    """Open a file for reading. Raises NotFound, Corrupt."""
    return Content(objects, entry)


def read_small(objects: Reader, entry: Entry, limit: int = 16 * MIB) -> bytes:
    """All bytes of a file that is known to be small. Raises Corrupt when it is larger than `limit` bytes."""
    if entry.size > limit:
        raise Corrupt(f"a file of {entry.size} bytes stands where at most {limit} are expected")
    if not entry.size:
        return b""
    return Content(objects, entry).read(0, entry.size)
