"""Finding the pieces of a file's previous version in its next one.

While both are **in step** the next piece is cut as long as the old one that is expected there, and shared when its hash is the same. So appends
and overwrites share everything else. Where data was inserted, deleted or moved the rest stands elsewhere, and has to be found:

* A **marker** is a byte followed by one of some others, chosen so that it is in the old version about once in 2 KiB. A regular expression finds
  all its places at C's speed; a rolling hash (content-defined chunking) would be several times slower, for all data.
* The **anchor** of an old piece is the 64 bytes at its first marker.
* In data that is not what was expected each marker is looked at: where the 64 bytes are an anchor an old piece may stand. It is believed when
  the whole piece has the right hash.

Only how a file is cut depends on any of this, never what is read from it. Short pieces are not looked for, and neighbours that both are
short are cut as one, so that a thousand edits do not decay a file into crumbs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice, pairwise, takewhile

from pfsmount.errors import NotFound, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.reading import Reader
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.entry import EMPTY_FILE_ID
from pfsmount.tree.manifest import PIECE_MAX, Manifest, Piece, load_manifest, piece_at, pieces

SHORT = 512 * 1024
"""A piece of fewer bytes is joined with a short neighbour, and not looked for."""
HEAD = 64 * 1024
"""An anchor begins this near to the start of its piece."""
WINDOW = 64
"""Bytes of an anchor."""
_DISTINCT_MIN = 4
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_SPACING = 2048
_DENSE = 64
_HEADS_FIRST, _HEADS_MAX = 64, 512
_ANCHORS_MAX = 32_768
_MARKERS_MAX = 32_768
_INTERVALS = ((8, 1), (64, 4), (1 << 62, 16))
"""Up to how many misses in a row every how many-th piece is searched (5 ms each)."""
_DOUBTS = 16


class Previous:
    """The previous version of a file, as far as it helps to cut the next one. For one pass over that, from front to back."""

    def __init__(self, objects: Reader, id: ObjectId | None) -> None:
        """A version that is not in the store, or damaged, is none: nobody needs it to store the next one."""
        self._objects = objects
        self._root: Manifest | None = None
        if id is not None and id != EMPTY_FILE_ID:
            with suppress(PfsError):
                self._root = _open(objects, id)
        self._anchors: Anchors | None = None
        self._shift = 0
        """How much later than in the old version the data stands in the new one, here."""
        self._misses = 0
        self._doubts = _DOUBTS

    # In step

    def next_length(self, offset: int) -> int:
        """How many bytes the piece at `offset` of the new version should have, at most 4 MiB."""
        old = self._expected(offset)
        if old is None:
            return PIECE_MAX
        end = old.start + old.length + self._shift
        while end - offset < SHORT:
            old = self._expected(end)
            if old is None:
                return PIECE_MAX  # the old version ended with a short piece: what was appended is joined with it
            if old.id is None or old.length >= SHORT:
                break
            end += old.length
        return min(end - offset, PIECE_MAX)

    def is_expected(self, offset: int, length: int, id: ObjectId) -> bool:
        """Whether the piece that was cut at `offset` is what was there in the old version."""
        if self._expected(offset) != (offset - self._shift, id, length):
            return False
        self._misses = 0
        return True

    def _expected(self, offset: int) -> Piece | None:
        if self._root is None:
            return None
        try:
            return piece_at(self._objects, self._root, offset - self._shift)
        except PfsError:
            self._root = None
            return None

    # Out of step

    def find(self, data: memoryview, offset: int) -> Iterator[tuple[int, Piece]]:
        """Positions in `data`, which was not what was expected at `offset`, where old pieces may begin.

        Whoever reads a candidate says whether it is one (`matched`) or not (`doubted`). After some misses in a row not all data is searched, so that a
        version that has nothing in common with the old one costs little.
        """
        self._misses += 1
        interval = next(every for most, every in _INTERVALS if self._misses <= most)
        if self._root is None or not self._doubts or self._misses % interval:
            return
        try:
            if self._anchors is None:
                self._anchors = Anchors(self._objects, self._root, offset - self._shift)
            self._anchors.load(min(_HEADS_MAX, _HEADS_FIRST << self._misses))
        except PfsError:
            self._root = None
            return
        for position, piece in self._anchors.find(data):
            if not self._doubts:
                return
            if position >= 0 and (position, piece.start) != (0, offset - self._shift):
                yield position, piece

    def matched(self, offset: int, piece: Piece) -> None:
        """An old piece stands at `offset` of the new version: in step from here on."""
        self._shift = offset - piece.start
        self._misses = 0
        self._doubts = _DOUBTS

    def doubted(self) -> None:
        """A candidate was not what its anchor promised."""
        self._doubts -= 1


def _open(objects: Reader, id: ObjectId) -> Manifest | None:
    """The manifest of a file; one piece is treated as if it had one."""
    location = objects.locate(id)
    if location is None or location.kind is RecordKind.MANIFEST:
        return None if location is None else load_manifest(objects, id)
    return Manifest(0, location.length, id, (id,), (0, location.length))


class Anchors:
    """The anchors of a version's pieces, loaded some at a time, from an offset on and then from the start."""

    def __init__(self, objects: Reader, root: Manifest, offset: int) -> None:
        """Raises NotFound, Corrupt."""
        self._objects = objects
        self._marker = _choose_marker(self._sample(root))
        offset = min(max(0, offset), root.size)
        before = takewhile(lambda piece: piece.start < offset, pieces(objects, root))
        self._pieces = chain(pieces(objects, root, since=offset), before)
        self._found: dict[bytes, tuple[Piece, int]] = {}
        """By its bytes: the piece, and how far into it the anchor begins."""

    def _sample(self, root: Manifest) -> bytes:
        """Some of the data of the old version, from all over it."""
        parts = []
        for i in range(_SAMPLES):
            piece = piece_at(self._objects, root, root.size * i // _SAMPLES)
            if piece is not None and piece.id is not None:
                parts.append(self._head(piece.id, min(_SAMPLE_BYTES, piece.length)))
        return b"".join(parts)

    def _head(self, id: ObjectId, length: int) -> bytes:
        """The first bytes of a piece, not verified: they only say where to look."""
        location = self._objects.locate(id)
        if location is None or location.length < length:
            raise NotFound(f"a piece ({id.hex()}) is not in the store")
        return self._objects.segment(location.segment).read(location.offset, length)

    def load(self, count: int) -> None:
        """Find the anchors of `count` more pieces. Raises NotFound, Corrupt."""
        if self._marker is None or len(self._found) >= _ANCHORS_MAX:
            return
        for piece in islice(self._pieces, count):
            if piece.id is not None and piece.length >= SHORT:
                self._add(piece, self._head(piece.id, HEAD), self._marker)

    def _add(self, piece: Piece, head: bytes, marker: re.Pattern[bytes]) -> None:
        for match in marker.finditer(head, 0, HEAD - WINDOW):
            at = match.start()
            anchor = head[at : at + WINDOW]
            if len(set(anchor)) >= _DISTINCT_MIN:
                known = self._found.setdefault(anchor, (piece, at))
                if known[0].id == piece.id:
                    return

    def find(self, data: memoryview) -> Iterator[tuple[int, Piece]]:
        """Positions in `data` (negative: before it) where a piece may begin."""
        if self._marker is None:
            return
        for match in islice(self._marker.finditer(data), _MARKERS_MAX):
            start = match.start()
            known = self._found.get(bytes(data[start : start + WINDOW]))
            if known is not None:
                yield start - known[1], known[0]


def _choose_marker(sample: bytes) -> re.Pattern[bytes] | None:
    """A pattern that is in data like this about once in 2 KiB; None when there is none, as in zeros."""
    wanted = len(sample) // _SPACING
    common = [(count, lead) for lead, count in Counter(sample).items() if count >= wanted]
    if not wanted or not common:
        return None
    _, lead = min(common)
    pairs = Counter(pairwise(sample))
    followers = sorted((count, second) for (first, second), count in pairs.items() if first == lead)
    chosen, total = b"", 0
    for count, second in followers:
        chosen += b"\\x%02x" % second
        total += count
        if total >= wanted:
            break
    if total > len(sample) // _DENSE:
        return None
    return re.compile(b"\\x%02x(?=[%s])" % (lead, chosen), re.DOTALL)
