"""The changes that an overlay knows, in memory only.

Used twice: by the operations of a worktree, after the line for the journal is written, and by the replay of those lines. So both
come to the same state. Nothing here checks what POSIX forbids; `worktree_names` does before it writes a line.
"""

from __future__ import annotations

from pfsmount.errors import Corrupt
from pfsmount.repo.overlay import Overlay
from pfsmount.repo.overlay_nodes import Change, Node, NodeKind, State, Touched


class OverlayEdit(Overlay):
    """An overlay whose nodes can be changed."""

    tick = 0
    """Number of the last change; see `Change.version`."""

    def touch(self, node: Node, time_ns: int | None = None) -> Change:
        """Count a change of a node that has a `Change`."""
        change = node.change
        if change is None:
            raise Corrupt(f"{node!r} is changed before the journal spoke of it")
        self.tick += 1
        change.version = self.tick
        if time_ns is not None:
            change.ctime_ns = time_ns
        return change

    def touch_directory(self, directory: Node, time_ns: int) -> Change:
        """Count a change of a directory's names."""
        change = self.touch(directory, time_ns)
        change.mtime_ns = time_ns
        return change

    def adopt(self, node: Node, number: int) -> Change:
        """Let a node that shows the base be one that the journal speaks of, in its place."""
        entry = node.entry
        assert entry is not None
        self.unpin(node)
        change = Change(number, entry.mode, entry.uid, entry.gid, entry.mtime_ns, in_place=True)
        node.change = change
        node.epoch = self.epoch
        parent = node.parent
        if parent is not None and node.state is State.NAMED:
            assert parent.change is not None
            parent.change.names[node.name] = node
            parent.change.hidden.add(node.name)
        return change

    def add(self, parent: Node, name: bytes, node: Node, time_ns: int) -> None:
        """Give a new node its name."""
        self.touch_directory(parent, time_ns).names[name] = node

    def add_link(self, parent: Node, name: bytes, node: Node, time_ns: int) -> None:
        """Give a node another name."""
        change = self.touch(node, time_ns)
        if change.places is None:
            assert node.parent is not None
            change.places = [(node.parent, node.name)]
        change.places.append((parent, name))
        self.touch_directory(parent, time_ns).names[name] = node

    def remove(self, parent: Node, name: bytes, node: Node, time_ns: int) -> None:
        """Take a name away. A node without names lives on until nobody has it open."""
        here = self.touch_directory(parent, time_ns)
        if here.names.pop(name, None) is None:
            here.hidden.add(name)
            self._lose_name(node, time_ns)
            return
        change = self.touch(node, time_ns)
        if change.places is None:
            change.in_place = False
            self._lose_name(node, time_ns)
            return
        change.places.remove((parent, name))
        if node.parent is parent and node.name == name:
            change.in_place = False
            self.move_node(node, *change.places[0])
        if len(change.places) == 1:
            change.places = None

    def _lose_name(self, node: Node, time_ns: int) -> None:
        self.unpin(node)
        node.state = State.UNLINKED
        if node.change is not None:
            node.change.ctime_ns = time_ns
        self.drop_unused(node)

    def rename(self, old: tuple[Node, bytes], node: Node, new: tuple[Node, bytes], time_ns: int) -> None:
        """Move a name to a place that is free."""
        self.touch_directory(old[0], time_ns).names.pop(old[1], None)
        self.touch_directory(new[0], time_ns).names[new[1]] = node
        self._move_place(node, old, new)
        self.touch(node, time_ns)

    def exchange(self, old: tuple[Node, bytes], node: Node, new: tuple[Node, bytes], other: Node, time_ns: int) -> None:
        """Let two names change places."""
        self.touch_directory(old[0], time_ns).names[old[1]] = other
        self.touch_directory(new[0], time_ns).names[new[1]] = node
        self._move_place(node, old, new)
        self._move_place(other, new, old)
        self.touch(node, time_ns)
        self.touch(other, time_ns)

    def _move_place(self, node: Node, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        change = node.change
        assert change is not None
        if change.places is not None:
            change.places[change.places.index(old)] = new
        if node.parent is old[0] and node.name == old[1]:
            change.in_place = False
            self.move_node(node, *new)

    def put_attributes(
        self,
        node: Node,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        mtime_ns: int | None,
        time_ns: int,
    ) -> None:
        """Set what is given. The time of a file that has data is set on its data file, not here."""
        change = self.touch(node, time_ns)
        if mode is not None:
            change.mode = mode
            change.touched |= Touched.MODE
        if uid is not None:
            change.uid = uid
            change.touched |= Touched.OWNER
        if gid is not None:
            change.gid = gid
            change.touched |= Touched.OWNER
        if mtime_ns is not None:
            change.mtime_ns = mtime_ns
            change.touched |= Touched.TIME

    def put_xattr(self, node: Node, name: bytes, value: bytes | None, time_ns: int) -> None:
        """Set an extended attribute, or remove it (None)."""
        xattrs = dict(self.xattrs(node))
        if value is None:
            xattrs.pop(name, None)
        else:
            xattrs[name] = value
        change = self.touch(node, time_ns)
        change.xattrs = xattrs
        change.touched |= Touched.XATTRS

    def is_below(self, node: Node, directory: Node) -> bool:
        """True when `directory` is `node` or above it."""
        at: Node | None = node
        while at is not None:
            if at is directory:
                return True
            at = at.parent
        return False


def wants_setgid(parent: Node, kind: NodeKind, mode: int, gid: int) -> tuple[int, int]:
    """Mode and group of a new node by the rule for directories with the setgid bit."""
    bits = parent.change.mode if parent.change is not None else parent.entry.mode if parent.entry is not None else 0
    if not bits & 0o2000:
        return mode, gid
    group = parent.change.gid if parent.change is not None else parent.entry.gid if parent.entry is not None else gid
    return (mode | 0o2000 if kind is NodeKind.DIRECTORY else mode), group
