"""`pfs fsck --rebuild-index`: the index made anew from segments, `refs.log` and the journals of worktrees.

The new one is made in `index.new` and takes the place of `index` by rename when it is whole and durable; the old one stays as `index.lost-<time>`.
So it can be interrupted at any point and started again. Nobody else may have the store open.

What the result does not have: when results of datums were last used (the time of the commit stands for it), results of jobs that no commit
names, and locations of second copies of an object.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.index import Index, Table, exclusive_index
from pfsmount.objects.index_probe import probe_index
from pfsmount.objects.index_rebuild import ObjectRebuild
from pfsmount.objects.invariants import Damage
from pfsmount.objects.layout import disk_errors, free_name, fsync_directory, private, read_store_info
from pfsmount.objects.object_look import ProgressBar
from pfsmount.objects.segment import SegmentRow
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.commit import Commit, decode_commit, dump_json, parse_root
from pfsmount.repo.fsck import Progress
from pfsmount.repo.fsck_impact import TreeWalk
from pfsmount.repo.fsck_repair import drop_incomplete
from pfsmount.repo.journal import JournalReader, journal_base
from pfsmount.repo.reflog import DAMAGED_LOG, decode_line, encode_line, raw_lines
from pfsmount.repo.refs import RefKind, RepoInfo, WorktreeState, encode_ref, put_worktree
from pfsmount.repo.replay import Replay
from pfsmount.repo.results import encode_result
from pfsmount.repo.store import know_commit
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.tree.directory import EMPTY_DIRECTORY, load_directory, lookup
from pfsmount.tree.entry import Entry

_ROWS_AT_ONCE = 10_000
_JOURNAL = re.compile(r"journal\.(\d+)\Z")


@dataclass(slots=True)
class Rebuilt:
    """What a rebuilt index has."""

    objects: int = 0
    segments: int = 0
    repos: int = 0
    refs: int = 0
    commits: int = 0
    changes: int = 0
    worktrees: int = 0
    results: int = 0
    problems: list[str] = field(default_factory=list)
    """What could not be taken over."""
    kept: Path | None = None
    """Where the index lies that was replaced; None when there was none."""


@dataclass(slots=True)
class _Old:
    """What an index that can still be read adds: it is believed only where the other sources are damaged."""

    nonces: dict[int, bytes] = field(default_factory=dict)
    lines: dict[int, bytes] = field(default_factory=dict)
    """Changes of refs by number; only read when refs.log is damaged."""


def rebuild_index(path: Path, settings: StoreSettings = DEFAULT_SETTINGS, progress: Progress | None = None) -> Rebuilt:
    """Make the index of a closed store anew. Raises Busy (somebody has it open), NotAStore, NoSpace, PermissionDenied."""
    info = read_store_info(path)
    old = _read_old(path, settings)
    with disk_errors("rebuilding the index"):
        (path / "index").mkdir(mode=0o700, exist_ok=True)
        with exclusive_index(path / "index"):
            fresh = path / "index.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            bar = ProgressBar(progress)
            bar.what = "rebuilding the index"
            index = Index(fresh, settings.map_size, durable=False)
            try:
                objects = ObjectRebuild(info, index, old.nonces, bar)
                objects.run()
                store = ObjectStore(path, settings, index)
                drop_incomplete(store)  # gc may have left a manifest whose pieces it has freed
                objects.choose_manifests()
                result = _Rebuild(store, old).run()
                index.sync()
            finally:
                index.close()
            result.objects, result.segments = objects.counts.objects, objects.counts.segments
            result.problems = objects.counts.problems + result.problems
            result.kept = _replace(path, fresh)
    return result


def _replace(path: Path, fresh: Path) -> Path | None:
    """Put the new index in the place of the old one."""
    fsync_directory(fresh)
    kept = free_name(path, "index.lost")
    os.rename(path / "index", kept)
    os.rename(fresh, path / "index")
    fsync_directory(path)
    if not (kept / "data.mdb").exists():
        shutil.rmtree(kept, ignore_errors=True)
        return None
    return kept


def _read_old(path: Path, settings: StoreSettings) -> _Old:
    """What the present index still says, where it can be read at all."""
    old = _Old()
    if not (path / "index").is_dir() or probe_index(path / "index", settings.map_size) is not None:
        return old
    replay = Replay()
    torn = [text for _, text in read_lines(path / "refs.log", replay) if text]
    index = Index(path / "index", settings.map_size)
    try:
        with index.read() as txn:
            for key, raw in txn.scan(Table.SEGMENTS):
                row = _segment_row(raw)
                if row is not None:
                    old.nonces[int.from_bytes(key, "big")] = row.nonce
            if torn or replay.gaps or replay.last < txn.counter(b"refs"):
                old.lines = {int.from_bytes(key, "big"): raw for key, raw in txn.scan(Table.REFLOG)}
    finally:
        index.close()
    return old


def _segment_row(raw: bytes) -> SegmentRow | None:
    try:
        return SegmentRow.decode(raw)
    except Corrupt:
        return None


def read_lines(path: Path, replay: Replay | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """The lines of refs.log that can be read, and instead of each that cannot (and is not the end) a text; what can is given to `replay`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        number, bad = 0, 0
        for raw in raw_lines(file):
            number += 1
            if bad:
                yield {}, f"line {bad} of refs.log is damaged"
                bad = 0
            value = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
            if value is None:
                bad = number
                continue
            if replay is not None:
                replay.apply(value)
            yield value, ""


