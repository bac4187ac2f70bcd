"""Repos, refs, commits: atomic, durable, found again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pfsmount.errors import (
    AlreadyExists,
    AmbiguousRevision,
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    NotPermitted,
)
from pfsmount.ids import EntryName, ObjectId
from pfsmount.objects.index import Table
from pfsmount.repo.commit import ancestor_at, decode_commit, first_parents
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.reflog import read_log
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store, WorktreeKey
from pfsmount.revision import parse_revision
from pfsmount.tree.directory import find
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.conftest import ROOT


def put(store: Store, path: str, data: bytes, *, repo: str = "images", branch: str = "master") -> ObjectId:
    """One file, one commit."""
    names = tuple(EntryName(part.encode()) for part in path.split("/"))
    with store.objects.batch() as batch:

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, {names: file_entry(ingest_bytes(batch, data), len(data))})

        commit = commit_edit(store, batch, repo, branch, edit, message=path, origin={"how": "test"})
    assert commit is not None
    return commit.id


def test_revisions(store: Store) -> None:
    """Branches, prefixes, ancestors and counting from the start all name the same commits."""
    ids = [put(store, f"f{i}", b"%d" % i) for i in range(20)]
    store.set_ref("images", RefKind.TAG, "v1", ids[3], expected=None, why="tag")

    def at(text: str) -> ObjectId | None:
        resolved = store.resolve("images", parse_revision(text))
        return resolved.commit.id if resolved.commit else None

    assert at("master") == ids[19]
    assert at("master~0") == ids[19]
    assert [at(f"master~{n}") for n in range(20)] == ids[::-1]
    assert [at(f"master.{n + 1}") for n in range(20)] == ids
    assert at("master^^2~3") == ids[13]
    assert at("master.5^1") == ids[3] == at("v1")
    assert at(ids[7].hex()) == at(ids[7].hex()[:16]) == at(f"master@{ids[7].hex()[:16]}") == ids[7]
    assert store.resolve("images", parse_revision("master")).branch == "master"
    for text in ("master~0", "v1", ids[7].hex()):
        assert store.resolve("images", parse_revision(text)).branch is None
    for text in ("master~20", "master.21", "nothing", "abcdef012345", "v1@" + ids[7].hex()[:16]):
        with pytest.raises(NotFound):
            at(text)


def test_ambiguous_prefix(store: Store) -> None:
    """A prefix of two commits is refused with both."""
    put(store, "a", b"a")
    repo = store.repo("images")
    with store.objects.index.write() as txn:
        for last in (1, 2):
            txn.put(Table.COMMITS, repo.key + b"\xab\xcd\xef" + bytes([last] * 29), bytes(8))
    with pytest.raises(AmbiguousRevision, match="abcdef"):
        store.resolve("images", parse_revision("abcdef"))


def test_jump_pointers_find_every_ancestor(store: Store) -> None:
    """The N-th ancestor by jumps is the N-th ancestor by steps, and takes few reads."""
    for i in range(150):
        put(store, "f", b"%d" % i)
    head = store.read_commit(store.head("images", "master") or ObjectId(b""))
    chain = list(first_parents(store.objects, head))
    assert [commit.height for commit in chain] == list(range(149, -1, -1))
    for height in range(150):
        assert ancestor_at(store.objects, head, height) is chain[149 - height]


def test_a_commit_on_a_moved_head_is_refused(store: Store) -> None:
    """The head is checked in the transaction that commits; the loser leaves no trace."""
    first = put(store, "a", b"a")
    tree = store.read_commit(first).tree
    with store.objects.batch() as batch:
        data = ingest_bytes(batch, b"late")
        late = edit_paths(batch, tree, {(EntryName(b"late"),): file_entry(data, 4)})
        second = put(store, "b", b"b")
        version = store.refs_version()
        with pytest.raises(Conflict, match="moved"):
            store.commit(batch, "images", "master", tree=late, expected=first, message="", origin={"how": "test"})
    assert store.head("images", "master") == second
    assert store.refs_version() == version


def test_worktree_state_moves_with_the_commit(store: Store) -> None:
    """Base and generation of a worktree change in the transaction of its commit."""
    assert store.worktree_state("images", "master").generation == 0
    with store.objects.batch() as batch:
        tree = edit_paths(batch, store.empty_root(), {(EntryName(b"x"),): file_entry(ingest_bytes(batch, b"x"), 1)})
        commit = store.commit(
            batch,
            "images",
            "master",
            tree=tree,
            expected=None,
            message="",
            origin={"how": "mount"},
            worktree=WorktreeKey("", 4),
        )
    state = store.worktree_state("images", "master")
    assert (state.generation, state.base) == (5, commit.id)


def _put_process(path: Path, who: int, count: int) -> None:
    with Store.open(path, author=f"p{who}") as store:
        for i in range(count):
            put(store, f"p{who}/f{i}", b"%d %d" % (who, i))


def test_processes_commit_at_once(store: Store) -> None:
    """Four processes commit to one branch; no commit is lost, and refs.log has every move in order."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_put_process, args=(store.path, who, 10)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
        assert worker.exitcode == 0
    head = store.read_commit(store.head("images", "master") or ObjectId(b""))
    assert head.height == 39
    assert head.tree.files == 40
    lines = list(read_log(store.path / "refs.log"))
    assert [line["n"] for line in lines] == list(range(1, 43))


