"""Uncommitted work in conflict with its branch: what is decided about each path is what is there afterwards, through kills too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfsmount.errors import Conflict, NotFound
from pfsmount.fs.answers import status_json, status_of
from pfsmount.ids import RepoPath
from pfsmount.repo import worktree_files
from pfsmount.repo.overlay_nodes import Node, NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.merge import Reason, Resolution
from tests.worktrees import at, path, put

Files = dict[str, tuple[str, bytes, int]]
"""What a tree has: kind, content or target, mode."""
MINE, THEIRS, BOTH = Resolution.MINE, Resolution.THEIRS, Resolution.BOTH


@pytest.fixture
def worktree(store: Store) -> Iterator[Worktree]:
    with Worktree.open(store, "images", "master") as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few KB count as large: of them only what is written is copied."""
    monkeypatch.setattr(worktree_files, "COPY_MAX", 1000)


def remove(worktree: Worktree, text: str) -> None:
    node = at(worktree, text)
    assert node.parent is not None
    if node.kind is NodeKind.DIRECTORY:
        for name in [name for name, _ in worktree.children(node)]:
            remove(worktree, f"{text}/{name.decode()}")
        worktree.rmdir(node.parent, node.name)
    else:
        worktree.unlink(node.parent, node.name)


def commit_of_others(store: Store, changes: dict[str, Entry | bytes | None]) -> None:
    """Somebody else commits."""
    head = store.head("images", "master")
    tree = store.empty_root() if head is None else store.read_commit(head).tree
    with store.objects.batch() as batch:
        edits: dict[RepoPath, Entry | None] = {}
        for name, value in changes.items():
            if isinstance(value, bytes):
                value = file_entry(ingest_bytes(batch, value), len(value), mtime_ns=9)
            edits[path(name)] = value
        root = edit_paths(batch, tree, edits)
        store.commit(batch, "images", "master", tree=root, expected=head, message="other", origin={"how": "put"})


def shown(worktree: Worktree) -> Files:
    """What the worktree shows."""
    found: Files = {}
    stack = [((), worktree.root)]
    while stack:
        above, directory = stack.pop()
        for name, child in worktree.children(directory):
            node = child if isinstance(child, Node) else worktree.base_node(directory, name, child)
            here = (*above, name)
            mode = worktree.attributes(node).mode
            data = b""
            if node.kind is NodeKind.FILE:
                data = worktree.read(node, 0, 1 << 20)
            elif node.kind is NodeKind.SYMLINK:
                data = worktree.target(node)
            else:
                stack.append((here, node))  # type: ignore[arg-type]
            found[b"/".join(here).decode()] = (node.kind.name, data, mode)
    return found


def committed(store: Store) -> Files:
    """What the branch's head has."""
    head = store.head("images", "master")
    assert head is not None
    found: Files = {}
    for where, entry in walk(store.objects, store.read_commit(head).tree):
        data = entry.target or b""
        if entry.kind is Kind.FILE:
            data = open_content(store.objects, entry).read(0, 1 << 20)
        if where:
            found[b"/".join(where).decode()] = (entry.kind.name, data, entry.mode)
    return found


def part(files: Files, name: str, to: str | None = None) -> Files:
    """What is at and below a path, moved to another."""
    to = name if to is None else to
    return {
        to + where[len(name) :]: one for where, one in files.items() if where == name or where.startswith(name + "/")
    }


def rename_dir(worktree: Worktree) -> None:
    """The directory has another name, and another one stands where it was."""
    worktree.move(worktree.root, b"dir", worktree.root, b"moved")
    put(worktree, "dir/z", b"mine")


def large(worktree: Worktree) -> None:
    worktree.write(at(worktree, "big"), 10, b"MINE")


def linked(worktree: Worktree) -> None:
    worktree.link(at(worktree, "file"), worktree.root, b"second")
    put(worktree, "second", b"both names")


def kind(worktree: Worktree) -> None:
    remove(worktree, "file")
    put(worktree, "file/in/it", b"mine")


