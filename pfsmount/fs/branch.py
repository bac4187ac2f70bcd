"""A branch directory: a worktree as a place of the mount.

All methods run on the thread of the event loop and hold no `await`, so each is one instant for all others. What must wait raises: `WouldBlock` (something
is not in memory), `Frozen` (a commit is reading the file), `Closed` (a commit or rebase is about to change everything at once).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator

import trio

from pfsmount.errors import InvalidInput, IsADirectory, NotPermitted
from pfsmount.fs.listings import Item, Listing, Listings, Told
from pfsmount.fs.places import FACTS, FOREVER, Encoder, Found, Later, OpenFile, Place, entry_facts
from pfsmount.ids import RESERVED_ROOT_NAME, ObjectId, display
from pfsmount.repo.overlay import ROOT_INO, Source, shown_of
from pfsmount.repo.overlay_data import write_all
from pfsmount.repo.overlay_nodes import Change, FileData, Node, NodeKind, Stale, State, path_of
from pfsmount.repo.worktree import Worktree
from pfsmount.repo.worktree_files import Frozen, wrote_in_part
from pfsmount.repo.worktree_files import Reading as WorktreeReading
from pfsmount.tree.content import Content, PieceCheck
from pfsmount.tree.entry import Entry

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_NOTHING = ObjectId(bytes(32))
LARGE_WRITE = 256 * 1024
SLOW_WRITE_SECONDS = 0.02
SLOW_FOR_SECONDS = 1.0
# A write goes into the page cache, which takes 0.4 ms a MiB; the hop to another thread and back costs more than that (measured: 512 MiB in 0.9 s
# here, 1.4–1.9 s by threads). But when the disk is behind, the kernel makes whoever writes wait, and all of the mount would wait with it. So
# after a large write that was slow, large writes go to other threads for a while.


class Closed(Later):
    """The worktree takes no changes for a moment."""

    def __init__(self, event: trio.Event) -> None:
        super().__init__()
        self._event = event

    async def wait(self) -> None:
        await self._event.wait()


class BranchPlace(Place):
    """A worktree in the mount."""

    def __init__(
        self, number: int, worktree: Worktree, controls: Place, listings: Listings, top: Node | None = None
    ) -> None:
        """`top`: the directory that is shown as the root, if it is not the branch's."""
        super().__init__(number)
        self.worktree = worktree
        self.top = worktree.root if top is None else top
        self.controls = controls
        """The place whose root is `.pfs`."""
        self._listings = listings
        self.gate: trio.Event | None = None
        """While it is set, changes wait for it."""
        self.in_flight = 0
        """Changes and fsyncs that other threads are at work on."""
        self.drained: trio.Event | None = None
        """Set when `in_flight` falls to 0."""
        self.thawed = trio.Event()
        """Replaced and set whenever a frozen file may be written to again."""
        self.waiting = 0
        self.writers = 0
        """Open files that can be written to."""
        self.mappable: dict[Node, int] = {}
        """Of files that are open for reading and writing, how often: only these can be written to through a memory map."""
        self.changed_at = time.monotonic()
        """When a change was last asked for."""
        self.slow_until = 0.0
        """Until then (monotonic seconds) large writes go to another thread."""

    @property
    def title(self) -> str:
        return self.worktree.title

    def describe(self, ino: int) -> str:
        node = self.top if ino == ROOT_INO else self.worktree.nodes.get(ino)
        names = () if node is None else path_of(node)
        return "/".join([self.title, *(display(name) for name in names)])

    def node(self, ino: int) -> Node:
        """The node of a number of this place. Raises Stale."""
        return self.top if ino == ROOT_INO else self.worktree.node(ino)

    def shown(self, ino: int) -> int | None:
        """The number here of a number in the worktree; None for its root if that is not shown."""
        if ino == self.top.ino:
            return ROOT_INO
        return None if ino == ROOT_INO else ino

    def change(self) -> Worktree:
        """The worktree, to change it. Raises Closed."""
        if self.gate is not None:
            raise Closed(self.gate)
        self.changed_at = time.monotonic()
        return self.worktree

    @property
    def timeout(self) -> float:
        # What another process changes is not invalidated name by name.
        return FOREVER if self.worktree.owns_data else 0

    negative_timeout = FOREVER

    def _show(self, node: Node) -> Found:
        ino = ROOT_INO if node is self.top else node.ino
        return Found(self.prefix | ino, self.worktree.attributes(node), self.timeout)

    def _tell(self, node: Node) -> Found:
        found = self._show(node)
        node.lookups += 1
        return found

    def tell_root(self) -> Found:
        """The root directory, with a lookup counted."""
        return self._tell(self.top)

    # Looking

    def lookup(self, parent: int, name: bytes) -> Found | None:
        worktree = self.worktree
        above = self.node(parent)
        if above is worktree.root and name == RESERVED_ROOT_NAME:
            return self.controls.lookup(ROOT_INO, b".")
        node = worktree.lookup(above, name)
        return None if node is None else self._tell(node)

    def found(self, ino: int) -> Found:
        return self._show(self.node(ino))

    def parent(self, ino: int) -> int:
        above = None if ino == ROOT_INO else self.worktree.node(ino).parent
        return ROOT_INO if above is None or above is self.top else above.ino

    def forget(self, ino: int, count: int) -> None:
        self.worktree.forget(ino, count)

    def readlink(self, ino: int) -> bytes:
        return self.worktree.target(self.node(ino))

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        worktree = self.worktree
        directory = self.node(ino)
        listing = Listing(_NOTHING)

        def keep(id: ObjectId, source: Source) -> Iterator[Item]:
            nonlocal listing
            if worktree.owns_data:  # else somebody else changes it, and the kernel keeps nothing
                listing = self._listings.begin(self.prefix | ino, id, after)
            return listing.read(source, after)

        for name, item in worktree.listed(directory, after, keep):
            plain = None
            if isinstance(item, Node):
                node = item
            elif not isinstance(item, Told):
                _, fixed, extra, plain = item
                node = worktree.base_node(directory, name, shown_of(fixed, extra) if plain is None else fixed)
            elif worktree.shows_base(item.key, directory, name):
                yield item
                item.key.lookups += 1
                continue
            else:  # forgotten meanwhile
                known = worktree.lookup(directory, name)
                if known is None:
                    continue
                node = known
            if plain is None or not worktree.owns_data:
                told = Told(name, encoder.encode(self._show(node)), node)
            else:
                told = Told(name, encoder.encode_file(self.prefix | node.ino, *plain), node)
            try:
                yield told
            except GeneratorExit:
                worktree.drop_unused(node)
                raise
            node.lookups += 1
            if node is not item:
                listing.told(told)
            listing.passed(name)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return self.worktree.xattrs(self.node(ino))

    def facts(self, ino: int) -> dict[bytes, bytes]:
        node = self.node(ino)
        change = node.change
        if change is None:
            self.worktree.current(node)
        entry = node.entry
        if entry is None or node.state is State.STALE:
            return {}
        if change is not None and (change.data is not None or change.names or change.hidden):
            return {}  # its content is not stored yet
        return entry_facts(entry, self.worktree.base if change is None else None)

    def sync_directory(self) -> WorktreeSync:
        return WorktreeSync(self, None)

    # Names

    def make(
        self, parent: int, name: bytes, kind: NodeKind, mode: int, uid: int, gid: int, target: bytes | None = None
    ) -> Found:
        worktree = self.change()
        node = worktree.make(self.node(parent), name, kind, mode=mode, uid=uid, gid=gid, target=target)
        return self._tell(node)

    def link(self, ino: int, parent: int, name: bytes) -> Found:
        worktree = self.change()
        node = self.node(ino)
        worktree.link(node, self.node(parent), name)
        return self._tell(node)

    def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        worktree = self.change()
        above = self.node(parent)
        if above is worktree.root and name == RESERVED_ROOT_NAME:
            raise NotPermitted("'.pfs' belongs to pfs")
        if directory:
            worktree.rmdir(above, name)
        else:
            worktree.unlink(above, name)

    def move(self, parent: int, name: bytes, parent2: int, name2: bytes, flags: int) -> None:
        worktree = self.change()
        above = self.node(parent)
        if above is worktree.root and name == RESERVED_ROOT_NAME:
            raise NotPermitted("'.pfs' belongs to pfs")
        worktree.move(above, name, self.node(parent2), name2, flags)

    # Attributes

    def set_attributes(self, ino: int, values: dict[str, int]) -> Found:
        worktree = self.change()
        node = self.node(ino)
        if "size" in values:
            values = dict(values)
            size = values.pop("size")
            if node.kind is not NodeKind.FILE:
                raise IsADirectory("only a file has a size")
            try:
                worktree.truncate(node, size)
            except Frozen:
                raise Thaw(self, node) from None
            if not values:
                return self._show(node)
        worktree.set_attributes(node, **values)
        return self._show(node)

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        if name.startswith(FACTS):
            return  # see Filesystem.set_xattr
        worktree = self.change()
        worktree.set_xattr(self.node(ino), name, value)

    # Files

    def open(self, ino: int, flags: int, uid: int) -> OpenFile:
        worktree = self.worktree
        node = self.node(ino)
        if node.kind is not NodeKind.FILE:
            raise InvalidInput("not a file")
        if flags & (_WRITE_FLAGS | os.O_TRUNC):
            worktree = self.change()
            worktree.writable(node)
            if flags & os.O_TRUNC:
                try:
                    worktree.truncate(node, 0, keep_setid=uid == 0)
                except Frozen:
                    raise Thaw(self, node) from None
        return BranchFile(self, node, flags & _WRITE_FLAGS)

    def mappable_paths(self) -> Collection[bytes]:
        """Where in the mount the files are that may have pages which nobody told us of."""
        found = []
        for node in self.mappable:
            names, at = [], node
            while at is not self.top and at.parent is not None:
                names.append(at.name)
                at = at.parent
            if at is self.top and node.state is State.NAMED:
                root = [os.fsencode(self.title)] if self.prefix else []
                found.append(b"/".join([*root, *reversed(names)]))
        return found

    def wake_writers(self) -> None:
        """A frozen file may be written to again."""
        if self.waiting:
            self.thawed.set()
            self.thawed = trio.Event()


