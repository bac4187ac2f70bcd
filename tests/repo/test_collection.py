"""gc against a model: what is reachable reads back with the right bytes, everything else is gone from the index and from the disk."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from pfsmount.config import StoreSettings
from pfsmount.errors import Busy, Corrupt, NoSpace, NotFound
from pfsmount.ids import ObjectId, parse_path
from pfsmount.objects.batch import Batch
from pfsmount.objects.holds import CommitHold, commits_stay, read_holds
from pfsmount.objects.index import Table
from pfsmount.objects.marks import Marks
from pfsmount.objects.reading import DecodedCache
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.repo.archive import put_archive
from pfsmount.repo.collection import Collection, GcResult, collecting, disk_usage
from pfsmount.repo.fsck import check
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.reachable import Missing, Reachable
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.results import find_result, save_results
from pfsmount.repo.roots import gather_roots, live_results
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.worktrees import at, put

SMALL = StoreSettings(segment_size=256 * 1024, publish_entries=40, batch_bytes=128 * 1024)
LONG = 10**9
Files = dict[str, bytes]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A store whose segments and batches are small, so that there are many."""
    Store.create(tmp_path / "store", SMALL)
    with Store.open(tmp_path / "store", SMALL, author="tester@here") as opened:
        opened.create_repo("images")
        yield opened


def commit(store: Store, branch: str, files: dict[str, bytes | None]) -> ObjectId:
    with store.objects.batch() as batch:
        changes = {
            parse_path(name): None if data is None else file_entry(ingest_bytes(batch, data), len(data))
            for name, data in files.items()
        }

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes, mtime_ns=time.time_ns())

        made = commit_edit(store, batch, "images", branch, edit, message="m", origin={"how": "test"})
    assert made is not None
    return made.id


def collect(store: Store, keep_s: int = 0) -> GcResult:
    with collecting(store):
        collection = Collection(store, keep_s)
        collection.plan()
        return collection.carry_out()


def contents(store: Store, root: Entry) -> Files:
    """Every file, read and verified."""
    store.objects.decoded = DecodedCache()
    store.objects.verified.clear()
    return {
        os.fsdecode(b"/".join(path)): read_small(store.objects, entry)
        for path, entry in walk(store.objects, root)
        if entry.kind is Kind.FILE
    }


def unmarked(store: Store) -> list[Location]:
    """What the index names and no root reaches."""
    marks, missing = Marks(store.objects), list[Missing]()
    reach = Reachable(store.objects, marks, missing.append)
    roots = gather_roots(store, time.time_ns())
    reach.commits(roots.refs)
    reach.commits(roots.worktrees)
    reach.entries(roots.staged)
    reach.commits(roots.reflog)
    reach.entries(live_results(store, 0))
    assert not missing
    with store.objects.index.read() as txn:
        every = [Location.decode(raw) for _, raw in txn.scan(Table.OBJECTS)]
    return [place for place in every if place.kind is not RecordKind.TOMBSTONE and place not in marks]


def data_of(chance: random.Random) -> bytes:
    """Tiny, small and large files; often the same as another."""
    size = chance.choice([0, 3, 100, 1500, 5000, 70_000, 5 << 20] if not chance.randrange(6) else [3, 100, 1500, 5000])
    return random.Random(chance.randrange(40)).randbytes(size)


