"""Prolly trees: whatever the order of edits, the same entries make the same nodes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.errors import Corrupt, NotADirectory
from pfsmount.ids import EntryName, RepoPath
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree import boundaries, edit
from pfsmount.tree.boundaries import rank
from pfsmount.tree.diff import diff
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, directory_entry, entries, find, lookup, walk
from pfsmount.tree.edit import build_directory, edit_directory, edit_paths
from pfsmount.tree.entry import SIZE_MAX, Entry, Kind, decode_leaf, encode_leaf, file_entry, symlink_entry
from pfsmount.tree.node import Node, NodeDraft, entry_item, load_node

NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def a_file(number: int, **attributes: Any) -> Entry:
    return file_entry(hash_bytes(b"%d" % number), number, **attributes)


# Numbered names, so that edits hit each other; rank() makes nodes of about 64.
EDITS = st.lists(
    st.dictionaries(
        st.integers(0, 900).map(lambda i: EntryName(b"n%d" % i)),
        st.one_of(st.none(), st.integers(0, 3)),
        max_size=120,
    ),
    max_size=6,
)


@RELAXED
@given(EDITS)
def test_edit_equals_build(objects: ObjectStore, steps: list[dict[EntryName, int | None]]) -> None:
    """Edits, in any order, give the directory that a build from scratch gives; diff says exactly what changed."""
    model: dict[bytes, Entry] = {}
    with objects.batch() as batch:
        current = EMPTY_DIRECTORY
        for step in steps:
            before = dict(model)
            changes = {name: None if n is None else a_file(n) for name, n in step.items()}
            after = edit_directory(batch, current.id, changes)
            for name, entry in changes.items():
                if entry is None:
                    model.pop(name, None)
                else:
                    model[name] = entry
            assert after == build_directory(batch, sorted(model.items()))
            assert (after.entries, after.files) == (len(model), len(model))
            assert after.size == sum(entry.size for entry in model.values())
            assert list(entries(batch, after.id)) == sorted(model.items())
            found = diff(batch, directory_entry(current), directory_entry(after))
            assert [(change.path[0], change.old, change.new) for change in found] == [
                (name, before.get(name), model.get(name))
                for name in sorted({*before, *model})
                if before.get(name) != model.get(name)
            ]
            current = after


@RELAXED
@given(st.sets(NAMES, max_size=40), NAMES)
def test_lookup_and_listing(objects: ObjectStore, names: set[bytes], probe: bytes) -> None:
    """Every name is found, no other is, and a listing can start behind any name."""
    with objects.batch() as batch:
        made = build_directory(batch, ((name, a_file(len(name))) for name in sorted(names)))
        for name in names:
            assert lookup(batch, made.id, name) == a_file(len(name))
        assert (lookup(batch, made.id, probe) is not None) == (probe in names)
        listed = [name for name, _ in entries(batch, made.id, after=probe)]
    assert listed == sorted(name for name in names if name > probe)


def test_a_large_directory_is_edited_at_the_cost_of_a_path(objects: ObjectStore) -> None:
    """In 30 000 entries one change rewrites three nodes or so, not the directory."""
    with objects.batch() as batch:
        big = build_directory(batch, ((b"f%06d" % i, a_file(i)) for i in range(30_000)))
        before = batch.objects_added
        changed = edit_directory(batch, big.id, {EntryName(b"f012345"): a_file(7)})
        assert batch.objects_added - before <= 4
        back = edit_directory(batch, changed.id, {EntryName(b"f012345"): a_file(12345)})
        assert back == big


def test_full_nodes_are_cut(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names whose hashes never end a node (an adversary's) still make bounded nodes, and edits still equal builds."""
    monkeypatch.setattr(boundaries, "short_hash", lambda name: 1)
    monkeypatch.setattr(boundaries, "short_hash_byte", lambda name: 1)
    names = [EntryName(b"%06d" % i) for i in range(5000)]
    with objects.batch() as batch:
        made = build_directory(batch, ((name, a_file(1)) for name in names))
        edited = edit_directory(batch, made.id, {names[100]: None, EntryName(b"000100x"): a_file(2)})
        model = dict.fromkeys(names, a_file(1))
        model[EntryName(b"000100x")] = a_file(2)
        want = sorted(model.items())
        del want[[name for name, _ in want].index(names[100])]
        assert edited == build_directory(batch, want)
        gone = edit_directory(batch, edited.id, {names[3]: None})
        assert gone == build_directory(batch, [item for item in want if item[0] != names[3]])


