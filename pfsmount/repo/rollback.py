"""Moving a branch to another of its commits, and back again.

A branch is a pointer, so nothing is copied or lost: the commits that it leaves stay readable by id, and its move is in the reflog. The
move is one transaction that checks where the branch was. Uncommitted work is not touched: it follows the branch as it does
after anybody's commit, and where both changed one path it stays as it is, in conflict, until somebody decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId
from pfsmount.repo.commit import Commit, first_parents
from pfsmount.repo.history import common_ancestor
from pfsmount.repo.moves import last_moves
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store


@dataclass(frozen=True, slots=True)
class Reset:
    """A move of a branch: from where to where, and what is on one side only. None: no commit."""

    old: Commit | None
    new: Commit | None
    base: Commit | None
    """The last commit that both have."""

    @property
    def left_behind(self) -> int:
        """How many commits were on the branch and are not any more."""
        return _count(self.old, self.base)

    @property
    def regained(self) -> int:
        """How many commits are on the branch that were not before."""
        return _count(self.new, self.base)

    def commits_left(self, store: Store) -> Iterator[Commit]:
        """The commits that were left behind, newest first."""
        for commit in first_parents(store.objects, self.old):
            if self.base is not None and commit.height <= self.base.height:
                return
            yield commit


def _count(tip: Commit | None, base: Commit | None) -> int:
    return (-1 if tip is None else tip.height) - (-1 if base is None else base.height)


def reset(store: Store, repo: str, branch: str, new: Commit | None, *, why: str = "reset") -> Reset:
    """Move a branch to a commit of its repo, or to none. Raises NotFound, Conflict (it moved meanwhile); then nothing has changed."""
    head = store.head(repo, branch)
    old = None if head is None else store.read_commit(head)
    base = None if old is None or new is None else common_ancestor(store.objects, old, new)
    if old != new:
        id = None if new is None else new.id
        store.set_ref(repo, RefKind.BRANCH, branch, id, expected=head, why=why)
    return Reset(old, new, base)


def commit_before(store: Store, repo: str, branch: str) -> ObjectId | None:
    """Where a branch was before its last move; None: it had no commit. Raises NotFound when it has not moved since it was made."""
    ref = store.ref(repo, RefKind.BRANCH, branch)
    if ref is None:
        store.head(repo, branch)  # raises NotFound with the nearest name
        raise AssertionError("unreachable")
    moves = last_moves(store, repo, ref)
    last = next(moves, None)
    if last is not None and last.old is not None:
        return last.old
    earlier = None if last is None else next(moves, None)
    if earlier is None or earlier.deletes:
        raise NotFound(
            f"{repo}@{branch} has not moved since it was made", hint=f"'pfs log {repo}@{branch}' shows its commits"
        )
    return None
