"""Limits of the executor `process` on the real kernel: they hold for all of a datum, and it is said when they struck.

Whatever cgroups this machine has: v1, v2 or both. `test_limits_unified.py` runs all of it on a kernel with v2.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from runner.executors import cells, cgroups
from runner.executors.base import ExecutorUnavailable, Limits, Outcome, Reason, Task, WorkerLost
from runner.executors.process import ProcessExecutor
from runner.executors.shortage import memory_text
from tests.test_sandbox import python_for, user_env

PROJECT = Path(__file__).resolve().parents[1]
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
MIB = 1 << 20
# How much longer things take here than on a usual machine
SLOWNESS = float(os.environ.get("PFS_TEST_SLOWNESS", "1"))
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")
# A process that needs some 256 MiB
HUNGRY = "/usr/bin/python3 -S -c 'x = bytes(range(256)) * (1 << 20)'"


@pytest.fixture(scope="module")
def _usable() -> None:
    for limits in (Limits(), Limits(memory=64 * MIB, cpus=0.5, pids=20)):
        obstacles = trio.run(ProcessExecutor(limits).preflight)
        if obstacles:
            pytest.skip("; ".join(map(str, obstacles)))


class Scene:
    """One datum. Its output lies on a disk, because in a tmpfs all that is written is memory in use."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.out = place / "out"
        self.log = place / "log"
        self.out.mkdir()

    def task(self, script: str, timeout: float | None = None) -> Task:
        return Task([], self.out, ["sh", "-c", script], ENV, Path("/"), self.log, timeout=timeout)

    def run(self, limits: Limits, *scripts: str) -> list[Outcome]:
        """One after another on one worker."""

        async def main() -> list[Outcome]:
            async with ProcessExecutor(limits).open_worker() as worker:
                return [await worker.run(self.task(script)) for script in scripts]

        return trio.run(main)


@pytest.fixture
def scene(_usable: None) -> Iterator[Scene]:
    place = Path(tempfile.mkdtemp(prefix="pfs-test-", dir=os.environ.get("PFS_TEST_DISK", "/var/tmp")))
    yield Scene(place)
    shutil.rmtree(place)


def ours(pid: int | None = None) -> list[Path]:
    """Cgroups that a runner has made where this process would make its own."""
    name = re.compile(rf"pfs-\d+-{os.getpid() if pid is None else pid}-.*")
    bases = {base for found in cgroups.own_hierarchies() for base in (found.own, *found.own.parents)}
    return [path for base in bases if "cgroup" in str(base) for path in base.iterdir() if name.fullmatch(path.name)]


@pytest.fixture(autouse=True)
def _no_cgroup_is_left() -> Iterator[None]:
    yield
    assert ours() == []


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_command_that_needs_more_memory_is_killed_and_the_next_is_not(scene: Scene) -> None:
    killed, after = scene.run(Limits(memory=64 * MIB), f"exec {HUNGRY}", "exit 0")
    assert (killed.reason, killed.exit_code, killed.signal) == (Reason.OUT_OF_MEMORY, None, signal.SIGKILL)
    assert killed.message == "needed more than its limit of 64 MiB of memory"
    assert killed.struck == ("memory",)
    assert (after.reason, after.struck, after.message) == (Reason.OK, (), "")


def test_a_killed_child_is_named_whatever_the_command_makes_of_it(scene: Scene) -> None:
    failed, handled, after = scene.run(Limits(memory=64 * MIB), f"{HUNGRY}; exit 3", f"{HUNGRY}; exit 0", "exit 3")
    assert (failed.reason, failed.exit_code, failed.struck) == (Reason.OUT_OF_MEMORY, 3, ("memory",))
    assert "limit of 64 MiB" in failed.message
    assert (handled.reason, handled.exit_code, handled.struck) == (Reason.OK, 0, ("memory",))
    assert (after.reason, after.exit_code, after.struck) == (Reason.FAILED, 3, ())


