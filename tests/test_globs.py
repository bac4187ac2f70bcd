"""Globs: the table of rules, and finding against matching every path of the tree."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.errors import InvalidInput
from pfsmount.ids import RepoPath, parse_path
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.globs import Glob
from pfsmount.tree.ingest import ingest_bytes

MATCHES = [
    ("/", "", True),
    ("", "", True),
    ("", "a", False),
    ("/*", "", False),
    ("/**", "", False),
    ("*", "a", True),
    ("/*", "a", True),
    ("/*/", "a", True),
    ("/*", "a/b", False),
    ("/*", ".hidden", True),
    ("/*/*", "a/b", True),
    ("/*/*", "a", False),
    ("**", "a/b/c", True),
    ("/**", "a", True),
    ("**.2", "a/b.2", True),
    ("**.2", "x.2", True),
    ("a**c", "a/b/c", True),
    ("a/**", "a", False),
    ("a/**", "a/b", True),
    ("/**/c", "b/c", True),
    ("/**/c", "c", False),
    ("?", "é", True),
    ("?", "\udcff", True),
    ("?", "ab", False),
    ("a?b", "a/b", False),
    ("[abc]", "b", True),
    ("[a-c]x", "cx", True),
    ("[a-c]", "d", False),
    ("[!a-c]", "d", True),
    ("[^a-c]", "b", False),
    ("a[!b]c", "a/c", False),
    ("[]a]", "]", True),
    ("[a-]", "-", True),
    (r"[\]]", "]", True),
    ("[[:alpha:]]", "C", True),
    ("[[:alpha:]]", "5", False),
    ("[[:^alpha:]]", "5", True),
    ("[^[:alpha:]]", ";", True),
    ("[[:digit:]x]", "x", True),
    ("{a,b}.txt", "b.txt", True),
    ("{a,b}.txt", "c.txt", False),
    ("{a,{b,c}d}", "cd", True),
    ("x{,y}", "x", True),
    ("{a,b/c}", "b/c", True),
    ("{a,b/c}/d", "b/c/d", True),
    ("@(a|b)", "a", True),
    ("@(a|b)", "ab", False),
    ("?(a|b)c", "c", True),
    ("*(a|b)", "abba", True),
    ("+(a|b)c", "c", False),
    ("+(a|b)c", "bac", True),
    ("*.+(jpg|png)", "x.jpg", True),
    ("ab**(e|f)", "abef", True),
    ("**(x)", "ab", True),
    ("!(a|b)", "c", True),
    ("!(a|b)", "a", False),
    ("!(a|b)", "ab", True),
    ("!(*.json)", "x.json", False),
    ("!(*.json)", "x.json.gz", True),
    ("*.!(js)", "x.js", False),
    ("*.!(js)", "x.jsx", True),
    ("!(!(a))", "a", True),
    ("!(a)*", "ab", False),
    ("!(a)/*", "ab/x", True),
    ("!(a)/*", "a/x", False),
    ("(a|b)*", "azz", True),
    ("(a)", "a", True),
    (r"\*", "*", True),
    (r"\*", "a", False),
    (r"a\(b", "a(b", True),
    ("a.b", "a.b", True),
    ("a.b", "axb", False),
    ("a+b@c!", "a+b@c!", True),
    ("a|b,c", "a|b,c", True),
    ("a]b}c)", "a]b}c)", True),
    ("$^", "$^", True),
    ("a\nb*", "a\nbc", True),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES)
def test_rules(pattern: str, path: str, expected: bool) -> None:
    assert (Glob(pattern).match(parse_path(path)) is not None) is expected


def test_parentheses_capture_in_the_order_of_their_opening() -> None:
    found = Glob("/(*)-((?)x).txt").match(parse_path("ab-cx.txt"))
    assert found is not None
    assert found.groups() == ("ab", "cx", "c")
    assert found[0] == "ab-cx.txt"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a(b", "'(' without its ')'"),
        ("{a,b", "'{' without its '}'"),
        ("[a", "'[' without its ']'"),
        ("[z-a]", "range 'z-a'"),
        ("[[:letter:]]", "[:letter:]"),
        ("a\0", "NUL"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Glob(pattern)
    assert said in refused.value.message


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    path = tmp_path_factory.mktemp("globs") / "store"
    create_store(path)
    store = ObjectStore(path)
    yield store
    store.close()


def tree_of(batch: Batch, files: dict[str, str]) -> Entry:
    root = directory_entry(EMPTY_DIRECTORY)
    changes: dict[RepoPath, Entry | None] = {
        parse_path(path): file_entry(ingest_bytes(batch, text.encode()), len(text)) for path, text in files.items()
    }
    return edit_paths(batch, root, changes)


PATTERNS = [
    *("/", "/*", "/*/*", "/**", "/a/*", "/a*/b", "**b", "/{a,b}/**", "/!(a)", "/a/b/[ab]", "/?(a)/*", "a*"),
    *("/{a/b,b}/*", "/a/**/b", "/ab", "/ab/", "/*(a|b)", r"/\a/*"),
]
NAMES = st.sampled_from(["a", "b", "ab", "ba", "aab", ".a"])
FILES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.sampled_from("xyz"), max_size=8)


def without_conflicts(files: dict[str, str]) -> dict[str, str]:
    """No file lies below another."""
    return {path: text for path, text in files.items() if not any(path.startswith(f"{other}/") for other in files)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, FILES, st.sampled_from(PATTERNS))
def test_finding_is_matching_every_path(
    objects: ObjectStore, before: dict[str, str], after: dict[str, str], pattern: str
) -> None:
    glob = Glob(pattern)
    with objects.batch() as batch:
        old, new = (tree_of(batch, without_conflicts(files)) for files in (before, after))
        for tree in (old, new):
            assert list(glob.find(batch, tree)) == [step for step in walk(batch, tree) if glob.match(step[0])]
        paths = {path for tree in (old, new) for path, _ in glob.find(batch, tree)}
        expected = []
        for path in sorted(paths):
            left, right = find(batch, old, path), find(batch, new, path)
            if left is None or right is None or not left.same_content(right):
                expected.append((path, left, right))
        found = list(glob.changes(batch, old, new))
        assert sorted(found, key=lambda change: change.path) == expected


class CountingReader:
    """How many objects are read."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.decoded = type(objects.decoded)()
        self.verified: set[object] = set()
        self.read = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    def get(self, id: object) -> bytes:
        self.read += 1
        return self._objects.get(id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "found", "most"),
    [
        ("/", 1, 0),
        ("/d0500/f07", 1, 6),
        ("/*", 1000, 30),
        ("/d0500/*", 30, 8),
        ("/d050*/f01", 10, 30),
        ("/{d0500,d0501}/f02", 2, 40),
    ],
)
def test_only_what_can_match_is_read(objects: ObjectStore, pattern: str, found: int, most: int) -> None:
    with objects.batch() as batch:
        root = tree_of(batch, {f"d{i:04}/f{j:02}": f"{i}" for i in range(1000) for j in range(30)})
        batch.flush()
    reader = CountingReader(objects)
    assert len(list(Glob(pattern).find(reader, root))) == found  # type: ignore[arg-type]
    assert reader.read <= most


def test_names_that_are_not_utf8(objects: ObjectStore) -> None:
    name = b"caf\xe9 \xff.txt"
    with objects.batch() as batch:
        root = tree_of(batch, {os.fsdecode(name): "x", "cafe.txt": "y"})
        found = list(Glob("/caf?*.txt").find(batch, root))
        assert [path for path, _ in found] == [(b"cafe.txt",), (name,)]
        assert [path for path, _ in Glob("/" + os.fsdecode(name)).find(batch, root)] == [(name,)]
