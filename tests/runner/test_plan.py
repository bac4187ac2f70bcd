"""Plans: an incremental one against the difference of two whole ones."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import RepoPath, parse_path
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.globs import Glob
from pfsmount.tree.ingest import ingest_bytes
from runner.datum import Match, datum_key
from runner.plan import Source, plan_added, plan_all, plan_removed

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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TREES, TREES, GLOBS), min_size=1, max_size=3))
def test_an_incremental_plan_is_the_difference_of_two_whole_ones(
    objects: ObjectStore, inputs: list[tuple[dict[str, str], dict[str, str], str]]
) -> None:
    with objects.batch() as batch:
        old, new, both = [], [], []
        for i, (before, after, glob) in enumerate(inputs):
            then, now = tree_of(batch, before), tree_of(batch, after)
            old.append(Source(f"i{i}", Glob(glob), then))
            new.append(Source(f"i{i}", Glob(glob), now))
            both.append(Source(f"i{i}", Glob(glob), now, then))
        keys_then = {datum.key for datum in plan_all(batch, PROGRAM, old)}
        keys_now = {datum.key for datum in plan_all(batch, PROGRAM, new)}
        added = [datum.key for datum in plan_added(batch, PROGRAM, both)]
        removed = list(plan_removed(batch, PROGRAM, both))
        assert len(added) == len(set(added))
        assert len(removed) == len(set(removed))
        assert set(added) == keys_now - keys_then
        assert set(removed) == keys_then - keys_now


def test_a_plan_is_lazy(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        side = tree_of(batch, {f"{i:03}": f"{i}" for i in range(300)})
        sources = [Source(name, Glob("/*"), side) for name in ("a", "b", "c")]
        first = list(itertools.islice(plan_all(batch, PROGRAM, sources), 2))
    assert [str(datum) for datum in first] == ["a:/000 × b:/000 × c:/000", "a:/000 × b:/000 × c:/001"]


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
