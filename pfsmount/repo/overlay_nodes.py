"""What a worktree has in memory: nodes, what is changed of them, and where changed bytes are.

A **node** is a file or directory that somebody looked at or changed. As long as it shows the base it is small: place and tree entry. What
differs from the base is in its `Change`, which exists exactly while the journal speaks of the node.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from pfsmount.errors import AlreadyExists, InvalidInput, NotFound, NotPermitted, PfsError
from pfsmount.repo.ahead import FileAhead
from pfsmount.tree.entry import Entry, Kind, decode_entry


class NameTooLong(InvalidInput):
    """A name of more than 255 bytes."""


class NoAttribute(NotFound):
    """An extended attribute that is not there."""


class NotSupported(InvalidInput):
    """An operation that no place of the mount has."""


class ReadOnly(NotPermitted):
    """A change in a place that shows something that cannot be changed: a commit, another's worktree."""


class Stale(PfsError):
    """A file that is not there any more because the branch moved or a change was discarded."""


class NameTaken(AlreadyExists):
    """A name that is in use; made without text, because exclusive creates meet it often."""

    def __init__(self) -> None:
        super().__init__("the name is taken")


class NoEntry(NotFound):
    """A name that is not there; made without text, because lookups meet it often."""

    def __init__(self) -> None:
        super().__init__("there is no file of this name")


class NodeKind(enum.IntEnum):
    """What a node is; the first three are the kinds of tree entries, the others are never committed."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5


KIND_WORDS = {
    NodeKind.FILE: "file",
    NodeKind.DIRECTORY: "dir",
    NodeKind.SYMLINK: "symlink",
    NodeKind.FIFO: "fifo",
    NodeKind.SOCKET: "socket",
}
KINDS_BY_WORD = {word: kind for kind, word in KIND_WORDS.items()}
_OF_ENTRY = {Kind.FILE: NodeKind.FILE, Kind.DIRECTORY: NodeKind.DIRECTORY, Kind.SYMLINK: NodeKind.SYMLINK}


class State(enum.IntEnum):
    """Whether a node still has a name."""

    NAMED = 0
    UNLINKED = 1
    """Its last name was removed here: it lives on for whoever has it open."""
    STALE = 2
    """The branch moved, or the change was discarded: it can be read by whoever has it open, not written."""


class Touched(enum.IntFlag):
    """Attributes that somebody set, as against those that follow from other changes."""

    NONE = 0
    MODE = 1
    OWNER = 2
    TIME = 4
    XATTRS = 8


class Extents:
    """Disjoint ranges of a file, sorted."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> bool:
        """Add a range; False when it was covered already."""
        if start >= end:
            return False
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            if last - first == 1 and self._starts[first] <= start and end <= self._ends[first]:
                return False
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return True

    def covers(self, start: int, end: int) -> bool:
        """True when all of a range is in."""
        at = bisect_right(self._starts, start) - 1
        return start >= end or (at >= 0 and end <= self._ends[at])

    def clip(self, size: int) -> None:
        """Forget what lies at or behind `size`."""
        keep = bisect_left(self._starts, size)
        del self._starts[keep:], self._ends[keep:]
        if keep and self._ends[-1] > size:
            self._ends[-1] = size

    def spans(self, start: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """The range cut into (is covered, start, end)."""
        i = bisect_right(self._ends, start)
        while start < end:
            if i == len(self._starts) or self._starts[i] >= end:
                yield False, start, end
                return
            if self._starts[i] > start:
                yield False, start, self._starts[i]
                start = self._starts[i]
            stop = min(end, self._ends[i])
            yield True, start, stop
            start = stop
            i += 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)


class FileStat(NamedTuple):
    """What the data file of a changed file says."""

    size: int
    mtime_ns: int
    ctime_ns: int
    blocks: int


class FileData:
    """That a file's bytes are in `data/<number>`: all of them, or `extents` and everything from `base_size` on."""

    __slots__ = ("ahead", "base_size", "extents", "stat")

    def __init__(self, base_size: int | None = None) -> None:
        self.extents = None if base_size is None else Extents()
        """None: the data file has the whole content."""
        self.base_size = base_size or 0
        """So many bytes of the entry's content still show where no extent is."""
        self.stat: FileStat | None = None
        """Of the data file, until the next write to it."""
        self.ahead: FileAhead | None = None
        """What is done for its commit already."""


