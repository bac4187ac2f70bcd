"""The state of a worktree in memory: the base tree with changes laid over it.

Everything here is for one thread at a time, and no method waits for anything but the reader it was given. With a `NowaitReader`, what
would wait raises `WouldBlock` before anything has changed; the caller does `work()` in another thread and calls again.

Inode numbers are local to the worktree. The number of a node that shows the base follows from its place (of a file also from its
content), so a node that was forgotten and is looked up again has the number it had. New nodes count up from `FIRST_NEW`, and keep that number when they
are committed.
Callers outside own the numbers below.

**Moving the base** costs nothing here: `epoch` goes one up, and each node that shows the base looks its entry up again when it is next
used (`current`). Nodes with a change are brought along at once (`worktree_rebase`).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

from pfsmount.errors import IsADirectory, NotADirectory
from pfsmount.ids import ObjectId, RepoPath
from pfsmount.objects.reading import DecodedCache, Reader
from pfsmount.objects.segment import Location, SegmentReader
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.overlay_data import DataFiles
from pfsmount.repo.overlay_nodes import (
    STAT_BLOCK,
    Attributes,
    Change,
    FileStat,
    Node,
    NodeKind,
    Shown,
    Stale,
    State,
    node_kind,
)
from pfsmount.tree.directory import Lookups, entries, lookup, rows
from pfsmount.tree.entry import Entry, Kind, decode_entry, is_plain_file, plain_file, time_and_id
from pfsmount.tree.merge import Resolution
from pfsmount.tree.node import Row
from pfsmount.tree.xattrs import load_xattrs

ROOT_INO = 1
FIRST_NEW = 1024
INO_BITS = 44
Source: TypeAlias = Callable[[bytes], Iterator[Row]]
T = TypeVar("T", bound=tuple[Any, ...])
_BASE_BIT = 1 << (INO_BITS - 1)
_BASE_MASK = _BASE_BIT - 1
DIRECTORY_SIZE = 4096
_RENUMBERED_MAX = 100_000


class WouldBlock(Exception):
    """What was asked needs something that is not in memory. `work` gets it, in any thread; then ask again."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__("would block")
        self.work = work


