"""What containers add to the contract of executors. Everything here runs with the real engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from runner.executors import syscalls
from runner.executors.base import MADE_MTIME_NS, Bind, Limits, Outcome, Reason, Task, TaskRefused, WorkerLost
from runner.executors.containers.engine import Engine
from runner.executors.containers.executor import ContainerExecutor
from runner.executors.containers.podman import PodmanEngine
from runner.executors.containers.worker import ContainerWorker
from tests.engines import CACHE, IMAGE, SCRATCH

MIB = 1 << 20
limited = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's containers have limits only with systemd")


@pytest.fixture(params=["podman", pytest.param("docker", marks=pytest.mark.long)])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


class Scene:
    """An engine, and the directories of one datum."""

    def __init__(self, engine: Engine, place: Path) -> None:
        self.engine = engine
        self.place = place
        self.work, self.images, self.out = (place / name for name in ("work", "images", "out"))
        for directory in (self.work, self.images, self.out):
            directory.mkdir()
        (self.images / "a.txt").write_text("a picture")
        self.log = place / "log"

    def executor(self, image: str = IMAGE, **options: Any) -> ContainerExecutor:
        options = {"hermetic": True, "work": self.work, "cache": CACHE, **options}
        return ContainerExecutor(self.engine, image, **options)

    def task(self, script: str | Sequence[str], **changes: Any) -> Task:
        argv = ["sh", "-c", script] if isinstance(script, str) else script
        task = Task(
            binds=[Bind(os.fsencode(self.images), b"images")],
            out=self.out,
            argv=argv,
            env={},
            cwd=None,
            log=self.log,
        )
        return replace(task, **changes)

    def run(self, *scripts: str | Task, executor: ContainerExecutor | None = None) -> list[Outcome]:
        tasks = [self.task(script) if isinstance(script, str) else script for script in scripts]
        outcomes: list[Outcome] = []

        async def main(worker: ContainerWorker) -> None:
            for task in tasks:
                outcomes.append(await worker.run(task))

        with_worker(executor or self.executor(), main)
        return outcomes

    def printed(self) -> str:
        text = self.log.read_text()
        self.log.unlink()
        return text


def with_worker(executor: ContainerExecutor, use: Callable[[ContainerWorker], Awaitable[None]]) -> None:
    async def main() -> None:
        async with executor.open_worker() as worker:
            await use(worker)

    trio.run(main)


@pytest.fixture
def scene(engine: Engine, tmp_path: Path) -> Scene:
    return Scene(engine, tmp_path)


def test_an_image_with_one_static_file_needs_no_change(scene: Scene) -> None:
    show = scene.task(["/busybox", "ls", "-A", "/pfs"])
    copy = scene.task(["/busybox", "cp", "/pfs/images/a.txt", "/pfs/out/copy"])
    outcomes = scene.run(show, copy, executor=scene.executor(SCRATCH))
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.OK]
    assert scene.printed() == "images\nout\n"
    assert (scene.out / "copy").read_text() == "a picture"


def test_an_image_is_named_by_its_id_too(scene: Scene) -> None:
    async def find() -> str:
        return (await scene.engine.find_image(IMAGE)).id

    (outcome,) = scene.run("true", executor=scene.executor(trio.run(find)))
    assert outcome.ok


def test_inputs_are_shown_below_directories_and_are_where_they_were_afterwards(scene: Scene) -> None:
    (scene.place / "single").write_text("one")
    (scene.place / "link").symlink_to("/nowhere")
    sources = [(scene.images, b"a/b/images"), (scene.place / "single", b"a/file"), (scene.place / "link", b"link")]
    binds = [Bind(os.fsencode(source), target) for source, target in sources]
    look = "cd /pfs; find . | sort; stat -c '%a %Y' . a a/b; readlink link; touch a/x || echo read-only"
    outcomes = scene.run(scene.task(look, binds=binds), "find /pfs | sort")
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.OK]
    made = f"755 {MADE_MTIME_NS // 10**9}\n" * 3
    shown = ".\n./a\n./a/b\n./a/b/images\n./a/b/images/a.txt\n./a/file\n./link\n./out\n"
    after = "/pfs\n/pfs/images\n/pfs/images/a.txt\n/pfs/out\n"
    text = scene.printed()
    assert text.startswith(f"{shown}{made}/nowhere\n")
    assert text.endswith(f"read-only\n{after}")
    assert (scene.images / "a.txt").read_text() == "a picture"
    assert (scene.place / "single").read_text() == "one"
    assert os.listdir(scene.work) == []


def test_each_datum_finds_fresh_directories_and_no_processes_of_the_last(scene: Scene) -> None:
    spoil = """
        for d in /tmp /var/tmp /dev/shm; do mkdir -p $d/deep/er; touch $d/deep/er/file $d/.hidden; chmod 0 $d/deep; done
        chmod 700 /tmp; touch /pfs/out/file; chmod 700 /pfs/out; (setsid sleep 1000 &); sleep 1000 &
    """
    look = "find /tmp /var/tmp /dev/shm /pfs/out; stat -c %a /tmp /pfs/out; pidof sleep || echo nobody sleeps"
    scene.run(spoil, look)
    fresh = "/tmp\n/var/tmp\n/dev/shm\n/pfs/out\n1777\n755\n"
    assert scene.printed() == f"{fresh}nobody sleeps\n"


def test_a_container_that_cannot_be_made_as_it_was_is_replaced(scene: Scene) -> None:
    outcomes = scene.run("rmdir /tmp && mkdir /tmp && touch /spoilt", "ls -d /tmp /spoilt; stat -c %a /tmp")
    assert outcomes[0].ok
    assert "/spoilt: No such file" in (text := scene.printed())
    assert text.endswith("1777\n")


def test_what_a_worker_keeps_an_isolated_one_does_not(scene: Scene) -> None:
    scene.run("touch /kept", "ls /kept")
    assert scene.printed() == "/kept\n"
    kept, look = scene.run("touch /kept", "ls /kept", executor=scene.executor(isolate=True))
    assert kept.ok
    assert not look.ok


def test_arguments_of_the_image_hold(scene: Scene) -> None:
    """Its environment with the task's on top; its directory, or the executor's, or the task's."""
    show = 'echo "$COLOUR $SIZE $PWD"'
    scene.run(show, scene.task(show, env={"COLOUR": "red", "SIZE": "a=b"}, cwd=Path("/bin")))
    assert scene.printed() == "green  /home\nred a=b /bin\n"
    scene.run(show, executor=scene.executor(workdir="/etc"))
    assert scene.printed() == "green  /etc\n"