class Change:
    """What the journal says of a node. `number` is 0 for one that lost its name before it was ever in the journal."""

    __slots__ = (
        "atime_ns",
        "ctime_ns",
        "data",
        "gid",
        "hidden",
        "in_place",
        "mode",
        "mtime_ns",
        "names",
        "number",
        "owns_file",
        "places",
        "touched",
        "uid",
        "version",
        "xattrs",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, mtime_ns: int, *, in_place: bool = False) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        """Not used while `data` is set: then the data file has it."""
        self.ctime_ns = mtime_ns
        self.atime_ns = mtime_ns
        """What somebody set, in memory only; reading does not change it."""
        self.xattrs: dict[bytes, bytes] | None = None
        """None: those of the entry."""
        self.data: FileData | None = None
        self.owns_file = True
        """False: the data file is another node's too, so it stays when this one goes."""
        self.names: dict[bytes, Node] = {}
        """Directories: entries that the journal speaks of."""
        self.hidden: set[bytes] = set()
        """Directories: names of the base that are gone or stand in `names`."""
        self.in_place = in_place
        """The node is what the base has at its place, so it moves with the base."""
        self.places: list[tuple[Node, bytes]] | None = None
        """All names of a file that has several."""
        self.touched = Touched.NONE
        self.version = 0
        """Number of the last operation that changed the node or, for a directory, its names."""

    @property
    def links(self) -> int:
        return 1 if self.places is None else len(self.places)


Shown: TypeAlias = Entry | bytes
"""What the base has at a name. Of a file with nothing extra it may be the fixed part as it is stored, which takes a third of the memory: `find` looks at a million."""


class Node:
    """A file or directory. `entry` is its content by reference, None when there is none."""

    __slots__ = (
        "_entry",
        "change",
        "children",
        "epoch",
        "ino",
        "kind",
        "lookups",
        "name",
        "opens",
        "parent",
        "state",
    )

    def __init__(
        self, ino: int, kind: NodeKind, parent: Node | None, name: bytes, entry: Shown | None, epoch: int
    ) -> None:
        self.ino = ino
        self.kind = kind
        self.parent = parent
        self.name = name
        self._entry = entry
        self.epoch = epoch
        """The move of the base up to which `entry` is known to be right; see `Overlay.current`."""
        self.change: Change | None = None
        self.state = State.NAMED
        self.lookups = 0
        """How often the kernel was told of it, less what it forgot."""
        self.opens = 0
        self.children = 0
        """Registered nodes whose parent this is."""

    @property
    def entry(self) -> Entry | None:
        """Decoded when it is first asked for. Raises Corrupt."""
        shown = self._entry
        if isinstance(shown, bytes):
            self._entry = shown = decode_entry(shown, b"")
        return shown

    @entry.setter
    def entry(self, entry: Entry | None) -> None:
        self._entry = entry

    @property
    def stored(self) -> bytes | None:
        """The entry as it is stored, of a plain file that was listed and not yet looked at."""
        return self._entry if isinstance(self._entry, bytes) else None

    def shows(self, entry: Shown) -> bool:
        """Whether the node's entry is this one."""
        shown = self._entry
        if type(shown) is type(entry):
            return shown == entry
        return self.entry == (decode_entry(entry, b"") if isinstance(entry, bytes) else entry)

    def __repr__(self) -> str:
        return f"<Node {self.ino} {self.kind.name} {self.name!r}>"


STAT_BLOCK = 512
"""Bytes of a block, as stat counts them."""


class Attributes(NamedTuple):
    """What stat shows."""

    ino: int
    kind: NodeKind
    mode: int
    """Permission bits, 07777."""
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    blocks: int
    atime_ns: int | None = None
    """None: the mtime."""


class Effects(NamedTuple):
    """What caches outside must forget after a change that did not come through them."""

    entries: list[tuple[int, bytes]]
    """Directory and name: what the name means may differ."""
    attributes: list[int]
    """Nodes whose attributes may differ."""

    def add(self, other: Effects) -> None:
        """Take over those of `other`."""
        self.entries.extend(other.entries)
        self.attributes.extend(other.attributes)


def node_kind(entry: Entry) -> NodeKind:
    """The kind of a node that shows a tree entry."""
    return _OF_ENTRY[entry.kind]


def path_of(node: Node) -> tuple[bytes, ...]:
    """The names from the root to a node."""
    names: list[bytes] = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        names.append(at.name)
        at = at.parent
    return tuple(reversed(names))