EMPTY = directory_entry(EMPTY_DIRECTORY)
Case = tuple[Callable[[Worktree], object], dict[str, Entry | bytes | None], str, Reason]
CASES: dict[str, Case] = {
    "content": (lambda w: put(w, "file", b"mine"), {"file": b"theirs"}, "file", Reason.CONTENT),
    "part of a large file": (large, {"big": b"theirs" * 500}, "big", Reason.CONTENT),
    "mode here": (lambda w: w.set_attributes(at(w, "file"), mode=0o600), {"file": b"theirs"}, "file", Reason.CONTENT),
    "deleted here": (lambda w: remove(w, "file"), {"file": b"theirs"}, "file", Reason.DELETED),
    "deleted there": (lambda w: put(w, "file", b"mine"), {"file": None}, "file", Reason.DELETED),
    "added": (lambda w: put(w, "new", b"mine"), {"new": b"theirs"}, "new", Reason.ADDED),
    "directory deleted here": (lambda w: remove(w, "dir"), {"dir/a": b"theirs"}, "dir", Reason.DELETED),
    "directory deleted there": (lambda w: put(w, "dir/sub/b", b"mine"), {"dir": None}, "dir", Reason.DELETED),
    "directory deleted here, mode there": (lambda w: remove(w, "empty"), {"empty": EMPTY.replace(mode=0o700)}, "empty", Reason.DELETED),
    "directory deleted here, mode below it there": (lambda w: remove(w, "outer"), {"outer/inner": EMPTY.replace(mode=0o700)}, "outer", Reason.DELETED),
    "directory deleted there, mode here": (lambda w: w.set_attributes(at(w, "dir"), mode=0o700), {"dir": None}, "dir", Reason.DELETED),
    "directory here": (kind, {"file": b"theirs"}, "file", Reason.KIND),
    "directory there": (lambda w: put(w, "file", b"mine"), {"file": None, "file/x": b"theirs"}, "file", Reason.KIND),
    "symlink there": (lambda w: put(w, "file", b"m"), {"file": symlink_entry(b"to")}, "file", Reason.KIND),
    "renamed and replaced": (rename_dir, {"dir/a": b"theirs"}, "dir", Reason.CONTENT),
    "hard link": (linked, {"file": b"theirs"}, "file", Reason.CONTENT),
}  # fmt: skip


@pytest.mark.parametrize("how", [MINE, THEIRS, BOTH])
@pytest.mark.parametrize("name", CASES)
def test_what_was_decided_is_there(store: Store, worktree: Worktree, name: str, how: Resolution) -> None:
    """In the worktree, after reading the journal again, and in the next commit. All other changes of both sides are there too."""
    change, others, where, reason = CASES[name]
    for file in ("file", "dir/a", "dir/sub/b", "dir/keep", "beside"):
        put(worktree, file, b"base of " + file.encode())
    put(worktree, "big", b"base" * 1000)
    put(worktree, "outer/a", b"a")
    for above, made in ((worktree.root, b"empty"), (at(worktree, "outer"), b"inner")):
        worktree.make(above, made, NodeKind.DIRECTORY, mode=0o755, uid=0, gid=0)
    worktree.commit("base")
    change(worktree)
    put(worktree, "beside", b"mine too")
    mine = shown(worktree)
    commit_of_others(store, {**others, "elsewhere": b"theirs too"})
    theirs = committed(store)
    with pytest.raises(Conflict):
        worktree.commit("refused")
    (conflict,) = worktree.status().conflicts
    assert (conflict.path, conflict.reason) == (path(where), reason)
    assert status_of(status_json(worktree.status())) == worktree.status()
    assert shown(worktree) == mine

    settled, left, _ = worktree.resolve(how, [path(where)])
    assert (settled, left, worktree.conflicts) == ([path(where)], 0, ())
    assert worktree.base == store.head("images", "master")
    kept, given = part(mine, where), part(theirs, where)
    want = {file: one for file, one in mine.items() if file not in kept}
    want["elsewhere"] = theirs["elsewhere"]
    if how is MINE or (how is BOTH and kept):
        want.update(kept)
    if how is THEIRS or (how is BOTH and not kept):
        want.update(given)
    if how is BOTH and kept and given:
        want.update(part(theirs, where, f"{where}~master"))
    assert shown(worktree) == want
    worktree.close()  # as a kill leaves it
    with Worktree.open(store, "images", "master") as again:
        assert shown(again) == want
        assert again.commit("settled").commit is not None
        assert committed(store) == want
        assert shown(again) == want
        assert again.is_clean


def test_directory_attributes(store: Store, worktree: Worktree) -> None:
    """A directory whose mode both sides set."""
    for how, mode, xattrs in ((MINE, 0o700, {b"user.a": b"mine"}), (THEIRS, 0o711, {})):
        put(worktree, "dir/a", b"1")
        worktree.set_attributes(at(worktree, "dir"), mode=0o755)
        worktree.commit("base")
        worktree.set_attributes(at(worktree, "dir"), mode=0o700)
        worktree.set_xattr(at(worktree, "dir"), b"user.a", b"mine")
        put(worktree, "dir/b", b"mine")
        head = store.head("images", "master")
        assert head is not None
        entry = find(store.objects, store.read_commit(head).tree, path("dir"))
        assert entry is not None
        commit_of_others(store, {"dir": entry.replace(mode=0o711, xattrs=b"\x06user.b\x01\0\0\0t"), "dir/c": b"theirs"})
        worktree.follow()
        assert [conflict.reason for conflict in worktree.conflicts] == [Reason.ATTRIBUTES]
        worktree.resolve(how)
        worktree.close()
        worktree = Worktree.open(store, "images", "master")
        assert worktree.attributes(at(worktree, "dir")).mode == mode
        if how is MINE:
            assert worktree.xattrs(at(worktree, "dir")) == xattrs
        assert shown(worktree).keys() >= {"dir/a", "dir/b", "dir/c"}
        worktree.commit("settled")
        worktree.set_xattr(at(worktree, "dir"), b"user.a", None) if how is MINE else None
        worktree.commit("again")
    worktree.close()


