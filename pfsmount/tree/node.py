"""Nodes of prolly trees: a directory's entries, sorted by name, cut where names say.

| magic `PN`, version u8 (1), level u8 | count u32 | fixed parts: count × 64 (leaf) or 88 (inner) | ends of tails: count × u32 | tails |

A leaf's fixed part and extra are those of `tree.entry`; its tail is name length u8, name, extra. An inner fixed part is node id 32,
content id 32, entries u64, files u64, bytes u64; its tail is the last name below. A name of rank > level ends a node of that level, so the
same entries make the same nodes whatever the order of edits, and an edit touches only the nodes on its path.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import add, ge, lt
from typing import NamedTuple, TypeAlias

from pfsmount.errors import Corrupt
from pfsmount.ids import EntryName, ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.reading import Reader, get_as
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.boundaries import RANK_MAX
from pfsmount.tree.entry import FIXED, Entry, Kind, decode_entry, plain_files

_HEADER = struct.Struct("<2sBBI")
_MAGIC = b"PN"
_VERSION = 1
_INNER = struct.Struct("<32s32sQQQ")
_SIZE_AT = 24
_SIZE = struct.Struct("<Q")
_FILE, _DIRECTORY, _SYMLINK = int(Kind.FILE), int(Kind.DIRECTORY), int(Kind.SYMLINK)
_EXECUTABLE = bytes((_FILE, 1))
_NOT_EXECUTABLE = [bytes((kind, 0)) for kind in range(256)]
_LENGTHS = [bytes((length,)) for length in range(256)]


class LeafItem(NamedTuple):
    """An entry as it stands in a leaf, not decoded."""

    name: bytes
    fixed: bytes
    extra: bytes


Row: TypeAlias = tuple[bytes, bytes, bytes, tuple[int, int, int, int, int] | None]
"""A `LeafItem` with what stat shows of it if it is a plain file, as from `plain_file`: for listings, which take the entries of a leaf all at once."""


class Child(NamedTuple):
    """A node as its parent names it: `name` is the last name below."""

    name: bytes
    id: ObjectId
    content_id: ObjectId
    entries: int
    files: int
    bytes_below: int


Item = LeafItem | Child


class Node:
    """A decoded node. `names` are those of its entries, or the last ones of its children."""

    __slots__ = ("_ends", "_fixed", "_tails", "level", "names")

    def __init__(self, raw: bytes) -> None:
        """Raises Corrupt."""
        try:
            magic, version, self.level, count = _HEADER.unpack_from(raw)
            width = _INNER.size if self.level else FIXED.size
            tails_at = _HEADER.size + count * (width + 4)
            if magic != _MAGIC or version != _VERSION or self.level > RANK_MAX or tails_at > len(raw):
                raise ValueError
            self._fixed = raw[_HEADER.size : _HEADER.size + count * width]
            self._ends: Sequence[int] = struct.unpack_from(f"<{count}I", raw, tails_at - 4 * count)
            self._tails = tails = raw[tails_at:]
            if (self._ends[-1] if count else 0) != len(tails):
                raise ValueError
            starts = (0, *self._ends[:-1])
            if self.level:
                names = list(map(tails.__getitem__, map(slice, starts, self._ends)))
            else:
                names = [tails[start + 1 : start + 1 + tails[start]] for start in starts] if count else []
                if any(map(ge, map(add, starts, map(len, names)), self._ends)) or (
                    count and tails[starts[-1]] != len(names[-1])
                ):
                    raise ValueError  # a name that goes on behind its entry
            # Each check goes over all names at once: a loop in Python over 64 names took 50 µs, this 12.
            if not all(map(lt, starts, self._ends)) or not all(map(lt, names, names[1:])):
                raise ValueError
            text = b"".join(names)
            if b"/" in text or b"\0" in text or b"" in names[:1] or b"." in names or b".." in names:
                raise ValueError
            self.names = names
        except (struct.error, ValueError, IndexError):
            raise Corrupt("a node of a directory is damaged") from None

    def __len__(self) -> int:
        return len(self.names)

    def leaf_item(self, i: int) -> LeafItem:
        """The i-th entry of a leaf."""
        name = self.names[i]
        start = (self._ends[i - 1] if i else 0) + 1 + len(name)
        width = FIXED.size
        return LeafItem(name, self._fixed[i * width : (i + 1) * width], self._tails[start : self._ends[i]])

    def rows(self, first: int) -> Iterator[Row]:
        """The entries of a leaf from a place on."""
        width, names, ends, tails, fixed = FIXED.size, self.names, self._ends, self._tails, self._fixed
        start, at = ends[first - 1] if first else 0, first * width
        for i, plain in enumerate(plain_files(fixed[at:]), first):
            name, end = names[i], ends[i]
            extra = tails[start + 1 + len(name) : end]
            yield name, fixed[at : at + width], extra, None if extra else plain
            start, at = end, at + width

    def entry(self, i: int) -> Entry:
        """The i-th entry of a leaf, decoded. Raises Corrupt."""
        _, fixed, extra = self.leaf_item(i)
        return decode_entry(fixed, extra)

    def kind_and_size(self, i: int) -> tuple[int, int]:
        """Kind and size of the i-th entry of a leaf, without decoding the rest."""
        start = i * FIXED.size
        return self._fixed[start], int(_SIZE.unpack_from(self._fixed, start + _SIZE_AT)[0])

    def child(self, i: int) -> Child:
        """The i-th child of an inner node."""
        return Child(self.names[i], *_INNER.unpack_from(self._fixed, i * _INNER.size))

    def item(self, i: int) -> Item:
        """The i-th entry or child."""
        return self.child(i) if self.level else self.leaf_item(i)

    def stretch(self, i: int, j: int) -> tuple[bytes, bytes, Sequence[int]]:
        """Fixed parts, tails, and where in the node's tails each ends, of the items from the i-th up to, not with, the j-th; i < j."""
        width = _INNER.size if self.level else FIXED.size
        tails = self._tails[self._ends[i - 1] if i else 0 : self._ends[j - 1]]
        return self._fixed[i * width : j * width], tails, self._ends[i:j]

    def equal_run(self, i: int, other: Node, j: int) -> int:
        """How many items from the i-th on are those of another node of this level from its j-th on.

        Compares stretches of bytes, halving: for a usual node of 64 items that differs in one, a ninth of the time of item by item.
        """
        run = 0
        step = most = min(len(self.names) - i, len(other.names) - j)
        while step and run < most:
            step = min(step, most - run)
            if self._same(i + run, other, j + run, step):
                run += step
            else:
                step //= 2
        return run

    def _same(self, i: int, other: Node, j: int, count: int) -> bool:
        """Whether so many items are equal: their bytes are, since every tail says where it ends."""
        return self.stretch(i, i + count)[:2] == other.stretch(j, j + count)[:2]

    def position(self, name: bytes) -> int:
        """Index of the first name >= `name`; len(self) when there is none."""
        return bisect_left(self.names, name)