class History:
    """Random changes of a store, and what must be readable afterwards."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.chance = store, random.Random(seed)
        self.files: dict[ObjectId, Files] = {}
        self.parents: dict[ObjectId, ObjectId | None] = {}
        self.heads: dict[str, ObjectId | None] = {"master": None}
        self.staged: dict[str, Files] = {}
        self.results: dict[ObjectId, bytes] = {}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.chance.choice([self.put, self.put, self.put, self.branch, self.delete, self.reset, self.result])()
        self.stage()

    def put(self) -> None:
        branch = self.chance.choice(list(self.heads))
        head = self.heads[branch]
        before = {} if head is None else self.files[head]
        changes: dict[str, bytes | None] = {
            f"{self.chance.randrange(4)}/{self.chance.randrange(60)}": data_of(self.chance)
            for _ in range(self.chance.choice([1, 5, 90]))
        }
        changes |= {name: None for name in list(before)[:2] if name not in changes}
        after = {name: data for name, data in (before | changes).items() if data is not None}
        made = commit(self.store, branch, changes)
        self.files[made], self.parents[made], self.heads[branch] = after, head, made

    def branch(self) -> None:
        name = f"b{len(self.parents)}"
        start = self.chance.choice(list(self.heads.values()))
        if name not in self.heads and start is not None:
            self.store.create_branch("images", name, start)
            self.heads[name] = start

    def delete(self) -> None:
        names = [name for name in self.heads if name != "master"]
        if names:
            name = self.chance.choice(names)
            self.store.delete_branch("images", name)
            del self.heads[name]

    def reset(self) -> None:
        branch = self.chance.choice(list(self.heads))
        head = self.heads[branch]
        if head is not None and self.parents[head] is not None:
            new = self.parents[head]
            self.store.set_ref("images", RefKind.BRANCH, branch, new, expected=head, why="reset")
            self.heads[branch] = new

    def result(self) -> None:
        key, data = ObjectId(self.chance.randbytes(32)), data_of(self.chance)
        with self.store.objects.batch() as batch:
            root = directory_entry(EMPTY_DIRECTORY)
            entry = edit_paths(batch, root, {parse_path("out"): file_entry(ingest_bytes(batch, data), len(data))})
            save_results(self.store, batch, {key: entry})
        used = self.chance.choice([0, 2**40])  # not for years; or until long after the collection
        if used:
            self.results[key] = data
        with self.store.objects.index.write() as txn:
            raw = txn.get(Table.RESULTS, key)
            assert raw is not None
            txn.put(Table.RESULTS, key, raw[:-8] + used.to_bytes(8, "big"))

    def stage(self) -> None:
        """Uncommitted work on top of a head that is reset afterwards."""
        head = self.heads["master"]
        with Worktree.open(self.store, "images", "master") as worktree:
            worktree.begin()
            put(worktree, "new/file", b"uncommitted")
            if head is not None and "0" in {name.split("/")[0] for name in self.files[head]}:
                worktree.move(worktree.root, parse_path("0")[0], at(worktree, "new"), parse_path("0")[0], 0)
        self.staged_on = head
        if head is not None and self.parents[head] is not None:
            self.store.set_ref("images", RefKind.BRANCH, "master", self.parents[head], expected=head, why="reset")
            self.heads["master"] = self.parents[head]

    def live(self) -> set[ObjectId]:
        """Commits that must be there."""
        found: set[ObjectId] = set()
        for head in (*self.heads.values(), self.staged_on):
            while head is not None and head not in found:
                found.add(head)
                head = self.parents[head]
        return found

    def check(self) -> None:
        """What is live reads back; what is not is gone."""
        live = self.live()
        for id in self.parents:
            if id in live:
                assert contents(self.store, self.store.read_commit(id).tree) == self.files[id]
            else:
                assert not self.store.has_commit(id)
                with pytest.raises(NotFound):
                    self.store.resolve("images", parse_revision(id.hex()))
        for key, data in self.results.items():
            entry = find_result(self.store, key)
            assert entry is not None
            assert contents(self.store, entry) == {"out": data}
        with Worktree.open(self.store, "images", "master") as worktree:
            node = at(worktree, "new/file")
            assert worktree.attributes(node).size == len(b"uncommitted")
        assert unmarked(self.store) == []


@pytest.mark.parametrize("seed", range(6))
def test_exactly_what_is_not_reachable_goes(small: Store, seed: int) -> None:
    history = History(small, seed)
    history.run(30)
    kept = collect(small, LONG)  # only results from 1970, and what gave up midway
    assert all(small.has_commit(id) for id in history.parents)
    with collecting(small):
        plan = Collection(small, 0).plan()
    again = collect(small)
    history.check()
    assert (plan.frees, plan.dead) == (again.freed, again.plan.dead)
    tombstones = again.after - (again.before - again.freed)
    assert 0 <= tombstones <= 64 * 1024, (kept, again)
    assert again.after == disk_usage(small)
    third = collect(small)
    assert (third.freed, third.plan.total.objects) == (0, 0)
    history.put()  # and the store is as good as before
    history.check()
    assert check(small, data=True).clean


def test_a_damaged_store_is_not_collected(small: Store) -> None:
    head = commit(small, "master", {"a": b"a" * 2000, "b": b"b" * 2000})
    before = commit(small, "master", {"a": None})
    small.set_ref("images", RefKind.BRANCH, "master", head, expected=before, why="reset")
    entry = find(small.objects, small.read_commit(head).tree, parse_path("b"))
    assert entry is not None
    with small.objects.index.write() as txn:
        txn.delete(Table.OBJECTS, entry.id)
    with pytest.raises(Corrupt, match="nothing was collected"):
        collect(small)
    assert small.has_commit(before)


def test_a_commit_that_is_open_stays_and_its_space_too(small: Store) -> None:
    first = commit(small, "master", {"a": b"a" * 70_000})
    second = commit(small, "master", {"a": b"b" * 70_000})
    small.set_ref("images", RefKind.BRANCH, "master", first, expected=second, why="reset")
    tree = small.read_commit(second).tree
    held = CommitHold(small.path)
    assert held.add(second, small.has_commit)
    assert collect(small).plan.total.objects == 0
    assert contents(small, tree) == {"a": b"b" * 70_000}
    held.close()
    assert collect(small).freed >= 65536
    assert not CommitHold(small.path).add(second, small.has_commit)


def test_what_a_running_batch_has_published_and_used_again_stays(small: Store) -> None:
    gone = commit(small, "master", {"a": b"reused" * 500})
    small.set_ref("images", RefKind.BRANCH, "master", None, expected=gone, why="reset")
    with small.objects.batch() as batch:
        ids = [batch.add_piece(os.urandom(5000)) for _ in range(100)]  # publishes several times
        assert small.objects.locate(ids[0]) is not None
        collect(small)
        assert all(small.objects.locate(id) is not None for id in ids[:80])
        changes = {parse_path(f"f{i}"): file_entry(id, 5000) for i, id in enumerate(ids)}

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes, mtime_ns=1)

        made = commit_edit(small, batch, "images", "master", edit, message="m", origin={})
    assert made is not None
    assert len(contents(small, made.tree)) == 100
    assert unmarked(small) == []


def test_data_that_is_used_again_while_it_is_collected(small: Store) -> None:
    """The batch finds it in the store, gc drops it, and the commit is told; or the commit comes first, and gc lets it be."""
    data = b"reused" * 500
    gone = commit(small, "master", {"a": data})
    small.set_ref("images", RefKind.BRANCH, "master", None, expected=gone, why="reset")
    with collecting(small):
        collection = Collection(small, 0)
        collection.plan()
        first = commit(small, "master", {"again": data})
        collection.carry_out()
    assert contents(small, small.read_commit(first).tree) == {"again": data}
    small.set_ref("images", RefKind.BRANCH, "master", None, expected=first, why="reset")
    with small.objects.batch() as batch:
        id = ingest_bytes(batch, data)
        collect(small)
        assert small.objects.locate(id) is None
        with pytest.raises(Busy):
            batch.flush()


def archive_of(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def put_stream(store: Store, archive: bytes) -> ObjectId:
    """As `pfs put --tar -`."""
    file = io.BufferedReader(cast("Any", io.BytesIO(archive)))
    made, _ = put_archive(store, file, "-", "images", "master", (), message="m", origin={"how": "put"})
    assert made is not None
    return made.id


STREAMED = {
    **{f"small{i}": b"%d" % i * 40 for i in range(60)},
    **{f"d{i}/file": bytes([i]) * 3000 for i in range(60)},
    "large": random.Random(1).randbytes(9 << 20),
}


@pytest.mark.parametrize("planned", ["before", "meanwhile"])
def test_a_stream_keeps_what_it_uses_again(small: Store, planned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be read once more, so gc must not take what it has found in the store: neither one that has looked at what is alive before, nor one that begins just before the commit."""
    archive = archive_of(STREAMED)
    gone = put_stream(small, archive)
    small.set_ref("images", RefKind.BRANCH, "master", None, expected=gone, why="reset")
    collections: list[GcResult] = []

    def at_the_worst_moment(batch: Batch, prepare: Callable[[Batch], None] = Batch.prepare) -> None:
        prepare(batch)
        if not collections:  # all was found, nothing is named by a commit
            if planned == "meanwhile":
                collections.append(collect(small))
            else:
                collections.append(collection.carry_out())

    with collecting(small) if planned == "before" else nullcontext():
        collection = Collection(small, 0)
        if planned == "before":
            collection.plan()
        monkeypatch.setattr(Batch, "prepare", at_the_worst_moment)
        made = put_stream(small, archive)
    assert collections
    assert contents(small, small.read_commit(made).tree) == STREAMED
    assert check(small, data=True).clean
    small.set_ref("images", RefKind.BRANCH, "master", None, expected=made, why="reset")
    assert collect(small).plan.total.size > 9 << 20  # held no longer
    assert list((small.path / "run" / "holds").iterdir()) == [small.path / "run" / "holds" / "lock"]