def test_outputs_of_another_user_come_to_the_runner(scene: Scene) -> None:
    """Also secret ones; and the user can open its log by name, as with the engine's own."""
    write = """
        id -u; umask 077; echo secret > /pfs/out/secret; mkdir /pfs/out/dir; echo deep > /pfs/out/dir/file
        echo by name >> /dev/stderr; stat -c '%u %a' /pfs/out
    """
    outcomes = scene.run(write, "ls /pfs/out | wc -l", executor=scene.executor(user="1000"))
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.OK]
    assert scene.log.stat().st_mode & 0o777 == 0o644
    assert scene.printed().startswith("1000\nby name\n1000 755\n0\n")
    assert (scene.out / "secret").read_text() == "secret\n"
    assert (scene.out / "secret").stat().st_mode & 0o777 == 0o600
    assert (scene.out / "dir/file").read_text() == "deep\n"


def test_outputs_that_a_command_gives_away_come_to_the_runner(scene: Scene) -> None:
    scene.run(
        "echo given > /pfs/out/file; chmod 600 /pfs/out/file; chown 1000 /pfs/out/file; chown 1000 /pfs/out", "true"
    )
    assert (scene.out / "file").read_text() == "given\n"
    assert (scene.out / "file").stat().st_mode & 0o777 == 0o600


@limited
def test_a_memory_limit_says_that_it_struck(scene: Scene) -> None:
    executor = scene.executor(limits=Limits(memory=64 * MIB))
    hungry = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    outcome, survived, after = scene.run(hungry, f"{hungry} || true", "true", executor=executor)
    assert (outcome.reason, outcome.struck) == (Reason.OUT_OF_MEMORY, ("memory",))
    assert (survived.reason, survived.struck) == (Reason.OK, ("memory",))
    assert (after.reason, after.struck) == (Reason.OK, ())


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() == 0, reason="root's containers have all limits")
def test_limits_that_do_not_hold_are_refused(scene: Scene) -> None:
    """Podman says no more than a warning of it."""
    (obstacle,) = trio.run(scene.executor(limits=Limits(memory=64 * MIB, pids=50)).preflight)
    assert obstacle.problem == "podman does not hold these limits here: memory, pids"


@limited
def test_a_limit_of_processes_says_that_it_struck(scene: Scene) -> None:
    many = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; true"
    outcome, after = scene.run(many, "true", executor=scene.executor(limits=Limits(pids=8)))
    assert outcome.struck == ("pids",)
    assert (after.reason, after.struck) == (Reason.OK, ())


def test_a_hermetic_worker_has_no_network(scene: Scene) -> None:
    scene.run(scene.task("ls /sys/class/net", hermetic=True))
    assert scene.printed() == "lo\n"


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's containers have a network only with slirp4netns")
def test_a_worker_with_a_network_refuses_a_hermetic_task(scene: Scene) -> None:
    async def main(worker: ContainerWorker) -> None:
        with pytest.raises(TaskRefused, match="hermetic"):
            await worker.run(scene.task("true", hermetic=True))

    with_worker(scene.executor(hermetic=False), main)


def test_what_a_command_used_is_told(scene: Scene) -> None:
    busy, idle = scene.run("dd if=/dev/zero of=/dev/null bs=50M count=4 2>/dev/null", "true")
    assert busy.max_rss > 50 * MIB
    assert busy.user_s + busy.system_s > 0
    assert idle.max_rss < 10 * MIB


