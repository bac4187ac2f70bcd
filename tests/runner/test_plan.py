"""Plans: an incremental one against the difference of two whole ones."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import RepoPath, parse_path, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore
from pfsmount.revision import Revision
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from runner.datum import Match, datum_key
from runner.input_spec import Combination, CombinedInput, Input, InputSpec, leaves
from runner.plan import Source, may_repeat, plan_added, plan_all, plan_removed, plan_tree

PROGRAM = hash_bytes(b"program")
PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=2).map("/".join)
TREES = st.dictionaries(PATHS, st.sampled_from("xyz"), max_size=5).map(
    lambda tree: {path: text for path, text in tree.items() if not any(path.startswith(f"{p}/") for p in tree)}
)
GLOBS = st.sampled_from(["/", "/*", "/**", "/a/*", "/{a,b}"])


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with tempfile.TemporaryDirectory() as place:
        create_store(Path(place, "store"))
        store = ObjectStore(Path(place, "store"))
        yield store
        store.close()


def tree_of(batch: Batch, files: dict[str, str], mode: int = 0o644) -> Entry:
    changes: dict[RepoPath, Entry | None] = {
        parse_path(path): file_entry(ingest_bytes(batch, text.encode()), len(text), mode=mode)
        for path, text in files.items()
    }
    return edit_paths(batch, directory_entry(EMPTY_DIRECTORY), changes)


def leaf(name: str, glob: str, **more: Any) -> InputSpec:
    return InputSpec(name, name, Revision(), glob, **more)


def numbered(draw: st.DrawFn, spec: Input, numbers: Iterator[int]) -> Input:
    """The same input with names of its own for all leaves."""
    if isinstance(spec, InputSpec):
        return replace(spec, name=f"i{next(numbers)}")
    return replace(spec, inputs=tuple(numbered(draw, part, numbers) for part in spec.inputs))


KEYED_GLOBS = st.sampled_from(["/(*)", "/(*)/*", "/*/(*)", "/(*)/(*)"])


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    """Any input: leaves of which all have keys, or plain globs outside of joins and groups."""

    def keyed() -> InputSpec:
        glob = draw(KEYED_GLOBS)
        return leaf("i", glob, join_on="$1", group_by="$1", outer_join=draw(st.booleans()))

    def plain() -> InputSpec:
        return leaf("i", draw(GLOBS))

    def part(depth: int, *, key: bool) -> Input:
        kind = draw(st.sampled_from(["leaf", "leaf", *Combination])) if depth else "leaf"
        if kind == "leaf":
            return keyed() if key else plain()
        key = key or kind in (Combination.JOIN, Combination.GROUP)
        parts = tuple(part(depth - 1, key=key) for _ in range(draw(st.integers(1, 3))))
        return CombinedInput(Combination(kind), parts)

    return numbered(draw, part(2, key=False), itertools.count())


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_incremental_plan_is_the_difference_of_two_whole_ones(objects: ObjectStore, data: st.DataObject) -> None:
    spec = data.draw(inputs())
    count = sum(1 for _ in leaves(spec))
    trees = data.draw(st.lists(st.tuples(TREES, TREES), min_size=count, max_size=count))
    with objects.batch() as batch:
        then = [tree_of(batch, before) for before, _ in trees]
        now = [tree_of(batch, after) for _, after in trees]
        keys_then = [datum.key for datum in plan_all(PROGRAM, plan_tree(batch, spec, [Source(one) for one in then]))]
        keys_now = [datum.key for datum in plan_all(PROGRAM, plan_tree(batch, spec, [Source(one) for one in now]))]
        both = plan_tree(batch, spec, [Source(*pair) for pair in zip(now, then, strict=True)])
        added = [datum.key for datum in plan_added(PROGRAM, both)]
        removed = list(plan_removed(PROGRAM, both))
    assert not may_repeat(spec)
    for keys in (keys_then, keys_now, added, removed):
        assert len(keys) == len(set(keys))
    assert set(added) == set(keys_now) - set(keys_then)
    assert set(removed) == set(keys_then) - set(keys_now)


def planned(batch: Batch, spec: Input, *trees: Entry) -> list[str]:
    """The datums of an input, for people."""
    part = plan_tree(batch, spec, [Source(tree) for tree in trees])
    return [str(datum) for datum in plan_all(PROGRAM, part, repeats=may_repeat(spec))]


def test_combinations(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        left = tree_of(batch, {"1.a": "x", "2.a": "y", "3.a": "z"})
        right = tree_of(batch, {"1.b": "x", "2.b": "y", "2.c": "y", "4.b": "z"})

        def of(how: Combination, **more: Any) -> list[str]:
            parts = (
                leaf("l", "/(*).a", join_on="$1", group_by="$1", **more),
                leaf("r", "/(*).*", join_on="$1", group_by="$1"),
            )
            return planned(batch, CombinedInput(how, parts), left, right)

        assert len(of(Combination.CROSS)) == 12
        assert of(Combination.CROSS)[:2] == ["l:/1.a × r:/1.b", "l:/1.a × r:/2.b"]
        assert of(Combination.UNION) == ["/1.a", "/2.a", "/3.a", "/1.b", "/2.b", "/2.c", "/4.b"]
        inner = ["l:/1.a × r:/1.b", "l:/2.a × r:/2.b", "l:/2.a × r:/2.c"]
        assert of(Combination.JOIN) == inner
        assert of(Combination.JOIN, outer_join=True) == [*inner, "/3.a"]
        assert of(Combination.GROUP) == ["l:/1.a × r:/1.b", "l:/2.a × r:/2.b, /2.c", "/3.a", "/4.b"]


def test_combinations_nest(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        samples = tree_of(batch, {"s1/r1": "x", "s1/r2": "y", "s2/r1": "z"})
        info = tree_of(batch, {"s1": "x", "s2": "y"})
        settings_ = tree_of(batch, {"fast": "x", "slow": "y"})
        grouped = CombinedInput(Combination.GROUP, (leaf("reads", "/(*)/*", join_on="$1", group_by="$1"),))
        joined = CombinedInput(Combination.JOIN, (grouped, leaf("info", "/(*)", join_on="$1")))
        crossed = CombinedInput(Combination.CROSS, (joined, leaf("how", "/*")))
        assert planned(batch, crossed, samples, info, settings_) == [
            "reads:/s1/r1, /s1/r2 × info:/s1 × how:/fast",
            "reads:/s1/r1, /s1/r2 × info:/s1 × how:/slow",
            "reads:/s2/r1 × info:/s2 × how:/fast",
            "reads:/s2/r1 × info:/s2 × how:/slow",
        ]


def test_an_empty_side(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        full, empty = tree_of(batch, {"1": "x", "2": "y"}), tree_of(batch, {})
        parts = (leaf("a", "/(*)", join_on="$1", group_by="$1"), leaf("b", "/(*)", join_on="$1", group_by="$1"))
        counts = {how: len(planned(batch, CombinedInput(how, parts), full, empty)) for how in Combination}
    assert counts == {Combination.CROSS: 0, Combination.UNION: 2, Combination.JOIN: 0, Combination.GROUP: 2}


def test_a_datum_that_two_inputs_of_a_union_have_runs_once(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        tree = tree_of(batch, {"a": "x", "b": "y"})
        spec = CombinedInput(Combination.UNION, (leaf("in", "/*"), leaf("in", "/a")))
        assert may_repeat(spec)
        assert planned(batch, spec, tree, tree) == ["/a", "/b"]


def test_a_plan_is_lazy(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        side = tree_of(batch, {f"{i:03}": f"{i}" for i in range(300)})
        spec = CombinedInput(Combination.CROSS, tuple(leaf(name, "/*") for name in ("a", "b", "c")))
        part = plan_tree(batch, spec, [Source(side)] * 3)
        first = list(itertools.islice(plan_all(PROGRAM, part), 2))
    assert [str(datum) for datum in first] == ["a:/000 × b:/000 × c:/000", "a:/000 × b:/000 × c:/001"]


def test_a_matched_symlink_brings_its_target(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        changes: dict[RepoPath, Entry | None] = {
            parse_path("/link"): symlink_entry(b"deep/next"),
            parse_path("/deep/next"): symlink_entry(b"../data/file"),
            parse_path("/out"): symlink_entry(b"../../etc/passwd"),
            parse_path("/abs"): symlink_entry(b"/pfs/in/data"),
            parse_path("/circle"): symlink_entry(b"circle"),
            parse_path("/lost"): symlink_entry(b"nowhere"),
        }
        tree = edit_paths(batch, tree_of(batch, {"data/file": "x", "data/other": "y"}), changes)
        spec = leaf("in", "/*")
        datums = {str(datum): datum for datum in plan_all(PROGRAM, plan_tree(batch, spec, [Source(tree)]))}
        visible = {name: [path_bytes(one.path) for one in datum.visible()["in"]] for name, datum in datums.items()}
        assert visible["/link"] == [b"/data/file", b"/deep/next", b"/link"]
        assert all(visible[name] == [name.encode()] for name in ("/out", "/abs", "/circle", "/lost", "/deep", "/data"))
        assert datums["/link"].has_links
        assert not datums["/data"].has_links
        # what it leads to is in the key
        file = parse_path("/data/file")
        changed = edit_paths(batch, tree, {file: file_entry(ingest_bytes(batch, b"other"), 5)})
        again = {str(datum): datum.key for datum in plan_all(PROGRAM, plan_tree(batch, spec, [Source(changed)]))}
    assert {name for name, key in again.items() if key != datums[name].key} == {"/link", "/data"}


def test_what_is_in_a_key(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        file = file_entry(ingest_bytes(batch, b"text"), 4)
        other = file_entry(ingest_bytes(batch, b"test"), 4)
        directory = tree_of(batch, {"f": "text"})

        def key(entry: Entry, path: str = "/a", name: str = "in") -> bytes:
            return datum_key(PROGRAM, [Match(name, parse_path(path), entry)])

        same = key(file)
        assert key(file.replace(mtime_ns=7, uid=5, mode=0o600)) == same
        different = [
            key(file.replace(mode=0o755)),
            key(other),
            key(file, "/b"),
            key(file, name="other"),
            key(directory),
            key(tree_of(batch, {"f": "text"}, mode=0o755)),
            datum_key(hash_bytes(b"other program"), [Match("in", parse_path("/a"), file)]),
        ]
        assert len({same, *different}) == len(different) + 1
        one, two = Match("one", (), file), Match("two", (), other)
        assert datum_key(PROGRAM, [one, two]) == datum_key(PROGRAM, [two, one])
