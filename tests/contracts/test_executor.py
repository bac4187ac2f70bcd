"""What every executor promises: `runner.executors.base`. Each program exists twice: for a shell, and for the in-memory twin."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from runner.executors.base import Bind, Executor, Limits, Outcome, Reason, Task, TaskRefused
from runner.executors.containers.engine import Engine
from runner.executors.containers.executor import ContainerExecutor
from runner.executors.memory import Killed, MemoryExecutor, Program, Starved, View
from runner.executors.process import ProcessExecutor
from tests.engines import CACHE, HOME, IMAGE

PATH = "/usr/bin:/bin"


async def copy(view: View) -> int:
    (view.out / "copy").write_bytes(view.locate(b"images/a.txt").read_bytes())
    return 0


async def say(view: View) -> int:
    for text in (b"out 1\n", b"err 2\n", b"out 3\n"):
        view.print(text)
    return 0


async def fail(view: View) -> int:
    (view.out / "half").write_bytes(b"done")
    return 3


async def die(view: View) -> int:
    raise Killed(signal.SIGTERM)


async def starve(view: View) -> int:
    raise Starved


async def hang(view: View) -> NoReturn:
    view.print(b"begun\n")
    await trio.sleep_forever()


async def echo(view: View) -> int:
    view.print(view.stdin)
    return 0


async def ignore_stdin(view: View) -> int:
    return 0


async def tell_all(view: View) -> int:
    view.print(
        b"\n".join([*view.argv[1:], view.task.env["COLOUR"].encode(), os.fsencode(view.task.cwd or b"")]) + b"\n"
    )
    return 0


PROGRAMS: dict[str, tuple[str, Program]] = {
    "copy": ("cat /pfs/images/a.txt > /pfs/out/copy", copy),
    "say": ("echo out 1; echo err 2 >&2; echo out 3", say),
    "fail": ("printf done > /pfs/out/half; exit 3", fail),
    "die": ("kill -TERM $$", die),
    "starve": ("exec tail /dev/zero", starve),
    "hang": ("echo begun; while :; do sleep 1000; done", hang),
    "echo": ("cat", echo),
    "ignore_stdin": ("exit 0", ignore_stdin),
    "tell_all": ('printf "%s\\n" "$@" "$COLOUR" "$PWD"', tell_all),
}


class Scene:
    """An executor and the directories of one datum. `cwd` is one that the command can work in."""

    def __init__(self, executor: Executor, place: Path, cwd: Path | None = None) -> None:
        self.executor = executor
        self.place = place
        self.images = place / "images"
        self.out = place / "out"
        self.log = place / "log"
        for directory in (self.images, self.out):
            directory.mkdir(parents=True)
        (self.images / "a.txt").write_text("a picture")
        self.cwd = cwd or place

    def task(self, program: str, *arguments: str, **changes: Any) -> Task:
        argv = [program, *arguments]
        if self.executor.name != "memory" and program in PROGRAMS:
            argv = ["sh", "-c", PROGRAMS[program][0], "sh", *arguments]
        task = Task(
            binds=[Bind(os.fsencode(self.images), b"images")],
            out=self.out,
            argv=argv,
            env={"PATH": PATH},
            cwd=self.cwd,
            log=self.log,
            keep_visible=[self.place],
        )
        return replace(task, **changes)

    def run(self, *tasks: Task) -> list[Outcome]:
        """All tasks one after another on one worker."""

        async def main() -> list[Outcome]:
            async with self.executor.open_worker() as worker:
                return [await worker.run(task) for task in tasks]

        return trio.run(main)


MakeScene = Callable[[str], Scene]


@pytest.fixture
def limits() -> Limits:
    return Limits()


def container_executor(engine: Engine, work: Path, limits: Limits) -> Executor:
    """Without a network: making one takes an engine as long as all the rest, and changes the host's."""
    return ContainerExecutor(engine, IMAGE, work=work, cache=CACHE, limits=limits, hermetic=True)


def long(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.long)


