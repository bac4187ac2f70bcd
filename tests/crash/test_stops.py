"""Kills and faults at the steps of commands: `kill -9` before one or in the middle of a write; a full disk; a disk that fails.

What the kernel was given stays after a kill, so that everything is there that was acknowledged, fsynced or not. After a fault the command says so in words,
its exit code is true, and the same command works when the disk does again. (`docs/CRASHES.md`)
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.store import Store
from pfsmount.tree.directory import walk
from tests.conftest import run_command
from tests.crash.checking import Acknowledged, View, check_stopped, check_store, in_child, shape_at, view_at
from tests.crash.replay import read_log
from tests.crash.shim import ONWARDS, TORN, Done, Mode, error_name
from tests.crash.workloads import (
    ADOPT_COMMIT,
    ADOPT_DIRT,
    COLLECTING,
    DIRTY,
    FILLED,
    MOUNTED,
    WORKLOADS,
    Command,
    CommandFailed,
    Workload,
    World,
    acknowledgements,
    prepare,
    record,
    write_through_mount,
)
from tests.figures import Tell

STOPPED = (
    *(one for one in WORKLOADS if one.name in ("init", "put", "refs", "merge")),
    Workload("commit", (*FILLED, DIRTY), (("pfs", "commit", "images@master", "-m", "work"),)),
    Workload("adopt", (*FILLED, ("python", ADOPT_DIRT, "{log}")), (("python", ADOPT_COMMIT, "{log}"),)),
    COLLECTING,
    Workload("discard", (*FILLED, DIRTY), (("pfs", "discard", "-y", "images@master"),)),
)
FAULTS = ((errno.EIO, 0), (errno.ENOSPC, 0), (errno.ENOSPC, ONWARDS), (errno.EDQUOT, ONWARDS), (errno.EIO, ONWARDS))
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
            shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
        before, shape = view_at(world.store), shape_at(world.store)
        steps = world.good(command).steps
        yield Case(command, kept, before, shape, shape_at(world.store), steps)


def is_same(what: str, error: int, options: int) -> bool:
    """True when a stop of this kind at a step is one that was tried there: only a write can be torn, and what frees space needs none.

    `what`: the step, as an earlier stop there met it; empty: none was.
    """
    if not error:
        return options == TORN and what != "" and not what.startswith("write ")
    return error != errno.EIO and what.startswith(("unlink ", "punch "))


def stop_everywhere(
    world: World,
    tell: Tell,
    workload: Workload,
    stops: tuple[Stop, ...],
    judge: Callable[[World, Case, Done], None],
    every: int,
) -> None:
    """Run each command of a workload once for each step (of `every` one) and way of stopping, on a copy of the store."""
    count = points = 0
    problems: list[str] = []
    for case in [*cases(world, workload)]:
        points += case.steps
        for at in range(1, case.steps + 1):
            what = ""
            for number, (mode, error, options) in enumerate(stops):
                if (points + at + number * 7) % every or is_same(what, error, options):
                    continue
                world.copy_from(case.store)
                done = world.run(case.command, mode=mode, at=at, error=error, options=options)
                what = done.at
                why = in_child(partial(judge, world, case, done))
                count += 1
                if why is not None:
                    fault = f"{error_name(error)}{' from then on' if options else ''}" if error else "killed"
                    problems.append(
                        f"{' '.join(case.command)[:80]} {fault} at step {at}/{case.steps} ({done.at}): "
                        f"exit {done.code} {done.out!r} {done.errors!r}\n{why}"
                    )
                    assert len(problems) < 6, "\n".join(problems)
    kind = "faults" if stops[0][0] is Mode.FAIL else "kills"
    tell(kind, workload.name, crash_points=points, runs=count)
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
def test_kills(workload: Workload, world: World, tell: Tell) -> None:
    """Killed at some of the steps."""
    stop_everywhere(world, tell, workload, KILLS, judge_kill, 23)


@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_faults(workload: Workload, world: World, tell: Tell) -> None:
    """A write, fsync or rename fails, at some of the steps."""
    stop_everywhere(world, tell, workload, tuple((Mode.FAIL, *fault) for fault in FAULTS), judge_fault, 41)


def kill_writers(world: World, tell: Tell, every: int) -> None:
    """Kill a process that writes to a worktree: what it had fsynced or committed is there, and so is what it had only written."""
    workload = next(one for one in WORKLOADS if one.name == "worktree")
    (command,) = workload.actions
    prepare(world, workload)
    kept = world.root / "before"
    shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    world.log.unlink(missing_ok=True)
    start = Acknowledged(view_at(world.store))
    steps = world.good(command).steps
    whole = [start, *acknowledgements([*read_log(world.log)])]
    count = 0
    for at in range(1, steps + 1, every):
        for options in (0, TORN):
            world.copy_from(kept)
            world.log.unlink(missing_ok=True)
            done = world.run(command, mode=Mode.KILL, at=at, options=options)
            assert done.code == -9
            told = [start, *acknowledgements([*read_log(world.log)])]
            marks = len(told) - 1
            acknowledged = [*told, *whole[marks + 1 :]]
            why = in_child(partial(check_store, world.store, acknowledged, marks, refs=False))
            assert why is None, f"killed at step {at} ({done.at}), {marks} acknowledged:\n{why}"
            count += 1
    tell("kills", "a writer to a worktree", crash_points=steps, runs=count)


def test_killed_writers(world: World, tell: Tell) -> None:
    """At some of the steps."""
    kill_writers(world, tell, 43)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_killed_writers(world: World, tell: Tell) -> None:
    """At each step."""
    kill_writers(world, tell, 1)


def kill_mounts(world: World, tell: Tell, every: int) -> None:
    """Kill the daemon of a mount while files are written and committed through it: what had been fsynced or committed is there."""
    recording = record(world, MOUNTED)
    shutil.rmtree(world.store)
    for command in MOUNTED.prepare:
        world.good(command)
    kept = world.root / "before"
    shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    start = Acknowledged(view_at(world.store))
    count = 0
    for number, at in enumerate(range(1, recording.count + 1, every)):
        world.copy_from(kept)
        world.log.unlink(missing_ok=True)
        with suppress(OSError, CommandFailed):
            write_through_mount(world, mode=Mode.KILL, at=at, options=TORN if number % 2 else 0)
        world.clean_up()
        told = [start, *acknowledgements([*read_log(world.log)])]
        marks = len(told) - 1
        why = in_child(
            partial(check_store, world.store, [*told, *recording.acknowledged[marks + 1 :]], marks, refs=False)
        )
        assert why is None, f"killed at step {at} of {recording.count}, {marks} acknowledged:\n{why}"
        count += 1
    tell("kills", "a mount", crash_points=recording.count, runs=count)


@pytest.mark.usefixtures("need_fuse")
def test_killed_mounts(world: World, tell: Tell) -> None:
    """At some of the steps."""
    kill_mounts(world, tell, 25)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("need_fuse")
def test_all_killed_mounts(world: World, tell: Tell) -> None:
    """At each step, in the middle of every second one that writes."""
    kill_mounts(world, tell, 1)


def write_with_faults(world: World, at: int, error: int, options: int) -> str:
    """Mount, write, commit, unmount, while step `at` of the daemon fails; returns which that was, empty when there were fewer."""
    world.point.mkdir(exist_ok=True)
    done = world.run(("pfs", "mount", "{mnt}"), mode=Mode.FAIL, at=at, error=error, options=options)
    if done.code:
        assert done.errors.startswith("pfs: "), done.errors
        assert "bug in pfs" not in done.errors, done.errors
        world.good(("pfs", "mount", "{mnt}"))
    top = world.point / "images@master"
    contents = {"new": b"n" * 5000, "old": b"rewritten" * 400, "more": b"m" * 100}
    written: dict[str, bytes] = {}
    for name, data in contents.items():
        with suppress(OSError), open(top / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written[name] = data
    counter = world.zygote.counter.read_bytes()
    commit = world.commit_beside()
    what = world.zygote.steps()[1]
    assert commit.returncode == 0 or commit.stderr.startswith("pfs: "), commit.stderr
    for name, data in written.items():
        assert (top / name).read_bytes() == data, f"{name} was fsynced; {counter!r}"
    world.zygote.lift()
    for name, data in contents.items():
        (top / name).write_bytes(data)
    again = world.commit_beside()
    assert again.returncode == 0, again.stderr
    assert "uncommitted" not in again.stdout
    for name, data in contents.items():
        assert (top / name).read_bytes() == data
    ended = run_command("pfsmount.cli.app", world.store, "umount", world.point)
    assert ended.returncode == 0, ended.stderr
    with Store.open(world.store) as store:
        head = store.head("images", "master")
        assert head is not None
        found: dict[bytes, bytes] = {
            path[0]: entry.id for path, entry in walk(store.objects, store.read_commit(head).tree) if len(path) == 1
        }
    assert all(found.get(name.encode()) == hash_bytes(data) for name, data in contents.items())
    return what


def mount_with_faults(world: World, tell: Tell, tries: Sequence[tuple[int, tuple[int, int]]]) -> None:
    """For each try a mount in which that step fails, with that error and option."""
    prepare(world, Workload("mount", FILLED, ()))
    kept = world.root / "before"
    shutil.copytree(world.store, kept, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    tried = []
    for at, (error, options) in tries:
        world.copy_from(kept)
        try:
            tried.append(write_with_faults(world, at, error, options))
            report = in_child(partial(check_stopped, world.store, {}, (shape_at(world.store),)))
            assert report is None, report
        except BaseException as problem:
            problem.add_note(f"step {at}, {error_name(error)}, options {options}: {world.zygote.steps()}")
            raise
        finally:
            world.clean_up()
    tell(
        "faults",
        "a mount",
        crash_points=len({at for (at, _), what in zip(tries, tried, strict=True) if what}),
        runs=len(tried),
    )


@pytest.mark.usefixtures("need_fuse")
def test_a_mount_whose_disk_fails(world: World, tell: Tell) -> None:
    """Who writes is told; what was fsynced can be read; when the disk works again, so does the mount."""
    mount_with_faults(world, tell, [(7, FAULTS[0]), (29, FAULTS[1]), (51, FAULTS[2])])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("need_fuse")
def test_a_mount_whose_disk_fails_everywhere(world: World, tell: Tell) -> None:
    """The same at each step, in each way."""
    mount_with_faults(world, tell, [(at, fault) for at in range(1, 70) for fault in FAULTS])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_all_kills(workload: Workload, world: World, tell: Tell) -> None:
    """Killed at each step, and in the middle of each write."""
    stop_everywhere(world, tell, workload, KILLS, judge_kill, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workload", STOPPED, ids=lambda one: one.name)
def test_all_faults(workload: Workload, world: World, tell: Tell) -> None:
    """Each step fails in each way."""
    stop_everywhere(world, tell, workload, tuple((Mode.FAIL, *fault) for fault in FAULTS), judge_fault, 1)