def test_processes_count_together(scene: Scene) -> None:
    """Each of them alone has enough."""
    one = "/usr/bin/python3 -S -c 'import time; x = bytes(range(256)) * (40 << 12); time.sleep(20)'"
    alone, together = scene.run(
        Limits(memory=64 * MIB),
        one.replace("time.sleep(20)", "time.sleep(0)"),
        f"{one} & one=$!; {one} & wait $one && wait $!",
    )
    assert alone.ok
    assert (together.reason, together.struck) == (Reason.OUT_OF_MEMORY, ("memory",))


def test_files_that_are_written_need_no_memory(scene: Scene) -> None:
    write = "head -c 128M /dev/zero > /pfs/out/file; cat /pfs/out/file > /dev/null"
    outcomes = scene.run(Limits(memory=64 * MIB), write, write, write, f"{HUNGRY}; exit 1")
    assert [(outcome.reason, outcome.struck) for outcome in outcomes[:3]] == [(Reason.OK, ())] * 3
    assert outcomes[3].struck == ("memory",)


def test_files_in_the_fresh_directories_are_memory_and_go_with_the_datum(scene: Scene) -> None:
    fill = "head -c 128M /dev/zero > /tmp/file"
    outcomes = scene.run(Limits(memory=64 * MIB), fill, "exit 0", "exit 0", "head -c 32M /dev/zero > /tmp/file")
    assert (outcomes[0].reason, outcomes[0].struck) == (Reason.OUT_OF_MEMORY, ("memory",))
    assert all(outcome.ok for outcome in outcomes[1:])


def may_be_spared() -> bool:
    """CAP_SYS_RESOURCE, over the machine: containers' root users often lack it."""
    attempt = ["sh", "-c", "echo -1 > /proc/self/oom_score_adj"]
    return subprocess.run(attempt, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not may_be_spared(), reason="needs root with CAP_SYS_RESOURCE")
def test_what_watches_the_datum_is_not_killed_for_it_and_the_command_is_as_it_would_be(scene: Scene) -> None:
    """The process that writes is smaller than PID 1 of the datum."""
    write = """/usr/bin/python3 -S -c 'f = open("/tmp/file", "wb"); [f.write(bytes(1 << 20)) for _ in range(128)]'"""
    failed, after = scene.run(Limits(memory=64 * MIB), f"{write}; rm /tmp/file; exit 3", "cat /proc/self/oom_score_adj")
    assert (failed.reason, failed.exit_code, failed.struck) == (Reason.OUT_OF_MEMORY, 3, ("memory",))
    assert after.ok
    assert scene.log.read_text().endswith(Path("/proc/self/oom_score_adj").read_text())


def test_a_time_limit_that_struck_after_memory_did(scene: Scene) -> None:
    async def main() -> Outcome:
        async with ProcessExecutor(Limits(memory=64 * MIB)).open_worker() as worker:
            return await worker.run(scene.task(f"{HUNGRY}; sleep 100", timeout=SLOWNESS))

    outcome = trio.run(main)
    assert (outcome.reason, outcome.struck) == (Reason.TIMEOUT, ("memory",))
    assert "limit of 64 MiB" in outcome.message


def run_confined(limits: Limits, scene: Scene, *scripts: str) -> list[str]:
    """Reason, struck limits and message of each, of a runner in a cgroup below one of 100 MiB: that stands for a machine
    that has no more."""
    small = cgroups.enclose(Limits(memory=100 * MIB), cgroups.own_hierarchies())
    (stem,) = small.stems
    own = Path(f"{stem}a/runner")
    if (passed_on := own.parent / "cgroup.subtree_control").exists():
        passed_on.write_text(f"+{' +'.join((own.parent / 'cgroup.controllers').read_text().split())}")
    own.mkdir()
    program = f"""
import sys, trio
from pathlib import Path
sys.path[:0] = {import_paths()!r}
from runner.executors.base import Limits, Task
from runner.executors.process import ProcessExecutor

async def main():
    async with ProcessExecutor({limits!r}).open_worker() as worker:
        for script in {scripts!r}:
            task = Task([], Path({os.fspath(scene.out)!r}), ["sh", "-c", script], {ENV!r}, Path("/"), Path("/dev/null"))
            outcome = await worker.run(task)
            print(outcome.reason, ",".join(outcome.struck), outcome.message, sep="|")

trio.run(main)
"""
    try:
        argv = ["sh", "-c", f'echo $$ > {own}/cgroup.procs; exec "$@"', "sh", sys.executable, "-c", program]
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    finally:
        wait_until(lambda: cgroups._remove(os.fspath(own)) and small.remove())


