"""A worktree by itself: what the model in tests/model does not reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pfsmount.errors import Busy, Conflict, NotFound, NotPermitted
from pfsmount.ids import RepoPath
from pfsmount.repo import worktree_files
from pfsmount.repo.overlay import WouldBlock, shown_of
from pfsmount.repo.overlay_nodes import Extents, NameTooLong, Node, NodeKind, ReadOnly, Stale
from pfsmount.repo.ownership import owner_of
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.worktrees import at, path, put

T = TypeVar("T")


@pytest.fixture
def worktree(store: Store) -> Iterator[Worktree]:
    with Worktree.open(store, "images", "master") as opened:
        yield opened


def read(worktree: Worktree, text: str) -> bytes:
    return worktree.read(at(worktree, text), 0, 1 << 20)


def other_commit(store: Store, changes: dict[str, bytes | None]) -> None:
    """Somebody else commits."""
    head = store.head("images", "master")
    tree = store.empty_root() if head is None else store.read_commit(head).tree
    with store.objects.batch() as batch:
        edits: dict[RepoPath, Entry | None] = {
            path(name): None if data is None else file_entry(ingest_bytes(batch, data), len(data), mtime_ns=9)
            for name, data in changes.items()
        }
        root = edit_paths(batch, tree, edits)
        store.commit(batch, "images", "master", tree=root, expected=head, message="other", origin={"how": "put"})


def whats(worktree: Worktree) -> dict[str, str]:
    return {b"/".join(change.path).decode(): change.what for change in worktree.changes()}


def test_clean_worktree_costs_nothing_on_disk(store: Store, worktree: Worktree) -> None:
    assert worktree.status().changes == ()
    assert not worktree.path.exists()
    assert worktree.commit("nothing").commit is None


def test_status_tells_what_changed(worktree: Worktree) -> None:
    for name in ("same", "changed", "gone", "dir/x", "moved/y", "kind"):
        put(worktree, name, b"content of " + name.encode())
    worktree.commit("base")
    put(worktree, "same", b"content of same")
    put(worktree, "changed", b"content of chanGed")
    worktree.unlink(worktree.root, b"gone")
    worktree.set_attributes(at(worktree, "dir/x"), mode=0o600)
    worktree.move(worktree.root, b"moved", worktree.root, b"there")
    worktree.unlink(worktree.root, b"kind")
    worktree.make(worktree.root, b"kind", NodeKind.DIRECTORY, mode=0o755, uid=0, gid=0)
    temporary = put(worktree, "temporary", b"x")
    worktree.unlink(worktree.root, b"temporary")
    worktree.drop_unused(temporary)
    assert whats(worktree) == {
        "changed": "modified",
        "gone": "deleted",
        "dir/x": "attributes",
        "kind": "replaced",
        "moved": "deleted",
        "there": "new",
    }


def test_disjoint_changes_merge_silently(store: Store, worktree: Worktree) -> None:
    put(worktree, "dir/mine", b"1")
    put(worktree, "dir/theirs", b"1")
    worktree.commit("base")
    put(worktree, "dir/mine", b"2")
    put(worktree, "new/a", b"a")
    other_commit(store, {"dir/theirs": b"2", "dir/added": b"3", "new/b": b"b"})
    worktree.follow()
    assert worktree.conflicts == ()
    assert worktree.base == store.head("images", "master")
    assert [read(worktree, name) for name in ("dir/mine", "dir/theirs", "dir/added", "new/a", "new/b")] == [
        b"2", b"2", b"3", b"a", b"b"
    ]  # fmt: skip
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        assert whats(again) == {"dir/mine": "modified", "new/a": "new"}
        assert read(again, "new/b") == b"b"
        assert again.commit("merged").commit is not None


@pytest.mark.parametrize(
    ("mine", "theirs", "conflict"),
    [
        ({"file": b"2"}, {"file": b"3"}, "/file"),
        ({"file": None}, {"file": b"3"}, "/file"),
        ({"file": b"2"}, {"file": None}, "/file"),
        ({"added": b"2"}, {"added": b"3"}, "/added"),
        ({"dir/a": b"2"}, {"dir": None}, "/dir"),
        ({"dir": None}, {"dir/a": b"3"}, "/dir"),
    ],
)
def test_conflicts_are_named_and_nothing_is_lost(
    store: Store, worktree: Worktree, mine: dict[str, bytes | None], theirs: dict[str, bytes | None], conflict: str
) -> None:
    put(worktree, "file", b"1")
    put(worktree, "dir/a", b"1")
    put(worktree, "beside", b"1")
    worktree.commit("base")
    for name, data in mine.items():
        if data is not None:
            put(worktree, name, data)
        elif name == "dir":
            worktree.unlink(at(worktree, "dir"), b"a")
            worktree.rmdir(worktree.root, b"dir")
        else:
            worktree.unlink(worktree.root, name.encode())
    put(worktree, "beside", b"kept")
    before = whats(worktree)
    other_commit(store, theirs)
    with pytest.raises(Conflict) as caught:
        worktree.commit("refused")
    assert [p.decode() for p in caught.value.paths] == [conflict]
    assert whats(worktree) == before
    assert read(worktree, "beside") == b"kept"
    assert [found.path for found in worktree.status().conflicts] == [path(conflict)]
    worktree.discard([path(conflict)])
    assert worktree.commit("now").commit is not None


def test_partial_commit_survives_a_kill(store: Store, worktree: Worktree) -> None:
    put(worktree, "a/x", b"1")
    put(worktree, "b/y", b"1")
    worktree.make(worktree.root, b"fifo", NodeKind.FIFO, mode=0o600, uid=0, gid=0)
    done = worktree.commit("part", [path("a")])
    assert done.commit is not None
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        assert whats(again) == {"b": "new", "b/y": "new"}
        assert read(again, "a/x") == b"1"
        assert again.status().unversioned == (path("fifo"),)
    with pytest.raises(NotFound), Worktree.open(store, "images", "master") as again:
        again.commit("no", [path("nowhere")])


def test_hard_link_committed_in_part(store: Store, worktree: Worktree) -> None:
    node = put(worktree, "a", b"1")
    worktree.link(node, worktree.root, b"b")
    worktree.commit("one of two", [path("a")])
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        assert whats(again) == {"b": "new"}
        put(again, "b", b"2")
        assert read(again, "a") == b"1"


def test_one_owner(store: Store, worktree: Worktree) -> None:
    put(worktree, "file", b"1")
    assert owner_of(worktree.path) == {"pid": os.getpid()}
    with pytest.raises(Busy):
        Worktree.open(store, "images", "master", own=True)
    with Worktree.open(store, "images", "master") as other:
        assert read(other, "file") == b"1"
        with pytest.raises(ReadOnly):
            put(other, "another", b"x")
        put(worktree, "more", b"2")
        other.look()
        assert read(other, "more") == b"2"
        worktree.commit("done")
        assert owner_of(worktree.path) is None
        other.look()
        other.follow()
        assert read(other, "more") == b"2"
        put(other, "another", b"x")
        worktree.look()
        assert read(worktree, "another") == b"x"
        with pytest.raises(ReadOnly):
            put(worktree, "third", b"x")


def test_onlookers_never_delete_data(store: Store, worktree: Worktree) -> None:
    """An onlooker's nodes go away; the owner's files stay."""
    put(worktree, "file", b"precious")
    with Worktree.open(store, "images", "master") as other:
        at(other, "file")
        other.reload()
        for node in list(other.nodes.values()):
            other.drop_unused(node)
    assert read(worktree, "file") == b"precious"
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        assert read(again, "file") == b"precious"


def test_reserved_and_long_names(worktree: Worktree) -> None:
    with pytest.raises(NotPermitted):
        put(worktree, ".pfs", b"")
    put(worktree, "dir/.pfs", b"allowed below")
    with pytest.raises(NameTooLong):
        put(worktree, "x" * 256, b"")


def test_stale_files_take_no_writes(store: Store, worktree: Worktree) -> None:
    put(worktree, "file", b"1")
    worktree.commit("base")
    node = at(worktree, "file")
    node.opens += 1
    other_commit(store, {"file": b"2"})
    worktree.follow()
    assert read(worktree, "file") == b"2"
    assert worktree.read(node, 0, 10) == b"1"
    with pytest.raises(Stale):
        worktree.write(node, 0, b"lost?")
    worktree.closed(node)


def test_numbers_stay_when_forgotten(store: Store, worktree: Worktree) -> None:
    put(worktree, "dir/file", b"1")
    worktree.commit("base")
    with Worktree.open(store, "images", "master") as again:
        node = at(again, "dir/file")
        number = node.ino
        node.lookups = 1
        again.forget(number, 1)
        assert number not in again.nodes
        assert at(again, "dir/file").ino == number


def test_data_and_journals_of_other_generations_are_cleared(store: Store, worktree: Worktree) -> None:
    put(worktree, "file", b"1")
    worktree.close()
    (worktree.path / "journal.7").write_text("rubbish")
    (worktree.path / "data" / "99").write_text("rubbish")
    with Worktree.open(store, "images", "master") as again:
        assert read(again, "file") == b"1"
    assert sorted(os.listdir(worktree.path)) == ["data", "journal.0", "lock"]
    assert len(os.listdir(worktree.path / "data")) == 1


def test_a_turn_that_failed_leaves_the_generation(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(worktree, "a", b"1")
    put(worktree, "b", b"1")

    def no(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "publish", no)
    with pytest.raises(OSError, match="No space"):
        worktree.commit("fails", [path("a")])
    monkeypatch.undo()
    assert whats(worktree) == {"a": "new", "b": "new"}
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        assert whats(again) == {"a": "new", "b": "new"}


def patiently(call: Callable[[], T]) -> T:
    """What the event loop does."""
    while True:
        try:
            return call()
        except WouldBlock as block:
            block.work()


def test_nothing_has_changed_when_something_would_block(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        put(worktree, f"dir{number % 3}/file{number}", b"x" * 5000)
    worktree.commit("base")
    worktree.close()
    with Worktree.open(store, "images", "master", nowait=True) as again:
        again.reader.decoded.__init__()  # type: ignore[misc]  # nothing is in memory any more
        monkeypatch.setattr(store.objects, "get_nowait", lambda id: None)
        directory = patiently(lambda: at(again, "dir1"))
        node = patiently(lambda: at(again, "dir1/file1"))
        patiently(lambda: again.write(node, 2, b"yyy"))
        patiently(lambda: again.unlink(directory, b"file4"))
        patiently(lambda: again.move(directory, b"file7", directory, b"file10"))
        monkeypatch.undo()
        # file7 has the content of file10, over which it was moved
        assert whats(again) == {"dir1/file1": "modified", "dir1/file4": "deleted", "dir1/file7": "deleted"}


def test_more_files_open_than_descriptors(worktree: Worktree) -> None:
    worktree.data._limit = 10
    nodes = [put(worktree, f"f{number}", b"%d" % number) for number in range(50)]
    for node in nodes:
        worktree.opened(node)
    for number, node in enumerate(nodes):
        worktree.write(node, 5, b"!")
        assert worktree.read(node, 0, 20) == (b"%d" % number).ljust(5, b"\0") + b"!"
    assert len(worktree.data._open) <= 10


def test_large_files_share_their_unchanged_pieces(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worktree_files, "COPY_MAX", 1 << 20)
    data = os.urandom(9 << 20)
    put(worktree, "large", data)
    worktree.commit("base")
    worktree.write(at(worktree, "large"), 5_000_000, b"changed")
    before = sum(file.stat().st_size for file in (store.path / "segments").iterdir())
    worktree.commit("a few bytes")
    after = sum(file.stat().st_size for file in (store.path / "segments").iterdir())
    assert after - before < 5 << 20
    assert read_all(worktree, "large", len(data)) == data[:5_000_000] + b"changed" + data[5_000_007:]


def read_all(worktree: Worktree, text: str, size: int) -> bytes:
    return worktree.read(at(worktree, text), 0, size)


def test_extents() -> None:
    extents = Extents()
    assert extents.add(10, 20)
    assert not extents.add(12, 18)
    assert extents.add(30, 40)
    assert list(extents.spans(0, 50)) == [
        (False, 0, 10), (True, 10, 20), (False, 20, 30), (True, 30, 40), (False, 40, 50)
    ]  # fmt: skip
    assert extents.add(20, 30)
    assert list(extents) == [(10, 40)]
    extents.clip(25)
    assert list(extents) == [(10, 25)]
    extents.clip(5)
    assert len(extents) == 0


def test_a_large_file_renamed_over_its_old_version_shares_with_it(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What editors do: a new file, written whole, takes the old one's name. What it replaces is its earlier version."""
    data = os.urandom(13 << 20)
    put(worktree, "dir/large", data)
    worktree.commit("base")
    changed = data[:5_000_000] + b"inserted" + data[5_000_000:]
    put(worktree, "dir/large.tmp", changed)
    directory = at(worktree, "dir")
    worktree.move(directory, b"large.tmp", directory, b"large")
    before = sum(file.stat().st_size for file in (store.path / "segments").iterdir())
    worktree.commit("saved")
    after = sum(file.stat().st_size for file in (store.path / "segments").iterdir())
    assert after - before < 5 << 20
    assert read_all(worktree, "dir/large", len(changed)) == changed
    assert whats(worktree) == {}