def test_streams_beside_a_gc_that_never_rests(small: Store) -> None:
    """Each drops what the put before has left, while the next one uses it again."""
    archive = archive_of({name: data for name, data in STREAMED.items() if name != "large"})
    stop = threading.Event()
    results: list[GcResult] = []

    def keep_collecting() -> None:
        while not stop.is_set():
            results.append(collect(small))

    collector = threading.Thread(target=keep_collecting)
    collector.start()
    try:
        for _ in range(6):
            made = put_stream(small, archive)
            assert len(contents(small, small.read_commit(made).tree)) == 120
            small.set_ref("images", RefKind.BRANCH, "master", None, expected=made, why="reset")
    finally:
        stop.set()
        collector.join()
    assert any(result.plan.dead for result in results)
    assert check(small, data=True).clean


def test_only_one_collects_at_a_time(small: Store) -> None:
    with collecting(small), pytest.raises(Busy), collecting(small):
        pass


def job(store: Store, name: str, state: str, days: int) -> ObjectId:
    """A job's ref, with the record of one that ended so many days ago."""
    info = store.repo("images")
    with store.objects.batch() as batch:
        root = edit_paths(
            batch,
            directory_entry(EMPTY_DIRECTORY),
            {parse_path("log"): file_entry(ingest_bytes(batch, name.encode()), len(name))},
        )
        origin = {"how": "job", "state": state, "ended_ns": time.time_ns() - days * 86_400 * 10**9}
        made = store.make_commit(batch, tree=root, parents=[], message=name, author=None, origin=origin)
        store.publish(batch, [(RefMove(info, RefKind.JOB, name, made.id), made)], why="job")
    return made.id