def test_a_worker_whose_first_process_is_killed_says_so_and_gives_the_inputs_back(scene: Scene) -> None:
    async def main(worker: ContainerWorker) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_begun, worker)
            with pytest.raises(WorkerLost, match="ended before its command"):
                await worker.run(scene.task("echo begun; sleep 1000"))
        with pytest.raises(WorkerLost):
            await worker.run(scene.task("true"))

    async def kill_when_begun(worker: ContainerWorker) -> None:
        await wait_begun(scene.log)
        os.kill((await worker.start()).pid, signal.SIGKILL)

    with_worker(scene.executor(), main)
    assert (scene.images / "a.txt").exists()


def has_text(log: Path) -> bool:
    return log.exists() and log.stat().st_size > 0


async def wait_begun(log: Path) -> None:
    with trio.fail_after(20):
        while not has_text(log):  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.005)


@pytest.mark.long
def test_a_process_that_the_user_may_not_kill_dies_with_the_container(scene: Scene) -> None:
    """A setuid program of the image; the next datum has a new container."""
    executor = scene.executor(user="1000")
    hang = scene.task("su-root sleep 1000", timeout=0.5)
    outcomes = scene.run("su-root id -u", hang, "su-root sleep 1000 &", "ps", executor=executor)
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.TIMEOUT, Reason.OK, Reason.OK]
    assert "sleep" not in scene.printed()


def test_what_a_task_must_not_ask_of_a_container_refuses_it(scene: Scene) -> None:
    writable = [Bind(os.fsencode(scene.images), b"images", read_only=False)]
    elsewhere = Bind(b"/proc/version", b"version")

    async def main(worker: ContainerWorker) -> None:
        with pytest.raises(TaskRefused, match="read-only"):
            await worker.run(scene.task("true", binds=writable))
        with pytest.raises(TaskRefused, match=r"cross-device.*copy it"):
            await worker.run(scene.task("true", binds=[*scene.task("true").binds, elsewhere]))
        with pytest.raises(TaskRefused, match="not on the filesystem"):
            await worker.run(scene.task("true", out=Path("/dev/shm")))
        assert (await worker.run(scene.task("cat /pfs/images/a.txt"))).ok

    with_worker(scene.executor(), main)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_inputs_in_a_mount_are_shown_where_mounts_are_shared(scene: Scene) -> None:
    for name in ("shared", "other"):
        (scene.place / name).mkdir()
    shared, other = os.fsencode(scene.place / "shared"), os.fsencode(scene.place / "other")
    syscalls.mount(shared, shared, None, 4096)  # MS_BIND
    syscalls.mount(b"none", shared, None, 1 << 20)  # MS_SHARED
    syscalls.mount(b"tmpfs", other, b"tmpfs", 0)
    try:
        (scene.place / "other/dir").mkdir()
        (scene.place / "other/dir/file").write_text("far away")
        for name in ("work", "out"):
            (scene.place / "shared" / name).mkdir()
        binds = [Bind(other + b"/dir", b"a/dir"), Bind(other + b"/dir/file", b"file")]
        look = "cd /pfs; cat a/dir/file file; touch a/dir/x || echo read-only"
        task = scene.task(look, binds=binds, out=scene.place / "shared/out")
        executor = scene.executor(work=scene.place / "shared/work")
        assert executor.sees_mounts
        assert not scene.executor().sees_mounts
        scene.run(task, task, replace(task, binds=[], argv=["ls", "-A", "/pfs"]), executor=executor)
        denied = "touch: a/dir/x: Read-only file system\n"
        assert scene.printed() == f"far awayfar away{denied}read-only\n" * 2 + "out\n"
    finally:
        for point in (other, shared):
            syscalls.detach(point)


RUNNER = """
import os, sys, trio
from pathlib import Path
from runner.executors.base import Task
from runner.executors.containers.executor import ContainerExecutor
from runner.executors.containers.podman import PodmanEngine
from tests.engines import CACHE, IMAGE
place, *command = sys.argv[1:]
async def main():
    executor = ContainerExecutor(PodmanEngine(command), IMAGE, work=Path(place, "work"), cache=CACHE, hermetic=True)
    async with executor.open_worker() as worker:
        argv = ["sh", "-c", "echo begun; sleep 1000"]
        await worker.run(Task([], Path(place, "out"), argv, {}, None, Path(place, "log")))
trio.run(main)
"""


def test_nothing_is_left_of_a_runner_that_is_killed(podman: PodmanEngine, tmp_path: Path) -> None:

    scene = Scene(podman, tmp_path)
    env = {**(podman.env or {}), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), *podman.command], env=env) as runner:
        trio.run(wait_begun, scene.log)
        assert listed(podman)
        runner.kill()
    deadline = time.monotonic() + 20
    while listed(podman):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listed(podman: PodmanEngine) -> str:
    command = [*podman.command, "ps", "--all", "--quiet"]
    return subprocess.run(command, env=podman.env, capture_output=True, text=True, check=True).stdout
