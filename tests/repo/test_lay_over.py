"""What `cp -rT` makes of one tree onto another, against a dict, and at the cost of what differs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfsmount.errors import IsADirectory, NotADirectory
from pfsmount.ids import EntryName, RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore
from pfsmount.repo import ingest
from pfsmount.repo.ingest import lay_over
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, walk
from pfsmount.tree.edit import build_directory, edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry

Model = dict[RepoPath, Entry]


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    create_store(tmp_path / "store")
    store = ObjectStore(tmp_path / "store")
    with store.batch() as batch:
        yield batch
    store.close()


def a_tree(choice: random.Random, spread: int) -> Model:
    """Files at random paths of one to three names; directories have a mode of their own."""
    model: Model = {}
    for _ in range(choice.randrange(spread)):
        depth = choice.randrange(1, 4)
        path = tuple(EntryName(b"n%d" % choice.randrange(spread)) for _ in range(depth))
        if any(path[:i] in model for i in range(1, depth)) or any(at[:depth] == path for at in model):
            continue
        number = choice.randrange(5)
        model[path] = file_entry(hash_bytes(b"%d" % number), number)
    return model


def build(batch: Batch, model: Model, mode: int) -> Entry:
    root = directory_entry(EMPTY_DIRECTORY, mode=mode)
    return edit_paths(batch, root, model)


def files(batch: Batch, root: Entry) -> Model:
    return {path: entry for path, entry in walk(batch, root) if entry.kind is Kind.FILE}


@pytest.mark.parametrize("small", [0, 1 << 60], ids=["side by side", "looked up"])
def test_laying_over_is_what_a_dict_does(batch: Batch, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(ingest, "_SMALL", small)
    clashes = 0
    for seed in range(150):
        choice = random.Random(seed)
        spread = choice.choice([3, 30, 300])
        mine, theirs = a_tree(choice, spread), a_tree(choice, spread)
        for path in choice.sample(sorted(mine), len(mine) // 2):  # what both have
            if not any(path[: len(at)] == at or at[: len(path)] == path for at in theirs):
                theirs[path] = mine[path]
        base, over = build(batch, mine, 0o700), build(batch, theirs, 0o755)
        clash = any(a != b and (a[: len(b)] == b or b[: len(a)] == a) for a in mine for b in theirs)
        if clash:
            clashes += 1
            with pytest.raises((IsADirectory, NotADirectory)):
                lay_over(batch, base, over, (), delete=False, mtime_ns=0)
            continue
        result = lay_over(batch, base, over, (), delete=False, mtime_ns=0)
        assert files(batch, result) == mine | theirs
        assert result.mode == 0o700
        for path, entry in walk(batch, over):
            if path and entry.is_directory:
                assert dict(walk(batch, result))[path].mode == 0o755
        assert files(batch, lay_over(batch, base, over, (), delete=True, mtime_ns=0)) == theirs
    assert 5 < clashes < 145


def test_a_large_directory_that_is_almost_the_same_is_not_gone_through(batch: Batch) -> None:
    """A copy of a branch onto the one that it came from costs what they differ in."""
    names = [EntryName(b"f%06d" % i) for i in range(30_000)]
    entry = file_entry(hash_bytes(b"1"), 1)
    base = directory_entry(build_directory(batch, ((name, entry) for name in names)))
    over = edit_paths(batch, base, {(names[777],): file_entry(hash_bytes(b"2"), 2)})
    looked_at = 0
    real = ingest.lay_over

    def counted(*args: object, **options: object) -> Entry:
        nonlocal looked_at
        looked_at += 1
        return real(*args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "lay_over", counted)
        assert counted(batch, base, over, (), delete=False, mtime_ns=0) == over.replace(mtime_ns=0)
    assert looked_at == 2