def import_paths() -> list[str]:
    return [os.fspath(PROJECT), os.path.dirname(os.path.dirname(trio.__file__))]


def wait_until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@needs_root
def test_the_end_of_the_machines_memory_is_told_without_limits(scene: Scene) -> None:
    killed, hidden, plain, after = run_confined(
        Limits(),
        scene,
        f"sleep 0.05; exec {HUNGRY}",
        f"sleep 0.05; {HUNGRY}; exit 3",
        "sleep 0.05; kill -9 $$",
        "exit 0",
    )
    assert killed.startswith("out_of_memory||a process of it was killed because the machine (or")
    assert hidden.startswith("failed||meanwhile the machine (or")
    assert (plain, after) == ("signalled||", "ok||")


@needs_root
def test_the_end_of_the_machines_memory_is_not_a_limit_that_struck(scene: Scene) -> None:
    killed, limit = run_confined(Limits(pids=100), scene, f"sleep 0.05; exec {HUNGRY}", "exit 3")
    assert killed.startswith("out_of_memory||a process of it was killed because the machine (or")
    assert limit == "failed||"


# ---- processes and processors ---------------------------------------------------------------------------------------


def test_a_command_cannot_have_more_processes_and_nobody_else_is_hurt(scene: Scene) -> None:
    """A fork bomb, and a worker without limits beside it."""
    bomb = "f() { f | f & }; f 2>/dev/null; sleep 0.3; touch /pfs/out/bomb; exit 0"

    async def main() -> tuple[Outcome, Outcome, list[Outcome]]:
        async with ProcessExecutor(Limits(pids=16)).open_worker() as limited, ProcessExecutor().open_worker() as free:
            async with trio.open_nursery() as nursery:
                bombed: list[Outcome] = []

                async def run_bomb() -> None:
                    bombed.append(await limited.run(scene.task(bomb)))

                nursery.start_soon(run_bomb)
                others = []
                while not bombed:
                    others.append(await free.run(scene.task("true | true")))
            return bombed[0], await limited.run(scene.task("true | true")), others

    bombed, after, others = trio.run(main)
    assert "pids" in bombed.struck
    assert (after.reason, after.struck) == (Reason.OK, ())
    assert len(others) > 1
    assert all(outcome.ok and outcome.struck == () for outcome in others)


def test_exactly_so_many_processes(scene: Scene) -> None:
    script = "sleep 0.05 & sleep 0.05 & wait"  # three with the shell
    enough, short = scene.run(Limits(pids=3), script)[0], scene.run(Limits(pids=2), f"{script}; exit 7")[0]
    assert (enough.reason, enough.struck) == (Reason.OK, ())
    assert (short.reason, short.struck) == (Reason.FAILED, ("pids",))
    assert short.message == "reached its limit of 2 processes"


def test_half_a_processor_for_two_busy_processes(scene: Scene) -> None:
    one = "timeout 1 sh -c 'while :; do :; done'"
    busy = f"{one} & one=$!; {one} & wait $one $!; exit 0"
    (outcome,) = scene.run(Limits(cpus=0.5), busy)
    assert outcome.ok
    share = (outcome.user_s + outcome.system_s) / ((outcome.ended_ns - outcome.started_ns) / 1e9)
    assert 0.1 < share < 0.8  # two on two processors would be 2; on one, 1
    assert outcome.struck == ()


