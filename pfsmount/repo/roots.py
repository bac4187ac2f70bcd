"""What keeps objects alive: from here gc and fsck begin.

| root | kept |
|---|---|
| branches, tags, jobs | always; a job that failed, was stopped or interrupted: 90 days |
| worktrees | the commit under uncommitted changes, what journals name, the commit of a merge that waits |
| in use | commits that a running process has open (`objects.holds`) |
| results of datums | 90 days from their last use |
| reflog | both sides of each move of a ref in the last 90 days, deleted refs and repos included |

The reflog is a **weak** root: it says where refs were, and a commit that is gone already (an earlier gc had a shorter time; the index was rebuilt
from a log that is never shortened) is no damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.holds import read_holds
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.locks import is_path_locked
from pfsmount.repo.commit import load_commit
from pfsmount.repo.journal import journal_roots
from pfsmount.repo.pending_merge import pending_source
from pfsmount.repo.refs import RefInfo, RefKind, RepoInfo, scan_refs, worktree_bases
from pfsmount.repo.results import ResultRow
from pfsmount.repo.store import Store
from pfsmount.tree.entry import Entry

GC_WHY = "gc"
"""What the reflog says of a job's ref that gc has deleted; such a line keeps nothing."""
_ROWS_AT_ONCE = 5000
_EXPIRES = frozenset({"failed", "killed", "running", "stopping", "finishing"})
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RootsVersion:
    """Numbers that change with every change of what is reachable."""

    refs: int
    roots: int

    @classmethod
    def read(cls, txn: Transaction) -> RootsVersion:
        return cls(txn.counter(b"refs"), txn.counter(b"roots"))


@dataclass(slots=True)
class Roots:
    """All roots but the results, which are too many for memory (`live_results`)."""

    version: RootsVersion
    """From before they were gathered."""
    refs: dict[ObjectId, str] = field(default_factory=dict)
    """Commits of branches, tags and jobs → the first of their names, as `images@master`."""
    worktrees: dict[ObjectId, str] = field(default_factory=dict)
    """Commits under uncommitted work, or of a merge that waits → where."""
    staged: list[Entry] = field(default_factory=list)
    """Contents that journals of worktrees use."""
    held: set[ObjectId] = field(default_factory=set)
    """Commits that running processes have open."""
    reflog: set[ObjectId] = field(default_factory=set)
    """Commits that the reflog names and that are there."""
    expired_jobs: list[tuple[RepoInfo, RefInfo]] = field(default_factory=list)
    """Refs of jobs that no longer count."""
    reflog_end: int = 0
    """The last line of the reflog that no longer counts."""


def roots_version(store: Store) -> RootsVersion:
    """The present version. A read transaction."""
    with store.objects.index.read() as txn:
        return RootsVersion.read(txn)


def gather_roots(store: Store, since_ns: int) -> Roots:
    """All roots. What only age keeps must be from after `since_ns` (Unix time). Raises Corrupt (a journal), OSError."""
    roots = Roots(roots_version(store))
    _add_refs(store, roots, since_ns)
    _add_worktrees(store, roots)
    roots.held = read_holds(store.path).commits
    _add_reflog(store, roots, since_ns)
    return roots


def _add_refs(store: Store, roots: Roots, since_ns: int) -> None:
    with store.objects.index.read() as txn:
        found = [
            (RepoInfo.decode(name, raw), kind, ref)
            for name, raw in txn.scan(Table.REPOS)
            for kind in RefKind
            for ref in scan_refs(txn, RepoInfo.decode(name, raw), kind)
        ]
        bases = list(worktree_bases(txn))
    for repo, kind, ref in found:
        if ref.commit is None:
            continue
        if kind is RefKind.JOB and _is_expired(store, ref, since_ns):
            roots.expired_jobs.append((repo, ref))
        else:
            roots.refs.setdefault(ref.commit, f"{repo.name}@{ref.name}")
    for base, where in bases:
        roots.worktrees.setdefault(base, where)


def _is_expired(store: Store, ref: RefInfo, since_ns: int) -> bool:
    """Whether a job's ref is old, and the job neither succeeded, nor waits for a merge, nor runs."""
    assert ref.commit is not None
    try:
        origin = load_commit(store.objects, ref.commit).origin
        ended = int(origin.get("ended_ns") or origin.get("started_ns") or 0)
    except (NotFound, Corrupt, TypeError, ValueError):
        return False  # marking will say what is wrong with it
    return (
        origin.get("state") in _EXPIRES
        and ended < since_ns
        and not is_path_locked(store.path / "jobs" / ref.name / "lock")
    )


def _add_worktrees(store: Store, roots: Roots) -> None:
    """What lies in `worktrees/`, of deleted branches too: uncommitted work is never lost silently."""
    top = store.path / "worktrees"
    for directory in (place for repo in top.iterdir() if repo.is_dir() for place in repo.iterdir() if place.is_dir()):
        where = str(directory.relative_to(top))
        merged = pending_source(directory)
        if merged is not None:
            roots.worktrees.setdefault(merged, where)
        # An owner may turn to the next generation meanwhile: what is then in the new journal was in the old one, or is in a tree that this turn
        # has made a base or a head, which the version tells.
        for path in directory.glob("journal.*"):
            if path.suffix == ".torn":
                continue
            try:
                base, entries = journal_roots(path)
            except FileNotFoundError:
                continue
            if base is not None:
                roots.worktrees.setdefault(base, where)
            roots.staged += entries


def _add_reflog(store: Store, roots: Roots, since_ns: int) -> None:
    """Read backwards: lines are in the order of their numbers, and nearly in that of their times."""
    last = roots.version.refs
    known: set[ObjectId] = set()
    while last > 0 and not roots.reflog_end:
        with store.objects.index.read() as txn:
            for n in range(last, max(last - _ROWS_AT_ONCE, 0), -1):
                raw = txn.get(Table.REFLOG, n.to_bytes(8, "big"))
                line: dict[str, Any] = {"t": 0} if raw is None else json.loads(raw)
                if line["t"] < since_ns:
                    roots.reflog_end = n
                    break
                if line.get("why") != GC_WHY:
                    ids = (line.get("old"), line.get("new"))
                    known.update(ObjectId(bytes.fromhex(id)) for id in ids if id is not None)
            there = txn.known(Table.OBJECTS, sorted(known))
        roots.reflog.update(id for id in known if id in there)
        known.clear()
        last -= _ROWS_AT_ONCE


def live_results(store: Store, since_ns: int) -> Iterator[Entry]:
    """The directories of results that were used since then. Raises Corrupt."""
    return (row.entry for row in result_rows(store) if row.used_s * _NS >= since_ns)


def result_rows(store: Store) -> Iterator[ResultRow]:
    """All results, some at a time, so that no transaction stays open meanwhile. Raises Corrupt."""
    start = b""
    while True:
        with store.objects.index.read() as txn:
            rows = list(islice(txn.scan(Table.RESULTS, start=start), _ROWS_AT_ONCE))
        for key, raw in rows:
            yield ResultRow.decode(ObjectId(key), raw)
        if len(rows) < _ROWS_AT_ONCE:
            return
        start = rows[-1][0] + b"\0"
