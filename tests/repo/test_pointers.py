"""Tags, renamed branches, the default branch, the reflog, reset: pointers move, commits stay."""

from __future__ import annotations

import pytest

from pfsmount.errors import AlreadyExists, Conflict, InvalidInput, NotFound, NotPermitted
from pfsmount.ids import EntryName, ObjectId
from pfsmount.objects.index import Table
from pfsmount.repo.commit import Commit
from pfsmount.repo.merge import abort, merge
from pfsmount.repo.moves import LoggedChange, logged_changes
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.pointers import create_tag, delete_tag, rename_branch, set_default_branch
from pfsmount.repo.reflog import read_log
from pfsmount.repo.refs import RefKind
from pfsmount.repo.removal import delete_branch, delete_repo
from pfsmount.repo.rollback import commit_before, reset
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from tests.repo.test_store import put


def at(store: Store, text: str, repo: str = "images") -> ObjectId | None:
    """The commit that a revision means."""
    commit = store.resolve(repo, parse_revision(text)).commit
    return None if commit is None else commit.id


def logged(store: Store, *arguments: object) -> list[tuple[str | None, ObjectId | None, ObjectId | None]]:
    """Name, old and new of the logged moves, newest first."""
    found = [change for change in logged_changes(store, *arguments) if change.op == "ref"]  # type: ignore[arg-type]
    return [(change.name, change.old, change.new) for change in found]


def test_tags_are_fixed(store: Store) -> None:
    """A tag is made once, at a commit; nothing moves it; its name is nobody else's."""
    first, second = put(store, "a", b"1"), put(store, "a", b"2")
    create_tag(store, "images", "v1", first)
    for commit in (first, second):
        with pytest.raises(AlreadyExists, match=f"tag already, at {first.hex()[:12]}"):
            create_tag(store, "images", "v1", commit)
    with pytest.raises(AlreadyExists, match="is a branch already"):
        create_tag(store, "images", "master", first)
    with pytest.raises(AlreadyExists, match="is a tag"):
        store.create_branch("images", "v1", None)
    for name in ("a/b", "abcdef0", "-x", "v.1", ""):
        with pytest.raises(InvalidInput):
            create_tag(store, "images", name, first)
    assert (at(store, "v1"), at(store, "v1~0")) == (first, first)
    assert store.resolve("images", parse_revision("v1")).branch is None
    assert delete_tag(store, "images", "v1").commit == first
    with pytest.raises(NotFound):
        delete_tag(store, "images", "v1")
    with pytest.raises(NotFound):
        at(store, "v1")
    assert logged(store, "images", "v1") == [("v1", first, None), ("v1", None, first)]


def test_rename(store: Store) -> None:
    """A branch under a new name, with its history and, if it was, as the default; names in use are refused."""
    first = put(store, "a", b"1")
    store.create_branch("images", "try", first)
    create_tag(store, "images", "v1", first)
    for taken in ("try", "v1"):
        with pytest.raises(AlreadyExists):
            rename_branch(store, "images", "master", taken)
    with pytest.raises(NotFound):
        rename_branch(store, "images", "none", "new")
    with pytest.raises(InvalidInput):
        rename_branch(store, "images", "master", "a b/c")
    rename_branch(store, "images", "master", "main")
    assert [ref.name for ref in store.branches("images")] == ["main", "try"]
    assert store.repo("images").default_branch == "main"
    assert put(store, "a", b"2", branch="main") == at(store, "main")
    set_default_branch(store, "images", "try")
    assert store.repo("images").default_branch == "try"
    for name in ("v1", "none"):
        with pytest.raises((InvalidInput, NotFound)):
            set_default_branch(store, "images", name)
    assert len(list(read_log(store.path / "refs.log"))) == store.refs_version()


def test_rename_keeps_uncommitted_work(store: Store) -> None:
    """What is not committed lies under the branch's name, so it is settled first."""
    put(store, "a", b"1")
    with Worktree.open(store, "images", "master", own=True) as worktree:
        worktree.make(worktree.root, EntryName(b"new"), NodeKind.FILE, mode=0o644, uid=0, gid=0)
    with pytest.raises(NotPermitted, match="was not renamed: it has uncommitted changes"):
        rename_branch(store, "images", "master", "main")
    assert at(store, "master") is not None


def test_rename_keeps_a_merge_that_waits(store: Store) -> None:
    """So do decisions about conflicts."""
    first = put(store, "a", b"1")
    store.create_branch("images", "dev", first)
    put(store, "a", b"2", branch="dev")
    put(store, "a", b"3")
    assert merge(store, "images", parse_revision("dev"), "master").conflicts
    with pytest.raises(NotPermitted, match="a merge into it waits"):
        rename_branch(store, "images", "master", "main")
    abort(store, "images", "master")
    rename_branch(store, "images", "master", "main")


