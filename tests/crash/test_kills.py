"""The long tier: processes that are really killed, again and again, and everything that they acknowledged.

A child acknowledges on its standard output only what a call has returned for. It is killed at a random moment; then everything acknowledged must be
there, whole, and the store must go on.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.reflog import read_log
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import EMPTY_FILE_ID, Kind
from tests.conftest import ROOT
from tests.figures import Tell

PUTS = """
import os, random, sys
from pathlib import Path
from pfsmount.config import StoreSettings
from pfsmount.repo.store import Store
from tests.repo.test_store import put
who, seed = sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
store = Store.open(Path(sys.argv[1]), StoreSettings(segment_size=300_000))
for i in range(10_000):
    data = rng.randbytes(rng.choice([10, 1000, 5000, 40_000]))
    id = put(store, f"{who}/{seed}-{i % 40}", data + b"%d" % i)
    os.write(1, id.hex().encode() + b"\\n")
"""

WRITES = """
import os, random, sys
from pathlib import Path
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
seed = int(sys.argv[2])
rng = random.Random(seed)
store = Store.open(Path(sys.argv[1]))
with Worktree.open(store, "images", "master", own=True) as worktree:
    for i in range(10_000):
        name = b"%d-%d" % (seed, i)
        data = rng.randbytes(rng.choice([0, 10, 5000]))
        node = worktree.make(worktree.root, name, NodeKind.FILE, mode=0o644, uid=0, gid=0)
        if data:
            worktree.write(node, 0, data)
        os.write(1, name + b" " + data.hex().encode() + b"\\n")
        if rng.random() < 0.05:
            worktree.commit("some")
"""


def _start(script: str, *args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _kill_after(child: subprocess.Popen[bytes], lines: int) -> list[bytes]:
    """What a child acknowledged until it was killed, a random number of lines in. A torn last line was not acknowledged."""
    assert child.stdout is not None
    got = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    with child.stdout:
        whole = b"".join(got) + child.stdout.read()
    child.wait(60)
    return whole.split(b"\n")[:-1]


def _verify(store: Store) -> None:
    """Every byte of the head's files against its id, and refs.log against the index."""
    head = store.head("images", "master")
    if head is not None:
        for _, entry in walk(store.objects, store.read_commit(head).tree):
            if entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
                assert hash_bytes(read_small(store.objects, entry)) == entry.id
    assert [line["n"] for line in read_log(store.path / "refs.log")][-1] == store.refs_version()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_while_putting(store_path: Path, tell: Tell) -> None:
    """40 rounds of two processes that commit and seal segments, both killed: no acknowledged commit is missing."""
    rng = random.Random(7)
    with Store.open(store_path) as store:
        store.create_repo("images")
    acknowledged: list[bytes] = []
    for round in range(40):
        children = [_start(PUTS, store_path, who, round * 2 + who) for who in range(2)]
        for child in children:
            acknowledged += _kill_after(child, rng.randrange(1, 25))
        with Store.open(store_path) as store:
            head = store.head("images", "master")
            assert head is not None
            chain = {commit.id.hex().encode() for commit in store.history(store.read_commit(head))}
            assert set(acknowledged) <= chain
            _verify(store)
    tell("killed at random", "two that put", rounds=40, acknowledged_commits_none_missing=len(acknowledged))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_while_writing_to_a_worktree(store_path: Path, tell: Tell) -> None:
    """60 rounds of writes and commits, killed: every file that a write returned for is there, committed or not."""
    rng = random.Random(11)
    with Store.open(store_path) as store:
        store.create_repo("images")
    expected: dict[bytes, bytes] = {}
    for round in range(60):
        for line in _kill_after(_start(WRITES, store_path, round), rng.randrange(1, 60)):
            name, _, data = line.partition(b" ")
            expected[name] = bytes.fromhex(data.decode())
        with Store.open(store_path) as store:
            _verify(store)
            with Worktree.open(store, "images", "master") as worktree:
                for name in rng.sample(sorted(expected), min(200, len(expected))):
                    node = worktree.lookup(worktree.root, name)
                    assert node is not None, name
                    assert worktree.read(node, 0, 10_000) == expected[name]
    tell("killed at random", "one that writes to a worktree", rounds=60, acknowledged_files_none_missing=len(expected))
