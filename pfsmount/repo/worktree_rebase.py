"""When the branch moved under a worktree, and when changes are given up.

Changes of both sides at different paths go together. At the same path the worktree stays where it is, on its old base, and the paths are
named: nothing is lost, and a commit is refused until one side gives way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from pfsmount.errors import NotFound
from pfsmount.ids import EntryName, ObjectId, RepoPath, display, path_bytes
from pfsmount.repo.overlay_nodes import Change, Node, NodeKind, Touched
from pfsmount.repo.worktree_commit import WorktreeCommit
from pfsmount.repo.worktree_replay import DirectoryState, NextState
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry


@dataclass(slots=True)
class Move:
    """What a move of the base to `head` comes to."""

    head: ObjectId | None
    root: Entry
    """The root directory of `head`."""
    after: NextState = field(default_factory=NextState)
    conflicts: list[RepoPath] = field(default_factory=list)


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
        if theirs & change.touched:
            move.conflicts.append(path)
            return
        mode = change.mode if change.touched & Touched.MODE else new.mode
        uid, gid = (change.uid, change.gid) if change.touched & Touched.OWNER else (new.uid, new.gid)
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
            elif before is None or after is None or not _only_times(before, after):
                move.conflicts.append(here)
        return below

    # Giving up changes

    def plan_discard(self, paths: Collection[RepoPath] | None = None) -> NextState:
        """What is left when all changes, or those at and below `paths`, are given up. Raises NotFound for a path without changes."""
        after = NextState()
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

    def _discard_name(self, directory: Node, name: bytes, after: NextState) -> None:
        """Give up what is at a name and everything below it."""
        stack = [(directory, name)]
        while stack:
            directory, name = stack.pop()
            state = self._own_state(directory, after)
            node = state.names.pop(name, None)
            state.hidden.discard(name)
            after.effects.entries.append((directory.ino, name))
            after.effects.attributes.append(directory.ino)
            if node is None or not self._discard_place(node, (directory, name), after):
                continue
            if node.kind is NodeKind.DIRECTORY:
                below = self._own_state(node, after)
                stack.extend((node, child) for child in below.hidden.union(below.names))

    def _discard_place(self, node: Node, place: tuple[Node, bytes], after: NextState) -> bool:
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
        if change.in_place and change.data is None:
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


def _only_times(before: Entry, after: Entry) -> bool:
    return before.same_content(after) and _attributes(before) == _attributes(after)


def _no_change(path: RepoPath) -> NotFound:
    return NotFound(f"'{display(path_bytes(path))}' has no uncommitted change")