def test_a_commit_gives_the_lock_back(worktree: Worktree) -> None:
    """New and old directories too: nothing is changed any more."""
    for data in (b"1", b"2"):
        put(worktree, "dir/sub/a", data)
        put(worktree, "dir/b", data)
        worktree.commit("all of it")
        assert worktree.is_clean
        assert not worktree.owned
        assert list(worktree.path.glob("journal.*")) == []


def test_a_number_is_kept_when_the_kernel_forgot_what_was_committed(worktree: Worktree) -> None:
    """Memory pressure, or drop_caches, makes it forget at any time; only new mounts give new numbers."""
    directory = worktree.make(worktree.root, b"dir", NodeKind.DIRECTORY, mode=0o755, uid=0, gid=0)
    file = worktree.make(worktree.root, b"file", NodeKind.FILE, mode=0o644, uid=0, gid=0)
    worktree.move(worktree.root, b"file", directory, b"moved")
    worktree.write(file, 0, b"one")
    numbers = directory.ino, file.ino
    directory.lookups = file.lookups = 1
    for content in (b"two", b"three"):
        worktree.commit("m")
        worktree.forget(file.ino, 1)
        worktree.forget(directory.ino, 1)
        assert worktree.nodes.keys() == {1}
        assert at(worktree, "dir").ino == numbers[0]
        file = at(worktree, "dir/moved")
        directory = at(worktree, "dir")
        assert file.ino == numbers[1]
        directory.lookups = file.lookups = 1
        worktree.write(file, 0, content)
    other = worktree.make(worktree.root, b"other", NodeKind.FILE, mode=0o644, uid=0, gid=0)
    assert other.ino not in numbers


