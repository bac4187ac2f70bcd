"""Ten processes on one store at once: they put, commit, read, mount, make and delete branches, and collect garbage; some are killed again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pfsmount.fs.mountpoint import mounted_at, run_unmount
from pfsmount.repo import fsck
from pfsmount.repo.reflog import read_log
from pfsmount.repo.store import Store
from tests.conftest import ROOT, run_command

_START = """
import os, random, sys, time
from pathlib import Path
from pfsmount.config import StoreSettings
from pfsmount.errors import Conflict, NotFound, PfsError
from pfsmount.ids import EntryName, ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import EMPTY_FILE_ID, Kind
from tests.repo.test_store import put
place, acks, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
out = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def told(id):
    os.write(out, id.hex().encode() + b"\\n")
store = Store.open(place, StoreSettings(segment_size=400_000, publish_entries=50), author="soak@here")
"""
PUTTER = """
while True:
    data = rng.randbytes(rng.choice([10, 1000, 5000, 40_000]))
    told(put(store, f"{seed % 7}/{rng.randrange(40)}", data))
"""
WORKER = """
with Worktree.open(store, "images", "work", own=True) as worktree:
    while True:
        for _ in range(5):
            name = b"%d-%d" % (seed, rng.randrange(10**9))
            node = worktree.make(worktree.root, name, NodeKind.FILE, mode=0o644, uid=0, gid=0)
            worktree.write(node, 0, rng.randbytes(rng.choice([0, 10, 5000])))
        told(worktree.commit("some").commit.id)
"""
READER = """
last, verified = None, set()
while True:
    head = store.read_commit(store.head("images", "master"))
    if last is not None and head.id != last:
        for commit in store.history(head):
            if commit.id == last:
                break
        else:
            sys.exit(f"{last.hex()} is not an ancestor of the head that was seen after it")
    last = head.id
    for path, entry in walk(store.objects, head.tree):
        if entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID and entry.id not in verified:
            if hash_bytes(open_content(store.objects, entry).read(0, entry.size)) != entry.id:
                sys.exit(f"{path} of {head.id.hex()} is not what its id says")
            verified.add(entry.id)
"""
BRANCHER = """
while True:
    name = f"b{seed}-{rng.randrange(10**9)}"
    store.create_branch("images", name, store.head("images", "master"))
    for i in range(3):
        put(store, f"garbage-{i}", rng.randbytes(30_000), branch=name)
    store.delete_branch("images", name)
"""
COLLECTOR = """
from pfsmount.repo.collection import Collection, collecting
while True:
    try:
        with collecting(store):
            collection = Collection(store, 0)
            collection.plan()
            collection.carry_out()
    except PfsError as error:  # another one that was killed a moment ago
        if "gc" not in str(error):
            raise
"""
MOUNTER = """
import subprocess
top = Path(sys.argv[4]) / "images@mounted"
while True:
    data = rng.randbytes(rng.choice([100, 8000]))
    path = top / f"{seed}-{rng.randrange(20)}"
    path.write_bytes(data)
    if path.read_bytes() != data:
        sys.exit(f"{path} is not what was written")
    if rng.random() < 0.1:
        control = os.open(top / ".pfs" / "commit", os.O_WRONLY)
        os.write(control, b"through the mount")
        os.close(control)
        told(store.head("images", "mounted"))
"""
GROWER = """
import lmdb
store.close()
env = lmdb.open(str(place / "index"), map_size=1 << 40, max_dbs=30, max_readers=1024)
filler = env.open_db(b"filler")
for i in range(int(sys.argv[4])):
    with env.begin(write=True, db=filler) as txn:
        txn.put(seed.to_bytes(8, "big") + i.to_bytes(8, "big"), bytes(8 << 20))
    told(bytes([1]))
    time.sleep(0.2)
