"""What differs between two trees, at the cost of the differences.

Two directories are walked side by side as streams of nodes and entries; nodes with the same id are skipped whole. Because boundaries
follow from names, the streams fall into step again behind each change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.store import Reader
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
        while self._stack:
            node, i = self._stack.pop()
            if i + 1 < len(node.names):
                self._stack.append((node, i + 1))
                self.head = node.item(i + 1)
                self.level = node.level
                return
        self.head, self.level = None, 0

    def open(self) -> None:
        """Replace the head, a node, by what is in it."""
        assert isinstance(self.head, Child)
        self._stack.append((load_node(self._objects, self.head.id), -1))
        self.next()


def _directory_pairs(
    old_objects: Reader, new_objects: Reader, old: ObjectId | None, new: ObjectId | None
) -> Iterator[tuple[EntryName, LeafItem | None, LeafItem | None]]:
    """Entries of two directories that differ in any way, by name."""
    a = _Side(old_objects, None if old is None else load_directory(old_objects, old))
    b = _Side(new_objects, None if new is None else load_directory(new_objects, new))
    while a.head is not None or b.head is not None:
        left, right = a.head, b.head
        if isinstance(left, Child) and isinstance(right, Child):
            if left.id == right.id:
                a.next()
                b.next()
                continue
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
            if left != right:
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
            stack.append(_steps(_directory_pairs(old_objects, new_objects, old_directory, new_directory), at))


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