def test_no_limit_no_cgroup(scene: Scene) -> None:
    async def main() -> None:
        async with ProcessExecutor().open_worker() as worker:
            assert ours() == []
            assert (await worker.run(scene.task("cat /proc/self/cgroup"))).ok

    trio.run(main)
    assert scene.log.read_text() == Path("/proc/self/cgroup").read_text()


# ---- nothing stays --------------------------------------------------------------------------------------------------

EVERYTHING = Limits(memory=64 * MIB, cpus=1.5, pids=20)


def test_a_cancelled_datum_leaves_a_worker_that_goes_on_within_its_limits(scene: Scene) -> None:
    async def main() -> Outcome:
        async with ProcessExecutor(EVERYTHING).open_worker() as worker:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, scene.task("touch /pfs/out/begun; while :; do sleep 1000; done"))
                await trio.to_thread.run_sync(wait_until, (scene.out / "begun").exists)
                assert ours() != []
                nursery.cancel_scope.cancel()
            assert (await worker.run(scene.task("exit 0"))).ok
            return await worker.run(scene.task(f"exec {HUNGRY}"))

    assert trio.run(main).reason is Reason.OUT_OF_MEMORY


def test_a_killed_worker_leaves_no_cgroup(scene: Scene) -> None:
    async def main() -> None:
        async with ProcessExecutor(EVERYTHING).open_worker() as worker:
            before = children(os.getpid())
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    with pytest.raises(WorkerLost):
                        await worker.run(scene.task("touch /pfs/out/begun; sleep 1000"))

                nursery.start_soon(run)
                await trio.to_thread.run_sync(wait_until, (scene.out / "begun").exists)
                os.kill(before[-1], signal.SIGKILL)

    trio.run(main)  # and then the fixture looks


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_a_killed_runner_leaves_is_removed_by_the_next(scene: Scene) -> None:
    program = f"""
import sys, trio
from pathlib import Path
sys.path[:0] = {import_paths()!r}
from runner.executors.base import Limits, Task
from runner.executors.process import ProcessExecutor

async def main():
    async with ProcessExecutor({EVERYTHING!r}).open_worker() as worker:
        argv = ["sh", "-c", "touch /pfs/out/begun; sleep 1000"]
        await worker.run(Task([], Path({os.fspath(scene.out)!r}), argv, {ENV!r}, Path("/"), Path("/dev/null")))

trio.run(main)
"""
    runner = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until((scene.out / "begun").exists)
        scene.run(EVERYTHING, "exit 0")
        assert ours(runner.pid) != []  # it lives, and so keeps them
    finally:
        runner.kill()
        runner.wait()
    left = ours(runner.pid)
    assert left != []
    wait_until(lambda: not any((path / "cgroup.procs").read_text() for path in left))
    scene.run(EVERYTHING, "exit 0")
    assert ours(runner.pid) == []


def test_a_limit_that_is_taken_away_does_not_go_unnoticed() -> None:
    read, write = os.pipe()
    os.close(write)
    cell = cells.Cell([])
    cell._files = {"pids.events": read}  # a pipe cannot be read at an offset, as a removed file cannot at all
    with pytest.raises(cells.TakenAway, match="limits of the datum was taken away"):
        cell.begin()
    os.close(read)


# ---- where it cannot be had -----------------------------------------------------------------------------------------


@needs_root
def test_an_ordinary_user_without_a_place_for_cgroups_is_told() -> None:
    user = pwd.getpwnam("nobody")
    program = """
from runner.executors import cgroups
from runner.executors.base import ExecutorUnavailable, Limits
try:
    cgroups.enclose(Limits(memory=1 << 26, pids=5), cgroups.own_hierarchies())
except ExecutorUnavailable as error:
    print(error.obstacles[0].problem, error.obstacles[0].remedy, sep="\\n")
"""
    run = subprocess.run(
        [python_for(user), "-c", program],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        env=user_env(),
        capture_output=True,
        text=True,
        check=True,
    )
    problem, remedy = run.stdout.splitlines()
    assert problem.startswith("limits need a cgroup, and this user may make none here (/")
    assert problem.endswith("Permission denied)")
    assert "run the job as root; or give it an image, so that podman runs it" in remedy


