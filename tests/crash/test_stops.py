"""Kills and faults at the steps of commands: `kill -9` before one or in the middle of a write; a full disk; a disk that fails.

What the kernel was given stays after a kill, so that everything is there that was acknowledged, fsynced or not. After a fault the command says so in words,
its exit code is true, and the same command works when the disk does again. (`docs/CRASHES.md`)
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.crash.checking import View, check_stopped, in_child, shape_at, view_at
from tests.crash.shim import ONWARDS, TORN, Done, Mode, error_name
from tests.crash.workloads import DIRTY, FILLED, WORKLOADS, Command, Workload, World, prepare

STOPPED = (
    *(one for one in WORKLOADS if one.name in ("init", "put", "refs", "merge")),
    Workload("commit", (*FILLED, DIRTY), (("pfs", "commit", "images@master", "-m", "work"),)),
    Workload("discard", (*FILLED, DIRTY), (("pfs", "discard", "-y", "images@master"),)),
)
FAULTS = ((errno.ENOSPC, 0), (errno.ENOSPC, ONWARDS), (errno.EIO, 0), (errno.EDQUOT, ONWARDS), (errno.EIO, ONWARDS))
Stop = tuple[Mode, int, int]
"""Mode, error, options."""


@dataclass(frozen=True, slots=True)
class Case:
    """A command, the store before it, and what it makes of it."""

    command: Command
    store: Path
    before: View
    """Commits by ref."""
    shape: View
    after: View
    steps: int


def cases(world: World, workload: Workload) -> Iterator[Case]:
    """Each command of a workload, on the store that those before it made."""
    prepare(world, workload)
    for number, command in enumerate(workload.actions):
        kept = world.root / f"before-{number}"
        if world.store.exists():
            shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb"))
        before, shape = view_at(world.store), shape_at(world.store)
        steps = world.good(command).steps
        yield Case(command, kept, before, shape, shape_at(world.store), steps)


def stop_everywhere(
    world: World, workload: Workload, stops: tuple[Stop, ...], judge: Callable[[World, Case, Done], None], every: int
) -> None:
    """Run each command of a workload once for each step (of `every` one) and way of stopping, on a copy of the store."""
    started, count, points = time.monotonic(), 0, 0
    problems: list[str] = []
    for case in [*cases(world, workload)]:
        points += case.steps
        for at in range(1, case.steps + 1):
            for number, (mode, error, options) in enumerate(stops):
                if (points + at + number * 7) % every:
                    continue
                world.copy_from(case.store)
                done = world.run(case.command, mode=mode, at=at, error=error, options=options)
                why = in_child(partial(judge, world, case, done))
                count += 1
                if why is not None:
                    fault = f"{error_name(error)}{' from then on' if options else ''}" if error else "killed"
                    problems.append(
                        f"{' '.join(case.command)[:80]} {fault} at step {at}/{case.steps} ({done.at}): "
                        f"exit {done.code} {done.out!r} {done.errors!r}\n{why}"
                    )
                    assert len(problems) < 6, "\n".join(problems)
    seconds = time.monotonic() - started
    print(f"stops in '{workload.name}': {points} crash points, {count} runs stopped in {seconds:.1f} s")
    assert not problems, "\n".join(problems)


def judge_kill(world: World, case: Case, done: Done) -> None:
    """All of the change or nothing."""
    check_stopped(world.store, case.before, (case.shape, case.after))


def judge_fault(world: World, case: Case, done: Done) -> None:
    """The exit code is true, the message is for people, and the command works afterwards."""
    assert done.code >= 0, "the process was ended"
    assert "Traceback" not in done.errors, "no message for people"
    assert "bug in pfs" not in done.errors, "no message for people"
    shape = shape_at(world.store)
    if done.code == 0:
        assert shape == case.after, "exit code 0, and not done"
    else:
        assert done.errors.startswith("pfs: "), "no message"
        # what can still fail when all is done and durable is what comes after
        assert shape == case.shape, "failed, and done"
        again = world.run(case.command)
        assert again.code == 0, f"not possible afterwards: {again.errors}"
        assert shape_at(world.store) == case.after
    check_stopped(world.store, case.before, (case.after,))


KILLS: tuple[Stop, ...] = ((Mode.KILL, 0, 0), (Mode.KILL, 0, TORN))


@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_kills(workload: Workload, world: World) -> None:
    """Killed at some of the steps."""
    stop_everywhere(world, workload, KILLS, judge_kill, 17)


@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_faults(workload: Workload, world: World) -> None:
    """A write, fsync or rename fails, at some of the steps."""
    stop_everywhere(world, workload, tuple((Mode.FAIL, *fault) for fault in FAULTS), judge_fault, 29)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_all_kills(workload: Workload, world: World) -> None:
    """Killed at each step, and in the middle of each write."""
    stop_everywhere(world, workload, KILLS, judge_kill, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_all_faults(workload: Workload, world: World) -> None:
    """Each step fails in each way."""
    stop_everywhere(world, workload, tuple((Mode.FAIL, *fault) for fault in FAULTS), judge_fault, 1)
