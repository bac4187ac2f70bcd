"""The parts of container executors that need no container: what is told to an engine, and what is told to people."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from pfsmount.errors import PfsError
from runner.executors.base import ExecutorUnavailable, Limits
from runner.executors.cgroups import Hierarchy
from runner.executors.containers import cgroup, chowner, docker_api, podman
from runner.executors.containers.cgroup import Counters
from runner.executors.containers.docker_api import DockerEngine
from runner.executors.containers.engine import ContainerOptions, ImageInfo, ImageMissing, Mount, argv_of, image_from
from runner.executors.containers.executor import ContainerExecutor
from runner.executors.containers.podman import PodmanEngine
from runner.executors.containers.program import init_program
from runner.executors.containers.slot import is_shared
from tests.engines import CACHE, IMAGE

NOTHING = ImageInfo("sha256:1", (), "", "", (), (), {})
ALL = ContainerOptions(
    "sha256:1",
    "/pfs/.init",
    (Mount(Path('/a,b "c"'), "/pfs", read_only=True, propagates=True), Mount(Path("/o"), "/pfs/out", read_only=False)),
    user="1000:100",
    workdir="/w",
    limits=Limits(memory=8 << 20, cpus=1.5, pids=7),
    hermetic=True,
    gpus=2,
    labels={"pfs.job": "1"},
)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "argv"),
    [
        ((), ("a", "b"), (), ("a", "b")),
        (("e",), ("a",), (), ("e", "a")),
        (("e",), (), (), ("e",)),
        (("e",), ("a",), ("c", "d"), ("c", "d")),
    ],
)
def test_a_command_replaces_all_that_the_image_says(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], command: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    assert argv_of(replace(NOTHING, entrypoint=entrypoint, cmd=cmd), command) == argv


def test_an_image_without_a_command_needs_one() -> None:
    with pytest.raises(PfsError, match="give a command"):
        argv_of(NOTHING, [])


def test_an_image_says_what_it_is_in_every_engine() -> None:
    config = {"User": "u", "WorkingDir": "/w", "Entrypoint": ["e"], "Cmd": None, "Env": ["A=b=c", "D"]}
    expected = ImageInfo("sha256:12", ("n@sha256:3",), "u", "/w", ("e",), (), {"A": "b=c", "D": ""})
    for identity in ("12", "sha256:12"):
        assert image_from({"Id": identity, "RepoDigests": ["n@sha256:3"], "Config": config}) == expected
    assert image_from({"Id": "1", "RepoDigests": None, "Config": None}) == replace(NOTHING)


def test_what_is_not_asked_for_is_left_to_podman() -> None:
    fixed = ["--detach", "--rm", "--pull=never", "--ipc=private"]
    assert podman.arguments_of(ContainerOptions("i", "/e", ())) == [*fixed, '--entrypoint=["/e"]', "i"]
    assert podman.arguments_of(ALL) == [
        *fixed,
        '--entrypoint=["/pfs/.init"]',
        '--mount=type=bind,"src=/a,b ""c""",dst=/pfs,ro=true,bind-propagation=rslave',
        "--mount=type=bind,src=/o,dst=/pfs/out,ro=false",
        "--label=pfs.job=1",
        "--user=1000:100",
        "--workdir=/w",
        "--network=none",
        "--device=nvidia.com/gpu=all",
        "--memory=8388608b",
        "--memory-swap=8388608b",
        "--cpus=1.5",
        "--pids-limit=7",
        "sha256:1",
    ]


