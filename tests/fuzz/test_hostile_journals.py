"""Journals whose checksums are right and that say anything: refused, or a tree like any other."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from pfsmount.errors import Conflict, Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import Kind
from tests.fuzz.decoders import RECORDS_OF_JOURNAL, seal_journal
from tests.fuzz.mutation import mutate_json
from tests.fuzz.test_decoders import bounded
from tests.worktrees import put

NEW = ["new", 2, 1, "d", "dir", 493, 0, 0, 5, None, 5]
BELOW = ["new", 3, 2, "e", "dir", 493, 0, 0, 5, None, 5]
FILE = ["new", 4, 1, "f", "file", 420, 0, 0, 5, None, 5]
HOSTILE: dict[str, list[list[object]]] = {
    "a directory in itself": [NEW, BELOW, ["rename", 1, "d", 3, "x", 0, 5]],
    "directories exchanged with one below": [NEW, BELOW, ["rename", 1, "d", 2, "e", 2, 5]],
    "a second name of a directory": [NEW, BELOW, ["link", 2, 3, "x", 5]],
    "a name with a slash": [[*NEW[:3], "../../x", *NEW[4:]]],
    "the name ..": [[*NEW[:3], "..", *NEW[4:]]],
    "a number that is a path": [["new", "../../../escaped", *FILE[2:]]],
    "a number that is a float": [["new", 2.5, *FILE[2:]]],
    "a number twice": [NEW, ["new", 2, *FILE[2:]]],
    "a file as a directory": [FILE, ["new", 5, 4, *NEW[3:]]],
    "a method of the reader": [["_setattr__", "numbers", {}]],
    "another method": [["stay_a_tree", 2, 1]],
    "a mode with device bits": [["new", 4, 1, "f", "file", 0o60644, 0, 0, 5, None, 5]],
    "an owner beyond u32": [["new", 4, 1, "f", "file", 420, 1 << 40, 0, 5, None, 5]],
    "an attribute outside of user.*": [FILE, ["xattr", 4, "security.capability", "eA=="]],
    "content of a directory as that of a file": [NEW, ["extent", 2, 0, 1 << 62]],
}


def plant(store: Store, records: bytes) -> Path:
    """The journal that the worktree of images@master finds."""
    with Worktree.open(store, "images", "master", own=True) as worktree:
        put(worktree, "other", b"x")
        path = worktree.journal_path(worktree.generation)
    path.write_bytes(seal_journal(records))
    return path


def use(store: Store) -> ObjectId | None:
    """Take over what is there, look at all of it, and commit it; None when it is refused."""
    try:
        with Worktree.open(store, "images", "master", own=True) as worktree:
            list(worktree.changes())
            done = worktree.commit("m", None, author="me")
    except (Corrupt, Conflict, NotFound):  # NotFound: its base is a commit that nobody has
        return None
    if done.commit is None:
        return None
    for _, entry in walk(store.objects, done.commit.tree):
        entry.encode()
        assert entry.kind in Kind
    return done.commit.id


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_worktree_writes_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    before = sorted(os.listdir(tmp_path))
    path = plant(store, json.dumps([["journal", 1, None], *HOSTILE[name]]).encode())
    text = path.read_bytes()
    assert use(store) is None
    assert path.read_bytes() == text  # nothing was given up
    assert sorted(os.listdir(tmp_path)) == before


def fuzz(store: Store, seconds: float, seed: int) -> int:
    dice = random.Random(seed)
    data = json.dumps(
        [["journal", 1, None], *RECORDS_OF_JOURNAL[:2], *RECORDS_OF_JOURNAL[2:7], *RECORDS_OF_JOURNAL[8:]]
    )
    count, end = 0, time.monotonic() + seconds
    directory = plant(store, data.encode()).parent
    while time.monotonic() < end:
        mutated = mutate_json(dice, data.encode())
        state = store.worktree_state("images", "master", "")
        for path in directory.glob("journal.*"):
            path.unlink()
        (directory / f"journal.{state.generation}").write_bytes(seal_journal(mutated))
        try:
            use(store)
        except BaseException as error:
            error.add_note(f"seed {seed}: {mutated[:4000]!r}")
            raise
        count += 1
    return count


def test_any_journal_is_a_tree_or_refused(store: Store) -> None:
    with bounded():
        fuzz(store, 1.5, 1)


@pytest.mark.long
def test_any_journal_for_longer(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    with bounded():
        count = fuzz(store, 40, seed)
    with capsys.disabled():
        print(f"\njournals replayed: {count:,} (seed {seed})", end="")