@pytest.mark.parametrize(
    ("facts", "said", "advice"),
    [
        (cgroups.Facts(root=False, container=False, systemd=True), "this user may make none", cgroups.DELEGATION),
        (cgroups.Facts(root=False, container=False, systemd=False), "this user may make none", "as root"),
        (cgroups.Facts(root=False, container=True, systemd=False), "this user may make none", "as root"),
        (cgroups.Facts(root=True, container=True, systemd=False), "this container may make none", "--privileged"),
        (cgroups.Facts(root=True, container=False, systemd=True), "refused here", "systemd-run --scope"),
    ],
)
def test_what_a_refusal_advises(facts: cgroups.Facts, said: str, advice: str) -> None:
    obstacle = cgroups.explain(PermissionError(13, "Permission denied", "/sys/fs/cgroup/x"), facts)
    assert said in obstacle.problem
    assert "/sys/fs/cgroup/x: Permission denied" in obstacle.problem
    assert advice in obstacle.remedy


def test_a_controller_that_the_machine_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset hugetlb\n")
    unified = cgroups.Hierarchy(frozenset(), True, tmp_path, tmp_path)
    for hierarchies, said in (
        ([unified], "memory, pids, which this machine"),
        ([], "memory, pids, which are not mounted"),
    ):
        with pytest.raises(ExecutorUnavailable, match=said):
            cgroups.enclose(Limits(memory=64 * MIB, pids=1), hierarchies)
    assert list(tmp_path.iterdir()) == [tmp_path / "cgroup.controllers"]


@pytest.mark.parametrize(
    "changes", [{"memory": 0}, {"memory": MIB}, {"cpus": 0}, {"cpus": float("inf")}, {"cpus": 0.001}, {"pids": 0}]
)
def test_limits_that_make_no_sense_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a limit of"):
        Limits(**changes)


def test_amounts_are_said_as_they_were_given() -> None:
    amounts = (256 * MIB, 2 << 30, 1536 << 10, 1_000_000_000)
    assert [memory_text(amount) for amount in amounts] == ["256 MiB", "2 GiB", "1536 KiB", "1000000000 bytes"]


# ---- what hosts look like -------------------------------------------------------------------------------------------

V2_MOUNTS = "24 23 0:22 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
HYBRID = """\
5:memory:/user.slice
4:cpu,cpuacct:/
1:name=systemd:/user.slice/session-1.scope
0::/user.slice/session-1.scope
"""


def found(cgroup: str, mounts: str) -> dict[str, str]:
    hierarchies = cgroups.find_hierarchies(cgroup, mounts)
    return {",".join(sorted(one.controllers)) or "v2": os.fspath(one.own) for one in hierarchies}


def test_the_own_cgroup_on_each_kind_of_host() -> None:
    own = "/user.slice/user@1000.service/app.slice/run-r1.scope"
    assert found(f"0::{own}\n", V2_MOUNTS) == {"v2": f"/sys/fs/cgroup{own}"}
    assert found("0::/\n", V2_MOUNTS) == {"v2": "/sys/fs/cgroup"}
    assert found(HYBRID, HYBRID_MOUNTS) == {
        "v2": "/sys/fs/cgroup/unified/user.slice/session-1.scope",
        "name=systemd": "/sys/fs/cgroup/systemd/user.slice/session-1.scope",
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory/user.slice",
    }
    assert found("3:pids:/a:b\n", "1 2 0:1 / /cg\\040roups rw - cgroup cgroup rw,pids") == {"pids": "/cg roups/a:b"}


