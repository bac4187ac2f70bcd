"""What differs between two trees, at the cost of the differences.

Two directories are walked side by side as streams of nodes and entries; nodes with the same id are skipped whole. Because boundaries
follow from names, the streams fall into step again behind each change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.tree.directory import load_directory
from pfsmount.tree.entry import Entry, Kind, decode_entry
from pfsmount.tree.node import Child, Item, LeafItem, Node, load_node


class Change(NamedTuple):
    """One path whose entry differs; None where it does not exist."""

    path: RepoPath
    old: Entry | None
    new: Entry | None

    @property
    def attributes_only(self) -> bool:
        """True when content is equal and only mode, owner, time or xattrs differ."""
        return self.old is not None and self.new is not None and self.old.same_content(self.new)


class _Side:
    """One directory as a stream whose head is a node not yet read, or an entry."""

    def __init__(self, objects: Reader, root: Node | None) -> None:
        self._objects = objects
        self._stack: list[tuple[Node, int]] = []
        self.head: Item | None = None
        self.level = 0
        if root is not None:
            self._stack.append((root, -1))
            self.next()

    def next(self) -> None:
        """Step over the head."""
        self.skip(1)

    def skip(self, count: int) -> None:
        """Step over the head and what follows it in its node, `count` in all."""
        while self._stack:
            node, i = self._stack.pop()
            if i + count < len(node.names):
                self._stack.append((node, i + count))
                self.head = node.item(i + count)
                self.level = node.level
                return
            count = 1
        self.head, self.level = None, 0

    def skip_equal(self, other: _Side) -> bool:
        """Step over what both sides have next, the same in both, within one node of the same level. False when they differ at once."""
        if self.level != other.level:
            return False
        (node, i), (other_node, j) = self._stack[-1], other._stack[-1]
        run = node.equal_run(i, other_node, j)
        if run:
            self.skip(run)
            other.skip(run)
        return run > 0

    def open(self) -> None:
        """Replace the head, a node, by what is in it."""
        assert isinstance(self.head, Child)
        self._stack.append((load_node(self._objects, self.head.id), -1))
        self.next()


def directory_pairs(
    old_objects: Reader, new_objects: Reader, old: ObjectId | None, new: ObjectId | None
) -> Iterator[tuple[EntryName, LeafItem | None, LeafItem | None]]:
    """Entries of two directories that differ in any way, by name."""
    a = _Side(old_objects, None if old is None else load_directory(old_objects, old))
    b = _Side(new_objects, None if new is None else load_directory(new_objects, new))
    while a.head is not None or b.head is not None:
        if a.head is not None and b.head is not None and a.skip_equal(b):
            continue
        left, right = a.head, b.head
        if isinstance(left, Child) and isinstance(right, Child):
            if a.level >= b.level:
                a.open()
            if b.level >= a.level and b.head is right and b.level > 0:
                b.open()
        elif isinstance(left, Child):
            a.open()
        elif isinstance(right, Child):
            b.open()
        elif right is None or (left is not None and left.name < right.name):
            assert left is not None
            yield EntryName(left.name), left, None
            a.next()
        elif left is None or right.name < left.name:
            yield EntryName(right.name), None, right
            b.next()
        else:
            yield EntryName(left.name), left, right
            a.next()
            b.next()


def diff(objects: Reader, old: Entry | None, new: Entry | None, path: RepoPath = ()) -> Iterator[Change]:
    """All paths at which two trees of one store differ, parents before children, in bytewise order.

    A directory is listed when it was added, removed or replaced, or when its own mode, owner, time or xattrs changed; not
    because something below it did. Everything below an added or removed directory is listed too.
    """
    yield from diff_between(objects, old, objects, new, path)


def diff_between(
    old_objects: Reader, old: Entry | None, new_objects: Reader, new: Entry | None, path: RepoPath = ()
) -> Iterator[Change]:
    """As `diff`, for trees that lie in two stores."""
    stack: list[Iterator[_Step]] = [iter(((path, old, new),))]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        at, before, after = step
        if before == after:
            continue
        old_directory = before.id if before is not None and before.kind is Kind.DIRECTORY else None
        new_directory = after.id if after is not None and after.kind is Kind.DIRECTORY else None
        both = old_directory is not None and new_directory is not None
        if not both or _own_attributes(before) != _own_attributes(after):
            yield Change(at, before, after)
        if old_directory != new_directory:
            stack.append(_steps(directory_pairs(old_objects, new_objects, old_directory, new_directory), at))


_Step = tuple[RepoPath, Entry | None, Entry | None]


def _steps(pairs: Iterator[tuple[EntryName, LeafItem | None, LeafItem | None]], path: RepoPath) -> Iterator[_Step]:
    for name, left, right in pairs:
        before = None if left is None else decode_entry(left.fixed, left.extra)
        after = None if right is None else decode_entry(right.fixed, right.extra)
        yield (*path, name), before, after


def _own_attributes(entry: Entry | None) -> tuple[object, ...]:
    if entry is None:
        return ()
    return entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs, entry.xattrs_id


def differs_at(objects: Reader, old: Entry | None, new: Entry | None, path: RepoPath) -> bool:
    """Whether two trees of one store differ at a path in any way, below it included.

    Costs a look-up in both at most; it ends at the first node that both have. Raises NotFound, Corrupt when the store is damaged.
    """
    for name in path:
        old_directory = None if old is None or not old.is_directory else old.id
        new_directory = None if new is None or not new.is_directory else new.id
        if old_directory == new_directory:
            return False
        old, new = lookup_both(objects, old_directory, new_directory, name)
    return old != new


def lookup_both(
    objects: Reader, old: ObjectId | None, new: ObjectId | None, name: bytes
) -> tuple[Entry | None, Entry | None]:
    """The entries of that name in two directories; two times None also when both have the same one in a node that they share."""
    left = None if old is None else load_directory(objects, old)
    right = None if new is None else load_directory(objects, new)
    while True:
        a, b = _child_at(left, name), _child_at(right, name)
        if a is None and b is None:
            return _entry_at(left, name), _entry_at(right, name)
        if a is not None and b is not None and a.id == b.id:
            return None, None
        left_level, right_level = 0 if left is None else left.level, 0 if right is None else right.level
        if left_level >= right_level:
            left = None if a is None else load_node(objects, a.id)
        if right_level >= left_level:
            right = None if b is None else load_node(objects, b.id)


def _child_at(node: Node | None, name: bytes) -> Child | None:
    """The child of an inner node into which a name belongs."""
    if node is None or not node.level:
        return None
    i = node.position(name)
    return node.child(i) if i < len(node.names) else None


def _entry_at(node: Node | None, name: bytes) -> Entry | None:
    """The entry of that name in a leaf; None of an inner node, which the name is behind."""
    if node is None or node.level:
        return None
    i = node.position(name)
    return node.entry(i) if i < len(node.names) and node.names[i] == name else None
