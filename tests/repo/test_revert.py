"""Undoing commits by new ones: what came later stays, all or nothing."""

from __future__ import annotations

import pytest

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId, RepoPath, parse_path
from pfsmount.repo.commit import Commit
from pfsmount.repo.edits import remove
from pfsmount.repo.merge import merge
from pfsmount.repo.revert import RevertReport, revert
from pfsmount.repo.store import Store
from pfsmount.revision import parse_revision
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import Kind
from pfsmount.tree.merge import Resolution
from tests.repo.test_store import put


def made(store: Store, path: str, data: bytes, branch: str = "master") -> Commit:
    """One commit of one file."""
    return store.read_commit(put(store, path, data, branch=branch))


def files(store: Store, branch: str = "master") -> dict[RepoPath, ObjectId]:
    """The files of a branch and their ids."""
    head = store.head("images", branch)
    root = store.empty_root() if head is None else store.read_commit(head).tree
    return {path: entry.id for path, entry in walk(store.objects, root) if entry.kind is Kind.FILE}


def undo(store: Store, *commits: Commit, side: Resolution | None = None) -> RevertReport:
    return revert(store, "images", "master", commits, side=side)


def test_one_commit(store: Store) -> None:
    """What a commit added, changed and removed is as it was before it; what came later stays; undone again, it is back."""
    made(store, "old", b"1")
    before = files(store)
    commit = made(store, "d/new", b"1")
    after = files(store)
    made(store, "later", b"1")
    report = undo(store, commit)
    assert set(files(store)) == {*before, parse_path("later")}
    (new,) = report.made
    assert (report.head, new.origin) == (new, {"how": "revert", "commit": commit.id.hex()})
    assert new.message == f'revert "d/new"\n\nThis undoes commit {commit.id.hex()}.'
    undo(store, new)
    assert files(store) == {**after, parse_path("later"): files(store)[parse_path("later")]}


def test_several_are_all_or_none(store: Store) -> None:
    """Each by a commit of its own, one transaction for all; a conflict in the last leaves nothing of the others."""
    commits = [made(store, f"f{i}", b"%d" % i) for i in range(3)]
    changed = made(store, "f0", b"changed")
    head = store.head("images", "master")
    report = undo(store, commits[2], commits[1], commits[0])
    assert (report.refused, report.made, store.head("images", "master")) == (commits[0], (), head)
    assert [(conflict.path, conflict.theirs) for conflict in report.conflicts] == [(parse_path("f0"), None)]
    report = undo(store, commits[2], commits[1])
    assert [new.message.split("\n")[0] for new in report.made] == ['revert "f2"', 'revert "f1"']
    assert [ref.commit for ref in store.branches("images")] == [report.made[1].id]
    assert store.resolve("images", parse_revision(report.made[0].id.hex()[:12])).commit == report.made[0]
    report = undo(store, changed, commits[0])
    assert files(store) == {}


def test_settled(store: Store) -> None:
    """Mine keeps what the branch has, theirs brings back what was."""
    first = made(store, "a", b"1")
    second = made(store, "a", b"2")
    third = made(store, "a", b"3")
    now = files(store)
    report = undo(store, second, side=Resolution.MINE)
    assert (report.made, report.unchanged, files(store)) == ((), (second,), now)
    undo(store, second, side=Resolution.THEIRS)
    assert files(store) == {path: entry.id for path, entry in walk(store.objects, first.tree) if path}
    assert third.tree != first.tree


def test_nothing_to_undo(store: Store) -> None:
    """What was undone before makes no commit; an empty branch has nothing."""
    with pytest.raises(NotFound, match="has no commits"):
        revert(store, "images", "master", [])
    commit = made(store, "a", b"1")
    made(store, "b", b"1")
    remove(store, "images", "master", [parse_path("a")], recursive=False, missing_ok=False, message="rm")
    head = store.head("images", "master")
    report = undo(store, commit)
    assert (report.made, report.unchanged, store.head("images", "master")) == ((), (commit,), head)


def test_a_merge_is_undone_towards_its_first_parent(store: Store) -> None:
    """What the merge brought goes; what the branch had stays."""
    made(store, "base", b"1")
    store.create_branch("images", "dev", store.head("images", "master"))
    made(store, "dev/one", b"1", "dev")
    made(store, "dev/two", b"1", "dev")
    made(store, "mine", b"1")
    before = files(store)
    merged = merge(store, "images", parse_revision("dev"), "master").commit
    assert merged is not None
    assert len(merged.parents) == 2
    undo(store, merged)
    assert files(store) == before


def test_the_first_commit(store: Store) -> None:
    """Undone, it leaves an empty tree with the attributes of the root."""
    commit = made(store, "a", b"1")
    report = undo(store, commit)
    assert (files(store), report.head.tree.mode, report.head.height) == ({}, commit.tree.mode, 1)