class Thaw(Later):
    """A commit is reading the file."""

    def __init__(self, place: BranchPlace, node: Node) -> None:
        super().__init__()
        self._place, self._node = place, node

    async def wait(self) -> None:
        place = self._place
        place.waiting += 1
        try:
            while self._node in place.worktree.frozen:
                await place.thawed.wait()
        finally:
            place.waiting -= 1


class BranchFile(OpenFile):
    """An open file of a worktree. Shows what the node shows, before and after a commit."""

    __slots__ = ("_branch", "_content", "_entry", "_way", "node")

    def __init__(self, place: BranchPlace, node: Node, way: int) -> None:
        """`way`: O_RDONLY, O_WRONLY or O_RDWR."""
        super().__init__(place, keep_cache=place.worktree.owns_data)
        self._branch = place
        self.node = node
        self._entry: Entry | None = None
        self._content: Content | None = None
        self._content_now()
        place.worktree.opened(node)
        self._way = way
        place.writers += way != os.O_RDONLY
        if way == os.O_RDWR:
            place.mappable[node] = place.mappable.get(node, 0) + 1

    def _content_now(self) -> Content | None:
        """What the node's entry refers to, open; a commit gives it another."""
        entry = self.node.entry
        if entry is not self._entry:
            change = self.node.change
            whole = change is not None and change.data is not None and change.data.extents is None
            self._content = None if entry is None or whole else self._branch.worktree.content_of(self.node)
            self._entry = None if whole else entry
        return self._content

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray | None:
        return self._branch.worktree.read_nowait(self.node, self._content_now(), offset, size)

    def _stored(self) -> Content | None:
        """What the file shows, if that is as it is stored."""
        change = self.node.change
        return None if change is not None and change.data is not None else self._content_now()

    def unchecked(self, offset: int, size: int) -> PieceCheck | None:
        content = self._stored()
        return None if content is None else content.unchecked(offset, size)

    def pieces_of(self, offset: int, size: int) -> list[PieceCheck]:
        content = self._stored()
        return [] if content is None else content.pieces_of(offset, size)

    def reading(self, offset: int, size: int) -> WorktreeReading:
        return self._branch.worktree.reading(self.node, self._content_now(), offset, size)

    def write(self, offset: int, data: bytes) -> int:
        branch = self._branch
        if branch.gate is not None:
            raise Closed(branch.gate)
        started = time.monotonic()
        try:
            count = branch.worktree.write(self.node, offset, data)
        except Frozen:
            raise Thaw(branch, self.node) from None
        ended = branch.changed_at = time.monotonic()
        if ended - started > SLOW_WRITE_SECONDS:
            branch.slow_until = ended + SLOW_FOR_SECONDS
        return count

    def writing(self, offset: int, size: int) -> WorktreeWrite | None:
        if size < LARGE_WRITE or time.monotonic() > self._branch.slow_until:
            return None
        try:
            data = self._branch.change().file_data(self.node)
        except Frozen:
            raise Thaw(self._branch, self.node) from None
        change = self.node.change
        if change is None:
            raise Stale("the file went away")
        return WorktreeWrite(self, change, data, offset)

    def syncing(self) -> WorktreeSync:
        return WorktreeSync(self._branch, self.node)

    def close(self) -> None:
        branch, node = self._branch, self.node
        branch.writers -= self._way != os.O_RDONLY
        if self._way == os.O_RDWR:
            branch.mappable[node] -= 1
            if not branch.mappable[node]:
                del branch.mappable[node]
        branch.worktree.closed(node)


