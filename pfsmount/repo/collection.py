"""Garbage collection: what no root reaches is dropped, and its space given back, while others read, write and mount.

    horizon → roots → mark → plan                                   `plan`, changes nothing
    expired results, job refs → dead commits → the rest → space      `carry_out`

Every change is a short transaction, and a kill between any two leaves a consistent store; docs/CONCURRENCY.md has the proof. In short:

1. What was published behind the horizon is alive, and so is what running batches have published (`objects.holds`).
2. A transaction that drops anything compares `RootsVersion` with the one that was marked, and marks what has become reachable since before it drops.
   So something that a commit has used again before the transaction is alive, and
3. a commit after it sees that the counter `gc` has moved, and looks up again what it uses (`Batch.publish`).
4. All dead commits go in one transaction, before anything else does, so a commit that is there is there with its history and its tree.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pfsmount.errors import Busy, Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.holds import Held, commits_stay, read_holds
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.marks import Marks
from pfsmount.objects.reserve import reserve_lent
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.objects.sweep import (
    Amount,
    Change,
    Freed,
    Horizon,
    Survey,
    Sweep,
    delete_leftovers,
    free_space,
    plan_space,
    withdraw_leftovers,
)
from pfsmount.repo import reflog
from pfsmount.repo.commit import load_commit
from pfsmount.repo.reachable import Missing, Reachable
from pfsmount.repo.refs import RefMove, move_ref
from pfsmount.repo.removal import delete_abandoned
from pfsmount.repo.roots import GC_WHY, Roots, RootsVersion, gather_roots, live_results, result_rows, roots_version
from pfsmount.repo.store import Store

_NS = 1_000_000_000
_ROWS_AT_ONCE = 5000
_TRIES = 4

Progress = Callable[[str, int], None]
"""Is told what is being done, and how far it is (objects, or bytes freed)."""


def _ignore(what: str, count: int) -> None:
    """Nobody watches."""


@dataclass(slots=True)
class GcPlan:
    """What a collection would do."""

    kept: dict[str, Amount] = field(default_factory=dict)
    """Why → what only that keeps, of what was not kept for a reason before it."""
    dead: dict[RecordKind, Amount] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    """Failed jobs whose refs have expired."""
    results: int = 0
    """Results of datums that have not been used for long enough."""
    frees: int = 0
    """Bytes on disk."""

    @property
    def total(self) -> Amount:
        """All that is dead."""
        return Amount(sum(one.objects for one in self.dead.values()), sum(one.size for one in self.dead.values()))


@dataclass(slots=True)
class GcResult:
    """What a collection has done."""

    plan: GcPlan
    freed: int
    """Bytes."""
    before: int
    """What segments took on disk, in bytes; `after` likewise."""
    after: int


@contextmanager
def collecting(store: Store) -> Iterator[None]:
    """Be the only one who collects. On a full disk what was kept back for it is given back meanwhile. Raises Busy."""
    path = store.path / "run" / "gc"
    with disk_errors("starting a garbage collection"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("a garbage collection runs already", hint="wait for it to end") from None
        with reserve_lent(store.path):
            yield
    finally:
        os.close(fd)


class Collection:
    """One garbage collection; to be used inside `collecting`. First `plan`, then perhaps `carry_out`."""

    def __init__(self, store: Store, keep_s: int, progress: Progress | None = None) -> None:
        """`keep_s`: for how many seconds the reflog, unused results and failed jobs keep what they name."""
        self._store, self._objects = store, store.objects
        self._since_ns = time.time_ns() - keep_s * _NS
        self._report: Progress = progress or _ignore
        self._marks = Marks(self._objects)
        self._missing: list[Missing] = []
        self._weak = False
        self._reachable = Reachable(
            self._objects, self._marks, self._on_missing, lambda count: self._report("marking", count)
        )
        self._held = Held()
        self._version = RootsVersion(-1, -1)
        self._plan = GcPlan()
        self._roots: Roots | None = None
        self._survey = Survey()
        self._count = 0
        self._seen: dict[str, int] = {}
        """Which of the ids that batches hold are marked."""

    def _on_missing(self, missing: Missing) -> None:
        if not self._weak:
            self._missing.append(missing)

    # Planning

    def plan(self) -> GcPlan:
        """What is alive, and what would go. Changes nothing. Raises Corrupt when something that is needed is missing or damaged."""
        self._horizon = Horizon(self._objects)
        self._held = read_holds(self._store.path)
        self._horizon.respect(self._held)
        self._mark(self._plan.kept)
        with self._objects.index.read() as txn:
            self._mark_held_ids(txn)
        assert self._roots is not None
        self._plan.jobs = [ref.name for _, ref in self._roots.expired_jobs]
        self._plan.results = sum(1 for row in result_rows(self._store) if row.used_s * _NS < self._since_ns)
        self._sweep = Sweep(self._objects, self._marks, self._horizon, self._on_rows)
        self._survey = self._sweep.survey()
        self._plan.dead = self._survey.dead
        space = plan_space(self._objects, self._horizon, self._survey.coverage)
        self._plan.frees = sum(one.size for one in space)
        return self._plan

    def _on_rows(self, count: int) -> None:
        self._count += count
        self._report("looking through the index", self._count)

    def _mark(self, kept: dict[str, Amount]) -> None:
        """Mark all that is alive now. Raises Corrupt."""
        self._version = roots_version(self._store)
        roots = self._roots = gather_roots(self._store, self._since_ns)
        with self._counting(kept, "branches, tags and jobs"):
            self._reachable.commits(roots.refs)
        with self._counting(kept, "uncommitted work"):
            self._reachable.commits(roots.worktrees)
            self._reachable.entries(roots.staged)
        with self._counting(kept, "what is open now"):
            self._reachable.commits(roots.held)
        with self._counting(kept, "results of datums"):
            self._reachable.entries(live_results(self._store, self._since_ns))
        with self._counting(kept, "the reflog"):
            self._weak = True
            try:
                self._reachable.commits(roots.reflog)
            finally:
                self._weak = False
        self._refuse_damage()

    @contextmanager
    def _counting(self, kept: dict[str, Amount], why: str) -> Iterator[None]:
        reach = self._reachable
        objects, size = reach.count, reach.size
        yield
        kept[why] = Amount(reach.count - objects, reach.size - size)

    def _refuse_damage(self) -> None:
        if self._missing:
            first = self._missing[0]
            count = len({missing.id for missing in self._missing})
            what = f"the {first.kind.name.lower()} {first.id.hex()[:16]}" + (
                f" and {count - 1} more" if count > 1 else ""
            )
            raise Corrupt(
                f"{what} that versions need cannot be read; nothing was collected, so that what is left can help to repair",
                hint="'pfs fsck' says which versions and files are affected",
            )

    # Carrying out

    def carry_out(self) -> GcResult:
        """Do what `plan` found. Others may read, write and mount. Raises Corrupt, NoSpace, PermissionDenied; what was done until then stays done."""
        before = disk_usage(self._store)
        self._expire_jobs()
        self._drop_results()
        self._drop_commits()
        self._count = 0
        survey = self._sweep.drop(self._in_step)
        self._drop_reflog()
        withdraw_leftovers(self._objects, self._horizon, self._held)
        delete_abandoned(self._store)
        freed = delete_leftovers(self._objects, self._horizon.last)
        space: list[Freed] = plan_space(self._objects, self._horizon, survey.coverage)
        freed += free_space(self._objects, space, lambda size: self._report("freeing space", size))
        return GcResult(self._plan, freed, before, disk_usage(self._store))

    def _in_step(self, change: Change) -> None:
        """Make a change in a transaction in which all that is alive is marked.

        Nobody finds anything to use again meanwhile without it being dropped already, or marked. Mostly nothing has happened since the last look. Where others commit all the time, what is new is at last marked inside the transaction:
        it is little, since all the rest is marked already.
        """
        for _ in range(_TRIES):
            with commits_stay(self._store.path, exclusive=True), self._objects.index.write() as txn:
                if RootsVersion.read(txn) == self._version:
                    self._mark_held_ids(txn)
                    change(txn)
                    return
            self._mark({})
        with commits_stay(self._store.path, exclusive=True), self._objects.index.write() as txn:
            self._mark({})
            self._mark_held_ids(txn)
            change(txn)

    def _mark_held_ids(self, txn: Transaction) -> None:
        """Mark what batches that cannot be repeated have begun to use again since the last call. What these objects name is among the ids."""
        ids = read_holds(self._store.path, self._seen).ids
        for at in range(0, len(ids), 32):
            raw = txn.get(Table.OBJECTS, bytes(ids[at : at + 32]))
            if raw is not None:
                self._marks.add(Location.decode(raw))

    def _expire_jobs(self) -> None:
        """Delete the refs of failed jobs that are too old."""
        assert self._roots is not None
        for repo, ref in self._roots.expired_jobs:
            with self._store.change_refs() as txn:
                move = RefMove(repo, ref.kind, ref.name, None, ref.commit)
                move_ref(txn, move, who=self._store.author, why=GC_WHY, time_ns=time.time_ns())

    def _drop_results(self) -> None:
        keys: list[bytes] = []
        for row in result_rows(self._store):
            if row.used_s * _NS < self._since_ns:
                keys.append(row.key)
                if len(keys) == _ROWS_AT_ONCE:
                    self._drop_result_rows(keys)
                    keys = []
        if keys:
            self._drop_result_rows(keys)

    def _drop_result_rows(self, keys: list[bytes]) -> None:
        with self._objects.index.write() as txn:
            txn.increment(b"gc")
            for key in keys:
                raw = txn.get(Table.RESULTS, key)
                if raw is not None and int.from_bytes(raw[-8:], "big") * _NS < self._since_ns:
                    txn.delete(Table.RESULTS, key)

    def _drop_commits(self) -> None:
        """Drop all dead commits at once. From here on whoever has one of them open has registered that, and whoever looks for one finds none."""
        dead = self._survey.commits
        if not dead:
            return
        rows = self._rows_of(dead)
        descends = self._descends_of(dead)

        def change(txn: Transaction) -> None:
            new = read_holds(self._store.path).commits.difference(self._roots.held if self._roots else ())
            if new:
                self._reachable.commits(new)
            gone = set()
            txn.increment(b"gc")
            for id in dead:
                raw = txn.get(Table.OBJECTS, id)
                if raw is not None and Location.decode(raw) not in self._marks:
                    txn.delete(Table.OBJECTS, id)
                    gone.add(id)
            for key in rows:
                if key[-32:] in gone:
                    txn.delete(Table.COMMITS, key)
            for key in descends:
                if key[-32:] in gone:
                    txn.delete(Table.DESCENDS, key)

        self._in_step(change)

    def _rows_of(self, dead: list[ObjectId]) -> list[bytes]:
        """The rows of these commits in `commits`."""
        wanted = set(dead)
        with self._objects.index.read() as txn:
            return [key for key, _ in txn.scan(Table.COMMITS) if key[-32:] in wanted]

    def _descends_of(self, dead: list[ObjectId]) -> list[bytes]:
        """The rows that say that these commits were made from others."""
        keys = []
        for id in dead:
            try:
                provenance = load_commit(self._objects, id).provenance or {}
                keys += [bytes.fromhex(source["commit"]) + id for source in provenance.get("inputs", ())]
            except (Corrupt, NotFound, KeyError, TypeError, ValueError):
                continue  # nobody needs it, so it may be as damaged as it likes
        return keys

    def _drop_reflog(self) -> None:
        """Drop lines that are too old, and surely in refs.log."""
        assert self._roots is not None
        last = min(self._roots.reflog_end, reflog.last_number(self._store.path / "refs.log"))
        while True:
            with self._objects.index.write() as txn:
                keys: list[bytes] = []
                for key, _ in txn.scan(Table.REFLOG):
                    if int.from_bytes(key, "big") > last or len(keys) == _ROWS_AT_ONCE:
                        break
                    keys.append(key)
                for key in keys:
                    txn.delete(Table.REFLOG, key)
            if len(keys) < _ROWS_AT_ONCE:
                return


def disk_usage(store: Store) -> int:
    """Bytes that segments take on disk."""
    with os.scandir(store.objects.directory) as files:
        return sum(file.stat().st_blocks * 512 for file in files)
