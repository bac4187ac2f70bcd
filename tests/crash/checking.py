"""What must be true of a store after a crash, whatever the crash left: opened as the next process would, read, checked, used.

`check_store` raises for anything else, with what it found. It runs in a child of its own (`check_all`), for LMDB maps the index and a wrong size
would end the process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pfsmount.errors import NotAStore
from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo import fsck
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.private_worktrees import begin, end
from pfsmount.repo.reflog import read_log
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.repo.worktree_place import worktree_paths
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.crash.replay import Crash, build

View = dict[str, str | None]
"""Repos and refs → commit id; `repo/BRANCH/master`, and `repo` itself."""
Content = bytes | None | tuple[bytes, ...]
"""What a file holds; None: it is not there; several: one of these."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What is true from an acknowledgement on: the refs, and the uncommitted files that were fsynced (`repo@branch:path`; None: gone)."""

    view: View
    files: Mapping[str, Content] = field(default_factory=dict)
    touched: frozenset[str] = frozenset()
    """Files that were changed on the way here, so that what the acknowledgement before said of them is over."""
    gone: frozenset[str] = frozenset()
    """Commits that gc may have removed on the way here."""
    saved: frozenset[str] = frozenset()
    """Keys of the datums whose results were saved so far."""


def view_of(store: Store) -> View:
    """All repos and refs."""
    found: View = {}
    for repo in store.repos():
        found[repo.name] = f"{repo.id:016x}"
        for kind in RefKind:
            for ref in store.refs(repo.name, kind):
                found[f"{repo.name}/{kind.name}/{ref.name}"] = None if ref.commit is None else ref.commit.hex()
    return found


def view_at(path: Path) -> View:
    """The same of a store that nobody has open; empty where there is none."""
    try:
        with Store.open(path) as store:
            return view_of(store)
    except NotAStore:
        return {}


def shape_of(store: Store) -> View:
    """The same without what differs each time a command is run: repo ids, times, and so commit ids."""
    found: View = {}
    for name, id in view_of(store).items():
        found[name] = id
        if "/" not in name:
            found[name] = ""
        elif id is not None:
            commit = store.read_commit(ObjectId(bytes.fromhex(id)))
            assert commit.tree.content_id is not None
            found[name] = f"{commit.height} {commit.tree.content_id.hex()} {len(commit.parents)} {commit.message}"
    return found


def shape_at(path: Path) -> View:
    """The same of a store that nobody has open; empty where there is none."""
    try:
        with Store.open(path) as store:
            return shape_of(store)
    except NotAStore:
        return {}


def commits_of(view: View) -> set[str]:
    """The commits that a view names."""
    return {commit for name, commit in view.items() if commit is not None and "/" in name}


def verify_commit(store: Store, id: str, seen: set[ObjectId]) -> None:
    """A commit and its first-parent ancestors, every file read and hashed."""
    for commit in store.history(store.read_commit(ObjectId(bytes.fromhex(id)))):
        if commit.id in seen:
            return
        seen.add(commit.id)
        trees = [commit.tree]
        record = (commit.provenance or {}).get("record")
        assert record is None or isinstance(record, dict)
        for tree in trees:
            for path, entry in walk(store.objects, tree):
                if entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID and entry.id not in seen:
                    seen.add(entry.id)
                    data = open_content(store.objects, entry).read(0, entry.size)
                    assert hash_bytes(data) == entry.id, f"{id[:12]}:{path!r} has other bytes than its id says"


def replayed(path: Path) -> View:
    """The refs that `refs.log` comes to."""
    names: dict[str, str] = {}
    found: View = {}
    for line in read_log(path):
        if line["op"] == "repo-create":
            names[line["repo_id"]] = line["repo"]
            found[line["repo"]] = line["repo_id"]
        elif line["op"] == "repo-delete":
            name = names.pop(line["repo_id"])
            found = {key: value for key, value in found.items() if key != name and not key.startswith(name + "/")}
        elif line["op"] == "ref":
            key = f"{names[line['repo_id']]}/{line['kind'].upper()}/{line['name']}"
            if line["new"] is None and not line.get("empty"):
                found.pop(key, None)
            else:
                found[key] = line["new"]
    return found