class _Rebuild:
    """Fills the tables of repos, refs and worktrees."""

    def __init__(self, objects: ObjectStore, old: _Old) -> None:
        self._objects, self._old = objects, old
        self._replay = Replay()
        self._result = Rebuilt()
        self._seen: set[ObjectId] = set()
        """Nodes of job records that were read."""

    def run(self) -> Rebuilt:
        """All tables but those of objects."""
        self._changes()
        self._refs()
        self._commits()
        self._worktrees()
        return self._result

    # refs.log

    def _changes(self) -> None:
        """Replay all changes, those that only the old index still has included."""
        path = self._objects.path / "refs.log"
        rows: list[tuple[bytes, bytes]] = []
        for value in self._all_changes(path):
            self._replay.apply(value)
            text = dump_json(value).encode("ascii")
            rows.append((int(value["n"]).to_bytes(8, "big"), text))
            if len(rows) >= _ROWS_AT_ONCE:
                self._put(Table.REFLOG, rows)
        self._put(Table.REFLOG, rows)
        self._result.changes = self._replay.last
        with self._objects.index.write() as txn:
            txn.put(Table.META, b"refs", self._replay.last.to_bytes(8, "little"))
        if self._result.problems:
            self._write_log(path)

    def _all_changes(self, path: Path) -> Iterator[dict[str, Any]]:
        # A lost line took more than a byte. A number beyond that is made up, and would mean as many lines to mourn.
        reach = max(self._old.lines, default=0) + (path.stat().st_size if path.exists() else 0)
        last = 0
        for value, problem in read_lines(path):
            if problem:
                self._result.problems.append(problem)
                continue
            n = int(value["n"])
            if n <= last:
                continue
            if n > reach:
                self._result.problems.append(f"a line of refs.log has the number {n}, which makes no sense")
                continue
            yield from self._lost(last + 1, n, int(value["t"]))
            yield value
            last = n
        yield from self._lost(last + 1, max(self._old.lines, default=0) + 1, time.time_ns())

    def _lost(self, first: int, end: int, time_ns: int) -> Iterator[dict[str, Any]]:
        """Changes that refs.log does not have: from the old index, else lines that say so, of the time of the next one (gc goes back by it)."""
        for n in range(first, end):
            raw = self._old.lines.get(n)
            try:
                value = None if raw is None else _parse(raw, n)
            except Corrupt:
                value = None
            if value is None:
                self._result.problems.append(f"change {n} of a ref is lost")
                value = {"n": n, "op": "lost", "repo_id": "0" * 16, "t": time_ns, "who": "fsck", "why": "damaged"}
            else:
                self._result.problems.append(f"change {n} was taken from the old index")
            yield value

    def _put(self, table: Table, rows: list[tuple[bytes, bytes]]) -> None:
        with self._objects.index.write() as txn:
            for key, value in rows:
                txn.put(table, key, value)
        rows.clear()

    def _write_log(self, path: Path) -> None:
        """A refs.log that is whole again, in the place of the damaged one, which is kept."""
        beside = path.with_name("refs.log.new")
        with open(beside, "wb", opener=private) as file:
            start = b""
            while True:
                with self._objects.index.read() as txn:
                    rows = list(islice(txn.scan(Table.REFLOG, start=start), _ROWS_AT_ONCE))
                file.writelines(encode_line(text) for _, text in rows)
                if len(rows) < _ROWS_AT_ONCE:
                    break
                start = rows[-1][0] + b"\0"
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            kept = free_name(path.parent, DAMAGED_LOG)
            os.link(path, kept)
            self._result.problems.append(f"refs.log was written anew; the damaged one is '{kept.name}'")
        os.rename(beside, path)
        fsync_directory(path.parent)

    # Repos, refs, commits

    def _refs(self) -> None:
        replay = self._replay
        with self._objects.index.write() as txn:
            for repo in replay.repos.values():
                txn.put(Table.REPOS, os.fsencode(repo.name), repo.encode())
            for key, commit in replay.refs.items():
                if int.from_bytes(key[:8], "big") not in replay.repos:
                    continue
                txn.put(Table.REFS, key, encode_ref(commit, replay.moves[key]))
                self._result.refs += 1
                if commit is not None and txn.get(Table.OBJECTS, commit) is None:
                    name = os.fsdecode(key[9:])
                    text = f"{replay.repos[int.from_bytes(key[:8], 'big')].name}@{name} names {commit.hex()}, which is lost"
                    self._result.problems.append(text)
        self._result.repos = len(replay.repos)

    def _commits(self) -> None:
        """The commits that refs ever named, with their lineage and results, unless gc has taken (a part of) them."""
        walk = TreeWalk(self._objects, Damage())
        for repo in self._replay.repos.values():
            current = self._ancestors(repo)
            for key in sorted(key for key in self._replay.commits if key.startswith(repo.key)):
                id = ObjectId(key[8:])
                commit = self._load(id)
                if commit is None or (id not in current and not walk.is_whole(commit)):
                    continue
                with self._objects.index.write() as txn:
                    know_commit(txn, repo, commit)
                self._result.commits += 1
                self._results(commit)

    def _load(self, id: ObjectId) -> Commit | None:
        try:
            return decode_commit(self._objects.get(id))
        except PfsError:
            return None

    def _ancestors(self, repo: RepoInfo) -> set[ObjectId]:
        """The commits of the refs of a repo and all before them."""
        todo = [id for key, id in self._replay.refs.items() if key.startswith(repo.key) and id is not None]
        found: set[ObjectId] = set()
        while todo:
            id = todo.pop()
            if id not in found:
                found.add(id)
                commit = self._load(id)
                todo += () if commit is None else commit.parents
        return found

    def _results(self, commit: Commit) -> None:
        """What the datums of a job's commit left behind."""
        record = (commit.provenance or {}).get("record")
        try:
            if record is not None:
                self._record(parse_root(record), commit)
            elif "job" in commit.origin:
                self._record(commit.tree, commit)
        except (PfsError, KeyError, TypeError, ValueError):
            self._result.problems.append(f"the results of the job of {commit.id.hex()[:12]} cannot be read")

    def _record(self, root: Entry, commit: Commit) -> None:
        datums = lookup(self._objects, root.id, b"datums")
        if datums is None or not datums.is_directory:
            return
        rows: list[tuple[bytes, bytes]] = []
        nodes = [datums.id]
        while nodes:
            id = nodes.pop()
            if id == EMPTY_DIRECTORY.id or id in self._seen:
                continue
            self._seen.add(id)
            node = load_directory(self._objects, id)
            if node.level:
                nodes += [node.child(i).id for i in range(len(node))]
                continue
            for i, name in enumerate(node.names):
                entry = node.entry(i)
                if len(name) == 64 and entry.is_directory and lookup(self._objects, entry.id, b"out") is not None:
                    key = ObjectId(bytes.fromhex(name.decode("ascii")))
                    rows.append((key, encode_result(key, entry, commit.time_ns // 1_000_000_000)))
        self._result.results += len(rows)
        self._put(Table.RESULTS, rows)

    # Worktrees

    def _worktrees(self) -> None:
        """The rows of worktrees that have a journal; the others are on the heads of their branches."""
        for key in self._replay.refs:
            repo = self._replay.repos.get(int.from_bytes(key[:8], "big"))
            if repo is None or key[8] != RefKind.BRANCH:
                continue
            branch = os.fsdecode(key[9:])
            first = worktree_path(self._objects.path, repo, branch)
            if not first.parent.is_dir():
                continue
            for path in sorted(first.parent.iterdir()):
                if path == first or path.name.startswith(first.name + "+"):
                    self._worktree(repo, branch, path, path.name[len(first.name) + 1 :])

    def _worktree(self, repo: RepoInfo, branch: str, path: Path, quoted: str) -> None:
        journals = sorted(int(m[1]) for m in map(_JOURNAL.match, os.listdir(path)) if m)
        if not journals:
            return
        if "%-" in quoted:
            self._result.problems.append(
                f"the name of the worktree '{path.name}' of {repo.name} is too long to be found again"
            )
            return
        try:
            generation, base = self._valid(path, journals)
        except PfsError as error:
            self._result.problems.append(f"{error.message}: '{path}'")
            return
        self._result.worktrees += 1
        if generation or quoted:  # without a row the first generation counts, and its journal says what it is on top of
            with self._objects.index.write() as txn:
                name = os.fsdecode(unquote_to_bytes(quoted))
                put_worktree(txn, repo, branch, name, WorktreeState(generation, base))

    def _valid(self, path: Path, journals: list[int]) -> tuple[int, ObjectId | None]:
        """The journal that counts, of those that a crash may have left: the first, unless the commit that leads to the next was made."""
        generation = journals[0]
        base = _base(path / f"journal.{generation}")
        for following in journals[1:]:
            its = _base(path / f"journal.{following}")
            commit = None if its is None or following != generation + 1 else self._load(its)
            made = its is not None and any(key[8:] == its for key in self._replay.commits)
            if commit is None or not made or list(commit.parents[:1]) != ([] if base is None else [base]):
                break
            generation, base = following, its
        return generation, base


def _parse(raw: bytes, n: int) -> dict[str, Any]:
    value = decode_line(encode_line(raw)[:-1])
    if value is None or value.get("n") != n:
        raise Corrupt("a change in the index is damaged")
    return value


def _base(path: Path) -> ObjectId | None:
    """The base in the first line of a journal. Raises Corrupt."""
    reader = JournalReader(path)
    try:
        first = next(reader.records(), None)
    finally:
        reader.close()
    if first is None:
        raise Corrupt("the journal of a worktree has no first line")
    return journal_base(first)
