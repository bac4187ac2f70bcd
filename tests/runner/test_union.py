"""The union of datums' outputs against a model: a dict of dicts, built from scratch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import ObjectId, RepoPath, parse_path
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import create_store
from pfsmount.objects.reading import Reader
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.concatenate import concatenate
from pfsmount.tree.content import Content, open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from runner.union import Output, OutputClash, Union, empty_directory

# A datum's results: the text of a file, or None for a directory that it left empty.
Results = dict[str, str | None]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    path = tmp_path_factory.mktemp("union") / "store"
    create_store(path)
    store = ObjectStore(path)
    yield store
    store.close()


def output(batch: Batch, name: str, results: Results) -> Output:
    changes: dict[RepoPath, Entry | None] = {}
    for path, text in results.items():
        content = b"" if text is None else text.encode()
        entry = empty_directory() if text is None else file_entry(ingest_bytes(batch, content), len(content))
        changes[parse_path(path)] = entry
    return Output(key(name), edit_paths(batch, empty_directory(), changes))


def key(name: str) -> ObjectId:
    return hash_bytes(name.encode())


def union_of(batch: Batch, datums: dict[str, Results]) -> Union:
    union = Union(batch)
    union.add(output(batch, name, results) for name, results in datums.items())
    union.finish()
    return union


def paths(batch: Batch, tree: Entry) -> set[str]:
    return {b"/".join(path).decode() + "/" * entry.is_directory for path, entry in walk(batch, tree) if path}


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def tidy(results: Results) -> Results:
    """Nothing lies below a file."""
    files = [path for path, text in results.items() if text is not None]
    return {path: text for path, text in results.items() if not any(path.startswith(f"{file}/") for file in files)}


RESULTS = st.dictionaries(PATHS, st.sampled_from(["x", "y", None]), max_size=4).map(tidy)
DATUMS = st.dictionaries(st.sampled_from("123456"), RESULTS, max_size=5)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DATUMS, DATUMS)
def test_an_incremental_union_is_the_one_from_scratch(
    objects: ObjectStore, before: dict[str, Results], after: dict[str, Results]
) -> None:
    # A key stands for one result.
    after = {name: before.get(name, results) for name, results in after.items()}
    with objects.batch() as batch:
        try:
            base = union_of(batch, before)
        except OutputClash:
            return
        union = Union(batch, base.tree, base.written_by)
        try:
            scratch = union_of(batch, after)
        except OutputClash:
            scratch = None
        try:
            union.remove(output(batch, name, results) for name, results in before.items() if name not in after)
            union.add(output(batch, name, results) for name, results in after.items() if name not in before)
            union.finish()
        except OutputClash:
            assert scratch is None
            return
        assert scratch is not None
        assert (union.tree, union.written_by) == (scratch.tree, scratch.written_by)


def appended(batch: Batch, datums: dict[str, Results], base: Union | None = None) -> Union:
    """A union that puts together what several wrote."""
    outputs = {key(name): replace(output(batch, name, results), order=(name,)) for name, results in datums.items()}
    trees = (None, None) if base is None else (base.tree, base.written_by)
    return Union(batch, *trees, append=outputs.__getitem__)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DATUMS, DATUMS)
def test_appended_results_are_those_from_scratch(
    objects: ObjectStore, before: dict[str, Results], after: dict[str, Results]
) -> None:
    after = {name: before.get(name, results) for name, results in after.items()}
    with objects.batch() as batch:

        def scratch(datums: dict[str, Results]) -> Union:
            union = appended(batch, datums)
            union.add(output(batch, name, results) for name, results in datums.items())
            union.finish()
            return union

        try:
            base = scratch(before)
        except OutputClash:
            return
        try:
            whole = scratch(after)
        except OutputClash:
            return
        union = appended(batch, before | after, base)
        union.remove(output(batch, name, results) for name, results in before.items() if name not in after)
        union.add(output(batch, name, results) for name, results in after.items() if name not in before)
        union.finish()
        assert (union.tree, union.written_by) == (whole.tree, whole.written_by)
        for path, entry in walk(batch, union.tree):
            if entry.kind is Kind.FILE:
                place = b"/".join(path).decode()
                texts = [results[place] or "" for _, results in sorted(after.items()) if place in results]
                assert open_content(batch, entry).read(0, 100).decode() == "".join(texts)


def test_what_cannot_be_appended(objects: ObjectStore) -> None:
    clashing: list[tuple[Results, Results]] = [
        ({"x": "1"}, {"x/y": "2"}),
        ({"x/y": "2"}, {"x": "1"}),
        ({"x": "1"}, {"x": None}),
    ]
    with objects.batch() as batch:
        for pair, at_once in itertools.product(clashing, (True, False)):
            datums = dict(zip(("first", "second"), pair, strict=True))
            union = appended(batch, datums)
            outputs = [output(batch, name, results) for name, results in datums.items()]
            union.add(outputs[: not at_once])
            with pytest.raises(OutputClash):
                union.add(outputs[not at_once :])


def test_large_files_are_appended_in_little_memory(objects: ObjectStore) -> None:
    with objects.batch() as batch:
        data = bytes(range(256)) * 40_000
        entry = file_entry(ingest_bytes(batch, data), len(data))
        words = file_entry(ingest_bytes(batch, b"words"), 5)
        nothing = file_entry(ingest_bytes(batch, b""), 0)
        id, size = concatenate(batch, [words, entry, nothing, entry, words, nothing])
        assert (id, size) == (hash_bytes(b"words" + data * 2 + b"words"), 2 * len(data) + 10)


def test_what_is_appended_is_read_by_the_thread_that_stores_it(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = set()

    def note_reader(objects: Reader, entry: Entry) -> Content:
        readers.add(threading.current_thread())
        return open_content(objects, entry)

    monkeypatch.setattr("pfsmount.tree.concatenate.open_content", note_reader)
    with objects.batch() as batch:
        data = bytes(10 << 20)
        entry = file_entry(ingest_bytes(batch, data), len(data))
        concatenate(batch, [entry, entry])
    assert readers == {threading.current_thread()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DATUMS)
def test_the_union_has_every_result_and_nothing_else(objects: ObjectStore, datums: dict[str, Results]) -> None:
    files: dict[str, str] = {}
    directories: set[str] = set()
    clash = False
    for name, results in datums.items():
        for path, text in results.items():
            parts = path.split("/")
            above = {"/".join(parts[:i]) for i in range(1, len(parts))} | ({path} if text is None else set())
            clash |= any(there in files for there in above | {path}) or (text is not None and path in directories)
            directories |= above
            if text is not None:
                files[path] = name
    with objects.batch() as batch:
        if clash:
            with pytest.raises(OutputClash):
                union_of(batch, datums)
            return
        union = union_of(batch, datums)
        assert paths(batch, union.tree) == set(files) | {f"{path}/" for path in directories}
        assert paths(batch, union.written_by) == paths(batch, union.tree)
        for place, entry in walk(batch, union.written_by):
            if entry.kind is Kind.SYMLINK:
                assert entry.target == key(files[b"/".join(place).decode()]).hex().encode()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"x": "1"}, {"x": "1"}),
        ({"x": "1"}, {"x/y": "2"}),
        ({"x/y": "2"}, {"x": "1"}),
        ({"x": None}, {"x": "1"}),
        ({"x": "1"}, {"x": None}),
        ({"x/y": None}, {"x": "1"}),
    ],
)
@pytest.mark.parametrize("in_base", [False, True])
def test_two_writers_of_one_path_are_named(
    objects: ObjectStore, first: Results, second: Results, in_base: bool
) -> None:
    with objects.batch() as batch:
        base = union_of(batch, {"first": first} if in_base else {})
        union = Union(batch, base.tree, base.written_by)
        with pytest.raises(OutputClash) as clash:
            union.add([output(batch, "first", first)] * (not in_base) + [output(batch, "second", second)])
        assert clash.value.path[0] == b"x"
        assert clash.value.second == key("second")
        assert clash.value.first in (key("first"), None)


def test_thousands_of_files_are_laid_in_bounded_steps(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.union._CHANGES_AT_ONCE", 50)
    datums: dict[str, Results] = {f"{i}": {f"{i % 7}/{i}": f"{i}", f"{i % 5}e/{i}": None} for i in range(300)}
    with objects.batch() as batch:
        in_steps = union_of(batch, datums)
        monkeypatch.setattr("runner.union._CHANGES_AT_ONCE", 1_000_000)
        assert union_of(batch, datums).tree == in_steps.tree


def test_a_store_of_results_stays_small(tmp_path: Path) -> None:
    """What the union costs per result: an entry in either tree."""
    create_store(tmp_path / "store")
    store = ObjectStore(tmp_path / "store")
    with store.batch() as batch:
        datums: dict[str, Results] = {f"{i}": {f"img{i:06}.png": f"{i}"} for i in range(2000)}
        outputs = [output(batch, name, results) for name, results in datums.items()]
        before = batch.bytes_added
        union = Union(batch)
        union.add(outputs)
        union.finish()
        assert (batch.bytes_added - before) / 2000 < 300
    store.close()
