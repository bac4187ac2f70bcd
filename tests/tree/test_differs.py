"""Whether two trees differ at a path or at what a glob matches: the same answer as from the whole diff."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.diff import diff, differs_at
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.globs import Glob
from pfsmount.tree.node import Node

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATTERNS = [
    "*",
    "*/*",
    "a*",
    "a1/*",
    "*/b2",
    "**2",
    "a1/**",
    "{a1,a2}/b*",
    "!(a1)",
    "a1",
    "a1/b1",
    "/",
    "**/b1",
    "*/*/**",
]
NAMES = st.builds(lambda letter, i: EntryName(b"%c%d" % (letter, i)), st.sampled_from(list(b"ab")), st.integers(0, 300))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
TREES = st.dictionaries(PATHS, st.integers(0, 3), max_size=30)


def build(batch: Batch, files: Mapping[RepoPath, int]) -> Entry:
    """A tree of these files; one that is in the way of a directory is left out."""
    root = directory_entry(EMPTY_DIRECTORY)
    wanted: dict[RepoPath, Entry | None] = {
        path: file_entry(hash_bytes(b"%d" % content), 1, mtime_ns=content % 2)
        for path, content in files.items()
        if not any(path[:end] in files for end in range(1, len(path)))
    }
    return edit_paths(batch, root, wanted)


@RELAXED
@given(before=TREES, changes=TREES, gone=st.sets(st.integers(0, 29)))
def test_as_the_whole_diff(objects: ObjectStore, before: dict, changes: dict, gone: set[int]) -> None:  # type: ignore[type-arg]
    """For each path of both trees, and for globs: the shortcuts find exactly what comparing everything finds."""
    after = {path: value for i, (path, value) in enumerate(before.items()) if i not in gone} | changes
    with objects.batch() as batch:
        old, new = build(batch, before), build(batch, after)
        changed = {change.path for change in diff(batch, old, new)}
        paths = {path for tree in (old, new) for path, _ in walk(batch, tree)} | {(EntryName(b"nowhere"),)}
        differing = {path for path in paths if find(batch, old, path) != find(batch, new, path)}
        assert changed <= differing
        assert {path for path in paths if differs_at(batch, old, new, path)} == differing
        for pattern in PATTERNS:
            glob = Glob(pattern)
            expected = any(glob.match(path) for path in differing)
            assert glob.differs(batch, old, new) == expected, pattern
        assert differs_at(batch, None, new, ())
        assert not differs_at(batch, new, new, (EntryName(b"a1"),))


def test_only_what_differs_is_read(objects: ObjectStore) -> None:
    """In a directory of many nodes, looking at a name in a node that both versions share reads no leaf."""
    names = [EntryName(b"f%05d" % i) for i in range(20_000)]
    with objects.batch() as batch:
        root = directory_entry(EMPTY_DIRECTORY)
        old = edit_paths(batch, root, {(name,): file_entry(hash_bytes(name), 1) for name in names})
        new = edit_paths(batch, old, {(names[7],): file_entry(hash_bytes(b"x"), 1)})
        batch.flush()
    levels: list[int] = []

    class Counted(ObjectStore):
        def get(self, id: ObjectId) -> bytes:
            raw = super().get(id)
            levels.append(Node(raw).level)
            return raw

    path = objects.path
    objects.close()
    fresh = Counted(path)
    try:
        assert not differs_at(fresh, old, new, (names[15_000],))
        assert 0 not in levels
        assert differs_at(fresh, old, new, (names[7],))
        assert levels.count(0) == 2
        assert [change.path for change in diff(fresh, old, new)] == [(names[7],)]
        assert levels.count(0) == 2
    finally:
        fresh.close()
