"""Reading directories: look up, list, walk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.reading import Reader
from pfsmount.tree.entry import Entry, Kind, decode_entry
from pfsmount.tree.node import Child, LeafItem, Node, NodeDraft, Row, load_node


@dataclass(frozen=True, slots=True)
class DirectorySummary:
    """A directory's contents without its own attributes."""

    id: ObjectId
    content_id: ObjectId
    entries: int
    files: int
    size: int

    @classmethod
    def of(cls, root: Child) -> DirectorySummary:
        """From the root node as a parent would name it."""
        return cls(root.id, root.content_id, root.entries, root.files, root.bytes_below)


_EMPTY_NODE = NodeDraft(0).encode()
EMPTY_DIRECTORY = DirectorySummary(hash_bytes(_EMPTY_NODE, HashKind.NODE), NodeDraft(0).content(), 0, 0, 0)
_EMPTY = Node(_EMPTY_NODE)


def directory_entry(
    summary: DirectorySummary,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    xattrs: bytes = b"",
    xattrs_id: ObjectId | None = None,
) -> Entry:
    """The entry of a directory with these contents."""
    return Entry(
        Kind.DIRECTORY,
        mode & 0o7777,
        uid,
        gid,
        mtime_ns,
        summary.size,
        summary.id,
        summary.content_id,
        summary.files,
        None,
        xattrs,
        xattrs_id,
    )


def load_directory(objects: Reader, directory: ObjectId) -> Node:
    """The root node of a directory. The empty one need not be stored. Raises NotFound, Corrupt."""
    return _EMPTY if directory == EMPTY_DIRECTORY.id else load_node(objects, directory)


def lookup(objects: Reader, directory: ObjectId, name: bytes) -> Entry | None:
    """The entry of that name, or None. Raises NotFound, Corrupt when the store is damaged."""
    item = Lookups().item(objects, directory, name)
    return None if item is None else decode_entry(item.fixed, item.extra)


class Lookups:
    """Looks names up for somebody whose next one is often near the last one: in the same leaf. Used by one thread."""

    __slots__ = ("_directory", "_leaf")

    def __init__(self) -> None:
        self._directory: ObjectId | None = None
        self._leaf = _EMPTY

    def item(self, objects: Reader, directory: ObjectId, name: bytes) -> LeafItem | None:
        """The entry of that name in a directory, not decoded, or None. Raises NotFound, Corrupt."""
        names = self._leaf.names
        if directory != self._directory or not names or not names[0] <= name <= names[-1]:
            node = load_directory(objects, directory)
            while node.level:
                i = node.position(name)
                if i == len(node.names):
                    return None
                node = load_node(objects, node.child(i).id)
            self._directory, self._leaf = directory, node
            names = node.names
        i = self._leaf.position(name)
        return self._leaf.leaf_item(i) if i < len(names) and names[i] == name else None


def entries(objects: Reader, directory: ObjectId, after: bytes = b"") -> Iterator[tuple[EntryName, Entry]]:
    """The entries whose names follow `after`, in bytewise order; nodes are read as they are reached."""
    for node, i in _leaves(objects, directory, after):
        for j in range(i, len(node.names)):
            yield EntryName(node.names[j]), node.entry(j)


def rows(objects: Reader, directory: ObjectId, after: bytes = b"") -> Iterator[Row]:
    """The same, not decoded: for who lists a great many and needs but a part of each."""
    for node, i in _leaves(objects, directory, after):
        yield from node.rows(i)


def _leaves(objects: Reader, directory: ObjectId, after: bytes) -> Iterator[tuple[Node, int]]:
    """The leaves of a directory with names that follow `after`, each with the place of its first one."""
    stack = [_from(load_directory(objects, directory), after)]
    while stack:
        node, i = stack.pop()
        if not node.level:
            yield node, i
        elif i < len(node.names):
            stack.append((node, i + 1))
            stack.append(_from(load_node(objects, node.child(i).id), after))


def _from(node: Node, after: bytes) -> tuple[Node, int]:
    i = node.position(after)
    if not node.level and i < len(node.names) and node.names[i] == after:
        i += 1
    return node, i


def find(objects: Reader, root: Entry, path: RepoPath) -> Entry | None:
    """The entry at a path below `root` (itself for the empty path); None also when a file is in the way."""
    entry: Entry | None = root
    for name in path:
        if entry is None or entry.kind is not Kind.DIRECTORY:
            return None
        entry = lookup(objects, entry.id, name)
    return entry


def walk(objects: Reader, root: Entry, path: RepoPath = ()) -> Iterator[tuple[RepoPath, Entry]]:
    """`root` and everything below it, depth first, each directory before its entries, in bytewise order."""
    stack: list[Iterator[tuple[RepoPath, Entry]]] = [iter(((path, root),))]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        yield step
        if step[1].kind is Kind.DIRECTORY:
            stack.append(_below(objects, *step))


def _below(objects: Reader, path: RepoPath, entry: Entry) -> Iterator[tuple[RepoPath, Entry]]:
    for name, child in entries(objects, entry.id):
        yield (*path, name), child
