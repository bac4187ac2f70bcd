"""One of the processes of the soak: `python -m tests.soak.worker ROLE STORE PLACE SEED`.

It does one thing again and again until `PLACE/stop` exists, or it is killed. What a call has acknowledged goes as one line into its ledger,
a file outside of the store, fsynced; what it did not write down may or may not have happened.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pfsmount.errors import Conflict, NotFound
from pfsmount.repo.commit import Commit
from pfsmount.repo.ingest import put
from pfsmount.repo.merge import MergeState, merge
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store
from pfsmount.revision import parse_revision
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import entries
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry
from pfsmount.tree.ingest import ingest_bytes
from tests.soak.states import check_single, large_state, number_of, small_state

PUT_STATES = (b"a", b"b", b"large", b"side")
"""Directories that each commit shows as one whole state."""
MOUNTED_STATES = (b"m0", b"m1")
"""Directories written through the mount: each file is whole; after its writer's own commit so is the state."""
_SPILL = 3000
_SPILL_PAUSE_S = 0.3
"""So that two cores have time for the others."""


class Worker:
    """A role, its ledger and its numbers."""

    def __init__(self, store: Path, place: Path, role: str, seed: int) -> None:
        self.path, self.place, self.role = store, place, role
        self.chance = random.Random(f"{role}-{seed}")
        self.numbers = count(seed * 100_000 + 1)
        self._ledger = os.open(place / "ledgers" / f"{role}-{seed}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def wrote(self, **line: Any) -> None:
        """Acknowledge: durable when this returns."""
        os.write(self._ledger, json.dumps(line).encode() + b"\n")
        os.fsync(self._ledger)

    def turns(self) -> Iterator[int]:
        """Numbers, until the soak is over."""
        while not (self.place / "stop").exists():
            yield next(self.numbers)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, opened as a command does."""
        with Store.open(self.path, author=self.role) as store:
            store.keeps_resolved = True
            yield store

    def pfs(self, *arguments: str | Path, codes: tuple[int, ...] = (0,)) -> Any:
        """A command; what it printed with `--json`. None when it ended with one of the other `codes`."""
        done = subprocess.run(
            [sys.executable, "-m", "pfsmount.cli.app", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode in codes, f"{arguments}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return json.loads(done.stdout) if not done.returncode and "--json" in arguments else None

    def put(self, store: Store, branch: str, name: bytes, files: dict[bytes, bytes]) -> Commit:
        """Replace a directory of a branch by these files, as `pfs put --delete` does."""
        source = self.place / "sources" / f"{self.role}"
        source.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (source / os.fsdecode(file)).write_bytes(data)
        target = (name,)
        commit, _ = put(
            store,
            [os.fsencode(source)],
            "images",
            branch,
            target,  # type: ignore[arg-type]
            into=False,
            delete=True,
            message=self.role,
            origin={"how": "put"},
        )
        assert commit is not None, "a new number is a change"
        return commit


def putter(worker: Worker, name: str) -> None:
    """Small states on master; a store that is opened anew now and then."""
    turns = worker.turns()
    for _ in turns:
        with worker.store() as store:
            for number, _ in zip(turns, range(8), strict=False):
                commit = worker.put(store, "master", name.encode(), small_state(number))
                worker.wrote(commit=commit.id.hex(), path=name, number=number)


def large_putter(worker: Worker) -> None:
    """A large file that changes somewhere, and a small one that says its number."""
    for number in worker.turns():
        with worker.store() as store:
            commit = worker.put(store, "master", b"large", large_state(number))
            worker.wrote(commit=commit.id.hex(), path="large", number=number)


def mounted_writer(worker: Worker, name: str) -> None:
    """Files written and renamed in the mount, then a commit; the daemon may die meanwhile."""
    top = worker.place / "mnt" / "images@live" / name
    for number in worker.turns():
        try:
            top.mkdir(exist_ok=True)
            for file, data in small_state(number).items():
                (top / "new").write_bytes(data)
                (top / "new").rename(top / os.fsdecode(file))
        except OSError:
            time.sleep(0.05)  # the daemon is dead, or was and what we had open is stale
            continue
        worker.wrote(written=name, number=number)
        done = worker.pfs("commit", "images@live", "-m", name, "--json", codes=(0, 1))
        if done is not None and done["commit"]:
            worker.wrote(commit=done["commit"], path=name, number=number)


def merger(worker: Worker) -> None:
    """Commits on `side`, merged into master."""
    for number in worker.turns():
        with worker.store() as store:
            commit = worker.put(store, "side", b"side", small_state(number))
            worker.wrote(commit=commit.id.hex(), path="side", number=number)
            try:
                report = merge(store, "images", parse_revision("side"), "master")
            except Conflict:  # it lost to the putters a hundred times, said so, and changed nothing
                worker.wrote(outrun=1)
                continue
            assert report.state in (MergeState.MERGED, MergeState.FAST_FORWARD), report
            assert report.commit is not None
            worker.wrote(commit=report.commit.id.hex(), path="side", number=number)


def mover(worker: Worker) -> None:
    """Tags that stay, branches that come, move and go: what these leave is gc's."""
    for number in worker.turns():
        commit = worker.pfs("log", "images@master", "-n", "1", "--json")
        if not commit:
            continue
        worker.pfs("tag", f"images@t{number}", "images@master")
        worker.wrote(tag=f"t{number}")
        worker.pfs("branch", f"images@gone{number}", "images@master~1", codes=(0, 1))  # 1: one commit only
        with worker.store() as store:
            for other in [ref.name for ref in store.branches("images") if ref.name.startswith("gone")]:
                worker.put(store, other, b"a", small_state(number))
                if worker.chance.random() < 0.5:
                    worker.pfs("reset", f"images@{other}", "images@master")
                worker.pfs("branch", "--delete", "--force", f"images@{other}", codes=(0, 1))


def reader(worker: Worker) -> None:
    """Reads whole versions; half a state is the end of the soak."""
    for _ in worker.turns():
        with worker.store() as store:
            names = [ref.name for kind in (RefKind.BRANCH, RefKind.TAG) for ref in store.refs("images", kind)]
            name = worker.chance.choice(names)
            try:
                commit = store.resolve("images", parse_revision(name)).commit
            except NotFound:  # the branch was deleted just now
                continue
            if commit is not None:
                worker.wrote(read=read_version(store, commit))


def collector(worker: Worker) -> None:
    """gc that keeps nothing for its age."""
    for _ in worker.turns():
        done = worker.pfs("gc", "--keep", "0d", "--json")
        worker.wrote(collected=sum(kind["objects"] for kind in done["dead"].values()), freed=done["freed"])


def checker(worker: Worker) -> None:
    """fsck beside all the others: what they are just doing is no damage."""
    for _ in worker.turns():
        done = worker.pfs("fsck", "--data", "--json")
        worker.wrote(checked=done.get("objects", 1))


def spiller(worker: Worker) -> None:
    """Objects that no commit ever names, in the index for good until gc comes."""
    for number in worker.turns():
        with worker.store() as store, store.objects.batch() as batch:
            for index in range(_SPILL):
                ingest_bytes(batch, b"%d-%d" % (number, index))
            batch.flush()
        worker.wrote(spilled=_SPILL)
        time.sleep(_SPILL_PAUSE_S)


def read_version(store: Store, commit: Commit) -> int:
    """Read all of a version; how many files. Raises AssertionError when it shows half a state."""
    files = 0
    for name, directory in entries(store.objects, commit.tree.id):
        found = read_directory(store, directory)
        files += len(found)
        if name in PUT_STATES:
            number_of(found)
        else:
            assert name in MOUNTED_STATES, name
            for file, data in found.items():
                if file != b"new":  # not renamed yet: any part of it
                    check_single(file, data)
    return files


def read_directory(store: Store, directory: Entry) -> dict[bytes, bytes]:
    """All files of a directory that has no others."""
    return {
        name: b"" if entry.id == EMPTY_FILE_ID else read_small(store.objects, entry)
        for name, entry in entries(store.objects, directory.id)
    }


ROLES: dict[str, Callable[[Worker], None]] = {
    "putter-a": lambda worker: putter(worker, "a"),
    "putter-b": lambda worker: putter(worker, "b"),
    "large": large_putter,
    "mounted-0": lambda worker: mounted_writer(worker, "m0"),
    "mounted-1": lambda worker: mounted_writer(worker, "m1"),
    "merger": merger,
    "mover": mover,
    "reader": reader,
    "collector": collector,
    "checker": checker,
    "spiller": spiller,
}

if __name__ == "__main__":
    role = sys.argv[1]
    ROLES[role](Worker(Path(sys.argv[2]), Path(sys.argv[3]), role, int(sys.argv[4])))