time.sleep(3600)
"""


@dataclass
class Soak:
    """The processes, and what they acknowledged."""

    store: Path
    scratch: Path
    extra: dict[str, tuple[object, ...]]
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    started: int = 0
    kills: int = 0

    def start(self, role: str) -> None:
        """Start a process for a role."""
        self.started += 1
        script = _START + globals()[role.rstrip("0123456789")]
        command = [sys.executable, "-c", script, self.store, self.scratch / role, self.started]
        self.running[role] = subprocess.Popen(
            [*map(str, command), *map(str, self.extra.get(role, ()))],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, role: str) -> None:
        """Kill a process, which must not have ended by itself."""
        process = self.running.pop(role)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGKILL, f"{role} ended: {errors}"

    def acknowledged(self, *roles: str) -> list[bytes]:
        """What processes of these roles acknowledged; a torn last line was not."""
        lines: list[bytes] = []
        for path in self.scratch.iterdir():
            if path.name.rstrip("0123456789") in roles:
                lines += path.read_bytes().split(b"\n")[:-1]
        return lines


@contextmanager
def mount_of(store: Path, point: Path) -> Iterator[None]:
    """The store mounted."""
    point.mkdir()
    done = run_command("pfsmount.cli.app", store, "mount", point)
    assert done.returncode == 0, done.stderr
    try:
        yield
        done = run_command("pfsmount.cli.app", store, "umount", point)
        assert done.returncode == 0, done.stderr
    finally:
        if mounted_at(str(point)) is not None:
            run_unmount(str(point), lazy=True, force=True)


def soak(store: Path, tmp_path: Path, seconds: float, growth: int = 0) -> None:
    """Let ten processes work, kill some, and check everything that they acknowledged."""
    rng = random.Random(seconds)
    with Store.open(store) as opened:
        opened.create_repo("images")
        for branch in ("work", "mounted"):
            opened.create_branch("images", branch, None)
    point, scratch = tmp_path / "mnt", tmp_path / "acks"
    scratch.mkdir()
    world = Soak(store, scratch, {"MOUNTER": (point,), "GROWER": (growth,)})
    killable = ["PUTTER1", "PUTTER2", "PUTTER3", "WORKER", "BRANCHER", "COLLECTOR"]
    with mount_of(store, point):
        try:
            world.start("PUTTER1")
            while not world.acknowledged("PUTTER"):  # the readers want a head
                assert world.running["PUTTER1"].poll() is None, world.running["PUTTER1"].communicate()[1]
                time.sleep(0.01)
            for role in (*killable[1:], "READER1", "READER2", "MOUNTER", *(("GROWER",) if growth else ())):
                world.start(role)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(rng.uniform(0.2, 0.8))
                role = rng.choice(killable)
                world.end(role)
                world.kills += 1
                world.start(role)
            for role in [*world.running]:
                world.end(role)
        finally:
            for process in world.running.values():
                process.kill()
                process.communicate()
    with Store.open(store) as opened:
        for branch, roles in (("master", ("PUTTER",)), ("work", ("WORKER",)), ("mounted", ("MOUNTER",))):
            head = opened.head("images", branch)
            chain = set() if head is None else {c.id.hex().encode() for c in opened.history(opened.read_commit(head))}
            missing = set(world.acknowledged(*roles)) - chain
            assert not missing, f"{len(missing)} acknowledged commits are not on {branch}"
        assert [line["n"] for line in read_log(store / "refs.log")][-1] == opened.refs_version()
    report = fsck.check_store(store, data=True)
    assert report.clean, [str(one) for one in report.findings][:10]
    commits, index = (
        len(world.acknowledged("PUTTER", "WORKER", "MOUNTER")),
        (store / "index" / "data.mdb").stat().st_size,
    )
    print(
        f"soak of {seconds} s: {commits} acknowledged commits, {world.kills} kills, none missing, index {index >> 20} MiB"
    )


@pytest.mark.usefixtures("need_fuse")
def test_a_short_soak(store_path: Path, tmp_path: Path) -> None:
    """Ten processes for some seconds: every acknowledged commit is there, no reader saw half a state, fsck finds nothing."""
    soak(store_path, tmp_path, 4)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("need_fuse")
def test_a_soak(store_path: Path, tmp_path: Path) -> None:
    """The same for a minute, while the index grows past a GiB."""
    fill = "import lmdb, sys; env = lmdb.open(sys.argv[1], map_size=1 << 40, max_dbs=30, sync=False); db = env.open_db(b'filler')\n"
    fill += "for i in range(100):\n with env.begin(write=True, db=db) as txn: txn.put(b'%d' % i, bytes(8 << 20))\n"
    fill += "env.sync(True)"
    subprocess.run([sys.executable, "-c", fill, store_path / "index"], check=True)
    soak(store_path, tmp_path, 60, growth=60)
    assert os.stat(store_path / "index" / "data.mdb").st_size > 1 << 30