def test_refs_log_replays_to_the_same_refs(store: Store) -> None:
    """Replaying refs.log gives every repo and branch as the index has them."""
    for i in range(5):
        put(store, f"f{i}", b"x")
    store.create_branch("images", "dev", store.head("images", "master"))
    put(store, "g", b"y", branch="dev")
    store.create_repo("other")
    store.delete_branch("images", "dev")
    store.delete_repo("other")
    refs: dict[tuple[str, str, str], str | None] = {}
    repos: dict[str, str] = {}
    for line in read_log(store.path / "refs.log"):
        if line["op"] == "repo-create":
            repos[line["repo_id"]] = line["repo"]
        elif line["op"] == "repo-delete":
            del repos[line["repo_id"]]
        else:
            key = (line["repo_id"], line["kind"], line["name"])
            assert refs.get(key) == line["old"]
            refs[key] = line["new"]
    assert list(repos.values()) == ["images"]
    live = {key[2]: new for key, new in refs.items() if key[0] in repos and new is not None}
    head = store.head("images", "master")
    assert head is not None
    assert live == {"master": head.hex()}


@pytest.mark.parametrize("damage", ["missing", "torn", "behind", "torn into blocks", "torn in the first line"])
def test_refs_log_is_brought_up(store: Store, damage: str) -> None:
    """Lines that a crash left out, or tore, are appended by whoever opens the store next."""
    for i in range(5):
        put(store, f"f{i}", b"x")
    log = store.path / "refs.log"
    whole = log.read_bytes()
    if damage == "missing":
        log.unlink()
    elif damage == "torn":
        log.write_bytes(whole[:-7])
    elif damage == "torn into blocks":  # the size was on the disk, the bytes were not
        log.write_bytes(whole[:-70] + bytes(70))
    elif damage == "torn in the first line":
        log.write_bytes(whole[:20])
    else:
        log.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    store.close()
    Store.open(store.path).close()
    assert log.read_bytes() == whole
    assert not list(store.path.glob("refs.log.damaged*")), "nothing was lost"


@pytest.mark.parametrize("damage", ["in each line", "in the last line", "text behind it"])
def test_a_damaged_refs_log_is_kept(store: Store, damage: str) -> None:
    """What is cut off and is not what a crash leaves stays in a copy: it may be all that is left of old changes."""
    for i in range(3):
        put(store, f"f{i}", b"x")
    log = store.path / "refs.log"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    if damage == "in each line":
        damaged = b"".join(line.replace(b'"op"', b'"oq"') for line in lines)
    elif damage == "in the last line":
        damaged = b"".join(lines[:-1]) + lines[-1].replace(b'"op"', b'"oq"')
    else:
        damaged = b"".join(lines[:-1]) + b"<<<<<<< mine\n"
    log.write_bytes(damaged)
    store.close()
    for _ in range(2):
        Store.open(store.path).close()
        assert log.read_bytes() == whole
        (kept,) = store.path.glob("refs.log.damaged-*")
        assert kept.read_bytes() == damaged
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_piece_is_no_commit(store: Store) -> None:
    """A file with the bytes of a commit, named as one by somebody who makes stores to harm: its hash fits, its kind does not."""
    put(store, "f", b"x")
    head = store.head("images", "master")
    assert head is not None
    with store.objects.batch() as batch:
        file = batch.add_piece(store.objects.get(head))
        batch.flush()
    with pytest.raises(Corrupt, match=r"is a piece, where a commit should be"):
        store.read_commit(file)


