"""Nodes of prolly trees: a directory's entries, sorted by name, cut where names say.

| magic `PN`, version u8 (1), level u8 | count u32 | fixed parts: count × 64 (leaf) or 88 (inner) | ends of tails: count × u32 | tails |

A leaf's fixed part and extra are those of `tree.entry`; its tail is name length u8, name, extra. An inner fixed part is node id 32,
content id 32, entries u64, files u64, bytes u64; its tail is the last name below. A name of rank > level ends a node of that level, so the
same entries make the same nodes whatever the order of edits, and an edit touches only the nodes on its path.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from pfsmount.errors import Corrupt
from pfsmount.ids import EntryName, ObjectId
from pfsmount.objects.hashing import HashKind, hash_bytes, short_hash, short_hash_byte
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import Batch, Reader
from pfsmount.tree.entry import FIXED, Entry, Kind, decode_entry

_HEADER = struct.Struct("<2sBBI")
_MAGIC = b"PN"
_VERSION = 1
_INNER = struct.Struct("<32s32sQQQ")
_RANK_BITS = 6
_RANK_MAX = 10
NODE_ENTRIES_MAX = 1024
_SIZE_AT = 24
_SIZE = struct.Struct("<Q")
_size_of = _SIZE.unpack_from
_FILE = int(Kind.FILE)
_PLAIN, _EXECUTABLE = bytes((_FILE, 0)), bytes((_FILE, 1))
_LENGTHS = [bytes((length,)) for length in range(256)]


class LeafItem(NamedTuple):
    """An entry as it stands in a leaf, not decoded."""

    name: bytes
    fixed: bytes
    extra: bytes

    @property
    def files(self) -> int:
        """How much it adds to the number of files below."""
        if self.fixed[0] == Kind.DIRECTORY:
            return int(_SIZE.unpack_from(self.extra, 32)[0])
        return 1

    @property
    def bytes_below(self) -> int:
        """How much it adds to the bytes below."""
        return 0 if self.fixed[0] == Kind.SYMLINK else int(_SIZE.unpack_from(self.fixed, _SIZE_AT)[0])


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
            if magic != _MAGIC or version != _VERSION or self.level > _RANK_MAX or tails_at > len(raw):
                raise ValueError
            self._fixed = raw[_HEADER.size : _HEADER.size + count * width]
            self._ends: Sequence[int] = struct.unpack_from(f"<{count}I", raw, tails_at - 4 * count)
            self._tails = tails = raw[tails_at:]
            if (self._ends[-1] if count else 0) != len(tails):
                raise ValueError
            names: list[bytes] = []
            start, before = 0, b""
            for end in self._ends:
                name = tails[start:end] if self.level else tails[start + 1 : start + 1 + tails[start]]
                if name <= before or start >= end or b"/" in name or b"\0" in name or name in (b".", b".."):
                    raise ValueError
                names.append(name)
                start, before = end, name
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

    def entry(self, i: int) -> Entry:
        """The i-th entry of a leaf, decoded. Raises Corrupt."""
        _, fixed, extra = self.leaf_item(i)
        return decode_entry(fixed, extra)

    def child(self, i: int) -> Child:
        """The i-th child of an inner node."""
        return Child(self.names[i], *_INNER.unpack_from(self._fixed, i * _INNER.size))

    def item(self, i: int) -> Item:
        """The i-th entry or child."""
        return self.child(i) if self.level else self.leaf_item(i)

    def position(self, name: bytes) -> int:
        """Index of the first name >= `name`; len(self) when there is none."""
        return bisect_left(self.names, name)


def rank(name: bytes) -> int:
    """How many levels of nodes end at this name."""
    bits = short_hash(name)
    result = 0
    while result < _RANK_MAX and not bits & 63:
        result += 1
        bits >>= _RANK_BITS
    return result


def ends_node(name: bytes, level: int, count: int) -> bool:
    """True when a node of `level` that has `count` items, the last with `name`, is complete."""
    return count >= NODE_ENTRIES_MAX or rank(name) > level


def ends_leaf(name: bytes) -> bool:
    """True when a name has a rank above 0: what `ends_node` asks of each entry, at half the price."""
    return not short_hash_byte(name) & 63


def encode_node(level: int, items: Sequence[Item]) -> bytes:
    """The bytes of a node; items, all of its level's kind, are sorted by name."""
    if level:
        fixed = [_INNER.pack(*item[1:]) for item in items]
        tails = [item[0] for item in items]
    else:
        fixed = [item[1] for item in items]
        tails = [_LENGTHS[len(name)] + name + extra for name, _, extra in items]  # type: ignore[misc]
    ends = struct.pack(f"<{len(items)}I", *accumulate(map(len, tails)))
    return b"".join((_HEADER.pack(_MAGIC, _VERSION, level, len(items)), *fixed, ends, *tails))


def content_of_node(level: int, items: Sequence[Item]) -> ObjectId:
    """The content id of a node: names, kinds, exec bits and contents only."""
    parts = [bytes((level,))]
    for item in items:
        if isinstance(item, LeafItem):
            name, fixed, extra = item
            kind = fixed[0]
            if kind == _FILE:
                parts += _LENGTHS[len(name)], name, _EXECUTABLE if fixed[2] & 0o100 else _PLAIN, fixed[32:]
            else:
                content = extra[:32] if kind == Kind.DIRECTORY else fixed[32:]
                parts += _LENGTHS[len(name)], name, bytes((kind, 0)), content
        else:
            parts.append(item.content_id)
    return hash_bytes(b"".join(parts), HashKind.TREE_CONTENT)


def write_node(batch: Batch, level: int, items: Sequence[Item]) -> Child:
    """Add a node to the batch."""
    raw = encode_node(level, items)
    id = batch.add_object(RecordKind.NODE, raw)
    entries = files = size = 0
    for item in items:
        if not isinstance(item, LeafItem):
            entries += item.entries
            files += item.files
            size += item.bytes_below
        elif item[1][0] == _FILE:
            files += 1
            size += _size_of(item[1], _SIZE_AT)[0]
        else:
            files += item.files
            size += item.bytes_below
    name = items[-1].name if items else b""
    return Child(name, id, content_of_node(level, items), entries if level else len(items), files, size)


def load_node(objects: Reader, id: ObjectId) -> Node:
    """Read, verify and decode a node, or take it from the cache. Raises NotFound, Corrupt."""
    node = objects.decoded.get(id)
    if node is None:
        node = Node(objects.get(id))
        objects.decoded.put(id, node)
    assert isinstance(node, Node)
    return node


def entry_item(name: EntryName | bytes, entry: Entry) -> LeafItem:
    """The entry as an item of a leaf."""
    return LeafItem(name, *entry.encode())
