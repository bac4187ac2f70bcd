"""Making directories: from sorted entries, from changes to a directory, from changes to paths.

An edit works level by level, leaves first. At a level it rewrites each node that a change falls into, and goes on into the next
node until a new node ends where an old one did; the replaced and new nodes are the changes of the level above. So it touches only the
nodes on the paths of the changes, and the result is the one that a build from scratch gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pfsmount.errors import NotADirectory
from pfsmount.ids import EntryName, ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.tree.boundaries import NODE_ENTRIES_MAX, ends_leaf, ends_node, leaf_ends
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, directory_entry, load_directory, lookup
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.node import (
    Child,
    Item,
    Node,
    NodeDraft,
    entry_item,
    load_node,
)

_Changes = dict[bytes, Item | None]


class DirectoryBuilder:
    """Builds one level and all above it from items in name order, keeping one open node a level."""

    def __init__(self, batch: Batch, level: int = 0) -> None:
        self._batch = batch
        self._base = level
        self._open = [NodeDraft(level)]
        self._done: list[Child | None] = [None]
        self._counts = [0]

    def add(self, item: Item) -> None:
        """Add the next item."""
        self._add(0, item)

    def add_files(self, names: Sequence[bytes], fixed: Sequence[bytes]) -> None:
        """Add the next entries, files without extra parts, when level 0 is what is built."""
        ends = leaf_ends(names)
        i = 0
        while i < len(names):
            draft = self._open[0]
            end = ends.find(1, i) + 1 or len(names)
            stop = min(end, i + NODE_ENTRIES_MAX - len(draft))
            draft.extend_files(names[i:stop], fixed[i:stop])
            if len(draft) >= NODE_ENTRIES_MAX or ends[stop - 1]:
                self._close(0)
            i = stop

    def _add(self, above: int, item: Item) -> None:
        draft = self._open[above]
        draft.add(item)
        if draft.level == 0 and not ends_leaf(item.name) and len(draft) < NODE_ENTRIES_MAX:
            return
        if ends_node(item.name, draft.level, len(draft)):
            self._close(above)

    def _close(self, above: int) -> None:
        level = self._base + above
        child = self._open[above].write(self._batch)
        self._open[above] = NodeDraft(level)
        self._counts[above] += 1
        self._done[above] = child
        if above + 1 == len(self._open):
            self._open.append(NodeDraft(level + 1))
            self._done.append(None)
            self._counts.append(0)
        self._add(above + 1, child)

    def finish(self) -> Child:
        """The root: the only node of the lowest level that has one."""
        above = 0
        while True:
            draft = self._open[above]
            if draft:
                if not self._counts[above]:
                    return draft.write(self._batch)
                self._close(above)
            done = self._done[above]
            if self._counts[above] == 1 and done is not None:
                return done
            if not self._counts[above]:
                return NodeDraft(0).write(self._batch)
            above += 1


def build_directory(batch: Batch, items: Iterable[tuple[bytes, Entry]]) -> DirectorySummary:
    """A directory from its entries in bytewise order of their names."""
    builder = DirectoryBuilder(batch)
    for name, entry in items:
        builder.add(entry_item(name, entry))
    return DirectorySummary.of(builder.finish())


class _LevelCursor:
    """Goes over the nodes of one level of a directory, from left to right."""

    def __init__(self, objects: Reader, root: Node, level: int) -> None:
        self._objects, self._root, self._level = objects, root, level
        self._path: list[tuple[Node, int]] = []
        self.node = root

    def seek(self, name: bytes) -> None:
        """Go to the node into which `name` belongs."""
        self._path = []
        self._descend(self._root, name)

    def _descend(self, node: Node, name: bytes) -> None:
        while node.level > self._level:
            i = min(node.position(name), len(node.names) - 1)
            self._path.append((node, i))
            node = load_node(self._objects, node.child(i).id)
        self.node = node

    def next(self) -> bool:
        """Go to the next node; False when this is the last."""
        while self._path:
            node, i = self._path.pop()
            if i + 1 < len(node.names):
                self._path.append((node, i + 1))
                self._descend(load_node(self._objects, node.child(i + 1).id), b"")
                return True
        return False

    @property
    def is_last(self) -> bool:
        return all(i + 1 == len(node.names) for node, i in self._path)


def edit_directory(batch: Batch, directory: ObjectId, changes: Mapping[EntryName, Entry | None]) -> DirectorySummary:
    """The directory with some entries set (or removed, None).

    Removing what is not there does nothing. Cost: the changes times the depth.
    """
    root = load_directory(batch, directory)
    if not changes:
        same = NodeDraft(root.level)
        same.extend(root, 0, len(root))
        return DirectorySummary.of(same.write(batch))
    if directory == EMPTY_DIRECTORY.id:
        return build_directory(batch, sorted((name, entry) for name, entry in changes.items() if entry is not None))
    level_changes: _Changes = {
        name: None if entry is None else entry_item(name, entry) for name, entry in changes.items()
    }
    for level in range(root.level + 1):
        level_changes = _edit_level(batch, _LevelCursor(batch, root, level), level, level_changes)
    nodes = [node for _, node in sorted(level_changes.items()) if node is not None]
    if len(nodes) == 1 and isinstance(nodes[0], Child):
        return DirectorySummary.of(_lowest_single(batch, nodes[0]))
    builder = DirectoryBuilder(batch, root.level + 1)
    for node in nodes:
        builder.add(node)
    return DirectorySummary.of(builder.finish())


def _lowest_single(batch: Batch, root: Child) -> Child:
    """Step down while a node has one child only: the root is the lowest level that has one node."""
    node = load_directory(batch, root.id)
    while node.level and len(node) == 1:
        root = node.child(0)
        node = load_node(batch, root.id)
    return root


def _edit_level(batch: Batch, cursor: _LevelCursor, level: int, changes: _Changes) -> _Changes:
    """Carry out changes of one level; returns those of the level above: the nodes that are gone (None) and new, by their last names."""
    todo = sorted(changes.items())
    at = 0
    above: _Changes = {}
    while at < len(todo):
        cursor.seek(todo[at][0])
        draft = NodeDraft(level)
        while True:
            node = cursor.node
            if node.names:
                above[node.names[-1]] = None
            stop = len(todo)
            if not cursor.is_last:
                stop = _first_above(todo, at, node.names[-1])
            draft = _edit_node(batch, draft, node, todo[at:stop], above)
            at = stop
            if not len(draft):
                break
            if not cursor.next():
                above[draft.names[-1]] = draft.write(batch)
                break
    return above


def _first_above(todo: list[tuple[bytes, Item | None]], at: int, name: bytes) -> int:
    while at < len(todo) and todo[at][0] <= name:
        at += 1
    return at


def _edit_node(
    batch: Batch, draft: NodeDraft, node: Node, changes: list[tuple[bytes, Item | None]], above: _Changes
) -> NodeDraft:
    """Add what a node has, changed, to a draft. Nodes that end on the way are written and put into `above`; returns the one that is open."""
    i, count = 0, len(node.names)
    for name, change in changes:
        stop = node.position(name)
        draft = _take_over(batch, draft, node, i, stop, above)
        i = stop + 1 if stop < count and node.names[stop] == name else stop
        if change is not None:
            draft = _add(batch, draft, change, above)
    return _take_over(batch, draft, node, i, count, above)


def _take_over(batch: Batch, draft: NodeDraft, node: Node, i: int, j: int, above: _Changes) -> NodeDraft:
    """Add items of a node. Only its last one can end a node by its name: the others did not where they were."""
    inner = min(j, len(node.names) - 1)
    if len(draft) + inner - i < NODE_ENTRIES_MAX:
        draft.extend(node, i, inner)
        i = max(i, inner)
    while i < j:
        draft = _add(batch, draft, node.item(i), above)
        i += 1
    return draft


def _add(batch: Batch, draft: NodeDraft, item: Item, above: _Changes) -> NodeDraft:
    draft.add(item)
    if not ends_node(item[0], draft.level, len(draft)):
        return draft
    above[item[0]] = draft.write(batch)
    return NodeDraft(draft.level)


def replace_contents(entry: Entry, summary: DirectorySummary) -> Entry:
    """A directory's entry with other contents and the same attributes."""
    return entry.replace(id=summary.id, content_id=summary.content_id, files=summary.files, size=summary.size)


