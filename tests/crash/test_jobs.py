"""`pfsjob run` under the shim: power cuts, kills and faults while results are saved, a record is written, a commit is made (`docs/CRASHES.md`)."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from pfsmount.repo.store import Store
from tests.crash.checking import Acknowledged, check_all, check_store, in_child, view_at
from tests.crash.jobs import FILES, JOBS, MENDED, RUN, check_jobs, job, outputs, run_again
from tests.crash.replay import Crash, crashes, read_log
from tests.crash.shim import ONWARDS, TORN, Done, Mode, error_name
from tests.crash.test_stops import FAULTS, is_same
from tests.crash.workloads import Command, World, acknowledgements, record
from tests.figures import Tell


def cut_power(world: World, tell: Tell, seed: int, per_step: int | None, every: int = 1) -> None:
    """What power cuts may leave of three jobs; of these disks `every` one."""
    recording = record(world, JOBS)

    def check(path: Path, crash: Crash) -> None:
        acknowledged = recording.acknowledged
        saved = acknowledged[crash.marks].saved
        check_jobs(path, saved)
        check_store(path, acknowledged, crash.marks, atomic=False)
        run_again(world, path, saved)

    states = islice(crashes(recording.disk, recording.steps, seed=seed, per_step=per_step), 0, None, every)
    count, failures = check_all(states, world.root / "states", check)
    tell("power cuts", JOBS.name, crash_points=recording.count, disks=count)
    assert not failures, "".join(f"\nafter {one.crash.after} steps, {one.crash.what}:\n{one.why}" for one in failures)


def test_power_cuts(world: World, tell: Tell) -> None:
    """Some of the states after some of the steps."""
    cut_power(world, tell, 1, 1, 4)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_power_cuts(world: World, tell: Tell) -> None:
    """All of them."""
    cut_power(world, tell, 2, None)


CASES: tuple[tuple[str, tuple[Command, ...], int], ...] = (
    ("fails", FILES, 1),
    ("first", (*FILES, MENDED), 0),
    ("next", (*FILES, MENDED, job(0), ("pfs", "put", "{files}/mine", "images@master:/mine")), 0),
)


def kill_jobs(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int, every: int) -> None:
    """Kill a job at its steps: what was saved is there, the record and the commit are both or none, the next run works."""
    for command in prepare:
        world.good(command)
    kept, start = world.root / "kept", [Acknowledged(view_at(world.store))]
    shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    steps = world.good(job(code)).steps
    count = 0
    for number, at in enumerate(range(1, steps + 1, every)):
        what = ""
        for options in (0, TORN) if every == 1 else ((0, TORN)[number % 2],):
            if is_same(what, 0, options):
                continue
            world.copy_from(kept)
            world.log.unlink(missing_ok=True)
            done = world.run(job(code), mode=Mode.KILL, at=at, options=options)
            what = done.at
            assert done.code in (-9, 0)  # how many steps there are depends on when threads meet
            told = [*start, *acknowledgements([*read_log(world.log)])]
            why = in_child(partial(_judge_kill, world, told))
            assert why is None, f"killed at step {at} of {steps} ({done.at}), {len(told) - 1} acknowledged:\n{why}"
            count += 1
    tell("kills", f"a job ({name})", crash_points=steps, runs=count)


def _judge_kill(world: World, told: list[Acknowledged]) -> None:
    saved = told[-1].saved
    check_jobs(world.store, saved)
    check_store(world.store, told, len(told) - 1, refs=False)
    run_again(world, world.store, saved)


@pytest.mark.parametrize(("name", "prepare", "code"), CASES, ids=[one[0] for one in CASES])
def test_kills(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int) -> None:
    """At some of the steps."""
    kill_jobs(world, tell, name, prepare, code, 31)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "prepare", "code"), CASES, ids=[one[0] for one in CASES])
def test_all_kills(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int) -> None:
    """At each step, and in the middle of each write."""
    kill_jobs(world, tell, name, prepare, code, 1)


def fail_jobs(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int, every: int) -> None:
    """A step of a job fails: it says so, or is right all the same; the next run works."""
    for command in prepare:
        world.good(command)
    kept = world.root / "kept"
    shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    before = view_at(world.store)
    steps = world.run(RUN).steps
    count = 0
    for at in range(1, steps + 1):
        what = ""
        for number, (error, options) in enumerate(FAULTS):
            if (at + number * 7) % every or is_same(what, error, options):
                continue
            world.copy_from(kept)
            done = world.run(RUN, mode=Mode.FAIL, at=at, error=error, options=options)
            what = done.at
            why = in_child(partial(_judge_fault, world, Acknowledged(before), code, done))
            fault = error_name(error) + (" from then on" if options & ONWARDS else "")
            assert why is None, (
                f"{fault} at step {at} of {steps} ({done.at}): exit {done.code} {done.out!r} {done.errors!r}\n{why}"
            )
            count += 1
    tell("faults", f"a job ({name})", crash_points=steps, runs=count)


def _judge_fault(world: World, before: Acknowledged, code: int, done: Done) -> None:
    assert done.code >= 0, "the process was ended"
    assert "Traceback" not in done.errors, "no message for people"
    assert "bug in pfs" not in done.errors, "no message for people"
    with Store.open(world.store) as store:
        made = {one.id.hex()[:12] for one in outputs(store)}
    said = done.out.rpartition("sizes@master is now ")[2].split(" ")[0] if done.code == 0 else None
    if done.code == 0:
        assert said in made, "exit code 0, and not done"
    else:
        assert "pfsjob: " in done.errors, "no message"
        if code == 0:
            assert not made, "failed, and done"
    check_jobs(world.store, ())
    check_store(world.store, [before], 0, refs=False)
    run_again(world, world.store, ())


@pytest.mark.parametrize(("name", "prepare", "code"), CASES[:2], ids=[one[0] for one in CASES[:2]])
def test_faults(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int) -> None:
    """At some of the steps."""
    fail_jobs(world, tell, name, prepare, code, 71)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "prepare", "code"), CASES[:2], ids=[one[0] for one in CASES[:2]])
def test_all_faults(world: World, tell: Tell, name: str, prepare: tuple[Command, ...], code: int) -> None:
    """Each step fails in each way."""
    fail_jobs(world, tell, name, prepare, code, 1)