def test_rank_decides_by_name_alone() -> None:
    """The average node has about 64 entries."""
    ends = sum(rank(b"IMG_%05d.jpg" % i) > 0 for i in range(64_000))
    assert 850 < ends < 1150


def test_content_id_ignores_times_owners_and_modes(objects: ObjectStore) -> None:
    """Only names, kinds, exec bits and contents are in the content id; everything is in the node id."""
    with objects.batch() as batch:

        def made(**attributes: Any) -> Any:
            return build_directory(batch, [(b"a", a_file(1, **attributes)), (b"b", a_file(2))])

        plain = made()
        for attributes in ({"mtime_ns": 5}, {"uid": 7}, {"mode": 0o600}):
            assert made(**attributes).content_id == plain.content_id
            assert made(**attributes).id != plain.id
        assert made(mode=0o755).content_id != plain.content_id
        other = build_directory(batch, [(b"a", a_file(2)), (b"b", a_file(2))])
        assert other.content_id != plain.content_id


def test_edit_paths(objects: ObjectStore) -> None:
    """Paths are set and removed, directories made on the way; a file in the way is an error."""
    root = directory_entry(EMPTY_DIRECTORY)
    with objects.batch() as batch:
        tree = edit_paths(batch, root, {(b"a", b"b", b"c"): a_file(1), (b"d",): a_file(2)})  # type: ignore[dict-item]
        assert [path for path, _ in walk(batch, tree)] == [(), (b"a",), (b"a", b"b"), (b"a", b"b", b"c"), (b"d",)]
        assert (tree.files, tree.size) == (2, 3)
        gone = edit_paths(batch, tree, {(b"a", b"b", b"c"): None, (b"nothing", b"here"): None})  # type: ignore[dict-item]
        assert find(batch, gone, (b"a", b"b")) is not None  # type: ignore[arg-type]
        assert find(batch, gone, (b"a", b"b", b"c")) is None  # type: ignore[arg-type]
        assert edit_paths(batch, tree, {}) is tree
        with pytest.raises(NotADirectory):
            edit_paths(batch, tree, {(b"d", b"x"): a_file(1)})  # type: ignore[dict-item]
        twice = edit_paths(batch, tree, {(b"a",): None, (b"a", b"b"): None})  # type: ignore[dict-item]
        assert [path for path, _ in walk(batch, twice)] == [(), (b"d",)]
        both = edit_paths(batch, tree, {(b"d",): None, (b"a",): root, (b"a", b"x"): a_file(3)})  # type: ignore[dict-item]
        assert [path for path, _ in walk(batch, both)] == [(), (b"a",), (b"a", b"x")]


PATH_STEPS = st.lists(
    st.dictionaries(
        st.lists(st.integers(0, 3).map(lambda i: EntryName(b"p%d" % i)), min_size=1, max_size=4).map(tuple),
        st.one_of(st.none(), st.integers(0, 2)),
        max_size=8,
    ),
    max_size=5,
)


def set_paths(model: dict[RepoPath, Entry], step: dict[RepoPath, int | None]) -> dict[RepoPath, Entry]:
    """The files after a step, changes above before changes below; those whose way leads through a file are left out of `step`."""
    model = dict(model)
    for path, number in sorted(step.items()):
        if any(path[:depth] in model for depth in range(1, len(path))):
            del step[path]
            continue
        model = {other: entry for other, entry in model.items() if other[: len(path)] != path}
        if number is not None:
            model[path] = a_file(number)
    return model


@RELAXED
@given(PATH_STEPS)
def test_edits_of_paths_equal_a_dict(objects: ObjectStore, steps: list[dict[RepoPath, int | None]]) -> None:
    """Trees after edits at paths have the files of a dict, from the first tree and by way of all; diff says what the dict says."""
    model: dict[RepoPath, Entry] = {}
    with objects.batch() as batch:
        tree = empty = directory_entry(EMPTY_DIRECTORY)
        for step in steps:
            before, old = model, tree
            model = set_paths(model, step)
            tree = edit_paths(batch, old, {path: None if n is None else a_file(n) for path, n in step.items()})
            files = {path: entry for path, entry in walk(batch, tree) if not entry.is_directory}
            assert files == model
            assert (tree.files, tree.size) == (len(model), sum(entry.size for entry in model.values()))
            found = {}
            for path, was, now in diff(batch, old, tree):
                sides = [None if side is None or side.is_directory else side for side in (was, now)]
                if sides[0] != sides[1]:
                    found[path] = tuple(sides)
            assert found == {
                path: (before.get(path), model.get(path))
                for path in {*before, *model}
                if before.get(path) != model.get(path)
            }
            # empty directories apart, the way does not matter
            again = edit_paths(batch, empty, {path: entry for path, entry in walk(batch, tree) if path})
            assert again.id == tree.id


