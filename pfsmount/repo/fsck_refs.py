"""Checks what names commits: repos, branches, tags, jobs, `refs.log`, uncommitted work, results of jobs.

All rows are read in one transaction (there are as many as there are refs, commits and worktrees), `refs.log` afterwards up to the last change that it knew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import ObjectId, display
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant, Severity
from pfsmount.objects.object_look import chunks, decode_location
from pfsmount.objects.segment import RecordKind
from pfsmount.repo.journal import journal_roots
from pfsmount.repo.pending_merge import read_pending
from pfsmount.repo.reflog import decode_line, raw_lines
from pfsmount.repo.refs import RefInfo, RefKind, RepoInfo, decode_worktree, get_ref, ref_key, scan_refs
from pfsmount.repo.replay import Replay
from pfsmount.repo.results import ResultRow
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.tree.directory import EMPTY_DIRECTORY
from pfsmount.tree.entry import EMPTY_FILE_ID

_LINES_AT_ONCE = 5000


class RefCheck:
    """One check of the refs of a store."""

    def __init__(self, store: Store, findings: Findings, damage: Damage) -> None:
        self._store = store
        self._objects = store.objects
        self._findings, self._damage = findings, damage
        self._repos: list[RepoInfo] = []
        self._refs: dict[bytes, ObjectId | None] = {}
        self._last = 0
        self._lines: list[tuple[bytes, bytes]] = []
        """Lines of refs.log that are to be compared with the index."""

    def run(self) -> None:
        """Check everything that names commits."""
        self._take_rows()
        self._commits()
        self._reflog()
        self._log()
        self._worktrees()
        self._results()

    def _found(
        self, invariant: Invariant, text: str, id: ObjectId | None = None, severity: Severity | None = None
    ) -> None:
        self._findings.add(Finding.of(invariant, text, object=id, severity=severity))

    def _take_rows(self) -> None:
        with self._objects.index.read() as txn:
            rows = list(txn.scan(Table.REPOS))
            self._last = txn.counter(b"refs")
            self._repos = [info for name, raw in rows if (info := self._repo(name, raw)) is not None]
            found: list[tuple[RepoInfo, RefInfo]] = []
            for repo in self._repos:
                for kind in RefKind:
                    found += [(repo, ref) for ref in scan_refs(txn, repo, kind)]
            keys = {key for key, _ in txn.scan(Table.REFS)}
        for repo, ref in found:
            key = ref_key(repo, ref.kind, ref.name)
            self._refs[key] = ref.commit
            keys.discard(key)
            self._ref(repo, ref)
        for key in keys:
            self._found(Invariant.REPO_ROW, f"the index has a ref of a repo that it does not know: {key[:8].hex()}")
        for repo in self._repos:
            if ref_key(repo, RefKind.BRANCH, repo.default_branch) not in self._refs:
                self._found(
                    Invariant.REPO_ROW, f"{repo.name} has no branch '{display(repo.default_branch)}', its default"
                )

    def _repo(self, name: bytes, raw: bytes) -> RepoInfo | None:
        try:
            return RepoInfo.decode(name, raw)
        except Corrupt:
            self._found(Invariant.REPO_ROW, f"the row of the repo {display(name)} in the index is damaged")
            return None

    def _ref(self, repo: RepoInfo, ref: RefInfo) -> None:
        if ref.commit is None or self._is_commit(ref.commit):
            return
        with self._objects.index.read() as txn:
            current = get_ref(txn, repo, ref.kind, ref.name)
        if current is None or current.commit != ref.commit:
            return  # it moved, or the repo is gone
        kind = ref.kind.name.lower()
        text = f"the {kind} {repo.name}@{display(ref.name)} names {ref.commit.hex()}, which is not there"
        self._found(Invariant.REF_TARGET, text, ref.commit)
        self._damage.objects.setdefault(ref.commit, Invariant.OBJECT_PRESENT)

    def _is_commit(self, id: ObjectId) -> bool:
        raw = self._objects.index.get(Table.OBJECTS, id)
        place = None if raw is None else decode_location(raw)
        return place is not None and place.kind is RecordKind.COMMIT

    # Commits of repos

    def _commits(self) -> None:
        known = {repo.key for repo in self._repos}
        for rows in chunks(self._objects, Table.COMMITS):
            for key, raw in rows:
                id = ObjectId(key[8:])
                if key[:8] not in known:
                    continue  # of a repo that was deleted or made meanwhile
                if not self._is_commit(id) and self._objects.index.get(Table.COMMITS, key) is not None:
                    self._found(
                        Invariant.COMMIT_KNOWN, f"the index lists the commit {id.hex()}, which is not there", id
                    )
                    self._damage.objects.setdefault(id, Invariant.OBJECT_PRESENT)
                    continue
                if id in self._damage.objects:
                    continue
                try:
                    height = self._store.read_commit(id).height
                except (PfsError, OSError):
                    continue  # found already
                if raw != height.to_bytes(8, "little"):
                    self._found(Invariant.COMMIT_KNOWN, f"the index has a wrong height for commit {id.hex()}", id)
        for key, commit in self._refs.items():
            if (
                commit is not None
                and self._is_commit(commit)
                and self._objects.index.get(Table.COMMITS, key[:8] + commit) is None
                and self._objects.index.get(Table.REFS, key) is not None
            ):
                self._found(Invariant.COMMIT_KNOWN, f"the index does not list commit {commit.hex()}, which a ref names")

    # The reflog, in the index and as a file

    def _reflog(self) -> None:
        expected = None
        for rows in chunks(self._objects, Table.REFLOG):
            for key, raw in rows:
                n = int.from_bytes(key, "big")
                if expected is not None and n != expected:
                    self._found(Invariant.REFLOG_ORDER, f"change {expected} is missing from the index")
                expected = n + 1
                try:
                    right = json.loads(raw)["n"] == n
                except (ValueError, KeyError, TypeError, RecursionError):
                    right = False
                if not right:
                    self._found(Invariant.REFLOG_ORDER, f"change {n} is damaged in the index")
        if expected is not None and expected <= self._last:
            self._found(Invariant.REFLOG_ORDER, f"changes {expected} to {self._last} are missing from the index")

    def _log(self) -> None:
        """Replay refs.log up to the last change that the rows know, and compare."""
        path = self._store.path / "refs.log"
        replay, torn = replay_log(path, self._last, self._lost, self._compare)
        self._compare_lines()
        if replay.last < self._last and not torn:
            text = (
                f"refs.log ends at change {replay.last} of {self._last}; whoever opens the store next appends the rest"
            )
            self._found(Invariant.REFS_LOG_TAIL, text)
        elif torn:
            self._found(Invariant.REFS_LOG_TAIL, "refs.log ends in the middle of a line; the next change cuts it off")
        if replay.last != self._last or replay.gaps:
            return
        if replay.refs != self._refs or {repo.id for repo in self._repos} != set(replay.repos):
            with self._objects.index.read() as txn:
                moved = txn.counter(b"refs") != self._last
            if not moved:
                names = sorted({display(key[9:]) for key in replay.refs.keys() ^ self._refs.keys()})
                names += [display(key[9:]) for key in replay.refs if replay.refs[key] != self._refs.get(key)]
                text = f"refs.log and the index do not agree about {', '.join(names[:5]) or 'the repos'}"
                self._found(Invariant.REFS_LOG, text)

    def _compare(self, n: int, text: bytes) -> None:
        """A line of refs.log must be what the index has; old lines it has no more."""
        self._lines.append((n.to_bytes(8, "big"), text))
        if len(self._lines) >= _LINES_AT_ONCE:
            self._compare_lines()

    def _compare_lines(self) -> None:
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.REFLOG, [key for key, _ in self._lines])
        for key, text in self._lines:
            if rows.get(key, text) != text:
                n = int.from_bytes(key, "big")
                self._found(Invariant.REFLOG_ORDER, f"change {n} in the index is not what refs.log says")
        self._lines.clear()

    def _lost(self, text: str) -> None:
        self._found(Invariant.REFS_LOG, text)

    # Uncommitted work

    def _worktrees(self) -> None:
        with self._objects.index.read() as txn:
            rows = list(txn.scan(Table.WORKTREES))
        by_key = {repo.key: repo for repo in self._repos}
        seen = set()
        for key, raw in rows:
            repo = by_key.get(key[:8])
            if repo is None:
                continue
            branch, _, name = key[8:].partition(b"+")
            title = f"{repo.name}@{display(branch)}" + (f"+{display(name)}" if name else "")
            try:
                generation, base = decode_worktree(raw)
            except Corrupt as error:
                self._found(Invariant.WORKTREE_BASE, f"{error.message}: {title}")
                continue
            path = worktree_path(self._store.path, repo, os.fsdecode(branch), os.fsdecode(name))
            seen.add(path)
            if base is not None and not self._is_commit(base) and self._is_current(key, raw):
                text = f"the uncommitted changes of {title} are on top of {base.hex()}, which is not there"
                self._found(Invariant.WORKTREE_BASE, text, base)
            self._journal(path / f"journal.{generation}", title, lambda key=key, raw=raw: self._is_current(key, raw))
        for repo in self._repos:
            for branch in [key[9:] for key in self._refs if key[:9] == repo.key + bytes([RefKind.BRANCH])]:
                text = os.fsdecode(branch)
                path = worktree_path(self._store.path, repo, text)
                if path not in seen:
                    self._journal(path / "journal.0", f"{repo.name}@{display(text)}", lambda: True)
                self._merge(repo, text)

    def _is_current(self, key: bytes, raw: bytes) -> bool:
        return self._objects.index.get(Table.WORKTREES, key) == raw

    def _journal(self, path: Path, title: str, is_current: Any) -> None:
        try:
            base, entries = journal_roots(path)
        except FileNotFoundError:
            return
        except (PfsError, OSError, ValueError, TypeError, KeyError) as error:
            if path.exists() and is_current():
                text = (
                    error.message if isinstance(error, PfsError) else f"the journal of {title} cannot be read: {error}"
                )
                self._found(Invariant.JOURNAL_CHAIN, text)
            return
        if base is not None and not self._is_commit(base) and path.exists() and is_current():
            text = f"the journal of {title} is on top of {base.hex()}, which is not there"
            self._found(Invariant.WORKTREE_BASE, text, base)
        for entry in entries:
            empty = entry.id in (EMPTY_FILE_ID, EMPTY_DIRECTORY.id) or entry.target is not None
            place = None if empty else self._objects.locate(entry.id)
            if not empty and self._damage.reason(entry.id, place) is not None and path.exists() and is_current():
                text = f"uncommitted changes of {title} use {entry.id.hex()}, which cannot be read"
                self._found(Invariant.JOURNAL_CHAIN, text, entry.id)

    def _merge(self, repo: RepoInfo, branch: str) -> None:
        try:
            pending = read_pending(self._store, repo.name, branch)
        except PfsError as error:
            self._found(Invariant.MERGE_RECORD, error.message)
            return
        if pending is not None and not self._is_commit(pending.theirs):
            text = f"the merge that waits on {repo.name}@{display(branch)} names {pending.theirs.hex()}, which is not there"
            self._found(Invariant.MERGE_RECORD, text, pending.theirs)

    def _results(self) -> None:
        for rows in chunks(self._objects, Table.RESULTS):
            for key, raw in rows:
                try:
                    id = ResultRow.decode(ObjectId(key), raw).entry.id
                    right = id == EMPTY_DIRECTORY.id or self._objects.locate(id) is not None
                except Corrupt:
                    right = False
                if not right and self._objects.index.get(Table.RESULTS, key) == raw:
                    text = f"the result of the datum {key.hex()[:16]} is not there: it will have to run again"
                    self._found(Invariant.RESULTS_TARGET, text, ObjectId(key))


def replay_log(
    path: Path, last: int, lost: Callable[[str], None], line_read: Callable[[int, bytes], None]
) -> tuple[Replay, bool]:
    """Replay refs.log, up to change `last`; what cannot be read is told to `lost` and stepped over. True: the end is torn.

    `line_read` gets number and JSON of each line.
    """
    replay = Replay()
    torn = False
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return replay, False
    with file:
        line = 0
        for raw in raw_lines(file):
            line += 1
            if torn:
                lost(f"line {line - 1} of refs.log is damaged")
                torn = False
            value = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
            if value is None:
                torn = True  # or damaged, if another line follows
                continue
            if int(value["n"]) > last:
                return replay, False
            if value["n"] != replay.last + 1:
                what = f"changes {replay.last + 1} to {value['n'] - 1}"
                lost(
                    f"refs.log lacks {what}" if value["n"] > replay.last else f"line {line} of refs.log is out of order"
                )
            replay.apply(value)
            line_read(replay.last, raw[:-18])
    return replay, torn