class _InFlight:
    """Work of another thread on the worktree, which a commit waits for before it changes everything at once."""

    __slots__ = ("_branch",)

    def __init__(self, branch: BranchPlace) -> None:
        self._branch = branch

    def _start(self) -> None:
        self._branch.in_flight += 1

    def _end(self) -> None:
        branch = self._branch
        branch.in_flight -= 1
        if not branch.in_flight and branch.drained is not None:
            branch.drained.set()


class WorktreeWrite(_InFlight):
    """A large write."""

    __slots__ = ("_change", "_data", "_fd", "_file", "_offset")

    def __init__(self, file: BranchFile, change: Change, data: FileData, offset: int) -> None:
        assert isinstance(file.place, BranchPlace)
        super().__init__(file.place)
        self._file, self._change, self._data, self._offset = file, change, data, offset
        self._fd = -1

    def __enter__(self) -> WorktreeWrite:
        self._fd = self._branch.worktree.data.pin(self._change.number)
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            wrote_in_part(self._data, self._offset)
        self._branch.worktree.data.unpin(self._change.number)
        self._end()

    def run(self, data: bytes) -> int:
        """Raises OSError."""
        return write_all(self._fd, data, self._offset)

    def done(self, count: int) -> None:
        """Account for what was written."""
        self._branch.worktree.wrote(self._file.node, self._change, self._data, self._offset, count)


class WorktreeSync(_InFlight):
    """An fsync of a file, or of names only."""

    __slots__ = ("_fds", "_node", "_pinned")

    def __init__(self, branch: BranchPlace, node: Node | None) -> None:
        super().__init__(branch)
        self._node = node
        self._fds: list[int] = []
        self._pinned: list[int] = []

    def __enter__(self) -> WorktreeSync:
        self._branch.change()
        self._fds, self._pinned = self._branch.worktree.pinned_for_sync(self._node)
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._pinned:
            self._branch.worktree.data.unpin(number)
        self._end()

    def run(self) -> None:
        """Raises OSError."""
        self._branch.worktree.sync_now(self._fds)