def test_a_lost_index_is_noticed(store: Store) -> None:
    """An index that knows less than refs.log is refused, not taken for an empty store."""
    put(store, "f", b"x")
    store.close()
    for name in ("data.mdb", "lock.mdb"):
        (store.path / "index" / name).unlink()
    with pytest.raises(Corrupt, match=r"refs\.log"):
        Store.open(store.path)


def test_repos_and_branches(store: Store) -> None:
    """Made, listed, refused twice, deleted; the nearest name is offered."""
    with pytest.raises(AlreadyExists):
        store.create_repo("images")
    for bad in ("a/b", "", "x" * 101):
        with pytest.raises(InvalidInput):
            store.create_repo(bad)
    with pytest.raises(NotFound, match="did you mean 'images'"):
        store.repo("image")
    head = put(store, "f", b"x")
    store.create_branch("images", "dev", head)
    store.create_branch("images", "empty", None)
    assert [(ref.name, ref.commit) for ref in store.branches("images")] == [
        ("dev", head),
        ("empty", None),
        ("master", head),
    ]
    with pytest.raises(AlreadyExists):
        store.create_branch("images", "dev", head)
    with pytest.raises(InvalidInput):
        store.create_branch("images", "deadbeef", head)
    with pytest.raises(NotPermitted, match="default branch"):
        store.delete_branch("images", "master")
    store.delete_branch("images", "dev")
    assert store.resolve("images", parse_revision(head.hex()[:12])).commit is not None
    store.delete_repo("images")
    with pytest.raises(NotFound):
        store.head("images", "master")
    store.create_repo("images")
    assert store.head("images", "master") is None


_KILLED = """
import os, sys
from pathlib import Path
from pfsmount.objects import index
from pfsmount.repo.store import Store
from tests.repo.test_store import put
store = Store.open(Path(sys.argv[1]))
put(store, "kept", b"kept" * 2000)
where, real = sys.argv[2], {}
def die(*a, **k): os.kill(os.getpid(), 9)
if where == "before index": Store.publish = die
elif where == "inside index": index.Transaction.put = die
elif where == "before log": Store._append_log = die
put(store, "lost", b"lost" * 2000)
"""


@pytest.mark.parametrize("where", ["before index", "inside index", "before log"])
def test_killed_while_committing(store_path: Path, where: str) -> None:
    """Killed at any step of a commit, the store opens as if it had been before or after it, and goes on."""
    with Store.open(store_path) as store:
        store.create_repo("images")
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, os.fspath(store_path), where], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with Store.open(store_path) as store:
        head = store.read_commit(store.head("images", "master") or ObjectId(b""))
        names = {name for name in ("kept", "lost") if find(store.objects, head.tree, (EntryName(name.encode()),))}
        assert names == ({"kept", "lost"} if where == "before log" else {"kept"})
        assert len(list(read_log(store_path / "refs.log"))) == store.refs_version()
        put(store, "after", b"after" * 2000)
        assert decode_commit(store.objects.get(head.id)).id == head.id


def test_a_commit_into_a_repo_that_was_made_anew_is_refused(store: Store) -> None:
    """Whoever prepared a commit for a deleted repo does not commit into another of the same name."""
    old = store.repo("images")
    with store.objects.batch() as batch:
        tree = edit_paths(batch, store.empty_root(), {(EntryName(b"x"),): file_entry(ingest_bytes(batch, b"x"), 1)})
        commit = store.make_commit(batch, tree=tree, parents=(), message="", author=None, origin={"how": "test"})
        store.delete_repo("images")
        store.create_repo("images")
        with pytest.raises(NotFound, match="deleted meanwhile"):
            store.publish(batch, [(RefMove(old, RefKind.BRANCH, "master", commit.id), commit)], why="test")
    assert store.head("images", "master") is None
