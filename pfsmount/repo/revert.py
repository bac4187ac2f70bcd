"""Undoing what commits changed, in new commits: a three-way merge back from each commit to its parent.

The commits are undone in the order given, each by a commit of its own, and all of them are published in one transaction: a conflict in any of them
leaves the branch as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfsmount.errors import Collected, Conflict, NotFound
from pfsmount.objects.batch import Batch
from pfsmount.repo.commit import Commit
from pfsmount.repo.conflicts import PathConflict, path_conflict
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from pfsmount.tree.directory import EMPTY_DIRECTORY
from pfsmount.tree.edit import replace_contents
from pfsmount.tree.entry import Entry
from pfsmount.tree.merge import Resolution, carry_out, only_times, plan_merge

_TRIES = 100


@dataclass(frozen=True, slots=True)
class RevertReport:
    """What a revert came to. With conflicts, nothing has changed."""

    head: Commit
    """The branch's head now."""
    made: tuple[Commit, ...] = ()
    """The new commits, oldest first."""
    unchanged: tuple[Commit, ...] = ()
    """Commits that there was nothing to undo of: it was undone before."""
    refused: Commit | None = None
    """The commit that could not be undone."""
    conflicts: tuple[PathConflict, ...] = ()
    """Why: mine is what the branch has, theirs what was before the commit."""


def revert(
    store: Store,
    repo: str,
    branch: str,
    commits: Sequence[Commit],
    *,
    message: str | None = None,
    side: Resolution | None = None,
) -> RevertReport:
    """Undo commits on a branch, again when it moves meanwhile. `side` settles conflicts; a merge is undone towards its first parent.

    Raises NotFound (the branch has no commits), Conflict (the branch keeps moving), NoSpace; then nothing has changed.
    """
    with Turn(store.path, store.repo(repo), branch) as turn:
        for attempt in range(_TRIES):
            turn.wait()
            try:
                return _once(store, repo, branch, commits, message, side)
            except (Conflict, Collected):
                if attempt + 1 == _TRIES:
                    raise
                turn.lost()
    raise AssertionError("unreachable")


def _once(
    store: Store, repo: str, branch: str, commits: Sequence[Commit], message: str | None, side: Resolution | None
) -> RevertReport:
    head = store.head(repo, branch)
    if head is None:
        raise NotFound(f"{repo}@{branch} has no commits, so there is nothing to undo")
    info = store.repo(repo)
    first = tip = store.read_commit(head)
    moves: list[tuple[RefMove, Commit]] = []
    unchanged = []
    with store.objects.batch() as batch:
        for commit in commits:
            plan = plan_merge(
                batch, commit.tree, tip.tree, _before(store, commit), decide=lambda conflict: side, label=b"before"
            )
            if plan.conflicts:
                found = sorted((path_conflict(one) for one in plan.conflicts), key=lambda conflict: conflict.path)
                return RevertReport(first, refused=commit, conflicts=tuple(found))
            tree = carry_out(batch, plan)
            if only_times(batch, tip.tree, tree):
                unchanged.append(commit)
                continue
            made = _commit(store, batch, tree, tip, commit, message)
            moves.append((RefMove(info, RefKind.BRANCH, branch, made.id, tip.id), made))
            tip = made
        if moves:
            store.publish(batch, moves, why="revert")
    return RevertReport(tip, tuple(made for _, made in moves), tuple(unchanged))


def _before(store: Store, commit: Commit) -> Entry:
    if commit.parents:
        return store.read_commit(commit.parents[0]).tree
    return replace_contents(commit.tree, EMPTY_DIRECTORY)


def _commit(store: Store, batch: Batch, tree: Entry, tip: Commit, undone: Commit, message: str | None) -> Commit:
    title = undone.message.split("\n", 1)[0]
    return store.make_commit(
        batch,
        tree=tree,
        parents=[tip.id],
        message=message or f'revert "{title}"\n\nThis undoes commit {undone.id.hex()}.',
        author=None,
        origin={"how": "revert", "commit": undone.id.hex()},
    )
