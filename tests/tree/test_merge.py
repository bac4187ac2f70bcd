"""Three-way merge: against a model that looks at everything, and at the cost of the changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import NAME_MAX, EntryName, ObjectId, RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree import diff as diff_module
from pfsmount.tree import directory as directory_module
from pfsmount.tree import edit as edit_module
from pfsmount.tree.directory import directory_entry, find
from pfsmount.tree.edit import build_directory, edit_paths
from pfsmount.tree.entry import Entry, file_entry, symlink_entry
from pfsmount.tree.merge import Reason, Resolution, carry_out, name_beside, plan_merge
from pfsmount.tree.xattrs import with_xattrs

RELAXED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# The model: a tree is a File or a Dir, a Dir holds all it has.


@dataclass
class File:
    content: int
    mode: int = 0o644
    mtime: int = 1
    uid: int = 0
    link: bool = False
    xattr: int = 0


@dataclass
class Dir:
    mode: int = 0o755
    mtime: int = 1
    names: dict[str, Any] = field(default_factory=dict)
    uid: int = 0
    xattr: int = 0


Tree = File | Dir | None
Found = dict[str, Reason]


def build(batch: Batch, tree: File | Dir) -> Entry:
    """The tree from scratch."""
    if isinstance(tree, File):
        if tree.link:
            return symlink_entry(b"to%d" % tree.content, uid=tree.uid, mtime_ns=tree.mtime)
        id = hash_bytes(b"%d" % tree.content)
        entry = file_entry(id, tree.content, mode=tree.mode, uid=tree.uid, mtime_ns=tree.mtime)
        return with_xattrs(batch, entry, {b"user.n": b"%d" % tree.xattr} if tree.xattr else {})
    items = sorted((name.encode(), build(batch, child)) for name, child in tree.names.items())
    entry = directory_entry(build_directory(batch, items), mode=tree.mode, uid=tree.uid, mtime_ns=tree.mtime)
    return with_xattrs(batch, entry, {b"user.n": b"%d" % tree.xattr} if tree.xattr else {})


def untimed(tree: Tree) -> Tree:
    """The same with all times alike."""
    tree = copy.deepcopy(tree)
    if tree is not None:
        tree.mtime = 0
    if isinstance(tree, Dir):
        tree.names = {name: untimed(child) for name, child in tree.names.items()}
    return tree


def pick(base: Any, mine: Any, theirs: Any, newer: Any) -> Any:
    """One attribute; None: in conflict. `base` may be unknown (None)."""
    if mine == theirs or theirs == base:
        return mine
    return theirs if mine == base else newer if base is None else None


def model(base: Tree, mine: Tree, theirs: Tree, path: str, found: Found) -> Tree:
    """What the merge must be, by looking at everything; conflicts by path."""
    if mine == theirs or base == theirs:
        return mine
    if base == mine:
        return theirs
    if mine is None or theirs is None:
        there = mine or theirs
        if isinstance(base, Dir) and isinstance(there, Dir) and attributes(base) == attributes(there):
            return gone(base, there, path, found)
        if untimed(base) != untimed(there):
            found[path] = Reason.DELETED
        return None
    newer: Any = max(mine, theirs, key=lambda one: (one.mtime, one.mode, one.uid))
    mtime = max(mine.mtime, theirs.mtime)
    if base is not None and base.mtime in (mine.mtime, theirs.mtime):
        mtime = theirs.mtime if mine.mtime == base.mtime else mine.mtime
    if isinstance(mine, Dir) and isinstance(theirs, Dir):
        before = base if isinstance(base, Dir) else None
        if before is None:
            mtime = newer.mtime
        mode, uid, xattr = merged = merged_attributes(before, mine, theirs, newer)
        if None in merged:
            found[path] = Reason.ATTRIBUTES
        result = Dir(mode, mtime, uid=uid, xattr=xattr)
        for name in {*mine.names, *theirs.names}:
            old = None if before is None else before.names.get(name)
            child = model(old, mine.names.get(name), theirs.names.get(name), f"{path}/{name}", found)
            if child is not None:
                result.names[name] = child
        return result
    if isinstance(mine, Dir) or isinstance(theirs, Dir) or mine.link != theirs.link:
        if base is not None and untimed(base) == untimed(theirs):
            return mine
        if base is not None and untimed(base) == untimed(mine):
            return theirs
        found[path] = Reason.KIND
        return mine
    return model_file(base, mine, theirs, newer, mtime, path, found)


def model_file(base: Tree, mine: File, theirs: File, newer: File, mtime: int, path: str, found: Found) -> Tree:
    if not isinstance(base, File) or base.link != mine.link:
        executable = not mine.link and (mine.mode ^ theirs.mode) & 0o100
        if mine.content != theirs.content or executable:
            found[path] = Reason.ADDED if base is None else Reason.CONTENT
            return mine
        if mine.xattr != theirs.xattr:
            found[path] = Reason.ATTRIBUTES
        return File(mine.content, newer.mode, newer.mtime, newer.uid, mine.link, mine.xattr)
    content = pick(base.content, mine.content, theirs.content, None)
    if content is None:
        found[path] = Reason.CONTENT
        return mine
    mode, uid, xattr = merged = merged_attributes(base, mine, theirs, None)
    if None in merged:
        found[path] = Reason.ATTRIBUTES
        return mine
    return File(content, mode, mtime, uid, mine.link, xattr)


def attributes(one: Any) -> tuple[int, int, int]:
    return one.mode, one.uid, one.xattr


def merged_attributes(base: Any, mine: Any, theirs: Any, newer: Any) -> tuple[Any, Any, Any]:
    """None for what is in conflict. Without a base the newer side's count, but of attributes of the user neither does."""
    before = (None,) * 3 if base is None else attributes(base)
    last = (None,) * 3 if newer is None else (newer.mode, newer.uid, None)
    mode, uid, xattr = map(pick, before, attributes(mine), attributes(theirs), last)
    return mode, uid, xattr