@pytest.fixture(params=["memory", "process", "podman", long("docker"), long("service")])
def make_scene(request: pytest.FixtureRequest, tmp_path: Path, limits: Limits) -> MakeScene:
    if request.param in ("podman", "docker", "service"):
        work = tmp_path / "work"
        work.mkdir()
        contained = container_executor(request.getfixturevalue(request.param), work, limits)
        if limits and (obstacles := trio.run(contained.preflight)):
            pytest.skip("; ".join(map(str, obstacles)))
        return lambda name: Scene(contained, tmp_path / name, HOME)
    executor: Executor = ProcessExecutor(limits)
    if request.param == "memory":
        executor = MemoryExecutor({name: twin for name, (_, twin) in PROGRAMS.items()})
    obstacles = trio.run(executor.preflight)
    if obstacles:
        pytest.skip("; ".join(map(str, obstacles)))
    return lambda name: Scene(executor, tmp_path / name)


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene("datum")


def test_a_command_reads_inputs_and_writes_outputs(scene: Scene) -> None:
    before = time.time_ns()
    (outcome,) = scene.run(scene.task("copy"))
    assert outcome.ok
    assert (outcome.reason, outcome.exit_code, outcome.signal, outcome.message) == (Reason.OK, 0, None, "")
    assert (scene.out / "copy").read_text() == "a picture"
    assert before <= outcome.started_ns <= outcome.ended_ns <= time.time_ns()


def test_the_log_has_both_streams_as_they_were_written_and_is_appended_to(scene: Scene) -> None:
    scene.run(scene.task("say"), scene.task("say"))
    assert scene.log.read_text() == "out 1\nerr 2\nout 3\n" * 2


def test_a_failure_is_an_outcome_and_what_was_written_stays(scene: Scene) -> None:
    (outcome,) = scene.run(scene.task("fail"))
    assert not outcome.ok
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.FAILED, 3, None)
    assert (scene.out / "half").read_text() == "done"


def test_a_signal_is_an_outcome(scene: Scene) -> None:
    (outcome,) = scene.run(scene.task("die"))
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.SIGNALLED, None, signal.SIGTERM)


@pytest.mark.parametrize("limits", [Limits(memory=64 << 20)])
def test_a_command_that_needs_more_than_its_memory_is_killed_and_the_worker_goes_on(scene: Scene) -> None:
    outcome, after = scene.run(scene.task("starve"), scene.task("copy"))
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.OUT_OF_MEMORY, None, signal.SIGKILL)
    assert outcome.struck == ("memory",)
    assert outcome.message.startswith("needed more than its limit of ")
    assert after.ok
    assert after.struck == ()


def test_a_command_that_is_not_found_says_what_a_shell_would_say(scene: Scene) -> None:
    outcome, after = scene.run(scene.task("no-such-command"), scene.task("copy"))
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.NOT_FOUND, 127, None)
    assert outcome.message == "no-such-command: command not found"
    assert scene.log.read_text() == "no-such-command: command not found\n"
    assert after.ok


def test_a_working_directory_that_does_not_exist_is_an_outcome(scene: Scene) -> None:
    outcome, after = scene.run(scene.task("copy", cwd=Path("/no/such/place")), scene.task("copy"))
    assert (outcome.reason, outcome.exit_code) == (Reason.NO_CWD, 126)
    assert "/no/such/place" in outcome.message
    assert after.ok


def test_a_command_gets_its_arguments_environment_and_directory(scene: Scene) -> None:
    env = {"PATH": PATH, "COLOUR": "blå"}
    (outcome,) = scene.run(scene.task("tell_all", "a b", "", "*", env=env))
    assert outcome.ok
    assert scene.log.read_text() == f"a b\n\n*\nblå\n{scene.cwd}\n"


def test_stdin_is_what_was_given(scene: Scene) -> None:
    outcomes = scene.run(scene.task("echo", stdin=b"one\n\xff\0two"), scene.task("echo"))
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.OK]
    assert scene.log.read_bytes() == b"one\n\xff\0two"


def test_stdin_that_is_not_read_is_no_failure(scene: Scene) -> None:
    (outcome,) = scene.run(scene.task("ignore_stdin", stdin=bytes(10_000_000)))
    assert outcome.ok


def test_a_time_limit_ends_the_command_and_the_worker_goes_on(scene: Scene) -> None:
    outcome, after = scene.run(scene.task("hang", timeout=0.3), scene.task("copy"))
    assert (outcome.reason, outcome.exit_code) == (Reason.TIMEOUT, None)
    assert outcome.ended_ns - outcome.started_ns >= 200_000_000
    assert after.ok