def test_what_is_listed_is_what_is_looked_up(worktree: Worktree) -> None:
    """The same numbers and attributes, whether a file is met as it is stored, or decoded, or both."""
    root = worktree.root
    put(worktree, "plain", b"content")
    put(worktree, "run", b"#!")
    worktree.set_attributes(at(worktree, "run"), mode=0o755, uid=7, mtime_ns=-5)
    worktree.set_xattr(put(worktree, "more", b"x"), b"user.a", b"1")
    worktree.make(root, b"dir", NodeKind.DIRECTORY, mode=0o750, uid=0, gid=0)
    worktree.make(root, b"link", NodeKind.SYMLINK, mode=0o777, uid=0, gid=0, target=b"plain")
    worktree.commit("base")
    worktree.reload()

    def as_stored() -> list[tuple[bytes, object]]:
        found = worktree.listed(root, b"", lambda id, source: source(b""))
        return [(name, item if isinstance(item, Node) else shown_of(item[1], item[2])) for name, item in found]

    def seen(listed: bool) -> dict[bytes, object]:
        found: dict[bytes, object] = {}
        for name, item in as_stored() if listed else list(worktree.children(root)):
            assert isinstance(item, bytes) == (listed and name in (b"plain", b"run"))
            node = worktree.base_node(root, name, item)  # type: ignore[arg-type]
            found[name] = worktree.attributes(node)
            worktree.drop_unused(node)
        return found

    once = seen(listed=True)
    assert set(once) == {b"plain", b"run", b"more", b"dir", b"link"}
    assert seen(listed=False) == once == {name: worktree.attributes(at(worktree, name.decode())) for name in once}
    # kept in memory from the one, met again by the other
    for listed in (True, False):
        for name, item in as_stored() if listed else list(worktree.children(root)):
            worktree.base_node(root, name, item).lookups += 1  # type: ignore[arg-type]
        assert seen(listed=not listed) == once
        for name in once:
            worktree.forget(at(worktree, name.decode()).ino, 9)
    put(worktree, "plain", b"changed")
    assert not isinstance(dict(as_stored())[b"plain"], bytes)


def test_a_name_is_one_node_also_when_its_number_becomes_free(store: Store, worktree: Worktree) -> None:
    """A file is there, is another one, and is there again while the first is still open: it gets the next number, and keeps it when that one is closed."""

    def met() -> Node:
        worktree.follow()
        found = at(worktree, "file")
        found.lookups += 1
        return found

    other_commit(store, {"file": b"one"})
    first = met()
    other_commit(store, {"file": b"two"})
    met()
    assert not worktree.current(first)
    other_commit(store, {"file": b"one"})
    again = met()
    assert again.ino != first.ino
    worktree.forget(first.ino, 1)
    assert met() is again