def gone(base: Dir, there: Dir, path: str, found: Found) -> Tree:
    """A directory that one side deleted."""
    for name, child in there.names.items():
        old, at = base.names.get(name), f"{path}/{name}"
        if isinstance(old, Dir) and isinstance(child, Dir) and attributes(old) == attributes(child):
            if old != child:
                gone(old, child, at, found)
        elif untimed(old) != untimed(child):
            found[at] = Reason.DELETED
    return None


# Edits: small trees whose edits hit each other, with one directory that is large enough for several nodes

PATHS = ("a", "b", "d", "d/x", "d/y", "d/e", "d/e/f", "d/e/g", "n", "n/x", "big/n7", "big/n299", "big/x")


def apply(tree: Dir, edits: Edits) -> Dir:
    """A tree after some edits; those that do not fit do nothing."""
    tree = copy.deepcopy(tree)
    for op, path, n in edits:
        *above, name = path.split("/")
        at: Any = tree
        for part in above:
            at = at.names.setdefault(part, Dir()) if isinstance(at, Dir) else None
        if not isinstance(at, Dir):
            continue
        there = at.names.get(name)
        if op == "file":
            at.names[name] = File(n, mtime=2 + n)
        elif op == "link":
            at.names[name] = File(n, 0o777, link=True)
        elif op == "delete":
            at.names.pop(name, None)
        elif op == "mkdir":
            at.names[name] = Dir(names={"in": File(n)} if n else {})
        elif there is not None and op == "chmod":
            if not getattr(there, "link", False):
                there.mode = (0o600, 0o644, 0o755)[n]
        elif there is not None and op == "touch":
            there.mtime = 1 + n
        elif there is not None and op == "chown":
            there.uid = n
        elif there is not None and op == "xattr" and not getattr(there, "link", False):
            there.xattr = n
        at.mtime += n % 2
    return tree


Edits = list[tuple[str, str, int]]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Edits, Edits, Edits]:
    """Edits before the sides part, and of both: of a few paths, so that they meet."""
    paths = st.sampled_from(draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3, unique=True)))
    ops = st.sampled_from(["file", "delete", "mkdir", "chmod", "touch", "chown", "xattr", "link"])
    edits = st.lists(st.tuples(ops, paths, st.integers(0, 2)), min_size=1, max_size=4)
    return draw(edits), draw(edits), draw(edits)