async def wait_begun(scene: Scene) -> None:
    with trio.fail_after(20):
        while not scene.log.exists() or not scene.log.stat().st_size:  # noqa: ASYNC110 - another process makes it
            await trio.sleep(0.005)


def test_a_cancelled_command_is_gone_and_the_worker_goes_on(scene: Scene) -> None:
    async def main() -> Outcome:
        async with scene.executor.open_worker() as worker:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, scene.task("hang"))
                await wait_begun(scene)
                nursery.cancel_scope.cancel()
            return await worker.run(scene.task("copy"))

    assert trio.run(main).ok


def test_an_input_that_is_missing_refuses_the_task_and_the_worker_goes_on(scene: Scene) -> None:
    gone = replace(scene.task("copy"), binds=[Bind(os.fsencode(scene.place / "gone"), b"images")])

    async def main() -> Outcome:
        async with scene.executor.open_worker() as worker:
            with pytest.raises(TaskRefused, match=r"gone.*No such file or directory"):
                await worker.run(gone)
            return await worker.run(scene.task("copy"))

    assert trio.run(main).ok


def test_a_log_that_cannot_be_opened_refuses_the_task(scene: Scene) -> None:
    with pytest.raises(TaskRefused, match="No such file or directory"):
        scene.run(scene.task("copy", log=scene.place / "gone" / "log"))


def test_a_worker_runs_one_task_at_a_time(scene: Scene) -> None:
    async def main() -> None:
        async with scene.executor.open_worker() as worker, trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, scene.task("hang"))
            await wait_begun(scene)
            with pytest.raises(RuntimeError, match="already"):
                await worker.run(scene.task("copy"))
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_workers_run_at_once_each_with_its_own_datum(make_scene: MakeScene) -> None:
    scenes = [make_scene(f"datum {number}") for number in range(4)]
    for number, scene in enumerate(scenes):
        (scene.images / "a.txt").write_text(f"picture {number}")

    async def work(scene: Scene) -> None:
        async with scene.executor.open_worker() as worker:
            for _ in range(5):
                assert (await worker.run(scene.task("copy"))).ok
                shutil.copyfile(scene.out / "copy", scene.place / "kept")
                (scene.out / "copy").unlink()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for scene in scenes:
                nursery.start_soon(work, scene)

    trio.run(main)
    assert [(scene.place / "kept").read_text() for scene in scenes] == [f"picture {number}" for number in range(4)]


@pytest.mark.parametrize(
    "make",
    [
        partial(Bind, b"relative", b"images"),
        partial(Bind, b"/a\0b", b"images"),
        *(
            partial(Bind, b"/a", target)
            for target in (b"", b"/a", b"a/", b"a//b", b"a/../b", b".", b"out", b"out/a", b"\0")
        ),
    ],
)
def test_a_bind_that_makes_no_sense_cannot_be_made(make: Callable[[], Bind]) -> None:
    with pytest.raises(ValueError, match=r"path|/pfs/out"):
        make()


def bind(target: bytes) -> Bind:
    return Bind(b"/a", target)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"argv": []}, "no command"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": [b"a\0b"]}, "NUL"),
        ({"env": {"A": "\0"}}, "NUL"),
        ({"env": {"A=B": ""}}, "environment variable"),
        ({"env": {"": ""}}, "environment variable"),
        ({"out": Path("out")}, "absolute"),
        ({"cwd": Path()}, "absolute"),
        ({"log": Path("log")}, "absolute"),
        ({"timeout": 0}, "time limit"),
        ({"timeout": float("inf")}, "time limit"),
        ({"binds": [bind(b"a"), bind(b"a")]}, "one target"),
        ({"binds": [bind(b"a/b/c"), bind(b"ab"), bind(b"a")]}, "inside another"),
    ],
)
def test_a_task_that_makes_no_sense_cannot_be_made(changes: dict[str, Any], said: str) -> None:
    task = Task(binds=[], out=Path("/o"), argv=["a"], env={}, cwd=Path("/"), log=Path("/l"))
    with pytest.raises(ValueError, match=said):
        replace(task, **changes)