def check_store(
    path: Path, acknowledged: Sequence[Acknowledged], marks: int, *, atomic: bool = True, refs: bool = True
) -> None:
    """All of the checks. `acknowledged[marks]` was, the one after it was perhaps on its way. `atomic`: that one moves all refs at once.
    `refs` off: what refs it makes is not known."""
    before = acknowledged[marks]
    after = acknowledged[min(marks + 1, len(acknowledged) - 1)]
    try:
        opened = Store.open(path)
    except NotAStore:
        assert not before.view, "the store is gone"
        Store.create(path)
        opened = Store.open(path)
    with opened as store:
        view = view_of(store)
        if refs:
            _check_view(view, before.view, after.view, atomic=atomic)
        assert replayed(path / "refs.log") == view if (path / "refs.log").exists() else not view
        files = {name: data for name, data in before.files.items() if name not in after.touched}
        _check_fsck(store)
        _check_files(store, files)
        _go_on(store)
    with Store.open(path) as store:
        seen: set[ObjectId] = set()
        kept = set().union(*(commits_of(one.view) for one in acknowledged[: marks + 1]))
        for id in (kept - after.gone) | commits_of(view_of(store)):
            verify_commit(store, id, seen)
        _check_fsck(store)


def check_stopped(path: Path, kept: View, allowed: Sequence[View]) -> None:
    """The checks for a command that was stopped: its change is there or not (one of the shapes `allowed`), the commits `kept` are whole."""
    try:
        opened = Store.open(path)
    except NotAStore:
        assert {} in allowed, "the store is gone"
        Store.create(path)
        opened = Store.open(path)
    with opened as store:
        view = view_of(store)
        assert shape_of(store) in allowed, f"half a change: {shape_of(store)}, none of {allowed}"
        assert replayed(path / "refs.log") == view if (path / "refs.log").exists() else not view
        _check_fsck(store)
        _go_on(store)
    with Store.open(path) as store:
        seen: set[ObjectId] = set()
        for id in commits_of(kept) | commits_of(view_of(store)):
            verify_commit(store, id, seen)
        _check_fsck(store)


def _check_fsck(store: Store) -> None:
    """No finding but harmless ones: nothing is lost, and nothing needs a repair."""
    report = fsck.check(store, data=True)
    assert report.clean, [str(one) for one in report.findings]


def _check_view(view: View, before: View, after: View, *, atomic: bool) -> None:
    if atomic:
        assert view in (before, after), f"half a change: {view}, neither {before} nor {after}"
        return
    for name in view.keys() | before.keys() | after.keys():
        # a ref may be at any commit between the two: what it is at is verified
        assert view.get(name) == before.get(name) or view.get(name) == after.get(name) or name not in before, name


def _check_files(store: Store, files: Mapping[str, Content]) -> None:
    places: dict[str, dict[str, Content]] = {}
    for name, data in files.items():
        place, _, path = name.partition(":")
        places.setdefault(place, {})[path] = data
    for place, expected in places.items():
        repo, _, branch = place.partition("@")
        branch, _, private = branch.partition("+")
        with Worktree.open(store, repo, branch, private) as worktree:
            for path, data in expected.items():
                node = worktree.find(tuple(EntryName(os.fsencode(part)) for part in path.split("/")))
                if data is None:
                    assert node is None, f"{path} was deleted and fsynced, and is there"
                else:
                    assert node is not None, f"{path} was fsynced and is gone"
                    allowed = data if isinstance(data, tuple) else (data,)
                    found = worktree.read(node, 0, max(map(len, allowed)) + 1)
                    assert found in allowed, f"{path} has other bytes: {len(found)} of {[len(one) for one in allowed]}"