BIG = Dir(names={f"n{i}": File(i) for i in range(300)})
START = Dir(names={"a": File(9), "d": Dir(names={"x": File(8), "e": Dir(names={"f": File(7)})}), "big": BIG})


def text(path: RepoPath) -> str:
    return "".join(f"/{name.decode()}" for name in path)


@RELAXED
@given(histories())
def test_merge_is_what_the_model_says(objects: ObjectStore, edits: tuple[Edits, Edits, Edits]) -> None:
    """Result and conflicts are those of the model; the result is the tree that a build from scratch gives; sides can be swapped."""
    base = apply(START, edits[0])
    mine, theirs = apply(base, edits[1]), apply(base, edits[2])
    found: Found = {}
    want = model(base, mine, theirs, "", found)
    with objects.batch() as batch:
        b, m, t = build(batch, base), build(batch, mine), build(batch, theirs)
        plan, swapped = plan_merge(batch, b, m, t), plan_merge(batch, b, t, m)
        assert {text(conflict.path): conflict.reason for conflict in plan.conflicts} == found
        for conflict in plan.conflicts:
            sides = [find(batch, side, conflict.path) for side in (m, t)]
            assert [conflict.mine, conflict.theirs] == sides
        assert {(one.path, one.mine, one.theirs) for one in plan.conflicts} == {
            (one.path, one.theirs, one.mine) for one in swapped.conflicts
        }
        if not found:
            assert isinstance(want, Dir)
            assert carry_out(batch, plan) == carry_out(batch, swapped) == build(batch, want)
        else:
            settle(batch, b, m, t)
        for same in (plan_merge(batch, b, b, t), plan_merge(batch, b, t, b), plan_merge(batch, b, t, t)):
            assert carry_out(batch, same) == t


def settle(batch: Batch, b: Entry, m: Entry, t: Entry) -> None:
    """Whatever is decided, the merge can be carried out; each path then has what was decided, and BOTH keeps both."""
    for how in (Resolution.MINE, Resolution.THEIRS, Resolution.BOTH, Resolution.NEITHER):
        plan = plan_merge(batch, b, m, t, decide=lambda conflict, how=how: how)  # type: ignore[misc]
        assert not plan.conflicts
        root = carry_out(batch, plan)
        for conflict, _ in plan.settled:
            there = find(batch, root, conflict.path)
            if conflict.reason is Reason.ATTRIBUTES:
                continue
            if how is Resolution.MINE:
                assert there == conflict.mine
            elif how is Resolution.THEIRS:
                assert there == conflict.theirs
            elif how is Resolution.BOTH:
                assert there == (conflict.mine or conflict.theirs)
                if conflict.mine is not None and conflict.theirs is not None:
                    *above, name = conflict.path
                    beside = name_beside(
                        name, b"theirs", lambda other: False, is_directory=conflict.theirs.is_directory
                    )
                    assert find(batch, root, (*above, beside)) == conflict.theirs
        if how in (Resolution.MINE, Resolution.THEIRS):
            other = Resolution.THEIRS if how is Resolution.MINE else Resolution.MINE
            swapped = plan_merge(batch, b, t, m, decide=lambda conflict, other=other: other)  # type: ignore[misc]
            assert carry_out(batch, swapped) == root


@pytest.mark.parametrize("change", ["mode", "uid", "xattr"])
@pytest.mark.parametrize("below", [False, True])
def test_deleted_directories_whose_attributes_changed(objects: ObjectStore, change: str, below: bool) -> None:
    """Mode, owner and xattrs of a directory are an edit, against a deletion of it or of what is above; its time is none."""
    base = Dir(names={"d": Dir(names={"e": Dir(names={"x": File(1)}), "y": File(2)})})
    edited, touched = copy.deepcopy(base), copy.deepcopy(base)
    for tree, name, value in ((edited, change, 0o700), (touched, "mtime", 77)):
        setattr(tree.names["d"].names["e"] if below else tree.names["d"], name, value)
    with objects.batch() as batch:
        b, gone = build(batch, base), build(batch, Dir())
        assert carry_out(batch, plan_merge(batch, b, gone, build(batch, touched))) == gone
        for sides in ((gone, build(batch, edited)), (build(batch, edited), gone)):
            (conflict,) = plan_merge(batch, b, *sides).conflicts
            assert (text(conflict.path), conflict.reason) == ("/d/e" if below else "/d", Reason.DELETED)
            assert (conflict.mine is None, conflict.theirs is None) == (sides[0] == gone, sides[1] == gone)