def test_what_is_not_asked_for_is_left_to_docker() -> None:
    fixed = {"entrypoint": ["/e"], "labels": {}, "auto_remove": True, "ipc_mode": "private", "mounts": []}
    assert docker_api.arguments_of(ContainerOptions("i", "/e", ())) == {"image": "i", **fixed}
    told = docker_api.arguments_of(ALL)
    first, second = told.pop("mounts")
    (gpus,) = told.pop("device_requests")
    assert (first["Source"], first["ReadOnly"], first["BindOptions"]) == ('/a,b "c"', True, {"Propagation": "rslave"})
    assert (second["Target"], second["ReadOnly"], "BindOptions" in second) == ("/pfs/out", False, False)
    assert (gpus["Count"], gpus["Capabilities"]) == (2, [["gpu"]])
    assert told == {
        "image": "sha256:1",
        "entrypoint": ["/pfs/.init"],
        "labels": {"pfs.job": "1"},
        "auto_remove": True,
        "ipc_mode": "private",
        "user": "1000:100",
        "working_dir": "/w",
        "network_mode": "none",
        "mem_limit": 8 << 20,
        "memswap_limit": 8 << 20,
        "nano_cpus": 1_500_000_000,
        "pids_limit": 7,
    }


def test_podman_is_quoted_without_its_warnings_and_known_troubles_have_a_remedy() -> None:
    said = 'time="2026" level=warning msg="x"\nError: crun: cgroups in hybrid mode not supported: OCI runtime error\n'
    error = podman.refusal(said)
    assert error.message == "podman: crun: cgroups in hybrid mode not supported: OCI runtime error"
    assert "cgroup_manager" in (error.hint or "")
    for words in (
        "crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted",
        "runc: error setting rlimits for process",
    ):
        assert "default_ulimits" in (podman.refusal(f"Error: {words}").hint or "")
    assert podman.refusal("").message == "podman: podman failed and said nothing"


def obstacle_of(executor: ContainerExecutor) -> str:
    (obstacle,) = trio.run(executor.preflight)
    return str(obstacle)


def test_an_engine_that_is_not_there_is_an_obstacle(tmp_path: Path) -> None:
    absent = PodmanEngine(("no-such-podman",))
    executor = ContainerExecutor(absent, IMAGE, work=tmp_path, cache=CACHE)
    assert obstacle_of(executor) == "no-such-podman is not installed: apt-get install podman"


def test_a_daemon_that_does_not_answer_is_an_obstacle(tmp_path: Path) -> None:
    executor = ContainerExecutor(DockerEngine(f"unix://{tmp_path}/none"), IMAGE, work=tmp_path, cache=CACHE)
    said = obstacle_of(executor)
    assert said.startswith(f"the Docker daemon does not answer at unix://{tmp_path}/none: No such file or directory: ")
    assert said.endswith("DOCKER_HOST")


def test_an_image_that_is_not_there_is_an_obstacle(podman: PodmanEngine, tmp_path: Path) -> None:
    executor = ContainerExecutor(podman, "localhost/no-such:image", work=tmp_path, cache=CACHE)
    assert obstacle_of(executor) == "podman has no image localhost/no-such:image: podman pull localhost/no-such:image"
    assert os.listdir(tmp_path) == []
    with pytest.raises(ImageMissing):
        trio.run(podman.find_image, "localhost/no-such:image")


@pytest.mark.long
def test_an_image_that_no_registry_has_says_so(podman: PodmanEngine) -> None:
    with pytest.raises(ImageMissing, match="cannot get the image"):
        trio.run(podman.pull_image, "localhost/no-such:image")


def test_a_container_that_cannot_run_is_an_obstacle_in_the_engines_words(podman: PodmanEngine, tmp_path: Path) -> None:
    executor = ContainerExecutor(podman, IMAGE, work=tmp_path, cache=CACHE, user="nobody-knows")
    said = obstacle_of(executor)
    assert said.startswith("cannot run a container here: podman: ")
    assert "nobody-knows" in said