def edit_paths(
    batch: Batch,
    root: Entry,
    changes: Mapping[RepoPath, Entry | None],
    *,
    parent: Entry | None = None,
    mtime_ns: int | None = None,
) -> Entry:
    """The tree `root` with entries set (or removed, None) at paths.

    A change at a path counts before changes below it. Missing directories on the way are made with the attributes of
    `parent` (default: those of `root`). Directories in which a name changes get `mtime_ns`, when given. Raises NotADirectory when a path runs through a file that no change removes.
    """
    if not changes:
        return root
    template = (root if parent is None else parent).replace(xattrs=b"", xattrs_id=None)
    return _edit_below(batch, root, (), sorted(changes.items()), template, mtime_ns)


def _edit_below(
    batch: Batch,
    directory: Entry,
    path: RepoPath,
    changes: list[tuple[RepoPath, Entry | None]],
    template: Entry,
    mtime_ns: int | None,
) -> Entry:
    depth = len(path)
    if changes and len(changes[0][0]) == depth:
        own = changes[0][1]
        changes = changes[1:]
        if own is None and not changes:
            own = replace_contents(directory, EMPTY_DIRECTORY)
        directory = own if own is not None else replace_contents(template, EMPTY_DIRECTORY)
    if not changes:
        return directory
    if directory.kind is not Kind.DIRECTORY:
        raise NotADirectory(f"{display(path_bytes(path))} is not a directory")
    here: dict[EntryName, Entry | None] = {}
    at = 0
    while at < len(changes):
        name = changes[at][0][depth]
        stop = at
        while stop < len(changes) and changes[stop][0][depth] == name:
            stop += 1
        group = changes[at:stop]
        at = stop
        if group[0][1] is None and len(group[0][0]) == depth + 1 and all(change is None for _, change in group):
            group = group[:1]  # what is below a removed path goes with it
        if len(group) == 1 and len(group[0][0]) == depth + 1:
            here[name] = group[0][1]
            continue
        old = lookup(batch, directory.id, name)
        if old is None:
            if all(change is None for _, change in group):
                continue
            old = replace_contents(template, EMPTY_DIRECTORY)
        here[name] = _edit_below(batch, old, (*path, name), group, template, mtime_ns)
    edited = replace_contents(directory, edit_directory(batch, directory.id, here)) if here else directory
    if edited.id == directory.id or mtime_ns is None:
        return edited
    return edited.replace(mtime_ns=mtime_ns)


__all__ = [
    "DirectoryBuilder",
    "build_directory",
    "directory_entry",
    "edit_directory",
    "edit_paths",
    "replace_contents",
]
