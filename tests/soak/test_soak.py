"""Processes that put, commit, merge, move refs, read, mount, check and collect one store at once, and are killed at random.

Each acknowledges what it has done in a ledger of its own (`worker.py`). In the end the ledgers are held against the store: every acknowledged commit is
reachable and has byte for byte what its number says, no reader has seen half a state, fsck is clean, and nobody who died holds anything.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import pytest

from pfsmount.fs.mountpoint import mounted_at, run_unmount
from pfsmount.ids import EntryName, ObjectId
from pfsmount.repo.commit import Commit
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store
from pfsmount.tree.directory import lookup
from tests.conftest import ROOT
from tests.figures import Tell
from tests.mounted.conftest import Mount, fuse_problem
from tests.soak.states import number_of
from tests.soak.worker import ROLES, read_directory, read_version

GIB = 1 << 30
_FILLER_VALUE = bytes(4080)
"""With LMDB's header one page of its own."""
_FILLER_ROWS = 512


class Soak:
    """A store, its mount, and the processes."""

    def __init__(self, top: Path, seed: int) -> None:
        self.store = top / "store"
        self.place = top
        self.chance = random.Random(seed)
        self.mount = Mount(self.store, top / "mnt")
        self.seeds = iter(range(1, 1_000_000))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills: dict[str, int] = dict.fromkeys([*ROLES, "daemon"], 0)
        for name in ("ledgers", "errors", "mnt"):
            (top / name).mkdir()
        Store.create(self.store)
        with Store.open(self.store, author="tester@here") as store:
            store.create_repo("images")
            for branch in ("side", "live"):
                store.create_branch("images", branch, None)
        self.environment = {**os.environ, "PFS_STORE": str(self.store), "PFS_AUTHOR": "soak", "PYTHONPATH": str(ROOT)}

    def start(self, role: str) -> None:
        """Start a process, in a group of its own with the commands that it runs."""
        with open(self.place / "errors" / role, "ab") as errors:
            self.processes[role] = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.worker", role, self.store, self.place, str(next(self.seeds))],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def run(self, seconds: float, kill_every: float) -> None:
        """All roles at once; one of them, or the daemon, is killed and started again every so many seconds on average."""
        self.mount.mount()
        for role in ROLES:
            self.start(role)
        victims = [role for role in self.kills if role != "checker" or seconds > 30]  # an fsck takes seconds
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.chance.uniform(0.2, 1.8) * kill_every))
            victim = self.chance.choice(victims)
            if victim == "daemon":
                self.mount.kill()
                self.mount.mount()
            else:
                self.kill(victim)
                self.start(victim)
            self.kills[victim] += 1
        (self.place / "stop").touch()
        for role, process in self.processes.items():
            assert process.wait(60) == 0, self.complaints(role)

    def kill(self, role: str) -> None:
        """kill -9 a process and what it runs. One that has ended by itself has found something."""
        process = self.processes[role]
        assert process.poll() is None, self.complaints(role)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def complaints(self, role: str) -> str:
        """What a process wrote to its standard error."""
        return f"{role}: {(self.place / 'errors' / role).read_text(errors='replace')[-6000:]}"

    def ledger(self) -> Iterator[dict[str, Any]]:
        """All that was acknowledged."""
        for path in (self.place / "ledgers").iterdir():
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)

    def index_bytes(self) -> int:
        """The size of the index's file."""
        return (self.store / "index" / "data.mdb").stat().st_size

    def clean_up(self) -> None:
        """Leave no process and no mount."""
        for process in self.processes.values():
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.mount.clean_up()
        if mounted_at(str(self.mount.point)) is not None:
            run_unmount(str(self.mount.point), lazy=True, force=True)


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    """A store to work in."""
    problem = fuse_problem()
    if problem is not None:
        pytest.skip(f"NO SOAK: {problem}")
    made = Soak(tmp_path, 5)
    yield made
    made.clean_up()


def fill(store: Path, size: int) -> None:
    """Make the index's file at least so large, with a table that pfs does not know: as pages go, like 12 million objects."""
    with lmdb.open(os.fspath(store / "index"), map_size=1 << 40, max_dbs=20, sync=False) as environment:
        filler = environment.open_db(b"filler")
        row = 0
        while (store / "index" / "data.mdb").stat().st_size < size:
            with environment.begin(write=True, db=filler) as txn:
                for _ in range(_FILLER_ROWS):
                    txn.put(row.to_bytes(8, "big"), _FILLER_VALUE, append=True)
                    row += 1
        environment.sync(True)


