"""Where the nodes of prolly trees end: at names of a rank above the node's level, or when a node is full.

A name's rank is how many times the low 6 bits of its hash are zero, one group after the other: it follows from the name alone, so that the same
entries make the same nodes whatever the order of edits. A node has 64 items on average.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfsmount.objects.hashing import short_hash, short_hash_byte, short_hash_bytes

_BITS = 6
_MASK = (1 << _BITS) - 1
RANK_MAX = 10
NODE_ENTRIES_MAX = 1024


def rank(name: bytes) -> int:
    """How many levels of nodes end at this name."""
    bits = short_hash(name)
    result = 0
    while result < RANK_MAX and not bits & _MASK:
        result += 1
        bits >>= _BITS
    return result


def ends_node(name: bytes, level: int, count: int) -> bool:
    """True when a node of `level` that has `count` items, the last with `name`, is complete."""
    return count >= NODE_ENTRIES_MAX or rank(name) > level


def leaf_ends(names: Sequence[bytes]) -> bytes:
    """1 for each name that ends a leaf, else 0."""
    return bytes([not byte & _MASK for byte in short_hash_bytes(names)])


def ends_leaf(name: bytes) -> bool:
    """True when a name has a rank above 0: what `ends_node` asks of each entry, at half the price."""
    return not short_hash_byte(name) & _MASK