class NowaitReader:
    """A reader of the store for a thread that must not wait: `get` has only what is in memory or what `WouldBlock.work` fetched."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._fetched: dict[ObjectId, bytes] = {}

    @property
    def decoded(self) -> DecodedCache:
        return self._objects.decoded

    @property
    def verified(self) -> set[ObjectId]:
        return self._objects.verified

    def get(self, id: ObjectId) -> bytes:
        """Raises WouldBlock, NotFound, Corrupt."""
        raw = self._fetched.pop(id, None)
        if raw is None:
            raw = self._objects.get_nowait(id)
        if raw is None:
            raise WouldBlock(lambda: self._fetch(id))
        return raw

    def _fetch(self, id: ObjectId) -> None:
        # bounded: a request that gave up between fetching and asking again leaves its object here
        while len(self._fetched) > 256:
            self._fetched.pop(next(iter(self._fetched)), None)
        self._fetched[id] = self._objects.get(id)

    def locate(self, id: ObjectId) -> Location | None:
        return self._objects.locate(id)

    def segment(self, number: int) -> SegmentReader:
        return self._objects.segment(number)


class Overlay:
    """Nodes by number, and what each shows."""

    def __init__(self, reader: Reader, root: Entry, data: DataFiles) -> None:
        self.reader = reader
        self.data = data
        self.nodes: dict[int, Node] = {}
        self.epoch = 0
        self._lookups = Lookups()
        self.root = Node(ROOT_INO, NodeKind.DIRECTORY, None, b"", root, 0)
        self.root.lookups = 1
        self.nodes[ROOT_INO] = self.root
        self.owns_data = True
        """False while another process writes to the data files: then each stat asks them."""
        self._next_new = FIRST_NEW
        self.decisions: dict[RepoPath, tuple[Resolution, str]] = {}
        """Conflicts with the branch that are settled while others are open: how, and what the decision was about."""
        # Nodes that show the base but keep a number from before: parent's number and name → node.
        self._pinned: dict[tuple[int, bytes], Node] = {}
        # The same for those that were forgotten since: the number that follows from the place → the number that it had.
        self._renumbered: dict[int, int] = {}

    # Nodes and their numbers

    def node(self, ino: int) -> Node:
        """The node of a number that was given out and not forgotten. Raises Stale."""
        node = self.nodes.get(ino)
        if node is None:
            raise Stale(f"the inode {ino} is not known any more")
        return node

    def directory(self, ino: int) -> Node:
        """As `node`, for a directory. Raises NotADirectory."""
        node = self.node(ino)
        if node.kind is not NodeKind.DIRECTORY:
            raise NotADirectory("a directory is needed here")
        return node

    def register(self, node: Node) -> None:
        """Enter a node into the table and count it at its parent."""
        self.nodes[node.ino] = node
        if node.parent is not None:
            node.parent.children += 1

    def new_node(self, kind: NodeKind, parent: Node, name: bytes, entry: Entry | None) -> Node:
        """A node with a new number."""
        node = Node(self._next_new, kind, parent, name, entry, self.epoch)
        self._next_new += 1
        self.register(node)
        return node

    def move_node(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a node another place in memory."""
        self.unpin(node)
        old = node.parent
        if old is not parent:
            node.parent = parent
            parent.children += 1
            if old is not None:
                old.children -= 1
                self.drop_unused(old)
        node.name = name

    def drop_unused(self, node: Node) -> None:
        """Forget a node, and then its ancestors, when nothing needs it any more; the journal and open files do."""
        at: Node | None = node
        while at is not None and not (at.lookups or at.opens or at.children) and at is not self.root:
            if at.change is not None and at.state is State.NAMED:
                return
            if self.nodes.get(at.ino) is not at:
                return
            del self.nodes[at.ino]
            self._remember_number(at)
            self.unpin(at)
            change = at.change
            if change is not None and change.data is not None and change.owns_file and self.owns_data:
                self.data.delete(change.number)
            parent = at.parent
            if parent is not None:
                parent.children -= 1
            at = parent

    def forget(self, ino: int, count: int) -> None:
        """The kernel forgot `count` of the lookups it was told of."""
        node = self.nodes.get(ino)
        if node is not None:
            node.lookups -= count
            if node.lookups <= 0:
                node.lookups = 0 if node is not self.root else 1
                self.drop_unused(node)

    def pin(self, node: Node) -> None:
        """Let a node that now shows the base keep its number as long as it is known."""
        if node.parent is not None:
            self._pinned[(node.parent.ino, node.name)] = node

    def unpin(self, node: Node) -> None:
        if self._pinned and node.parent is not None:
            key = (node.parent.ino, node.name)
            if self._pinned.get(key) is node:
                del self._pinned[key]

    def _remember_number(self, node: Node) -> None:
        parent, entry = node.parent, node.entry
        if parent is None or entry is None or self._pinned.get((parent.ino, node.name)) is not node:
            return
        if len(self._renumbered) >= _RENUMBERED_MAX:
            del self._renumbered[next(iter(self._renumbered))]
        self._renumbered[_base_number(parent, node.name, entry)] = node.ino

    def base_node(self, parent: Node, name: bytes, entry: Shown) -> Node:
        """The node that shows what the base has at a name."""
        if self._pinned:
            pinned = self._pinned.get((parent.ino, name))
            if pinned is not None:
                if self.current(pinned):
                    return pinned
                self.unpin(pinned)
        ino = own = _base_number(parent, name, entry)
        if self._renumbered:
            given = self._renumbered.pop(ino, None)
            if given is not None and given not in self.nodes:
                again = Node(given, _kind(entry), parent, name, entry, self.epoch)
                self.register(again)
                self.pin(again)
                return again
        while True:
            node = self.nodes.get(ino)
            if node is None:
                node = Node(ino, _kind(entry), parent, name, entry, self.epoch)
                self.register(node)
                if ino != own:
                    self.pin(
                        node
                    )  # whoever has its number may be forgotten first, and then another node would get that
                return node
            if (
                node.change is None
                and node.state is State.NAMED
                and node.name == name
                and node.parent is parent
                and self.current(node)
                and node.shows(entry)
            ):
                return node
            ino = ((ino + 1) & _BASE_MASK) | _BASE_BIT

    def shows_base(self, node: Node, parent: Node, name: bytes) -> bool:
        """Whether a node that `base_node` gave for an entry of this version of a directory is, or is again, the one that it would give. May raise WouldBlock."""
        return (
            self.nodes.get(node.ino) is node
            and node.change is None
            and node.parent is parent
            and node.name == name
            and self.current(node)  # else it had another content when the base moved
        )

    def known_directory(self, path: tuple[bytes, ...]) -> Node | None:
        """The directory at a path if somebody was told of it and of all above it; reads nothing."""
        node = self.root
        for name in path:
            found = None if node.change is None else node.change.names.get(name)
            if found is None:
                found = self._pinned.get((node.ino, name)) or self._known_base(node, name)
            if found is None or found.kind is not NodeKind.DIRECTORY:
                return None
            node = found
        return node

    def _known_base(self, parent: Node, name: bytes) -> Node | None:
        ino = (hash((parent.ino, name)) & _BASE_MASK) | _BASE_BIT
        while (node := self.nodes.get(ino)) is not None:
            if node.parent is parent and node.name == name and node.state is State.NAMED:
                return node
            ino = ((ino + 1) & _BASE_MASK) | _BASE_BIT
        return None

    def current(self, node: Node) -> bool:
        """Bring a node that shows the base up to the base's last move; False when it is not there any more.

        May raise WouldBlock; then nothing has changed.
        """
        if node.epoch == self.epoch or node.change is not None or node.state is not State.NAMED:
            return node.state is State.NAMED
        chain = [node]
        while (parent := chain[-1].parent) is not None and parent.epoch != self.epoch and parent.change is None:
            chain.append(parent)
        for at in reversed(chain):
            self._refresh(at)
        return node.state is State.NAMED

    def _refresh(self, node: Node) -> None:
        parent = node.parent
        if parent is None or node.state is not State.NAMED:
            node.epoch = self.epoch
            return
        if parent.state is State.STALE:
            self.make_stale(node)
            return
        assert node.entry is not None
        above = parent.entry
        entry = None if above is None else lookup(self.reader, above.id, node.name)
        if entry is None or entry.kind is not node.entry.kind:
            self.make_stale(node)
        elif entry.kind is Kind.DIRECTORY:
            node.entry = entry
        elif entry != node.entry:
            self.make_stale(node)
        node.epoch = self.epoch

    def make_stale(self, node: Node) -> None:
        """Take a node's name away because what it showed is gone; it goes on showing it."""
        self.unpin(node)
        node.state = State.STALE
        node.epoch = self.epoch

    # Looking

    def lookup(self, parent: Node, name: bytes) -> Node | None:
        """The node of a name in a directory, or None."""
        change = parent.change
        if change is not None:
            node = change.names.get(name)
            if node is not None:
                return node
            if name in change.hidden:
                return None
        else:
            self.current(parent)
            if parent.state is State.UNLINKED:
                return None
        entry = parent.entry
        if entry is None or parent.kind is not NodeKind.DIRECTORY:
            return None
        found = self._lookups.item(self.reader, entry.id, name)
        return None if found is None else self.base_node(parent, name, shown_of(found.fixed, found.extra))

    def base_has(self, parent: Node, name: bytes) -> bool:
        """True when the base of a directory has this name, hidden or not."""
        self.current(parent)
        return parent.entry is not None and lookup(self.reader, parent.entry.id, name) is not None

    def find(self, path: tuple[bytes, ...]) -> Node | None:
        """The node at a path below the root."""
        node: Node | None = self.root
        for name in path:
            if node is None or node.kind is not NodeKind.DIRECTORY:
                return None
            node = self.lookup(node, name)
        return node

    def children(self, parent: Node, after: bytes = b"") -> Iterator[tuple[bytes, Node | Entry]]:
        """Names behind `after` in bytewise order, with a node (changed) or the base's entry (see `base_node`).

        The names that are there all the time are given exactly once, whatever else changes between two steps.
        """
        for name, found in self._merged(parent, after, lambda id: entries(self.reader, id, after)):
            yield (name, found) if isinstance(found, Node) else found

    def listed(
        self, parent: Node, after: bytes, keep: Callable[[ObjectId, Source], Iterator[T]]
    ) -> Iterator[tuple[bytes, Node | T]]:
        """The same for who lists a great many, and keeps what the base has: `keep` is given the id of the base's directory and what reads its entries, and gives these or what it has
        made of them, each a tuple with the name first."""
        return self._merged(parent, after, lambda id: keep(id, partial(rows, self.reader, id)))

    def _merged(
        self, parent: Node, after: bytes, read: Callable[[ObjectId], Iterator[T]]
    ) -> Iterator[tuple[bytes, Node | T]]:
        change = parent.change
        if change is None:
            self.current(parent)
            if parent.state is State.UNLINKED:
                return
        entry = parent.entry
        base: Iterator[T] = iter(()) if entry is None else read(entry.id)
        if change is None or not (change.names or change.hidden):
            for item in base:
                yield item[0], item
            return
        ours = sorted(change.names)
        at = bisect_right(ours, after) if after else 0
        hidden = change.hidden
        for item in base:
            name = item[0]
            while at < len(ours) and ours[at] <= name:
                node = change.names.get(ours[at])
                if node is not None:
                    yield ours[at], node
                at += 1
            if name not in hidden and name not in change.names:
                yield name, item
        for name in ours[at:]:
            node = change.names.get(name)
            if node is not None:
                yield name, node

    def is_empty(self, directory: Node) -> bool:
        """True when a directory has no entries."""
        return next(self.children(directory), None) is None

    # Attributes

    def attributes(self, node: Node) -> Attributes:
        """What stat shows of a node."""
        change, kind = node.change, node.kind
        nlink = 1 if node.state is State.NAMED else 0
        if change is None:
            if node.epoch != self.epoch:
                self.current(node)
            stored = node.stored
            plain = None if stored is None else plain_file(stored, b"")
            if plain is not None:
                mode, uid, gid, time_ns, size = plain
                return Attributes(node.ino, kind, mode, nlink, uid, gid, size, time_ns, time_ns, -(-size // STAT_BLOCK))
            entry = node.entry
            assert entry is not None
            size = DIRECTORY_SIZE if kind is NodeKind.DIRECTORY else entry.size
            time_ns = entry.mtime_ns
            return Attributes(
                node.ino, kind, entry.mode, nlink, entry.uid, entry.gid, size, time_ns, time_ns, -(-size // STAT_BLOCK)
            )
        size, mtime_ns, ctime_ns, blocks = DIRECTORY_SIZE, change.mtime_ns, change.ctime_ns, 0
        data = change.data
        if data is not None:
            stat = self.stat_data(change)
            size, mtime_ns, blocks = stat.size, stat.mtime_ns, stat.blocks
            # the kernel's stamps may be finer than our clock; never before the mtime of the same write
            ctime_ns = max(ctime_ns, stat.ctime_ns)
            if data.extents is not None:
                blocks = -(-size // STAT_BLOCK)
        elif kind is not NodeKind.DIRECTORY:
            size = 0 if node.entry is None else node.entry.size
            blocks = -(-size // STAT_BLOCK)
        nlink = change.links if node.state is State.NAMED else 0
        owner = (change.uid, change.gid)
        return Attributes(node.ino, kind, change.mode, nlink, *owner, size, mtime_ns, ctime_ns, blocks, change.atime_ns)

    def stat_data(self, change: Change) -> FileStat:
        """Size, time and blocks of a changed file's data file."""
        assert change.data is not None
        stat = change.data.stat
        if stat is None:
            stat = self.data.stat(change.number)
            if self.owns_data:
                change.data.stat = stat
        return stat

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """Extended attributes of a node; not to be changed."""
        if node.change is not None and node.change.xattrs is not None:
            return node.change.xattrs
        if node.change is None:
            self.current(node)
        return {} if node.entry is None else load_xattrs(self.reader, node.entry)

    def target(self, node: Node) -> bytes:
        """Where a symlink points to. Raises InvalidInput through the kernel's check for other kinds."""
        if node.entry is None or node.entry.target is None:
            raise IsADirectory("only a symlink has a target")
        return node.entry.target


def shown_of(fixed: bytes, extra: bytes) -> Shown:
    """An entry of the base: as it is stored if that is enough. Raises Corrupt."""
    return decode_entry(fixed, extra) if extra or not is_plain_file(fixed) else fixed


def _kind(entry: Shown) -> NodeKind:
    return NodeKind.FILE if isinstance(entry, bytes) else node_kind(entry)


def _base_number(parent: Node, name: bytes, entry: Shown) -> int:
    """The number of a node that shows the base, unless it is taken or another was given to it before."""
    if isinstance(entry, bytes):
        ino = hash((parent.ino, name, time_and_id(entry)))
    elif entry.kind is Kind.DIRECTORY:
        ino = hash((parent.ino, name))
    else:
        ino = hash((parent.ino, name, time_and_id(entry.encode()[0])))
    return (ino & _BASE_MASK) | _BASE_BIT


_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it


def now_ns() -> int:
    """The time that changes get: the clock that the kernel stamps files with, so that both agree."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