def test_old_failed_jobs_go_and_others_stay(small: Store) -> None:
    kept = {job(small, f"job-{state}", state, days) for state, days in (("success", 900), ("conflict", 900))}
    kept |= {job(small, "job-young", "failed", 1)}
    gone = {job(small, f"job-{state}-old", state, 900) for state in ("failed", "killed", "running")}
    with small.objects.index.write() as txn:  # their moves are as old
        for key, raw in txn.scan(Table.REFLOG):
            if b"-old" in raw:
                line = json.loads(raw)
                txn.put(Table.REFLOG, key, json.dumps({**line, "t": 0}).encode())
    result = collect(small, 90 * 86_400)
    assert set(result.plan.jobs) == {"job-failed-old", "job-killed-old", "job-running-old"}
    assert {ref.commit for ref in small.refs("images", RefKind.JOB)} == kept
    assert not any(small.has_commit(id) for id in gone)
    assert all(small.has_commit(id) for id in kept)
    assert check(small, data=True).clean


def test_a_deleted_repo_is_kept_as_long_as_a_deleted_branch(small: Store) -> None:
    made = commit(small, "master", {"a": b"a" * 70_000})
    with small.objects.index.write() as txn:  # long ago
        for key, raw in list(txn.scan(Table.REFLOG)):
            txn.put(Table.REFLOG, key, json.dumps({**json.loads(raw), "t": 0}).encode())
    small.delete_repo("images")
    assert collect(small, 86_400).plan.total.objects == 0
    assert small.has_commit(made)
    assert collect(small).freed > 65_536
    assert not small.has_commit(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="NO TEST OF A FULL DISK: only root may make a small one")
def test_gc_runs_on_a_full_disk(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        Store.create(disk / "store")
        with Store.open(disk / "store", author="tester@here") as store:
            store.create_repo("images")
            files: dict[str, bytes | None] = {f"{i}": random.Random(i).randbytes(5000) for i in range(400)}
            gone = commit(store, "master", files)
            store.set_ref("images", RefKind.BRANCH, "master", None, expected=gone, why="reset")
            kept = commit(store, "master", {"kept": b"k" * 9000})
            with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                for size in (1 << 16, 512):
                    with suppress(OSError):
                        while filler.write(bytes(size)):
                            pass
            with pytest.raises(NoSpace):
                commit(store, "master", {"more": random.Random(1).randbytes(3 << 20)})
            assert collect(store).freed > 400 * 8000
            assert contents(store, store.read_commit(kept).tree) == {"kept": b"k" * 9000}
            commit(store, "master", {"after": random.Random(1).randbytes(1 << 20)})
            assert check(store, data=True).clean
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_commit_is_held_as_often_as_it_was_asked_for(small: Store) -> None:
    made = [commit(small, "master", {"a": bytes([n]) * 2000}) for n in range(5)]
    held = CommitHold(small.path)
    for id in (*made, made[0]):
        assert held.add(id, small.has_commit)
    for id in made:
        held.remove(id)
    now = read_holds(small.path).commits
    assert made[0] in now
    assert len(now) <= 2  # the file is not written anew each time
    with commits_stay(small.path, exclusive=True):  # gc drops commits just now: nothing waits for it
        held.remove(made[0])
    assert made[0] in read_holds(small.path).commits
    assert held.add(made[1], small.has_commit)
    assert read_holds(small.path).commits == {made[1]}
    held.close()
    assert read_holds(small.path).commits == set()