def test_reflog(store: Store) -> None:
    """Newest first, of one ref or all, of deleted branches and repos too."""
    first, second = put(store, "a", b"1"), put(store, "a", b"2")
    store.create_branch("images", "try", first)
    other = put(store, "b", b"1", branch="try")
    delete_branch(store, "images", "try")
    assert logged(store, "images", "try") == [("try", other, None), ("try", first, other), ("try", None, first)]
    assert logged(store, "images", "master") == [
        ("master", first, second),
        ("master", None, first),
        ("master", None, None),
    ]
    store.create_repo("gone")
    put(store, "x", b"1", repo="gone")
    delete_repo(store, "gone", force=True)
    store.create_repo("gone")
    changes = list(logged_changes(store, "gone"))
    assert [(change.op, change.deletes) for change in changes] == [
        ("ref", False),
        ("repo-create", False),
        ("repo-delete", True),
        ("ref", True),
        ("ref", False),
        ("ref", False),
        ("repo-create", False),
    ]
    assert {change.repo for change in changes} == {"gone"}
    assert [change.n for change in logged_changes(store)] == list(range(store.refs_version(), 0, -1))
    assert list(logged_changes(store, "nothing")) == []


def test_reflog_of_a_long_log(store: Store) -> None:
    """The newest moves come without the rest being read; a log whose beginning was dropped ends there."""
    ids = [put(store, "a", b"%d" % i) for i in range(3)]
    read: list[LoggedChange] = []
    for change in logged_changes(store, "images", "master"):
        read.append(change)
        break
    assert read[0].new == ids[-1]
    with store.objects.index.write() as txn:
        for n in (1, 2, 3):
            txn.delete(Table.REFLOG, n.to_bytes(8, "big"))
    assert logged(store, "images", "master") == [("master", ids[1], ids[2]), ("master", ids[0], ids[1])]


def commits(store: Store, count: int) -> list[Commit]:
    return [store.read_commit(put(store, "a", b"%d" % i)) for i in range(count)]


def test_reset_and_back(store: Store) -> None:
    """To a commit of the history, back by its id, back by undo, to a commit of another branch, to the time before the first."""
    made = commits(store, 4)
    done = reset(store, "images", "master", made[1])
    assert (done.left_behind, done.regained) == (2, 0)
    assert list(done.commits_left(store)) == [made[3], made[2]]
    assert commit_before(store, "images", "master") == made[3].id
    done = reset(store, "images", "master", made[3])
    assert (done.left_behind, done.regained, at(store, "master")) == (0, 2, made[3].id)
    store.create_branch("images", "try", made[0].id)
    other = store.read_commit(put(store, "b", b"1", branch="try"))
    done = reset(store, "images", "master", other)
    assert (done.left_behind, done.regained, done.base) == (3, 1, made[0])
    done = reset(store, "images", "master", None)
    assert (done.left_behind, at(store, "master")) == (2, None)
    assert commit_before(store, "images", "master") == other.id
    reset(store, "images", "master", other)
    assert commit_before(store, "images", "master") is None
    same = reset(store, "images", "master", other)
    assert (same.left_behind, same.regained) == (0, 0)


def test_undo_of_nothing(store: Store) -> None:
    """A branch that was only made has no place to go back to; one whose first commit came later has: no commit."""
    with pytest.raises(NotFound, match="has not moved since it was made"):
        commit_before(store, "images", "master")
    first = put(store, "a", b"1")
    assert commit_before(store, "images", "master") is None
    store.create_branch("images", "try", first)
    with pytest.raises(NotFound, match="has not moved"):
        commit_before(store, "images", "try")
    delete_branch(store, "images", "try")
    store.create_branch("images", "try", first)
    with pytest.raises(NotFound, match="has not moved"):
        commit_before(store, "images", "try")
    with pytest.raises(NotFound, match="no branch"):
        commit_before(store, "images", "none")


def test_reset_checks_the_head(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that comes between is not lost: the reset is refused."""
    made = commits(store, 3)
    set_ref = store.set_ref

    def later(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        put(store, "b", b"between")
        set_ref(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "set_ref", later)
    with pytest.raises(Conflict, match="moved while this was prepared"):
        reset(store, "images", "master", made[0])
    between = store.read_commit(at(store, "master") or ObjectId(b""))
    assert between.parents == (made[2].id,)


def test_tags_and_jobs_share_no_names(store: Store) -> None:
    """A tag cannot hide the ref of a job."""
    first = put(store, "a", b"1")
    store.set_ref("images", RefKind.JOB, "job-1", first, expected=None, why="test")
    with pytest.raises(AlreadyExists, match="is a job already"):
        create_tag(store, "images", "job-1", first)
