"""gc that is killed at any step, and gc beside other processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pfsmount.config import StoreSettings
from pfsmount.ids import ObjectId
from pfsmount.objects import sweep
from pfsmount.objects.index import Index, Transaction
from pfsmount.repo.collection import Collection, collecting
from pfsmount.repo.fsck import check
from pfsmount.repo.store import Store
from tests.conftest import ROOT
from tests.repo.test_collection import SMALL, History, collect, contents, unmarked

DROPPING = StoreSettings(segment_size=64 * 1024, publish_entries=40, batch_bytes=64 * 1024)


def make(path: Path, size: int = 12) -> History:
    """A store with much that is dead."""
    Store.create(path, DROPPING)
    with Store.open(path, DROPPING, author="tester@here") as store:
        store.create_repo("images")
        history = History(store, 3)
        history.run(size)
    return history


def run_until(path: Path, step: int) -> bool:
    """Collect in a process that is killed right before its step of that number; False when it came to its end."""
    child = os.fork()
    if not child:
        try:
            left = [step]

            def tick() -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            _count(tick)
            sweep._DROPPED_AT_ONCE = 50
            with Store.open(path, DROPPING) as store:
                collect(store)
            (path.parent / "steps").write_text(str(step - left[0]), encoding="ascii")
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0


def _count(tick: Callable[[], None]) -> None:
    """Before and behind each transaction, and before each fsync, unlink and punch."""

    def before(module: object, name: str) -> None:
        function = getattr(module, name)

        def counted(*args: object, **options: object) -> object:
            tick()
            return function(*args, **options)

        setattr(module, name, counted)

    for name in ("fsync", "fdatasync", "unlink"):
        before(os, name)
    before(sweep, "punch")
    write = Index.write

    @contextmanager
    def counted_write(self: Index) -> Iterator[Transaction]:
        tick()
        with write(self) as txn:
            yield txn
            tick()
        tick()

    Index.write = counted_write  # type: ignore[method-assign]


def steps(path: Path) -> int:
    """How many steps a collection has."""
    copy = path.with_name("measure")
    shutil.copytree(path, copy)
    assert not run_until(copy, 1 << 30)
    shutil.rmtree(copy)
    return int((path.parent / "steps").read_text(encoding="ascii"))


@pytest.mark.parametrize("points", [4, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_a_kill_at_any_step_leaves_a_whole_store_and_the_next_gc_ends_the_work(tmp_path: Path, points: int) -> None:
    history = make(tmp_path / "store", 16 if points < 10 else 25)
    count = steps(tmp_path / "store")
    assert count > 15
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "store", copy)
    with Store.open(copy, DROPPING) as store:
        whole = collect(store).after
    shutil.rmtree(copy)
    for step in range(0, count, max(1, count // points)):
        shutil.copytree(tmp_path / "store", copy)
        assert run_until(copy, step)
        with Store.open(copy, DROPPING, author="tester@here") as store:
            history.store = store
            for id in history.live():
                assert contents(store, store.read_commit(id).tree) == history.files[id], step
            assert check(store, data=True).clean, step
            after = collect(store).after
            history.check()
            assert unmarked(store) == []
            assert after <= whole + 64 * 1024, step  # tombstones that are written twice
            assert check(store, data=True).clean, step
        shutil.rmtree(copy)


WRITER = """
import os, random, sys
from pathlib import Path
from pfsmount.repo.store import Store
from pfsmount.repo.ingest import put
store_path, work, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
with Store.open(store_path, author="writer") as store:
    store.keeps_resolved = True
    for turn in range(12):
        source = work / f"{seed}-{turn}"
        source.mkdir(parents=True)
        for i in range(60):  # the same few contents again and again, so that what was just dropped is used again
            (source / f"{i}").write_bytes(random.Random(chance.randrange(90)).randbytes(chance.choice([50, 3000, 9000])))
        commit, _ = put(store, [os.fsencode(source)], "images", f"b{seed}", (), into=False, delete=True, message="m", origin={"how": "put"})
        print(commit.id.hex() if commit else "-", turn, flush=True)
        if turn % 3 == 2:
            head = store.head("images", f"b{seed}")
            from pfsmount.repo.refs import RefKind
            store.set_ref("images", RefKind.BRANCH, f"b{seed}", None, expected=head, why="reset")
"""


def test_writers_go_on_while_gc_drops_what_they_are_about_to_use_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.create(path)
    with Store.open(path, author="tester@here") as store:
        store.create_repo("images")
        for seed in range(2):
            store.create_branch("images", f"b{seed}", None)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(tmp_path / "work"), str(seed)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(2)
        ]
        dropped = rounds = 0
        while any(writer.poll() is None for writer in writers):
            with collecting(store):
                collection = Collection(store, 0)
                dropped += collection.plan().total.objects
                collection.carry_out()
            rounds += 1
        outputs = [writer.communicate()[0].splitlines() for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0]
        assert [len(lines) for lines in outputs] == [12, 12]
        assert dropped > 0
        assert rounds > 1
        collect(store)
        assert check(store, data=True).clean
        assert unmarked(store) == []


def test_results_of_random_kills_of_gc_beside_a_writer(tmp_path: Path) -> None:
    """Everything that was acknowledged is there after gcs that were killed at random moments."""
    history = make(tmp_path / "store")
    chance = random.Random(7)
    for _ in range(3):
        run_until(tmp_path / "store", chance.randrange(60))
        with Store.open(tmp_path / "store", DROPPING, author="tester@here") as store:
            history.store = store
            history.put()
            heads: list[ObjectId] = [id for id in history.live() if id in history.files]
            for id in heads:
                assert contents(store, store.read_commit(id).tree) == history.files[id]
    with Store.open(tmp_path / "store", SMALL, author="tester@here") as store:
        history.store = store
        collect(store)
        history.check()
        assert check(store, data=True).clean