def test_a_machine_without_a_compiler_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorUnavailable, match=r"need a C compiler once.*apt-get install gcc libc6-dev"):
        init_program(tmp_path / "cache")
    shutil.copy("/bin/false", tmp_path / "gcc")
    with pytest.raises(ExecutorUnavailable, match="cannot be compiled"):
        init_program(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_the_program_is_compiled_once(tmp_path: Path) -> None:
    program = init_program(tmp_path)
    made = program.stat()
    assert init_program(tmp_path) == program
    assert program.stat() == made
    assert os.listdir(tmp_path) == [program.name]


def test_counters_are_read_in_both_versions_and_at_the_level_that_has_the_limit(tmp_path: Path) -> None:
    leaf = tmp_path / "scope" / "container"
    leaf.mkdir(parents=True)
    (leaf / "memory.max").write_text("max\n")
    (leaf / "memory.events").write_text("low 0\noom 0\noom_kill 1\n")
    assert list(cgroup.levels(leaf)) == [leaf]
    (leaf.parent / "memory.max").write_text("1000\n")
    (leaf.parent / "memory.events").write_text("oom 3\noom_kill 1\n")
    (leaf / "pids.events").write_text("max 4\n")
    assert list(cgroup.levels(leaf)) == [leaf, leaf.parent]
    counters = Counters(dict.fromkeys((leaf, leaf.parent), ("memory.events", "pids.events")))
    counters.begin()
    assert counters.total() == ((), "")
    (leaf / "memory.events").write_text("oom 0\noom_kill 2\n")
    assert counters.total() == ((), "machine")
    (leaf.parent / "memory.events").write_text("oom 4\noom_kill 2\n")
    (leaf / "pids.events").write_text("max 5\n")
    assert counters.total() == (("memory", "pids"), "limit")
    counters.close()
    assert counters.total() == ((), "")


def test_limits_that_an_engine_has_left_out_are_found(tmp_path: Path) -> None:
    own = tmp_path / "scope" / "container"
    own.mkdir(parents=True)
    unified = [Hierarchy(frozenset(), True, tmp_path, own)]
    old = [Hierarchy(frozenset({"memory"}), False, tmp_path, own), Hierarchy(frozenset({"cpu"}), False, tmp_path, own)]
    limits = Limits(memory=8 << 20, cpus=0.5, pids=7)
    assert cgroup.unheld(limits, unified) == ["memory", "cpus", "pids"]
    for name, text in (("memory.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "2048")):
        (own / name).write_text(f"{text}\n")
    assert cgroup.unheld(limits, unified) == ["memory", "cpus", "pids"]
    for name, text in (("memory.max", str(8 << 20)), ("cpu.max", "50000 100000"), ("pids.max", "7")):
        (own.parent / name).write_text(f"{text}\n")
    assert cgroup.unheld(limits, unified) == []
    for name, text in (("memory.limit_in_bytes", "9223372036854771712"), ("cpu.cfs_quota_us", "-1")):
        (own / name).write_text(f"{text}\n")
    for directory in (own, own.parent):
        for file in directory.glob("*.max"):
            file.unlink()
    assert cgroup.unheld(limits, old) == ["memory", "cpus", "pids"]
    (own / "memory.limit_in_bytes").write_text(f"{8 << 20}\n")
    assert cgroup.unheld(limits, old) == ["cpus", "pids"]
    assert cgroup.unheld(Limits(), old) == []
    assert cgroup.unheld(limits, []) == []


def test_a_process_without_a_cgroup_has_no_counters() -> None:
    assert cgroup.find_counters(cgroup.hierarchies_of(0)) == {}


def test_propagation_is_read_from_the_mount_that_a_path_is_on() -> None:
    mountinfo = (
        "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n"
        "2 1 8:2 / /private rw - ext4 /dev/b rw\n"
        "3 2 8:3 / /private/a\\040b rw shared:2 master:1 - ext4 /dev/c rw\n"
    )
    paths = ("/x", "/private", "/private/x", "/private/a b/x", "/privately")
    assert [is_shared(Path(path), mountinfo) for path in paths] == [True, False, False, True, True]


def test_owners_are_found_in_the_namespace() -> None:
    ids = [(0, 4321, 1), (1, 200_000, 65_536)]
    assert [chowner.inside(ids, outside) for outside in (4321, 200_000, 200_999)] == [0, 1, 1000]
    with pytest.raises(ValueError, match="subuid"):
        chowner.inside(ids, 7)
