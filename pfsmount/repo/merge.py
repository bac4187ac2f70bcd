"""Merging one version into a branch.

A merge without conflicts is one commit with two parents: the branch's head and the version merged. Conflicts change nothing; what is
decided about them is kept in a `PendingMerge`, and the next `merge` of the same source uses each decision whose conflict is still the same.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from pfsmount.errors import Collected, Conflict, InvalidInput, NotFound
from pfsmount.ids import ObjectId, RepoPath, display
from pfsmount.objects.batch import Batch
from pfsmount.repo.commit import Commit, load_commit
from pfsmount.repo.conflicts import PathConflict, last_changes, path_conflict, select
from pfsmount.repo.merge_base import Parting, is_ancestor, merge_bases
from pfsmount.repo.pending_merge import (
    PendingMerge,
    drop_pending,
    pending_lock,
    print_of,
    read_pending,
    write_pending,
)
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from pfsmount.revision import Revision, is_commit_prefix
from pfsmount.tree.entry import Entry
from pfsmount.tree.merge import Decide, MergePlan, Resolution, carry_out, plan_merge

_TRIES = 100
_LAST_MAX = 100
"""Conflicts for which it is looked up who changed each side last."""


class MergeState(enum.Enum):
    """What a merge came to."""

    UP_TO_DATE = "up to date"
    FAST_FORWARD = "fast-forward"
    MERGED = "merged"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge came to. With CONFLICT nothing has changed but the record of the pending merge."""

    state: MergeState
    commit: Commit | None = None
    """The branch's head now."""
    conflicts: tuple[PathConflict, ...] = ()
    """Those that are open."""
    settled: int = 0
    """Conflicts that were settled by decisions."""
    dropped: tuple[RepoPath, ...] = ()
    """Decisions that were given up, because the branch or the source moved and they fitted no longer."""
    unrelated: bool = False
    """The histories have no commit in common."""


@dataclass(frozen=True, slots=True)
class PendingLook:
    """The merge that waits on a branch, as it stands against the present head."""

    source: str
    theirs: ObjectId
    who: str
    time_ns: int
    conflicts: tuple[PathConflict, ...]
    """Open ones and settled ones (with their resolution), by path."""
    dropped: tuple[RepoPath, ...]

    @property
    def open(self) -> int:
        """How many are not settled."""
        return sum(conflict.resolution is None for conflict in self.conflicts)