def test_the_own_cgroup_in_a_container() -> None:
    bound = "24 23 0:22 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    assert found("4:memory:/docker/1\n", bound) == {"memory": "/sys/fs/cgroup/memory"}
    assert found("4:memory:/docker/1/sub\n", bound) == {"memory": "/sys/fs/cgroup/memory/sub"}
    assert found("4:memory:/docker/12\n", bound) == {}
    assert found("0::/../outside\n", V2_MOUNTS) == {}
    assert found("0::/\n", V2_MOUNTS.replace(" / /sys", " /../.. /sys")) == {}
    assert found("0::/\n", "") == {}


def test_what_limits_are_in_files() -> None:
    limits = Limits(memory=64 * MIB, cpus=0.5, pids=9)

    def written(*, unified: bool) -> dict[str, str]:
        return {one.file: one.value for chosen in cgroups.settings(limits, unified=unified).values() for one in chosen}

    assert written(unified=True) == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "pids.max": "10",
        "cpu.max": "50000 100000",
    }
    assert written(unified=False) == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(64 * MIB),
        "memory.oom_control": "0",
        "pids.max": "10",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "50000",
    }
    assert cgroups.settings(Limits(), unified=True) == {}


def v2(oom: int, kills: int, pids: int) -> dict[str, bytes]:
    events = f"low 0\nhigh 0\nmax 977\noom {oom}\noom_kill {kills}\noom_group_kill 0\n"
    return {"memory.events": events.encode(), "pids.events": b"max %d\n" % pids, "cpu.max": b"50000 100000\n"}


def v1(peak: int, kills: int) -> dict[str, bytes]:
    return {
        "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill %d\n" % kills,
        "memory.limit_in_bytes": b"67108864\n",
        "memory.max_usage_in_bytes": b"%d\n" % peak,
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (v2(1, 1, 3), v2(1, 1, 3), ([], "")),
        (v2(1, 1, 3), v2(2, 3, 4), (["memory", "pids"], "limit")),
        (v2(1, 1, 3), v2(1, 2, 3), ([], "machine")),
        (v1(0, 1), v1(67108864, 1), ([], "")),
        (v1(0, 1), v1(67108864 - 4096, 2), (["memory"], "limit")),
        (v1(0, 1), v1(50_000_000, 2), ([], "machine")),
        ({"pids.events": b"max 0\n"}, {"pids.events": b"max 1\n"}, (["pids"], "")),
        ({}, {}, ([], "")),
    ],
)
def test_what_counters_say(before: dict[str, bytes], after: dict[str, bytes], expected: tuple[list[str], str]) -> None:
    assert cells.compare(cells.parse_counts(before), cells.parse_counts(after)) == expected


def test_where_deaths_are_counted(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    hierarchies = [cgroups.Hierarchy(frozenset(), True, tmp_path, own)]
    assert cgroups.find_deaths(hierarchies) == "/proc/vmstat"  # v2's root has no such file
    assert cells.Deaths("/proc/vmstat").count() is not None
    (own / "memory.events.local").write_text("low 0\n" * 1000 + "oom_kill 7\n")
    assert cgroups.find_deaths(hierarchies) == os.fspath(own / "memory.events.local")
    assert cells.Deaths(cgroups.find_deaths(hierarchies)).count() == 7
    assert cells.Deaths("/no/such/file").count() is None


def test_whose_cgroup_it_is() -> None:
    mine = f"{cgroups._own_prefix()}-0a"
    namespace, pid, started = re.fullmatch(r"pfs-(\d+)-(\d+)-(\d+)-0a", mine).groups()  # type: ignore[union-attr]
    assert not cgroups.is_orphan(mine)
    assert cgroups.is_orphan(f"pfs-{namespace}-{pid}-{int(started) - 1}-0a")
    assert not cgroups.is_orphan(f"pfs-{int(namespace) + 1}-{pid}-{int(started) - 1}-0a")
    assert not any(cgroups.is_orphan(name) for name in ("pfs-1-2-3", "pfs-store", f"{mine}.service"))
