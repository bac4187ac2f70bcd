"""The uncommitted changes on top of one branch head: following the branch, committing, discarding, status.

What lies on disk, and who may write there, is in `repo.worktree_loading`. For one thread at a time; `docs/CONCURRENCY.md` says which parts may run beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pfsmount.errors import Collected, Conflict, NotFound
from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.open_segments import seal_adopted
from pfsmount.repo.commit import Commit
from pfsmount.repo.conflicts import select
from pfsmount.repo.journal import (
    Journal,
    name_text,
)
from pfsmount.repo.overlay_nodes import Effects
from pfsmount.repo.refs import RefKind, RefMove, WorktreeState, put_worktree
from pfsmount.repo.turns import Turn
from pfsmount.repo.worktree_commit import Cut
from pfsmount.repo.worktree_loading import WorktreeLoading
from pfsmount.repo.worktree_rebase import Move
from pfsmount.repo.worktree_replay import NextState
from pfsmount.repo.worktree_status import WorktreeStatus
from pfsmount.tree.entry import Entry
from pfsmount.tree.merge import Resolution

_TRIES = 100


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit of a worktree came to."""

    commit: Commit | None
    """None: nothing was changed."""
    unversioned: tuple[RepoPath, ...]
    """FIFOs and sockets, which stay in the worktree."""
    effects: Effects


