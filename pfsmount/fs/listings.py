"""What the kernel was told of the entries of directories, kept to be told again.

Most of what a listing costs is Python that makes the same replies from the same entries. A listing belongs to a version of a directory, whatever is laid over
it; the version has the id of its tree node, so the listing is right for as long as the directory has that id.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from pfsmount.ids import ObjectId

ENTRIES_MAX = 1 << 17
"""Of all listings that are kept, at some 300 bytes each."""


class Told(NamedTuple):
    """One entry of a directory on its way to the kernel."""

    name: bytes
    shown: Any
    """As the reply has it, encoded."""
    key: Any
    """What it is to its place; None: nothing that the kernel can look up."""


Item: TypeAlias = tuple[Any, ...]
"""An entry with its name first: as it is stored, or `Told`."""
Source: TypeAlias = Callable[[bytes], Iterator[Item]]
"""Reads the stored entries of a version of a directory behind a name, in order."""


class Listing:
    """The entries of one version of a directory, in order."""

    __slots__ = ("_at", "_complete", "_items", "_upto", "counted", "id")

    def __init__(self, id: ObjectId) -> None:
        self.id = id
        self._items: list[Item] = []
        self._at = 0
        self._upto = b""
        self._complete = False
        self.counted = 0
        """Entries that `Listings` has counted."""

    def __len__(self) -> int:
        return len(self._items)

    def has(self, after: bytes) -> bool:
        """Whether this knows what follows a name, or can go on there."""
        return self._complete or after == self._upto

    def read(self, source: Source, after: bytes) -> Iterator[Item]:
        """The entries behind a name: what is kept of them, or as they are stored."""
        items = self._items
        first = bisect_right(items, after, key=itemgetter(0))
        if self._complete:
            for at in range(first, len(items)):
                self._at = at
                yield items[at]
            return
        del items[first:]
        for item in source(after):
            self._at = len(items)
            items.append(item)
            yield item
        self._complete = True

    def told(self, entry: Told) -> None:
        """The kernel took the entry that `read` gave last."""
        self._items[self._at] = entry

    def passed(self, name: bytes) -> None:
        """All up to a name was listed, of this version or laid over it: the next request goes on there."""
        self._upto = name


class Listings:
    """The listings of a mount that were used last, by inode."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries = 0
        self._kept: OrderedDict[int, Listing] = OrderedDict()

    def begin(self, ino: int, id: ObjectId, after: bytes) -> Listing:
        """The listing of a directory, whose id is now this, to be read behind a name."""
        kept = self._kept.get(ino)
        if kept is not None and kept.id == id and kept.has(after):
            self._kept.move_to_end(ino)
            self._entries += len(kept) - kept.counted
            kept.counted = len(kept)
            while self._entries > self._entries_max:
                self.forget(next(iter(self._kept)))
            return kept
        made = Listing(id)
        if not after:
            self.forget(ino)
            self._kept[ino] = made
        return made

    def forget(self, ino: int) -> None:
        """The kernel forgot a directory."""
        gone = self._kept.pop(ino, None)
        if gone is not None:
            self._entries -= gone.counted