def _go_on(store: Store) -> None:
    """Commit what is uncommitted, put something new into a repo: what the next process would do."""
    for repo in store.repos():
        for ref in store.refs(repo.name):
            if not worktree_paths(store.path, repo, ref.name):
                continue
            with Worktree.open(store, repo.name, ref.name, own=True) as worktree:
                for _ in worktree.changes():
                    pass
                node = worktree.lookup(worktree.root, b"after-work")
                if node is None:
                    node = worktree.make(worktree.root, b"after-work", NodeKind.FILE, mode=0o644, uid=0, gid=0)
                    worktree.write(node, 0, b"work")
                assert worktree.commit("what the crash left").commit is not None
        for branch, name in store.worktrees(repo.name):
            with Worktree.open(store, repo.name, branch, name, own=True) as worktree:
                worktree.commit("what the crash left of a private one")
            assert end(store, repo.name, branch, name)
            begin(store, repo.name, branch, name)
            with Worktree.open(store, repo.name, branch, name) as worktree:
                assert not worktree.status().changes, "what ended has come back"
    if not store.repos():
        store.create_repo("after")
    repo = store.repos()[0]
    new = {b"after-small": b"after the crash" * 300, b"after-tiny": b"after"}
    with store.objects.batch() as batch:

        def edit(root: Entry) -> Entry:
            files: dict[RepoPath, Entry | None] = {}
            for name, data in new.items():
                files[(EntryName(name),)] = file_entry(ingest_bytes(batch, data), len(data))
            return edit_paths(batch, root, files)

        commit_edit(store, batch, repo.name, repo.default_branch, edit, message="after", origin={"how": "test"})


# In children

_CHUNK = 40
_SECONDS_MAX = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """A state that is not right."""

    crash: Crash
    why: str


def in_child(check: Callable[[], None]) -> str | None:
    """Run a check in a child, for an index of a wrong size would end the process; what was wrong, or None."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(_SECONDS_MAX)
        logging.disable(logging.WARNING)
        try:
            check()
            os.write(writer, b"ok")
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return None if text == "ok" else text or f"the process ended with {os.waitstatus_to_exitcode(status)}"


def check_all(
    states: Iterable[Crash], scratch: Path, check: Callable[[Path, Crash], None], *, failures_max: int = 3
) -> tuple[int, list[Failure]]:
    """Build each state below `scratch` and check it, in children that live for some states each. Returns how many, and what was wrong."""
    todo = iter(states)
    count = 0
    failures: list[Failure] = []
    while chunk := list(islice(todo, _CHUNK)):
        while chunk and len(failures) < failures_max:
            done, why = _in_child(chunk, scratch, check)
            count += done
            if why is not None:
                failures.append(Failure(chunk[done], why))
                count, done = count + 1, done + 1
            chunk = chunk[done:]
    return count, failures


def _in_child(chunk: Sequence[Crash], scratch: Path, check: Callable[[Path, Crash], None]) -> tuple[int, str | None]:
    """How many states were right, and what was wrong with the next, if something was."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            _child(chunk, scratch, check, writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(scratch, ignore_errors=True)
    if lines and lines[-1] != b"ok":
        return len(lines) - 1, str(json.loads(lines[-1]))
    if len(lines) < len(chunk):
        return len(lines), f"the process ended with {os.waitstatus_to_exitcode(status)}"
    return len(lines), None


def _child(chunk: Sequence[Crash], scratch: Path, check: Callable[[Path, Crash], None], writer: int) -> None:
    signal.signal(signal.SIGALRM, _too_long)
    logging.disable(logging.WARNING)  # that unsynced data was lost is what happens here
    for number, crash in enumerate(chunk):
        root = scratch / str(number)
        try:
            signal.alarm(_SECONDS_MAX)
            scratch.mkdir(exist_ok=True)
            build(crash.state, root)
            check(root, crash)
            os.write(writer, b"ok\n")
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()[-4000:]).encode() + b"\n")
            return
        finally:
            with suppress(OSError):
                shutil.rmtree(root)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not done after {_SECONDS_MAX} s")
