"""When the branch moved under a worktree, and when changes are given up.

Changes of both sides at different paths go together. At the same path the worktree stays where it is, on its old base, and the paths are
named: nothing is lost, and a commit is refused until each conflict is settled. A decision is a line of the journal; it is carried out when none is
open any more, with the move to the new base. It counts as long as the conflict is the same: another commit on the branch at this path, or, when mine is to
be given up, another change here, makes it void.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field

from pfsmount.config import MIB
from pfsmount.errors import NotFound
from pfsmount.ids import EntryName, ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.hashing import file_hasher, hash_bytes
from pfsmount.repo.conflicts import ConflictSide, PathConflict, fingerprint, side_of
from pfsmount.repo.overlay_nodes import KIND_WORDS, Change, Node, NodeKind, Touched, node_kind
from pfsmount.repo.worktree_commit import WorktreeCommit
from pfsmount.repo.worktree_replay import AddedNode, DirectoryState, NextState
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.merge import Reason, Resolution, name_beside, only_times


@dataclass(slots=True)
class Move:
    """What a move of the base to `head` comes to."""

    head: ObjectId | None
    root: Entry
    """The root directory of `head`."""
    after: NextState = field(default_factory=NextState)
    conflicts: list[PathConflict] = field(default_factory=list)
    """All, with the resolution of those that are settled."""
    prints: dict[RepoPath, tuple[str, str]] = field(default_factory=dict)
    """What a decision about each is about: when mine stays, and when it is given up."""

    @property
    def open(self) -> int:
        """How many conflicts are not settled: with any, the worktree stays on its base."""
        return sum(conflict.resolution is None for conflict in self.conflicts)


class WorktreeRebase(WorktreeCommit):
    """A worktree that can be brought onto another base."""

    def plan_move(self, head: ObjectId | None, new_root: Entry) -> Move:
        """Compare what is changed here with what differs between base and `head`; changes nothing.

        Reads only what the journal speaks of and the store, so any thread may do it while nobody changes the worktree.
        """
        move = Move(head, new_root)
        old_root = self.root.entry
        assert old_root is not None
        if self.root.change is None or old_root == new_root:
            return move
        stack: list[tuple[Node, RepoPath, Entry | None, Entry]] = [(self.root, (), old_root, new_root)]
        while stack:
            directory, path, old, new = stack.pop()
            if old is None or _attributes(old) != _attributes(new):
                self._merge_attributes(move, directory, path, old, new)
            if old is None or old.id != new.id:
                stack.extend(self._merge_names(move, directory, path, old, new))
        return move

    def _merge_attributes(self, move: Move, directory: Node, path: RepoPath, old: Entry | None, new: Entry) -> None:
        change = directory.change
        assert change is not None
        touched = change.touched
        if old is None:  # both sides made it: ours stays as it is, on top of theirs
            differs = Touched.MODE if change.mode != new.mode else Touched.NONE
            differs |= Touched.OWNER if (change.uid, change.gid) != (new.uid, new.gid) else Touched.NONE
            if differs:
                move.after.touched[directory] = change.touched | differs
            return
        theirs = Touched.NONE
        theirs |= Touched.MODE if old.mode != new.mode else Touched.NONE
        theirs |= Touched.OWNER if (old.uid, old.gid) != (new.uid, new.gid) else Touched.NONE
        theirs |= Touched.XATTRS if (old.xattrs, old.xattrs_id) != (new.xattrs, new.xattrs_id) else Touched.NONE
        if theirs & touched:
            how = self._conflict(move, path, Reason.ATTRIBUTES, old, directory, new)
            if how is Resolution.THEIRS:
                move.after.touched[directory] = touched = touched & ~theirs
                if theirs & Touched.XATTRS:
                    move.after.plain.add(directory)
        mode = change.mode if touched & Touched.MODE else new.mode
        uid, gid = (change.uid, change.gid) if touched & Touched.OWNER else (new.uid, new.gid)
        move.after.attributes[directory] = (mode, uid, gid)

    def _merge_names(
        self, move: Move, directory: Node, path: RepoPath, old: Entry | None, new: Entry
    ) -> list[tuple[Node, RepoPath, Entry | None, Entry]]:
        change = directory.change
        assert change is not None
        state = DirectoryState(new, dict(change.names), set(change.hidden))
        move.after.directories[directory] = state
        below = []
        for name in sorted(change.hidden.union(change.names)):
            before = None if old is None else lookup(self.objects, old.id, name)
            after = lookup(self.objects, new.id, name)
            if before == after:
                continue
            node = change.names.get(name)
            here = (*path, EntryName(name))
            if node is not None and _goes_into(node, before, after):
                assert after is not None
                below.append((node, here, before, after))
                state.hidden.add(name)
                move.after.in_place[node] = True
            elif node is None and after is None:
                state.hidden.discard(name)
            elif node is not None and _gives_way(node, before):
                del state.names[name]
                state.hidden.discard(name)
                move.after.stale.append(node)
            elif node is not None and after is not None and self._has_same(node, after):
                self._discard_name(directory, name, move.after, stale=True)
            elif before is None or after is None or not only_times(self.objects, before, after):
                how = self._conflict(move, here, _reason(node, before, after), before, node, after)
                if how is not None:
                    self._settle_name(move, directory, EntryName(name), after, how)
        return below

    # Conflicts

    def _conflict(
        self, move: Move, path: RepoPath, reason: Reason, old: Entry | None, node: Node | None, new: Entry | None
    ) -> Resolution | None:
        """Name a conflict, and say how it is settled."""
        mine = None if node is None else self._side(node)
        kept = fingerprint(path, reason, new)
        given_up = fingerprint(path, reason, new, mine) + self._print_below(node)
        move.prints[path] = (kept, given_up)
        how, fits = self.decisions.get(path, (None, ""))
        if fits != (given_up if how is Resolution.THEIRS else kept):
            how = None
        move.conflicts.append(PathConflict(path, reason, side_of(old), mine, side_of(new), how))
        return how

    def _side(self, node: Node) -> ConflictSide:
        change, entry = node.change, node.entry
        assert change is not None
        if change.data is not None:
            # by path: this may run beside reads that open and close the descriptors
            stat = os.stat(self.data.path / str(change.number))
            return ConflictSide(KIND_WORDS[node.kind], stat.st_size, change.mode, stat.st_mtime_ns, None)
        size = 0 if entry is None or node.kind is NodeKind.DIRECTORY else entry.size
        id = None if entry is None or node.kind is NodeKind.DIRECTORY else entry.content
        return ConflictSide(KIND_WORDS[node.kind], size, change.mode, change.mtime_ns, id)

    def _print_below(self, node: Node | None) -> str:
        """What is changed below a directory that may be given up."""
        stack = [] if node is None or node.kind is not NodeKind.DIRECTORY else [node]
        parts: list[object] = []
        while stack:
            change = stack.pop().change
            assert change is not None
            parts.append(sorted(change.hidden - change.names.keys()))
            for name, child in sorted(change.names.items()):
                parts += [name, self._side(child)]
                if child.kind is NodeKind.DIRECTORY:
                    stack.append(child)
        return hash_bytes(repr(parts).encode("ascii")).hex()[:16] if parts else ""

    def _has_same(self, node: Node, after: Entry) -> bool:
        """True for a file that was written here and has, with all attributes, what the branch has there now: the same change on both sides."""
        change = node.change
        if (
            change is None
            or node.kind is not NodeKind.FILE
            or after.kind is not Kind.FILE
            or node.opens  # whoever goes on writing must not find it gone
            or change.data is None
            or change.data.extents is not None
            or change.places is not None
            or change.xattrs
            or (change.mode, change.uid, change.gid, b"", None) != _attributes(after)
        ):
            return False
        key = (change.number, change.version)
        path = self.data.path / str(change.number)
        if os.stat(path).st_size != after.size:
            return False
        if key not in self._hashes:
            hasher = file_hasher()
            with path.open("rb") as file:
                while block := file.read(MIB):
                    hasher.update(block)
            self._hashes[key] = ObjectId(hasher.digest())
        return self._hashes[key] == after.id

    _hashes: dict[tuple[int, int], ObjectId]

    def _settle_name(self, move: Move, directory: Node, name: EntryName, theirs: Entry | None, how: Resolution) -> None:
        """Let the next state have at a name what was decided."""
        after = move.after
        state = after.directories[directory]
        node = state.names.get(name)
        if how is Resolution.THEIRS or (how is Resolution.BOTH and node is None):
            self._discard_name(directory, name, after, stale=True)
            return
        if theirs is None:
            state.hidden.discard(name)
        else:
            state.hidden.add(name)
        if node is not None and after.primary(node) == (directory, name):
            after.in_place[node] = False  # it shows what the old base has, not the new one
        if how is Resolution.BOTH and theirs is not None:
            beside = name_beside(
                name,
                self.branch_label,
                lambda other: self._is_taken(move, state, directory, other),
                is_directory=theirs.is_directory,
            )
            after.added.append(AddedNode(directory, beside, theirs, self.number()))

    branch_label: bytes
    """The branch, as it stands in the names of files that come beside others."""

    def _is_taken(self, move: Move, state: DirectoryState, directory: Node, name: EntryName) -> bool:
        added = any(one.directory is directory and one.name == name for one in move.after.added)
        there = state.entry is not None and lookup(self.objects, state.entry.id, name) is not None
        return added or there or name in state.names

    # Giving up changes

    def plan_discard(self, paths: Collection[RepoPath] | None = None) -> NextState:
        """What is left when all changes, or those at and below `paths`, are given up. Raises NotFound for a path without changes."""
        after = NextState(decisions=dict(self.decisions))
        if self.root.change is None:
            return after
        for path in [()] if paths is None else paths:
            chain = [self.root]
            for name in path[:-1]:
                node = after.directory(chain[-1]).names.get(name)
                if node is None or node.kind is not NodeKind.DIRECTORY:
                    raise _no_change(path)
                chain.append(node)
            state = after.directory(chain[-1])
            if path and path[-1] not in state.names and path[-1] not in state.hidden:
                raise _no_change(path)
            if path:
                self._discard_name(chain[-1], path[-1], after)
            else:
                self._discard_below(self.root, after)
                after.clean.append(self.root)
            self._prune(chain, after)
        return after

    def _own_state(self, directory: Node, after: NextState) -> DirectoryState:
        state = after.directories.get(directory)
        if state is None:
            change = directory.change
            assert change is not None
            state = DirectoryState(directory.entry, dict(change.names), set(change.hidden))
            after.directories[directory] = state
        return state

    def _discard_below(self, directory: Node, after: NextState) -> None:
        state = self._own_state(directory, after)
        for name in sorted(state.hidden.union(state.names)):
            self._discard_name(directory, name, after)

    def _discard_name(self, directory: Node, name: bytes, after: NextState, *, stale: bool = False) -> None:
        """Give up what is at a name and everything below it. `stale`: the base has something else there now."""
        stack = [(directory, name)]
        while stack:
            directory, name = stack.pop()
            state = self._own_state(directory, after)
            node = state.names.pop(name, None)
            state.hidden.discard(name)
            after.effects.entries.append((directory.ino, name))
            after.effects.attributes.append(directory.ino)
            if node is None or not self._discard_place(node, (directory, name), after, stale):
                continue
            if node.kind is NodeKind.DIRECTORY:
                below = self._own_state(node, after)
                stack.extend((node, child) for child in below.hidden.union(below.names))

    def _discard_place(self, node: Node, place: tuple[Node, bytes], after: NextState, stale: bool) -> bool:
        """Give up one name of a node; False when it has others."""
        change = node.change
        assert change is not None
        if change.places is not None:
            left = [other for other in after.places.get(node, change.places) if other != place]
            if left and place == after.primary(node):
                after.in_place[node] = False  # what is left is not where the base has it
            after.places[node] = left
            if left:
                return False
        if change.in_place and change.data is None and not stale:
            after.clean.append(node)
            after.effects.attributes.append(node.ino)
        else:
            after.stale.append(node)
        return True

    def _prune(self, chain: list[Node], after: NextState) -> None:
        """Directories on the way that have no changes left show the base again."""
        for at in range(len(chain) - 1, -1, -1):
            directory = chain[at]
            state, change = self._own_state(directory, after), directory.change
            assert change is not None
            if state.names or state.hidden or change.touched or not after.is_in_place(directory):
                return
            if at:
                above = self._own_state(chain[at - 1], after)
                above.names.pop(directory.name, None)
                above.hidden.discard(directory.name)
            if directory not in after.clean:
                after.clean.append(directory)
            after.effects.attributes.append(directory.ino)


def _reason(node: Node | None, before: Entry | None, after: Entry | None) -> Reason:
    if node is None or after is None:
        return Reason.DELETED
    if node.kind != node_kind(after):
        return Reason.KIND
    return Reason.ADDED if before is None else Reason.CONTENT


def _attributes(entry: Entry) -> tuple[object, ...]:
    return entry.mode, entry.uid, entry.gid, entry.xattrs, entry.xattrs_id


def _goes_into(node: Node, before: Entry | None, after: Entry | None) -> bool:
    """True for a directory on both sides: what is in it is compared name by name."""
    if node.kind is not NodeKind.DIRECTORY or after is None or not after.is_directory:
        return False
    assert node.change is not None
    if before is None:
        return node.entry is None  # both sides made it
    return before.is_directory and node.change.in_place


def _gives_way(node: Node, before: Entry | None) -> bool:
    """True for a file of which at most the time was set here."""
    change: Change | None = node.change
    if change is None or before is None or node.kind is NodeKind.DIRECTORY:
        return False
    only_time = not change.touched & ~Touched.TIME and change.places is None
    return change.in_place and change.data is None and only_time


def _no_change(path: RepoPath) -> NotFound:
    return NotFound(f"'{display(path_bytes(path))}' has no uncommitted change")
