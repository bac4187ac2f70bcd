"""What of a tree has given properties: the tests of find(1) that a tree can answer.

The tree is walked, but not below directories in which nothing can pass: too deep, or smaller in all than the size that is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.tree.directory import EMPTY_DIRECTORY, load_directory
from pfsmount.tree.entry import TARGET_MAX, Entry, Kind
from pfsmount.tree.globs import Glob
from pfsmount.tree.node import Node, load_node


@dataclass(frozen=True, slots=True)
class Criteria:
    """All of these must hold; what is None or empty asks for nothing. Sizes are bytes: of a directory, of all files below it."""

    name: Glob | None = None
    """Matches the last name of the path."""
    path: Glob | None = None
    """Matches the whole path, from where the search starts."""
    kinds: Collection[Kind] = ()
    least_size: int | None = None
    most_size: int | None = None
    newer_ns: int | None = None
    """Modified after this."""
    older_ns: int | None = None
    """Modified before this."""
    empty: bool = False
    """An empty file, or a directory without entries."""
    id: str = ""
    """How the id begins, in hex: of a file what b3sum prints, of a directory the content id."""
    least_depth: int = 0
    most_depth: int | None = None

    def accepts(self, path: RepoPath, entry: Entry) -> bool:
        """Whether an entry at a path (relative to the start) passes all tests."""
        return (
            len(path) >= self.least_depth
            and (not self.kinds or entry.kind in self.kinds)
            and (self.least_size is None or entry.size >= self.least_size)
            and (self.most_size is None or entry.size <= self.most_size)
            and (self.newer_ns is None or entry.mtime_ns > self.newer_ns)
            and (self.older_ns is None or entry.mtime_ns < self.older_ns)
            and (not self.empty or _is_empty(entry))
            and (not self.id or entry.content.hex().startswith(self.id))
            and (self.name is None or (bool(path) and self.name.match(path[-1:]) is not None))
            and (self.path is None or self.path.match(path) is not None)
        )

    def may_accept(self, name: bytes, kind: int, size: int) -> bool:
        """What can be told of an entry before it is decoded; False when it cannot pass."""
        return (
            (not self.kinds or kind in self.kinds)
            and (self.least_size is None or size >= self.least_size)
            and (self.name is None or self.name.match((EntryName(name),)) is not None)
        )

    def goes_into(self, path: RepoPath, directory: Entry) -> bool:
        """False when nothing below a directory can pass."""
        if self.most_depth is not None and len(path) >= self.most_depth:
            return False
        # a symlink has a size, but adds none to its directory
        return self.least_size is None or self.least_size <= max(directory.size, TARGET_MAX)


def _is_empty(entry: Entry) -> bool:
    return entry.id == EMPTY_DIRECTORY.id if entry.is_directory else entry.kind is Kind.FILE and not entry.size


def search(objects: Reader, root: Entry, criteria: Criteria) -> Iterator[tuple[RepoPath, Entry]]:
    """What passes, `root` included (with the empty path), each directory before its entries, in bytewise order, as it is found.

    Raises NotFound, Corrupt when the store is damaged.
    """
    if criteria.accepts((), root):
        yield (), root
    if not root.is_directory or not criteria.goes_into((), root):
        return
    stack: list[tuple[RepoPath, Iterator[tuple[EntryName, Entry]]]] = [((), _candidates(objects, root.id, criteria))]
    while stack:
        above, steps = stack[-1]
        step = next(steps, None)
        if step is None:
            stack.pop()
            continue
        name, entry = step
        path: RepoPath = (*above, name)
        if criteria.accepts(path, entry):
            yield path, entry
        if entry.is_directory and criteria.goes_into(path, entry):
            stack.append((path, _candidates(objects, entry.id, criteria)))


def _candidates(objects: Reader, directory: ObjectId, criteria: Criteria) -> Iterator[tuple[EntryName, Entry]]:
    """The directories of a directory, and what else may pass. Decoding an entry takes four times as long as telling that it cannot."""
    for leaf in _leaves(objects, load_directory(objects, directory)):
        for i, name in enumerate(leaf.names):
            kind, size = leaf.kind_and_size(i)
            if kind == Kind.DIRECTORY or criteria.may_accept(name, kind, size):
                yield EntryName(name), leaf.entry(i)


def _leaves(objects: Reader, node: Node) -> Iterator[Node]:
    if not node.level:
        yield node
        return
    for i in range(len(node.names)):
        yield from _leaves(objects, load_node(objects, node.child(i).id))
