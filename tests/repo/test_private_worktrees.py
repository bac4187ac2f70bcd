"""Private worktrees: made, worked in, brought into the branch, ended; what keeps them and what a crash leaves."""

from __future__ import annotations

import shutil

import pytest

from pfsmount.errors import AlreadyExists, Conflict, InvalidInput, NotFound, NotPermitted
from pfsmount.repo.collection import Collection, collecting
from pfsmount.repo.fsck import check
from pfsmount.repo.overlay_nodes import ReadOnly
from pfsmount.repo.pointers import rename_branch
from pfsmount.repo.private_worktrees import begin, end
from pfsmount.repo.rebuild import rebuild_index
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from tests.worktrees import at, path, put


def private(store: Store, name: str = "mine") -> Worktree:
    return Worktree.open(store, "images", "master", name)


def text(worktree: Worktree, name: str) -> bytes:
    node = at(worktree, name)
    with worktree.reading(node, None if node.entry is None else worktree.content_of(node), 0, 100) as reading:
        return reading.run()


def test_two_of_them_and_the_shared_one(store: Store) -> None:
    """Each has its own changes; what touches different paths is joined, the same path is a conflict, with the work kept."""
    begin(store, "images", "master", "mine")
    begin(store, "images", "master", "other")
    assert store.worktrees("images") == [("master", "mine"), ("master", "other")]
    with private(store) as mine, private(store, "other") as other, Worktree.open(store, "images", "master") as shared:
        put(mine, "a", b"mine")
        put(mine, "both", b"mine")
        put(other, "both", b"other")
        assert shared.find(path("a")) is None
        first = mine.commit("mine").commit
        assert first is not None
        assert first.origin["worktree"] == "mine"
        with pytest.raises(Conflict):
            other.commit("other")
        assert text(other, "both") == b"other"
        shared.follow()
        assert text(shared, "a") == b"mine"
        assert not end(store, "images", "master", "other")
    assert end(store, "images", "master", "mine")
    assert not end(store, "images", "master", "other")
    assert store.worktrees("images") == [("master", "other")]


def test_a_branch_with_one_keeps_its_name(store: Store) -> None:
    begin(store, "images", "master", "mine")
    with pytest.raises(NotPermitted, match=r"\+mine"):
        rename_branch(store, "images", "master", "main")
    end(store, "images", "master", "mine")
    rename_branch(store, "images", "master", "main")
    assert store.worktrees("images") == []


def test_names(store: Store) -> None:
    begin(store, "images", "master", "mine")
    with pytest.raises(AlreadyExists):
        begin(store, "images", "master", "mine")
    for name in ("", "a+b", "a@b", "a/b", ".", "-x", "abcdef"):
        with pytest.raises(InvalidInput):
            begin(store, "images", "master", name)
    with pytest.raises(NotFound):
        begin(store, "images", "nope", "mine")
    found = store.resolve("images", parse_revision("master+mine"))
    assert (found.branch, found.worktree) == ("master", "mine")
    for wrong in ("master+nope", "master~0+mine"):
        with pytest.raises(NotFound):
            store.resolve("images", parse_revision(wrong))
    with pytest.raises(NotFound):
        private(store, "nope")


def test_who_still_has_an_ended_one_open_cannot_write_to_it(store: Store) -> None:
    """Nor does a write bring it back, nor does one of that name that is begun later have anything of it."""
    begin(store, "images", "master", "mine")
    with private(store) as held:
        assert end(store, "images", "master", "mine")
        with pytest.raises(ReadOnly):
            put(held, "a", b"lost?")
        with pytest.raises(NotFound):
            held.look()
        assert not held.path.exists()
        begin(store, "images", "master", "mine")
        with private(store) as again:
            put(again, "b", b"new")
            assert [change.path for change in again.changes()] == [path("b")]


def test_what_a_crash_left_is_not_in_the_next_of_that_name(store: Store) -> None:
    begin(store, "images", "master", "mine")
    with private(store) as mine:
        put(mine, "a", b"old")
    kept = mine.path.with_name("kept")
    shutil.copytree(mine.path, kept)
    with private(store) as mine:
        mine.discard()
    assert end(store, "images", "master", "mine")
    kept.rename(mine.path)  # a disk that has the directory of before
    begin(store, "images", "master", "mine")
    with private(store) as mine:
        assert list(mine.changes()) == []
        assert mine.find(path("a")) is None


def test_gc_fsck_and_a_new_index_know_them(store: Store) -> None:
    """What is below one and what is changed in it stays; fsck finds nothing wrong; a rebuilt index has it."""
    begin(store, "images", "master", "mine")
    with private(store) as mine:
        put(mine, "a", b"a" * 5000)
        base = mine.commit("a").commit
        assert base is not None
        put(mine, "b", b"b" * 5000)
    assert store.worktree_state("images", "master", "mine").base == base.id
    with collecting(store):
        collection = Collection(store, 0)
        collection.plan()
        collection.carry_out()
    assert check(store).clean
    store.close()
    shutil.rmtree(store.path / "index")
    rebuild_index(store.path)
    with Store.open(store.path) as opened, private(opened) as mine:
        assert opened.worktrees("images") == [("master", "mine")]
        assert (text(mine, "a")[:1], text(mine, "b")[:1]) == (b"a", b"b")