class NodeDraft:
    """A node in the making: new items, and stretches of existing nodes of its level that are taken over as bytes.

    An edit changes a few of up to a thousand entries; the others never become objects of Python.
    """

    __slots__ = ("_end", "_ends", "_fixed", "_tails", "level", "names")

    def __init__(self, level: int, items: Sequence[Item] = ()) -> None:
        """`items` are of this level and in order."""
        self.level = level
        self.names = [item[0] for item in items]
        if level:
            self._fixed = [_INNER.pack(*item[1:]) for item in items]
            self._tails = self.names.copy()
        else:
            self._fixed = [item[1] for item in items]
            self._tails = [_LENGTHS[len(name)] + name + extra for name, _, extra in items]  # type: ignore[misc]
        self._ends = list(accumulate(map(len, self._tails)))
        self._end = self._ends[-1] if items else 0

    def __len__(self) -> int:
        return len(self.names)

    def add(self, item: Item) -> None:
        """Add the next item."""
        self.names.append(item[0])
        if isinstance(item, LeafItem):
            self._fixed.append(item.fixed)
            tail = _LENGTHS[len(item.name)] + item.name + item.extra
        else:
            self._fixed.append(_INNER.pack(*item[1:]))
            tail = item.name
        self._tails.append(tail)
        self._end += len(tail)
        self._ends.append(self._end)

    def extend_files(self, names: Sequence[bytes], fixed: Sequence[bytes]) -> None:
        """Add the next items, files without extra parts."""
        tails = [_LENGTHS[len(name)] + name for name in names]
        ends = list(accumulate(map(len, tails), initial=self._end))
        self.names += names
        self._fixed += fixed
        self._tails += tails
        self._ends += ends[1:]
        self._end = ends[-1]

    def extend(self, node: Node, i: int, j: int) -> None:
        """Add the items of a node from the i-th up to, not with, the j-th."""
        if i < j:
            fixed, tails, ends = node.stretch(i, j)
            self.names += node.names[i:j]
            self._fixed.append(fixed)
            self._tails.append(tails)
            shift = self._end + len(tails) - ends[-1]
            self._ends += [end + shift for end in ends]
            self._end += len(tails)

    def encode(self) -> bytes:
        """The bytes of the node."""
        return self._encode(b"".join(self._fixed), b"".join(self._tails))

    def _encode(self, fixed: bytes, tails: bytes) -> bytes:
        count = len(self._ends)
        header = _HEADER.pack(_MAGIC, _VERSION, self.level, count)
        return b"".join((header, fixed, struct.pack(f"<{count}I", *self._ends), tails))

    def write(self, batch: Batch) -> Child:
        """Add the node to the batch."""
        fixed, tails = b"".join(self._fixed), b"".join(self._tails)
        id = batch.add_object(RecordKind.NODE, self._encode(fixed, tails))
        name = self.names[-1] if self.names else b""
        return Child(name, id, self._content(fixed, tails), *self._sums(fixed, tails))

    def content(self) -> ObjectId:
        """The content id of the node: names, kinds, exec bits and contents only."""
        return self._content(b"".join(self._fixed), b"".join(self._tails))

    def summary(self) -> tuple[ObjectId, int, int, int]:
        """Content id, entries, files and bytes below: what a parent says of the node."""
        fixed, tails = b"".join(self._fixed), b"".join(self._tails)
        return self._content(fixed, tails), *self._sums(fixed, tails)

    def _content(self, fixed: bytes, tails: bytes) -> ObjectId:
        width, names = self._width, self.names
        rows = range(0, len(fixed), width)
        if self.level:
            parts = [fixed[at + 32 : at + 64] for at in rows]
        else:
            kinds, modes = fixed[::width], fixed[2::width]
            parts = [
                _LENGTHS[len(name)]
                + name
                + (_EXECUTABLE if kind == _FILE and mode & 0o100 else _NOT_EXECUTABLE[kind])
                + fixed[at + 32 : at + width]
                for name, kind, mode, at in zip(names, kinds, modes, rows, strict=True)
            ]
            for i in _all(kinds, _DIRECTORY):
                extra = tails[(self._ends[i - 1] if i else 0) + 1 + len(names[i]) :][:32]
                parts[i] = _LENGTHS[len(names[i])] + names[i] + _NOT_EXECUTABLE[_DIRECTORY] + extra
        return hash_bytes(_LENGTHS[self.level] + b"".join(parts), HashKind.TREE_CONTENT)

    def _sums(self, fixed: bytes, tails: bytes) -> tuple[int, int, int]:
        """Entries, files and bytes below."""
        count = len(self.names)
        if self.level:
            rows = list(_INNER.iter_unpack(fixed))
            return sum(row[2] for row in rows), sum(row[3] for row in rows), sum(row[4] for row in rows)
        kinds = fixed[:: self._width]
        sizes = struct.unpack(f"<{8 * count}Q", fixed)[_SIZE_AT // 8 :: 8]
        files, size = count, sum(sizes)
        for i in _all(kinds, _SYMLINK):
            size -= sizes[i]  # the length of the target is no content
        for i in _all(kinds, _DIRECTORY):
            start = (self._ends[i - 1] if i else 0) + 1 + len(self.names[i])
            files += _SIZE.unpack_from(tails, start + 32)[0] - 1
        return count, files, size

    @property
    def _width(self) -> int:
        return _INNER.size if self.level else FIXED.size


def _all(kinds: bytes, kind: int) -> Iterator[int]:
    """Where a kind stands."""
    i = kinds.find(kind)
    while i >= 0:
        yield i
        i = kinds.find(kind, i + 1)


def load_node(objects: Reader, id: ObjectId) -> Node:
    """Read, verify and decode a node, or take it from the cache. Raises NotFound, Corrupt."""
    node = objects.decoded.get(id)
    if node is None:
        node = Node(get_as(objects, id, RecordKind.NODE))
        objects.decoded.put(id, node)
    if not isinstance(node, Node):
        raise Corrupt(f"{id.hex()} is no directory, where one should be")
    return node


def entry_item(name: EntryName | bytes, entry: Entry) -> LeafItem:
    """The entry as an item of a leaf."""
    return LeafItem(name, *entry.encode())
