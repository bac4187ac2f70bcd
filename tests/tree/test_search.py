"""`search`: against a walk that looks at everything."""

from __future__ import annotations

import pytest

from pfsmount.ids import ObjectId, RepoPath, parse_path
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.globs import Glob
from pfsmount.tree.search import Criteria, search

SIZES = (0, 1, 100, 5000, 1 << 20)


@pytest.fixture
def root(objects: ObjectStore) -> Entry:
    """Three levels, files of all sizes, symlinks, an empty directory, a directory of many nodes, names that are not UTF-8."""
    changes: dict[RepoPath, Entry | None] = {parse_path(b"hollow"): directory_entry(EMPTY_DIRECTORY)}
    for i in range(400):
        size = SIZES[i % 5]
        entry = file_entry(hash_bytes(b"%d" % i) if size else EMPTY_FILE_ID, size, mtime_ns=i)
        changes[parse_path(b"d%d/e%d/f%d.%s" % (i % 3, i % 2, i, (b"jpg", b"txt", b"\xff")[i % 3]))] = entry
        changes[parse_path(b"many/m%d" % i)] = file_entry(hash_bytes(b"m"), 1)
    changes[parse_path(b"d0/link.jpg")] = symlink_entry(b"x" * 3000)
    with objects.batch() as batch:
        made = edit_paths(batch, directory_entry(EMPTY_DIRECTORY), changes)
        batch.flush()
    return made


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(),
        Criteria(name=Glob("*.jpg")),
        Criteria(name=Glob("f1?.*"), kinds=(Kind.FILE,)),
        Criteria(path=Glob("d*/e1/**7.*")),
        Criteria(kinds=(Kind.DIRECTORY, Kind.SYMLINK)),
        Criteria(least_size=5000),
        Criteria(least_size=2000, most_size=4000),
        Criteria(least_size=1 << 21, kinds=(Kind.FILE,)),
        Criteria(most_size=0, kinds=(Kind.FILE,)),
        Criteria(newer_ns=100, older_ns=110),
        Criteria(empty=True),
        Criteria(id=hash_bytes(b"7").hex()[:8]),
        Criteria(least_depth=2, most_depth=2),
        Criteria(most_depth=0),
    ],
    ids=lambda criteria: str(criteria)[9:60],
)
def test_as_a_whole_walk(objects: ObjectStore, root: Entry, criteria: Criteria) -> None:
    """What is pruned or not decoded would not have passed."""
    expected = [
        (path, entry)
        for path, entry in walk(objects, root)
        if criteria.accepts(path, entry) and (criteria.most_depth is None or len(path) <= criteria.most_depth)
    ]
    assert list(search(objects, root, criteria)) == expected
    assert expected or criteria.least_size == 1 << 21


def test_a_file_is_its_own_tree(objects: ObjectStore) -> None:
    """The search can start at a file."""
    entry = file_entry(hash_bytes(b"1"), 1)
    assert list(search(objects, entry, Criteria(kinds=(Kind.FILE,)))) == [((), entry)]
    assert list(search(objects, entry, Criteria(name=Glob("*")))) == []


def test_small_directories_are_not_entered(objects: ObjectStore, root: Entry) -> None:
    """Looking for large files does not read directories that are smaller in all."""
    read: list[ObjectId] = []

    class Counted(ObjectStore):
        def get(self, id: ObjectId) -> bytes:
            read.append(id)
            return super().get(id)

    path = objects.path
    objects.close()
    fresh = Counted(path)
    try:
        assert len(list(search(fresh, root, Criteria(kinds=(Kind.FILE,), least_size=1 << 20)))) == 80
        many = next(entry for path, entry in walk(fresh, root) if path == (b"many",))
        assert many.id not in read
    finally:
        fresh.close()