def test_without_a_common_version(objects: ObjectStore) -> None:
    """Histories that have nothing in common: what only one has is there, what both have must be equal, directories join."""
    mine = Dir(names={"a": File(1), "d": Dir(names={"x": File(1)}), "same": File(5, mtime=3)})
    theirs = Dir(0o700, 9, {"b": File(1), "d": Dir(names={"y": File(1)}), "same": File(5, 0o600, mtime=4, uid=1)})
    want = Dir(0o700, 9, {"a": File(1), "b": File(1), "same": File(5, 0o600, 4, 1)})
    want.names["d"] = Dir(names={"x": File(1), "y": File(1)})
    with objects.batch() as batch:
        plan = plan_merge(batch, None, build(batch, mine), build(batch, theirs))
        assert carry_out(batch, plan) == build(batch, want)


def test_cost_is_that_of_the_changes(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two edits of ten files each in a tree of 100 000 files read a few nodes, one edit against 10 000 not many more."""

    def path(i: int) -> RepoPath:
        return (EntryName(b"dir%02d" % (i % 10)), EntryName(b"file%05d" % i))

    def edited(batch: Batch, root: Entry, numbers: range, content: bytes) -> Entry:
        return edit_paths(batch, root, {path(i): file_entry(hash_bytes(content + b"%d" % i), 1) for i in numbers})

    reads: list[ObjectId] = []
    for module in (diff_module, directory_module, edit_module):
        monkeypatch.setattr(module, "load_node", _counting(module.load_node, reads))
    with objects.batch() as batch:
        base = edited(batch, directory_entry(directory_module.EMPTY_DIRECTORY), range(100_000), b"base")
        mine = edited(batch, base, range(0, 1000, 100), b"mine")
        theirs = edited(batch, base, range(50_000, 50_100, 10), b"theirs")
        many = edited(batch, base, range(70_000, 80_000), b"many")
        want = edited(batch, theirs, range(0, 1000, 100), b"mine")
        want_many = edited(batch, many, range(0, 1000, 100), b"mine")
        for other, expected in ((theirs, want), (many, want_many)):
            for sides in ((mine, other), (other, mine)):
                reads.clear()
                assert carry_out(batch, plan_merge(batch, base, *sides)) == expected
                assert len(reads) <= 250


def _counting(load: Callable[..., Any], reads: list[ObjectId]) -> Callable[..., Any]:
    def counting(objects: Any, id: ObjectId) -> Any:
        reads.append(id)
        return load(objects, id)

    return counting


# Names beside


@settings(max_examples=40, deadline=None)
@given(
    st.binary(min_size=1, max_size=NAME_MAX).filter(lambda name: b"/" not in name and b"\0" not in name),
    st.text(min_size=1, max_size=63).map(str.encode),
    st.integers(0, 12),
    st.booleans(),
)
def test_name_beside(name: bytes, label: bytes, taken: int, is_directory: bool) -> None:
    """It is a name of at most 255 bytes that is free, whatever the bytes."""
    names: set[bytes] = {name}
    for _ in range(taken):
        found = name_beside(EntryName(name), label, names.__contains__, is_directory=is_directory)
        assert found not in names
        assert 0 < len(found) <= NAME_MAX
        names.add(found)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        (b"cat.jpg", b"cat~dev.jpg"),
        (b"README", b"README~dev"),
        (b".profile", b".profile~dev"),
        (b"a.b.c", b"a.b~dev.c"),
        (b"x" * 255, b"x" * 251 + b"~dev"),
        ("ä".encode() * 127 + b"x", "ä".encode() * 125 + b"~dev"),
        (b"\xff\xfe.tif", b"\xff\xfe~dev.tif"),
    ],
)
def test_names_beside_are_readable(name: bytes, want: bytes) -> None:
    assert name_beside(EntryName(name), b"dev", lambda other: False, is_directory=False) == want
