"""What is uncommitted in a worktree, at the cost of the changes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pfsmount.config import MIB
from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.hashing import file_hasher
from pfsmount.repo.conflicts import PathConflict
from pfsmount.repo.overlay_nodes import KIND_WORDS, Change, Node, NodeKind, Touched
from pfsmount.repo.worktree_files import Reading
from pfsmount.repo.worktree_rebase import WorktreeRebase
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.xattrs import load_xattrs


@dataclass(frozen=True, slots=True)
class WorktreeChange:
    """One uncommitted change."""

    path: RepoPath
    what: str
    """`new`, `modified`, `deleted`, `attributes` (mode, owner, xattrs), or `replaced` (by another kind or directory)."""
    kind: str
    """file, dir, symlink: of what is there now, or was."""
    size: int
    """Bytes now; of what was deleted then."""
    files: int
    """1, or for a directory that is deleted or was moved here as a whole: how many files are in it."""
    old: Entry | None
    """What the base has."""


@dataclass(frozen=True, slots=True)
class WorktreeStatus:
    """How a worktree stands."""

    repo: str
    branch: str
    name: str
    base: ObjectId | None
    """The commit under the changes."""
    head: ObjectId | None
    """The branch's head; another than `base` while there are conflicts."""
    changes: tuple[WorktreeChange, ...]
    unversioned: tuple[RepoPath, ...]
    """FIFOs and sockets."""
    conflicts: tuple[PathConflict, ...]
    """Paths changed here and, differently, on the branch; with the resolution of those that are settled while others are open."""
    owner: dict[str, object] | None
    """Who has the worktree open for writing, when that is another process."""
    times: int = 0
    """How many files, links and directories differ in their time alone: no change by itself, kept and taken along by the next commit."""
    refused: str | None = None
    """Why the owner's last autocommit was not made."""