ENTRIES = st.one_of(
    st.builds(
        lambda id, size, mode, uid, mtime, xattrs: Entry(
            Kind.FILE, mode, uid, 0, mtime, size, hash_bytes(id), xattrs=xattrs
        ),
        st.binary(max_size=4),
        st.integers(0, SIZE_MAX),
        st.integers(0, 0o7777),
        st.integers(0, 2**32 - 1),
        st.integers(-(2**60), 2**62),
        st.binary(max_size=512),
    ),
    st.builds(
        symlink_entry,
        st.binary(min_size=1, max_size=4095).filter(lambda target: b"\0" not in target),
        mtime_ns=st.integers(-(2**60), 2**80),
    ),
    st.builds(lambda size: directory_entry(EMPTY_DIRECTORY).replace(size=size, files=size), st.integers(0, SIZE_MAX)),
)


@given(NAMES, ENTRIES)
def test_entry_round_trip(name: bytes, entry: Entry) -> None:
    """Modes, owners, times to the nanosecond (negative and beyond 2262 too), targets and xattrs survive."""
    assert decode_leaf(*encode_leaf(name, entry)) == (name, entry)
    assert Node(NodeDraft(0, [entry_item(name, entry)]).encode()).entry(0) == entry


@pytest.mark.parametrize("name", [b"..", b".", b"../x", b"/etc/passwd", b"a\0b"])
def test_names_that_lead_out_are_damage(name: bytes) -> None:
    """A node with a name that no directory can have is refused: nothing that reads it can be led elsewhere."""
    with pytest.raises(Corrupt):
        Node(NodeDraft(0, [entry_item(name, a_file(1))]).encode())


def test_deep_trees_are_walked_and_compared(objects: ObjectStore) -> None:
    """Directories 1 500 deep are edited, walked and diffed."""
    deep = tuple(EntryName(b"d") for _ in range(1500))
    root = directory_entry(EMPTY_DIRECTORY)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # as both commands do
    try:
        with objects.batch() as batch:
            tree = edit_paths(batch, root, {deep: a_file(1)})
            other = edit_paths(batch, tree, {deep: a_file(2)})
            sys.setrecursionlimit(limit)
            assert len(list(walk(batch, tree))) == 1501
            assert [change.path for change in diff(batch, tree, other)] == [deep]
    finally:
        sys.setrecursionlimit(limit)


@given(st.binary(max_size=400), st.data())
def test_damaged_nodes_are_refused(noise: bytes, data: st.DataObject) -> None:
    """Any bytes either decode to a node in order or are refused as damaged; nothing else happens."""
    raw = bytearray(NodeDraft(0, [entry_item(b"n%d" % i, a_file(i)) for i in range(5)]).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + len(noise)] = noise
    for candidate in (bytes(raw), noise, bytes(raw[:at])):
        try:
            node = Node(candidate)
            assert node.names == sorted(set(node.names))
            if not node.level:
                for i in range(len(node)):
                    node.entry(i)
        except Corrupt:
            pass


def test_a_piece_is_no_node(objects: ObjectStore) -> None:
    """A file with the bytes of a directory's node, named as one by somebody who makes stores to harm: its hash fits, its kind does not."""
    with objects.batch() as batch:
        directory = build_directory(batch, [(b"a", a_file(1))])
        node = batch.get(directory.id)
        file = batch.add_piece(node)
        for reader in (batch, objects):
            with pytest.raises(Corrupt, match="is a piece, where a node should be"):
                load_node(reader, file)
            batch.flush()
        assert load_node(objects, directory.id).names == [b"a"]


@pytest.mark.parametrize("full", [3, 64, 1024])
def test_leaves_that_come_in_runs_make_the_same_directory(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    """However the runs are cut, and where nodes are full."""
    monkeypatch.setattr(edit, "NODE_ENTRIES_MAX", full)
    monkeypatch.setattr(boundaries, "NODE_ENTRIES_MAX", full)
    leaves = [entry_item(b"%06d" % i, a_file(i)) for i in range(3000)]
    with objects.batch() as batch:
        made = build_directory(batch, ((leaf.name, a_file(int(leaf.name))) for leaf in leaves))
        for length in (1, 7, 512, 3000):
            builder = edit.DirectoryBuilder(batch)
            for at in range(0, len(leaves), length):
                run = leaves[at : at + length]
                builder.add_files([leaf.name for leaf in run], [leaf.fixed for leaf in run])
            assert DirectorySummary.of(builder.finish()) == made