def in_conflict(store: Store, worktree: Worktree, *names: str) -> None:
    for name in names:
        put(worktree, name, b"base")
    worktree.commit("base")
    for name in names:
        put(worktree, name, b"mine")
    commit_of_others(store, dict.fromkeys(names, b"theirs"))
    worktree.follow()


def test_decisions_survive_until_the_last(store: Store, worktree: Worktree) -> None:
    """Nothing is carried out before all are settled; decisions outlive the process, and can be changed."""
    in_conflict(store, worktree, "a", "b", "c")
    before = shown(worktree)
    assert worktree.resolve(THEIRS, [path("a")])[1] == 2
    assert worktree.resolve(MINE, [path("b")])[1] == 1
    assert shown(worktree) == before
    with pytest.raises(Conflict) as caught:
        worktree.commit("refused")
    assert caught.value.paths == (b"/c",)
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        again.follow()
        assert [one.resolution for one in again.status().conflicts] == [THEIRS, MINE, None]
        again.discard([path("c")])  # one way to settle it, and the others still count
        assert again.conflicts == ()
        assert [shown(again)[name][1] for name in "abc"] == [b"theirs", b"mine", b"theirs"]


def test_a_decision_counts_for_the_conflict_that_it_was_about(store: Store, worktree: Worktree) -> None:
    """Not when the branch has something else again, and one to give up mine not when there is more of mine."""
    in_conflict(store, worktree, "a", "b", "c", "d/x")
    worktree.resolve(MINE, [path("a")])
    worktree.resolve(THEIRS, [path("b"), path("d")])
    commit_of_others(store, {"a": b"theirs, later"})
    put(worktree, "b", b"mine, more of it")
    worktree.follow()
    found = {one.path: one.resolution for one in worktree.conflicts}
    assert found == {path("a"): None, path("b"): None, path("c"): None, path("d/x"): THEIRS}
    worktree.resolve(MINE)
    assert [shown(worktree)[name][1] for name in ("a", "b", "c", "d/x")] == [
        b"mine",
        b"mine, more of it",
        b"mine",
        b"theirs",
    ]


def test_the_same_change_on_both_sides_is_no_conflict(store: Store, worktree: Worktree) -> None:
    put(worktree, "a", b"base")
    worktree.commit("base")
    put(worktree, "a", b"the same")
    put(worktree, "new", b"too")
    put(worktree, "other", b"mine")
    commit_of_others(store, {"a": b"the same", "new": b"too"})
    worktree.follow()
    assert worktree.conflicts == ()
    assert [change.path for change in worktree.status().changes] == [path("other")]
    assert shown(worktree)["a"][1] == b"the same"


def test_only_conflicts_can_be_settled(store: Store, worktree: Worktree) -> None:
    in_conflict(store, worktree, "a")
    with pytest.raises(NotFound, match="not in conflict"):
        worktree.resolve(MINE, [path("a"), path("b")])
    assert worktree.open_conflicts == 1


def test_the_name_beside_is_free(store: Store, worktree: Worktree) -> None:
    """Whatever either side has."""
    in_conflict(store, worktree, "cat.jpg", "other")
    put(worktree, "cat~master.jpg", b"mine, by the way")
    commit_of_others(store, {"cat~master-2.jpg": b"theirs, by the way"})
    worktree.resolve(BOTH)
    found = {name: data for name, (_, data, _) in shown(worktree).items() if name.startswith("cat")}
    assert found == {
        "cat.jpg": b"mine",
        "cat~master.jpg": b"mine, by the way",
        "cat~master-2.jpg": b"theirs, by the way",
        "cat~master-3.jpg": b"theirs",
    }


def test_failed_turn_changes_nothing(store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is kept when it could not be carried out."""
    in_conflict(store, worktree, "a")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "set_worktree_state", fail)
        with pytest.raises(OSError, match="space"):
            worktree.resolve(BOTH)
    assert shown(worktree)["a"][1] == b"mine"
    worktree.close()
    with Worktree.open(store, "images", "master") as again:
        again.follow()
        assert {name: data for name, (_, data, _) in shown(again).items()} == {"a": b"mine", "a~master": b"theirs"}


def test_leftovers_are_deleted(store: Store, worktree: Worktree) -> None:
    """Data of what was given up does not stay on disk."""
    in_conflict(store, worktree, "a", "b")
    worktree.resolve(THEIRS)
    assert worktree.is_clean
    assert list(Path(worktree.path / "data").iterdir()) == []