def reachable(store: Store) -> dict[str, Commit]:
    """All commits that refs lead to, by all parents."""
    todo = [ref.commit for kind in RefKind for ref in store.refs("images", kind) if ref.commit is not None]
    found: dict[str, Commit] = {}
    while todo:
        id = todo.pop()
        if id.hex() not in found:
            commit = found[id.hex()] = store.read_commit(id)
            todo += [ObjectId(parent) for parent in commit.parents]
    return found


def check_acknowledged(soak: Soak) -> dict[str, int]:
    """Hold the ledgers against the store; the counts of what was acknowledged."""
    counts: dict[str, int] = {}
    with Store.open(soak.store) as store:
        commits = reachable(store)
        tags = {ref.name for ref in store.refs("images", RefKind.TAG)}
        for line in soak.ledger():
            for what in ("commit", "tag", "written", "read", "collected", "freed", "checked", "spilled", "outrun"):
                if what in line:
                    counts[what] = counts.get(what, 0) + 1
            counts["dropped"] = counts.get("dropped", 0) + line.get("collected", 0)
            counts["bytes freed"] = counts.get("bytes freed", 0) + line.get("freed", 0)
            assert line.get("tag") in {None, *tags}, f"the tag {line['tag']} is lost"
            if "commit" in line:
                commit = commits.get(line["commit"])
                assert commit is not None, f"the commit {line} is lost"
                directory = lookup(store.objects, commit.tree.id, EntryName(line["path"].encode()))
                assert directory is not None, line
                files = read_directory(store, directory)
                files.pop(b"new", None)
                assert number_of(files) == line["number"], line
        for ref in store.branches("images"):
            if ref.commit is not None:
                read_version(store, store.read_commit(ref.commit))
        counts["reachable"] = len(commits)
    return counts


def check_written(soak: Soak) -> None:
    """What was written through the mount is there, committed or not: each file is of the last number that was acknowledged, or newer."""
    last: dict[str, int] = {}
    for line in soak.ledger():
        if "written" in line:
            last[line["written"]] = max(last.get(line["written"], 0), line["number"])
    for name, number in last.items():
        for path in (soak.mount.point / "images@live" / name).iterdir():
            if path.name not in ("new", "f0"):
                assert int(path.read_bytes()[:16]) >= number, path


def check_readers(soak: Soak) -> None:
    """After a command, while the daemon has the store open: nobody who is dead stands in LMDB's table of readers, to keep pages from being used again."""
    soak.mount.pfs("repo", "list")
    with lmdb.open(os.fspath(soak.store / "index"), map_size=1 << 40, max_dbs=20, create=False) as table:
        pids = [int(line.split()[0]) for line in table.readers().splitlines()[1:]]
    assert [pid for pid in pids if not os.path.exists(f"/proc/{pid}")] == []


def check_end(soak: Soak) -> dict[str, int]:
    """All that must be true of the store in the end."""
    check_written(soak)
    check_readers(soak)
    soak.mount.umount()
    assert soak.mount.log_lines() == []
    check_acknowledged(soak)
    for command in (["fsck", "--data"], ["gc", "--keep", "0d"], ["fsck", "--data"]):
        done = soak.mount.pfs(*command, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return check_acknowledged(soak)


def count_all(tell: Tell, of: str, soak: Soak, counts: dict[str, int]) -> None:
    """Tell the figures."""
    tell(
        "soak",
        of,
        acknowledged_commits_none_missing=counts["commit"],
        tags=counts.get("tag", 0),
        states_written_in_the_mount=counts.get("written", 0),
        commits_reachable=counts["reachable"],
        merges_outrun_by_puts=counts.get("outrun", 0),
        versions_read_none_half=counts.get("read", 0),
        fsck_with_data_all_clean=counts.get("checked", 0),
        gc=counts.get("collected", 0),
        objects_dropped=counts["dropped"],
        MiB_freed=counts["bytes freed"] >> 20,
        processes_killed=sum(soak.kills.values()),
        mounts_killed=soak.kills["daemon"],
        MiB_index=soak.index_bytes() >> 20,
    )


def test_eleven_processes_and_kills(soak: Soak, tell: Tell) -> None:
    """Some seconds of it; nothing acknowledged is lost, nobody sees half a state."""
    soak.run(4, 0.7)
    counts = check_end(soak)
    assert counts["commit"] > 5
    count_all(tell, "some seconds", soak, counts)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_minute_while_the_index_grows_past_one_gib(soak: Soak, tell: Tell) -> None:
    """A minute of it, with an index that begins just below 1 GiB."""
    fill(soak.store, GIB - (4 << 20))
    assert soak.index_bytes() < GIB
    soak.run(60, 1.2)
    assert soak.index_bytes() > GIB
    counts = check_end(soak)
    count_all(tell, "a minute, with an index that grows past 1 GiB", soak, counts)
    assert counts["read"] > 10