def merge(
    store: Store,
    repo: str,
    source: Revision,
    branch: str,
    *,
    message: str | None = None,
    side: Resolution | None = None,
    fast_forward: bool = True,
) -> MergeReport:
    """Merge a version of the repo into a branch, again when the branch moves meanwhile.

    `side` settles all conflicts at once that no decision settles. `fast_forward`: when the branch has nothing of its own, it is moved instead.
    Raises NotFound, InvalidInput (another merge waits, with decisions), Conflict (the branch keeps moving), NoSpace.
    """
    resolved = store.resolve(repo, source)
    name = f"{repo}@{resolved.branch or source}"
    if resolved.commit is None:
        raise InvalidInput(f"{name} has no commits, so there is nothing to merge")
    parting = Parting(store.objects, resolved.commit)
    run = _Merge(store, repo, name, resolved.commit, branch, message, side, fast_forward, parting)
    with Turn(store.path, resolved.repo, branch) as turn:
        for attempt in range(_TRIES):
            turn.wait()
            try:
                return run.once()
            except (Conflict, Collected):
                if attempt + 1 == _TRIES:
                    raise
                turn.lost()
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _Merge:
    store: Store
    repo: str
    source: str
    theirs: Commit
    branch: str
    message: str | None
    side: Resolution | None
    fast_forward: bool
    parting: Parting

    def once(self) -> MergeReport:
        """Raises Conflict when the head, or what was decided, moved meanwhile."""
        store = self.store
        head = store.head(self.repo, self.branch)
        mine = None if head is None else store.read_commit(head)
        pending = read_pending(store, self.repo, self.branch)
        bases = [] if mine is None else self.parting.bases(mine)
        if mine is not None and bases == [self.theirs]:
            if pending is not None and pending.source == self.source:
                drop_pending(store, self.repo, self.branch)
            return MergeReport(MergeState.UP_TO_DATE, mine)
        if pending is not None and pending.source != self.source and pending.decisions:
            raise InvalidInput(
                f"a merge of {display(pending.source)} into {self.title} waits, with decisions; nothing was changed",
                hint=f"finish it with 'pfs merge {display(pending.source)} {self.title}', or drop it with 'pfs merge --abort {self.title}'",
            )
        if mine is None or (self.fast_forward and bases == [mine]):
            why = f"merge {self.source}"
            store.set_ref(self.repo, RefKind.BRANCH, self.branch, self.theirs.id, expected=head, why=why)
            drop_pending(store, self.repo, self.branch)
            return MergeReport(MergeState.FAST_FORWARD, self.theirs)
        return self._three_way(mine, bases, pending)

    @property
    def title(self) -> str:
        return f"{self.repo}@{self.branch}"

    def _three_way(self, mine: Commit, bases: list[Commit], pending: PendingMerge | None) -> MergeReport:
        store = self.store
        with store.objects.batch() as batch:
            decide = _decider(pending, self.side)
            plan = _plan(batch, bases, mine, self.theirs, self.source, decide)
            dropped = _dropped(pending, plan)
            if plan.conflicts or (dropped and self.side is None):
                self._keep(pending, plan)
                return MergeReport(
                    MergeState.CONFLICT,
                    mine,
                    _with_last(store, mine, self.theirs, [path_conflict(one) for one in plan.conflicts]),
                    len(plan.settled),
                    dropped,
                    not bases,
                )
            commit = self._commit(batch, carry_out(batch, plan), mine, bases, plan, pending)
        drop_pending(store, self.repo, self.branch)
        return MergeReport(MergeState.MERGED, commit, (), len(plan.settled), dropped, not bases)

    def _commit(
        self,
        batch: Batch,
        tree: Entry,
        mine: Commit,
        bases: list[Commit],
        plan: MergePlan,
        pending: PendingMerge | None,
    ) -> Commit:
        message = self.message or (pending.message if pending is not None else None)
        origin: dict[str, object] = {
            "how": "merge",
            "source": self.source,
            "commit": self.theirs.id.hex(),
            "bases": [base.id.hex() for base in bases],
        }
        if plan.settled:
            origin["settled"] = len(plan.settled)
        commit = self.store.make_commit(
            batch,
            tree=tree,
            parents=[mine.id, self.theirs.id],
            message=message or f"merge {self.source} into {self.title}",
            author=None,
            origin=origin,
        )
        move = RefMove(self.store.repo(self.repo), RefKind.BRANCH, self.branch, commit.id, mine.id)
        self.store.publish(batch, [(move, commit)], why="merge")
        return commit

    def _keep(self, pending: PendingMerge | None, plan: MergePlan) -> None:
        """Record the merge with the decisions that still fit. Raises Conflict when it was settled further, or dropped, meanwhile."""
        with pending_lock(self.store, self.repo, self.branch):
            if read_pending(self.store, self.repo, self.branch) != pending:
                raise Conflict(f"the merge into {self.title} was settled or dropped by somebody else meanwhile")
            kept = {
                conflict.path: (how, print_of(conflict))
                for conflict, how in plan.settled
                if pending is not None and pending.decide(conflict) is how
            }
            message = self.message or (pending.message if pending is not None else None)
            fresh = PendingMerge(self.source, self.theirs.id, message, self.store.author, time.time_ns(), kept)
            write_pending(self.store, self.repo, self.branch, fresh)


def _decider(pending: PendingMerge | None, side: Resolution | None) -> Decide:
    if pending is None:
        return lambda conflict: side
    return lambda conflict: pending.decide(conflict) or side


def _dropped(pending: PendingMerge | None, plan: MergePlan) -> tuple[RepoPath, ...]:
    """Paths whose decisions fit no conflict any more."""
    if pending is None:
        return ()
    used = {conflict.path for conflict, _ in plan.settled if pending.decide(conflict) is not None}
    return tuple(sorted(path for path in pending.decisions if path not in used))


def _plan(
    batch: Batch, bases: list[Commit], mine: Commit, theirs: Commit, source: str, decide: Decide | None
) -> MergePlan:
    base = _base_tree(batch, bases)
    label = source.partition("@")[2]  # 'images@dev' makes 'cat~dev.jpg'
    label = label[:12] if is_commit_prefix(label) else label
    return plan_merge(batch, base, mine.tree, theirs.tree, decide=decide, label=os.fsencode(label))


