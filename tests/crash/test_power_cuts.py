"""Power cuts: a store as it may be on the disk after every prefix of its writes, opened and used (`docs/CRASHES.md`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.checking import check_all, check_store
from tests.crash.replay import Crash, crashes
from tests.crash.workloads import COLLECTING, LARGE, MOUNTED, WORKLOADS, Workload, World, record
from tests.figures import Tell


def cut_power(workload: Workload, world: World, tell: Tell, seed: int, per_step: int | None) -> None:
    """Record a workload and check what power cuts may leave of it."""
    recording = record(world, workload)

    def check(path: Path, crash: Crash) -> None:
        check_store(path, recording.acknowledged, crash.marks, atomic=workload.atomic)

    states = crashes(recording.disk, recording.steps, seed=seed, per_step=per_step)
    count, failures = check_all(states, world.root / "states", check)
    tell("power cuts", workload.name, crash_points=recording.count, disks=count)
    text = "".join(f"\nafter {one.crash.after} steps, {one.crash.what}:\n{one.why}" for one in failures)
    assert not failures, text


@pytest.mark.parametrize("workload", [*WORKLOADS, COLLECTING], ids=lambda one: one.name)
def test_power_cuts(workload: Workload, world: World, tell: Tell) -> None:
    """Some of the states after each step."""
    cut_power(workload, world, tell, 1, workload.per_step)


@pytest.mark.usefixtures("need_fuse")
def test_power_cuts_under_a_mount(world: World, tell: Tell) -> None:
    """The daemon that serves a mount, under the shim."""
    cut_power(MOUNTED, world, tell, 3, MOUNTED.per_step)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("need_fuse")
def test_all_power_cuts_under_a_mount(world: World, tell: Tell) -> None:
    cut_power(MOUNTED, world, tell, 4, None)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", [*WORKLOADS, COLLECTING, LARGE], ids=lambda one: one.name)
def test_all_power_cuts(workload: Workload, world: World, tell: Tell) -> None:
    """All of them."""
    cut_power(workload, world, tell, 2, None)