class Worktree(WorktreeLoading):
    """One worktree as this process sees it. Make it with `open`."""

    # Following the branch

    def head(self) -> ObjectId | None:
        """The branch's head. Raises NotFound."""
        return self.store.head(self.repo.name, self.branch)

    def prepare_move(self) -> Move | None:
        """What it takes to go on to the branch's head; None when the worktree is there. May wait, and run in any thread while nobody
        changes the worktree. Raises NotFound."""
        head = self.head()
        if head == self.base or self.foreign is not None:
            return None
        return self.plan_move(head, self.root_of(head))

    def carry_out_move(self, move: Move) -> Journal | None:
        """The part of a move that is durable; see `turn`. To be followed by `finish_move`."""
        if self.journal is None or move.open:
            return None

        def publish() -> None:
            self.store.set_worktree_state(self.repo.name, self.branch, self.name, self.generation + 1, move.head)

        return self.turn(move.after, move.head, move.root, publish)

    def finish_move(self, move: Move, journal: Journal | None) -> Effects:
        """The part of a move in memory, an instant."""
        self.conflicts, self._prints = (tuple(move.conflicts), move.prints) if move.open else ((), {})
        if move.open:
            return Effects([], [])
        self.epoch += 1
        self.root.epoch = self.epoch
        if self.journal is not None:
            effects = self.apply(move.after, move.head, move.root, journal)
            self.release_if_clean()
            return effects
        self.base, self.root.entry = move.head, move.root
        return Effects([], [self.root.ino])

    def follow(self) -> Effects:
        """Go on to the branch's head if its changes and those here are at different paths; else set `conflicts`. Raises NotFound, NoSpace."""
        move = self.prepare_move()
        if move is None:
            if self.base == self.head():
                self.conflicts = ()
            return Effects([], [])
        return self.finish_move(move, self.carry_out_move(move))

    def check_conflicts(self) -> None:
        """Refuse while branch and worktree changed the same paths. Raises Conflict."""
        if self.conflicts:
            open_paths = [path_bytes(one.path) for one in self.conflicts if one.resolution is None]
            paths = [display(path) for path in open_paths]
            shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
            raise Conflict(
                f"{self.title} was changed by someone else where you changed it too: {shown}; nothing was committed or lost",
                hint=f"'pfs status {self.title}' shows both sides, "
                f"'pfs resolve {self.title}:/PATH --mine|--theirs|--both' settles them",
                paths=tuple(open_paths),
            )

    def record_decisions(self, how: Resolution, paths: Collection[RepoPath] | None) -> list[RepoPath]:
        """Settle conflicts that the last `follow` met: those at and below `paths`, or all that are open. To be followed by `follow`.

        An instant. Returns the paths. Raises NotFound for a path that is not in conflict; then nothing has changed.
        """
        among = [one.path for one in self.conflicts if paths is not None or one.resolution is None]
        chosen = select(among, paths, self.title)
        for path in chosen:
            kept, given_up = self._prints[path]
            fits = given_up if how is Resolution.THEIRS else kept
            assert self.journal is not None
            self.journal.append(["resolve", name_text(path_bytes(path)), how.value, fits])
            self.decisions[path] = (how, fits)
        return chosen

    def resolve(
        self, how: Resolution, paths: Collection[RepoPath] | None = None
    ) -> tuple[list[RepoPath], int, Effects]:
        """Settle conflicts at and below `paths`, or all; durable. When none is open any more, the worktree goes on to the branch's head.

        Returns what was settled and how many are open. Raises NotFound for a path that is not in conflict, NoSpace.
        """
        effects = self.follow()
        chosen = self.record_decisions(how, paths)
        self.fsync()
        effects.add(self.follow())
        return chosen, self.open_conflicts, effects

    @property
    def open_conflicts(self) -> int:
        """How many conflicts are not settled."""
        return sum(conflict.resolution is None for conflict in self.conflicts)

    # Turning

    def catch_up(self, after: NextState, base: ObjectId | None, root: Entry, journal: Journal | None) -> None:
        self.epoch += 1
        self.root.epoch = self.epoch
        self.unseen.add(self.apply(after, base, root, journal))
        self.release_if_clean()

    # Committing

    def finish_commit(
        self, cut: Cut, after: NextState, batch: Batch, root: Entry, message: str, author: str | None
    ) -> tuple[Commit, Journal | None]:
        """Make the commit: durable when this returns. May wait, and run in any thread while nobody changes the worktree.

        Raises Conflict when the head moved since the cut, NoSpace; then nothing has changed.
        """
        parents = () if cut.base is None else (cut.base,)
        origin = {"how": "mount", "worktree": self.name} if self.name else {"how": "mount"}
        commit = self.store.make_commit(
            batch, tree=root, parents=parents, message=message, author=author, origin=origin
        )
        move = RefMove(self.repo, RefKind.BRANCH, self.branch, commit.id, cut.base)

        def publish() -> None:
            self.store.publish(
                batch,
                [(move, commit)],
                why="commit",
                more=lambda txn: put_worktree(
                    txn, self.repo, self.branch, self.name, WorktreeState(self.generation + 1, commit.id)
                ),
            )

        return commit, self.turn(after, commit.id, root, publish)

    def commit(
        self, message: str, paths: Collection[RepoPath] | None = None, *, author: str | None = None
    ) -> CommitResult:
        """Commit all changes, or those at and below `paths`. Only for a caller that has the worktree to itself.

        Raises Conflict (with paths), NotFound (a path), Busy, NoSpace, OSError, Corrupt; then nothing is committed and nothing lost.
        """
        effects = Effects([], [])
        with self.turn_of_branch() as turn:
            for attempt in range(_TRIES):
                turn.wait()
                effects.add(self.follow())
                self.check_conflicts()
                if self.journal is None:
                    return CommitResult(None, (), effects)
                try:
                    return self._commit_once(message, paths, author, effects)
                except (Conflict, Collected):
                    if attempt + 1 == _TRIES:
                        raise
                    turn.lost()
        raise AssertionError("unreachable")

    def _commit_once(
        self, message: str, paths: Collection[RepoPath] | None, author: str | None, effects: Effects
    ) -> CommitResult:
        """Raises Conflict when the head moved, Collected when a gc came between; then nothing has changed."""
        cut = self.cut(paths)
        try:
            with self.objects.batch() as batch:
                root = self.ingest(cut, batch)
                unversioned = tuple(cut.unversioned)
                if not self.is_worth_a_commit(cut, root):
                    return CommitResult(None, unversioned, effects)
                batch.flush_if_large()
                after = self.settle(cut)
                commit, journal = self.finish_commit(cut, after, batch, root, message, author)
                effects.add(self.apply(after, commit.id, commit.tree, journal))
        finally:
            self.release_cut(cut)
            self.data.empty_trash()
        seal_adopted(self.objects, batch.adopted)
        self.release_if_clean()
        return CommitResult(commit, unversioned, effects)

    def turn_of_branch(self) -> Turn:
        """What commits here share with other writers of the branch."""
        return Turn(self.store.path, self.repo, self.branch)

    def is_worth_a_commit(self, cut: Cut, root: Entry) -> bool:
        """False when what was cut is what the base has, but for times."""
        return cut.meaningful and root != self.root.entry

    # Discarding

    def carry_out_discard(self, paths: Collection[RepoPath] | None) -> tuple[NextState, Journal | None]:
        """Plan a discard and make it durable; to be followed by `finish_discard`. Raises NotFound, NoSpace."""
        after = self.plan_discard(paths)
        base, root = self.base, self.root.entry
        assert root is not None

        def publish() -> None:
            self.store.set_worktree_state(self.repo.name, self.branch, self.name, self.generation + 1, base)

        return after, self.turn(after, base, root, publish)

    def finish_discard(self, after: NextState, journal: Journal | None) -> Effects:
        """The part of a discard in memory, an instant."""
        assert self.root.entry is not None
        self.epoch += 1
        self.root.epoch = self.epoch
        effects = self.apply(after, self.base, self.root.entry, journal)
        self.release_if_clean()
        return effects

    def discard(self, paths: Collection[RepoPath] | None = None) -> Effects:
        """Give up all changes, or those at and below `paths`. Raises NotFound for a path without changes, Busy, NoSpace."""
        if self.journal is None:
            if paths:
                raise NotFound(f"{self.title} has no uncommitted changes")
            return Effects([], [])
        effects = self.finish_discard(*self.carry_out_discard(paths))
        effects.add(self.follow())
        return effects

    # Status

    def status(self) -> WorktreeStatus:
        """How the worktree stands. May wait for the disk. Raises OSError, Corrupt."""
        reader, self.reader = self.reader, self.store.objects
        try:
            try:
                head = self.head()
            except NotFound:
                head = None
            changes = tuple(self.changes())
            return WorktreeStatus(
                self.repo.name,
                self.branch,
                self.name,
                self.base,
                head,
                changes,
                tuple(self.unversioned()),
                self.conflicts,
                self.owner(),
                self.count_times({change.path for change in changes}),
            )
        finally:
            self.reader = reader
