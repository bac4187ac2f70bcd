"""What goes wrong beside the program: workers that die, a disk that is full, a stop at any point, jobs that were killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from pfsmount.errors import Corrupt, InvalidInput, NoSpace, NotFound, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.locks import try_lock
from pfsmount.repo.refs import RefInfo, RefKind
from pfsmount.repo.results import save_results
from runner import cli_run, collect
from runner.datum import Datum
from runner.executors.base import Obstacle, Outcome, Task, TaskRefused, Worker, WorkerLost
from runner.executors.memory import MemoryExecutor, View
from runner.finish import finish_success
from runner.job import StagingNeeds
from runner.jobs import JobStore, new_job_id
from runner.spec_file import FileSpec
from runner.staging import CopyStaging, Staged, Staging
from runner.state import Phase
from tests.runner.world import World


class Unreliable:
    """An executor whose workers are lost, or refuse, at some datums."""

    name = "unreliable"

    def __init__(self, inner: MemoryExecutor, troubles: dict[str, list[PfsError]]) -> None:
        self._inner, self.troubles = inner, troubles
        self.opened = 0

    @asynccontextmanager
    async def open_worker(self) -> AsyncIterator[Worker]:
        async with self._inner.open_worker() as worker:
            self.opened += 1
            yield _UnreliableWorker(worker, self.troubles)

    async def preflight(self) -> tuple[Obstacle, ...]:
        return await self._inner.preflight()


class _UnreliableWorker:
    def __init__(self, worker: Worker, troubles: dict[str, list[PfsError]]) -> None:
        self._worker, self._troubles = worker, troubles

    async def run(self, task: Task) -> Outcome:
        pending = self._troubles.get(task.env["in"], [])
        if pending:
            (task.out / "half").touch()
            raise pending.pop()
        return await self._worker.run(task)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_lost_worker_is_replaced_and_its_datum_tried_again(world: World, workers: int) -> None:
    world.commit({name: name.encode() for name in "abcd"})
    executor = Unreliable(MemoryExecutor(world.programs), {"/pfs/in/b": [WorkerLost("gone")]})
    result = world.run(executor=executor, workers=workers)
    assert result.phase is Phase.SUCCESS
    assert world.files() == {name: name.upper().encode() for name in "abcd"}
    assert executor.opened >= 2


def test_a_datum_that_loses_two_workers_fails(world: World) -> None:
    world.commit({name: name.encode() for name in "abcd"})
    troubles: dict[str, list[PfsError]] = {"/pfs/in/b": [WorkerLost("gone"), WorkerLost("gone again")]}
    result = world.run(executor=Unreliable(MemoryExecutor(world.programs), troubles), workers=1)
    assert result.state.counts() == {"total": 4, "processed": 3, "skipped": 0, "failed": 1}
    (failure,) = result.failures
    assert failure.how == "gone"
    assert failure.meta["exit"] == 125


def test_a_refused_datum_fails_alone(world: World) -> None:
    world.commit({name: name.encode() for name in "ab"})
    troubles: dict[str, list[PfsError]] = {"/pfs/in/b": [TaskRefused("too many mounts")]}
    result = world.run(executor=Unreliable(MemoryExecutor(world.programs), troubles))
    assert (result.state.processed, result.state.failed) == (1, 1)
    assert result.failures[0].how == "too many mounts"


def test_a_full_disk_while_results_are_kept_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.commit({f"{i}": b"%d" % i for i in range(20)})
    monkeypatch.setattr(collect, "FLUSH_DATUMS", 5)
    real, calls = save_results, 0

    def full(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise NoSpace("no space left while keeping results")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, "save_results", full)
    with pytest.raises(NoSpace, match="no space left"):
        world.run(workers=1)
    (job,) = JobStore(world.store).jobs()
    assert (job.phase, job.origin["reason"]) == (Phase.FAILED, "no space left while keeping results")
    assert world.store.head("out", "master") is None
    assert os.listdir(world.store.path / "jobs") == []
    monkeypatch.undo()
    result = world.run()
    assert result.state.skipped >= 5
    assert len(world.files()) == 20


def test_inputs_that_cannot_be_staged_end_the_job(world: World) -> None:
    class Broken(CopyStaging):
        def stage(self, datum: Datum, scratch: Path) -> Staged:
            if str(datum) == "/b":
                raise Corrupt("a piece is damaged")
            return super().stage(datum, scratch)

    def broken(needs: StagingNeeds) -> Staging:
        return Broken(needs.store.objects)

    world.commit({name: name.encode() for name in "abc"})
    with pytest.raises(Corrupt, match="a piece is damaged"):
        world.run(staging=broken, workers=1)
    (job,) = JobStore(world.store).jobs()
    assert job.phase is Phase.FAILED


def test_a_stop_kills_what_runs_and_keeps_what_has_finished(world: World) -> None:
    async def stop_at_c(view: View) -> int:
        (view.out / os.path.basename(view.task.env["in"])).touch()
        if view.task.env["in"] == "/pfs/in/c":
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()
        return 0

    world.commit({name: name.encode() for name in "abcd"})
    world.program("stop", stop_at_c)
    result = world.run("stop", workers=1)
    assert result.phase is Phase.KILLED
    assert (result.state.processed, result.commit) == (2, None)
    (job,) = JobStore(world.store).jobs()
    assert job.phase is Phase.KILLED
    assert {str(datum) for datum in world.record(result).datums()} == {"/a", "/b"}


def test_a_stop_that_comes_while_a_job_commits_ends_what_would_follow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_and_stop(*arguments: Any) -> Any:
        made = finish_success(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr("runner.job.finish_success", commit_and_stop)
    world.commit({"a": b"a"})
    result = world.run()
    assert (result.phase, result.stop_asked) == (Phase.SUCCESS, True)

    monkeypatch.setattr(cli_run, "_run_one", lambda *_, **__: result)
    request = cast("cli_run.RunRequest", SimpleNamespace(flags=SimpleNamespace(specs=lambda: _two(world)), follow=True))
    with pytest.raises(SystemExit):
        cli_run.run_and_print(world.store, request)
    request.follow = False  # type: ignore[misc]
    assert cli_run.run_and_print(world.store, request) == 130


def _two(world: World) -> list[FileSpec]:
    return [FileSpec(world.spec(output=f"out@{branch}"), (), 1) for branch in ("master", "other")]


def test_what_another_job_runs_is_not_staged_while_it_is_waited_for(world: World) -> None:
    staged: list[str] = []

    class Counting(CopyStaging):
        def stage(self, datum: Datum, scratch: Path) -> Staged:
            staged.append(str(datum))
            return super().stage(datum, scratch)

    async def work(view: View) -> int:
        if view.task.env["in"] == "/pfs/in/b" and held:
            await trio.sleep(0.4)  # it is asked for again meanwhile
            others.release(held.pop())
        return 0

    held: list[ObjectId] = []
    world.program("work", work)
    world.commit({"a": b"a", "b": b"b"})
    record = world.record(world.run("work"))
    with JobStore(world.store).claims() as others:
        held += [datum.key for datum in record.datums() if str(datum) == "/a"]
        assert others.take(held[0])
        spec = replace(world.spec("work"), reprocess=True, job_timeout=20.0)
        result = world.run_spec(spec, staging=lambda needs: Counting(needs.store.objects))
    assert result.state.processed == 2
    assert staged == ["/b", "/a"]


# ---- jobs as they are listed ---------------------------------------------------------------------------------------


def test_job_ids_sort_by_time() -> None:
    ids = [new_job_id(second) for second in (1, 1_700_000_000, 1_700_000_000.001, 4_000_000_000)]
    assert ids == sorted(ids)
    assert all(len(id) == len("job-") + 16 for id in ids)


def test_jobs_are_found_by_the_beginning_of_their_id(world: World) -> None:
    world.commit({"a": b"x"})
    first = world.run()
    second = world.run(output="other@master")
    jobs = JobStore(world.store)
    assert [job.id for job in jobs.jobs()] == sorted([first.id, second.id], reverse=True)
    assert jobs.find(first.id).id == first.id
    assert jobs.find(first.id.removeprefix("job-")).id == first.id
    with pytest.raises(InvalidInput, match="fits 2 jobs"):
        jobs.find(first.id[:8])
    with pytest.raises(NotFound):
        jobs.find("job-00000000")
    with pytest.raises(InvalidInput):
        jobs.find("job-")


def test_a_job_runs_while_its_lock_is_held(world: World) -> None:
    jobs = JobStore(world.store)
    with jobs.open_directory("job-x") as directory:
        assert jobs.is_running("job-x")
        directory.write_progress({"processed": 3})
        assert jobs.progress("job-x") == {"processed": 3}
        jobs.sweep()
        assert directory.datums.is_dir(), "a running job's directory is left alone"
    assert not jobs.is_running("job-x")
    assert jobs.progress("job-x") is None


def test_a_job_that_ends_while_it_is_looked_at_was_not_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RefInfo] = []

    async def look(view: View) -> int:
        seen.extend(world.store.refs("out", RefKind.JOB))
        return 0

    world.program("look", look)
    world.commit({"a": b"a"})
    result = world.run("look")
    monkeypatch.setattr(world.store, "refs", lambda repo, kind: seen if repo == "out" else [])
    assert JobStore(world.store).find(result.id).phase is Phase.SUCCESS


def test_what_a_killed_runner_left_is_deleted(world: World) -> None:
    left = world.store.path / "jobs" / "job-left"
    (left / "d" / "1" / "out" / "locked").mkdir(parents=True)
    (left / "lock").touch()
    (left / "d" / "1" / "out" / "locked" / "file").touch()
    (left / "d" / "1" / "out" / "locked").chmod(0)
    held = world.store.path / "jobs" / "job-held"
    held.mkdir()
    with (held / "lock").open("w") as lock:
        assert try_lock(lock.fileno())
        JobStore(world.store).sweep()
        assert not left.exists()
        assert held.exists()