def _base_tree(batch: Batch, bases: list[Commit]) -> Entry | None:
    """The version that both sides come from. Several (a criss-cross) are merged; where they differ from each other, so does any side."""
    if not bases:
        return None
    tree = bases[0].tree
    for other in bases[1:]:
        below = _base_tree(batch, merge_bases(batch, bases[0], other))
        plan = plan_merge(batch, below, tree, other.tree, decide=lambda conflict: Resolution.NEITHER)
        tree = carry_out(batch, plan)
    return tree


def _with_last(store: Store, mine: Commit, theirs: Commit, conflicts: list[PathConflict]) -> tuple[PathConflict, ...]:
    """The conflicts with who changed each side last; for the first hundred of them, because each costs look-ups in many commits."""
    paths = [conflict.path for conflict in conflicts[:_LAST_MAX]]
    ours, others = (last_changes(store.objects, side, paths) for side in (mine, theirs))
    conflicts.sort(key=lambda conflict: conflict.path)
    return tuple(
        replace(conflict, mine_last=ours.get(conflict.path), theirs_last=others.get(conflict.path))
        for conflict in conflicts
    )


# Settling


def _replan(store: Store, batch: Batch, repo: str, branch: str, pending: PendingMerge) -> MergePlan | None:
    """The merge that waits, against the present head; None when the head has it already."""
    head = store.head(repo, branch)
    theirs = load_commit(batch, pending.theirs)
    if head is None:
        return None
    mine = load_commit(batch, head)
    if is_ancestor(batch, theirs, mine):
        return None
    return _plan(batch, merge_bases(batch, mine, theirs), mine, theirs, pending.source, pending.decide)


def look(store: Store, repo: str, branch: str) -> PendingLook | None:
    """The merge that waits on a branch, or None. Raises NotFound, Corrupt."""
    pending = read_pending(store, repo, branch)
    if pending is None:
        return None
    with store.objects.batch() as batch:  # only the base of a criss-cross is written to it, and never published
        plan = _replan(store, batch, repo, branch, pending)
        if plan is None:
            return None
        conflicts = [path_conflict(conflict) for conflict in plan.conflicts]
        conflicts += [path_conflict(conflict, how) for conflict, how in plan.settled]
        mine = load_commit(batch, store.head(repo, branch) or pending.theirs)
        found = _with_last(store, mine, load_commit(batch, pending.theirs), conflicts)
        return PendingLook(pending.source, pending.theirs, pending.who, pending.time_ns, found, _dropped(pending, plan))


def resolve(
    store: Store, repo: str, branch: str, how: Resolution, paths: Collection[RepoPath] | None
) -> tuple[list[RepoPath], PendingLook]:
    """Settle conflicts of the merge that waits: those at and below `paths`, or all that are open. Durable when this returns.

    Returns what was settled and how the merge stands now. Raises NotFound (no merge waits, a path is not in conflict); then nothing has changed.
    """
    if read_pending(store, repo, branch) is None:
        raise NotFound(f"no merge into {repo}@{branch} waits to be settled")
    with pending_lock(store, repo, branch):
        pending = read_pending(store, repo, branch)
        with store.objects.batch() as batch:
            plan = None if pending is None else _replan(store, batch, repo, branch, pending)
        if pending is None or plan is None:
            raise NotFound(f"no merge into {repo}@{branch} waits to be settled")
        conflicts = {conflict.path: conflict for conflict in plan.conflicts}
        if paths is not None:  # a decision can be changed
            conflicts.update((conflict.path, conflict) for conflict, _ in plan.settled)
        chosen = select(sorted(conflicts), paths, f"{repo}@{branch}")
        for path in _dropped(pending, plan):
            pending.decisions.pop(path, None)
        for path in chosen:
            pending.decisions[path] = (how, print_of(conflicts[path]))
        write_pending(store, repo, branch, pending)
    after = look(store, repo, branch)
    if after is None:
        raise NotFound(f"the merge into {repo}@{branch} was finished or dropped meanwhile")
    return chosen, after


def abort(store: Store, repo: str, branch: str) -> None:
    """Drop the merge that waits on a branch, with what was decided. Raises NotFound when none does."""
    store.head(repo, branch)
    if not drop_pending(store, repo, branch):
        raise NotFound(f"no merge into {repo}@{branch} waits to be settled")