class WorktreeLook(WorktreeRebase):
    """A worktree that can say what is changed. May wait for the disk."""

    _hashes: dict[tuple[int, int], ObjectId]

    def changes(self) -> Iterator[WorktreeChange]:
        """Uncommitted changes by path. What came and went, or has only another time, is none. Raises OSError, Corrupt."""
        if self.root.change is None:
            return
        if self.root.entry is not None and self._attributes_differ(self.root, self.root.entry):
            yield self._change((), "attributes", self.root, self.root.entry)
        stack = [self._changes_in(self.root, ())]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, WorktreeChange):
                yield found
            else:
                stack.append(self._changes_in(*found))

    def _changes_in(self, directory: Node, path: RepoPath) -> Iterator[WorktreeChange | tuple[Node, RepoPath]]:
        """Changes of a directory's entries; of each directory in it that has changes, node and path."""
        change = directory.change
        assert change is not None
        for name in sorted(change.hidden.union(change.names)):
            node = change.names.get(name)
            old = None
            if name in change.hidden and directory.entry is not None:
                old = lookup(self.objects, directory.entry.id, name)
            here = (*path, EntryName(name))
            special = node is not None and node.kind in (NodeKind.FIFO, NodeKind.SOCKET)
            if node is None or special:
                if old is not None:
                    yield _deleted(here, old)
                continue
            what = self._what(node, old)
            if what is not None:
                yield self._change(here, what, node, old)
            if node.kind is NodeKind.DIRECTORY and node.change is not None:
                yield node, here

    def _what(self, node: Node, old: Entry | None) -> str | None:
        change = node.change
        if old is None:
            return "new"
        assert change is not None
        if KIND_WORDS[node.kind] != _WORDS[old.kind]:
            return "replaced"
        if node.kind is NodeKind.DIRECTORY:
            if not change.in_place and (node.entry is None or node.entry.id != old.id):
                return "replaced"
        elif self._content_differs(node, change, old):
            return "modified"
        return "attributes" if self._attributes_differ(node, old) else None

    def _content_differs(self, node: Node, change: Change, old: Entry) -> bool:
        if change.data is None:
            return (node.entry is None and old.size > 0) or (node.entry is not None and node.entry.id != old.id)
        if self.stat_data(change).size != old.size:
            return True
        return self.content_id(node) != old.id

    def content_id(self, node: Node) -> ObjectId:
        """The id that a changed file would have in a commit; its content is read once for each change of it."""
        change = node.change
        assert change is not None
        key = (change.number, change.version)
        found = self._hashes.get(key)
        if found is None:
            content = None if node.entry is None else self.content_of(node)
            with self.reading(node, content, 0, self.stat_data(change).size) as reading:
                found = self.remember_hash(key, reading)
        return found

    def remember_hash(self, key: tuple[int, int], reading: Reading) -> ObjectId:
        """Hash what `reading` reads as the content of a version of a file. May run in another thread."""
        hasher = file_hasher()
        for block in reading.blocks(4 * MIB):
            hasher.update(block)
        if len(self._hashes) > 10_000:
            self._hashes.clear()
        found = self._hashes[key] = ObjectId(hasher.digest())
        return found

    def unhashed(self) -> list[Node]:
        """Changed files whose size does not tell whether they differ from the base; `changes` reads them unless `remember_hash` did."""
        found: list[Node] = []
        stack = [self.root]
        while stack:
            change = stack.pop().change
            if change is None:
                continue
            for name, node in change.names.items():
                if node.kind is NodeKind.DIRECTORY:
                    stack.append(node)
                elif name in change.hidden and self._needs_hash(node):
                    found.append(node)
        return found

    def _needs_hash(self, node: Node) -> bool:
        change = node.change
        if change is None or change.data is None or (change.number, change.version) in self._hashes:
            return False
        return node.entry is None or self.stat_data(change).size == node.entry.size

    def _attributes_differ(self, node: Node, old: Entry) -> bool:
        change = node.change
        assert change is not None
        if (change.mode, change.uid, change.gid) != (old.mode, old.uid, old.gid) and node.kind is not NodeKind.SYMLINK:
            return True
        return self.xattrs(node) != load_xattrs(self.objects, old)

    def _change(self, path: RepoPath, what: str, node: Node, old: Entry | None) -> WorktreeChange:
        files = 1
        if node.kind is NodeKind.DIRECTORY:
            files = node.entry.files if node.entry is not None and what in ("new", "replaced") else 0
        return WorktreeChange(path, what, KIND_WORDS[node.kind], self._size(node), files, old)

    def _size(self, node: Node) -> int:
        if node.kind is not NodeKind.DIRECTORY:
            return self.attributes(node).size
        return 0

    def count_times(self, changed: Collection[RepoPath]) -> int:
        """How many files, links and directories differ from the base in their time alone, given the paths of all `changes`.

        A directory counts when its time was set: one that follows from what came and went in it is taken along only by what stays in it.
        """
        count = 0
        stack: list[tuple[Node, RepoPath]] = [(self.root, ())]
        while stack:
            directory, path = stack.pop()
            change, base = directory.change, directory.entry
            if change is None or base is None:
                continue
            if path not in changed and change.touched & Touched.TIME:
                count += change.mtime_ns != base.mtime_ns
            for name, node in change.names.items():
                here = (*path, EntryName(name))
                if node.kind is NodeKind.DIRECTORY:
                    stack.append((node, here))
                elif name in change.hidden and here not in changed and node.change is not None:
                    old = lookup(self.objects, base.id, name)
                    count += old is not None and node.change.mtime_ns != old.mtime_ns
        return count

    def unversioned(self) -> list[RepoPath]:
        """FIFOs and sockets, which no commit takes."""
        found: list[RepoPath] = []
        stack: list[tuple[Node, RepoPath]] = [(self.root, ())]
        while stack:
            directory, path = stack.pop()
            if directory.change is None:
                continue
            for name, node in directory.change.names.items():
                if node.kind in (NodeKind.FIFO, NodeKind.SOCKET):
                    found.append((*path, EntryName(name)))
                elif node.kind is NodeKind.DIRECTORY:
                    stack.append((node, (*path, EntryName(name))))
        return sorted(found)

    def count_changes(self) -> int:
        """How many names the journal changes: about how much is uncommitted, without comparing anything."""
        count = 0
        stack = [self.root]
        while stack:
            change = stack.pop().change
            if change is None:
                continue
            count += len(change.hidden.union(change.names))
            for node in change.names.values():
                if node.kind is NodeKind.DIRECTORY:
                    stack.append(node)
                    own = node.change
                    # a directory that is only on the way to what is changed
                    count -= own is not None and own.in_place and not own.touched & ~Touched.TIME
        return count

    @property
    def is_clean(self) -> bool:
        """True when the journal has nothing to say."""
        change = self.root.change
        return change is None or not (change.names or change.hidden or change.touched)


def _deleted(path: RepoPath, old: Entry) -> WorktreeChange:
    files = old.files if old.is_directory else 1
    return WorktreeChange(path, "deleted", _WORDS[old.kind], old.size, files, old)


_WORDS = {
    Kind.FILE: KIND_WORDS[NodeKind.FILE],
    Kind.DIRECTORY: KIND_WORDS[NodeKind.DIRECTORY],
    Kind.SYMLINK: KIND_WORDS[NodeKind.SYMLINK],
}


def display_path(path: RepoPath) -> str:
    """A path as text that JSON and people take; bytes that are not UTF-8 survive."""
    return os.fsdecode(b"/".join(path)) or "."
