"""What a datum has is exactly what the engine's own `run` gives, with the same options: nothing is added and nothing lost."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from runner.executors.base import Limits, Task
from runner.executors.containers import docker_api
from runner.executors.containers import podman as podman_cli
from runner.executors.containers.docker_api import DockerEngine
from runner.executors.containers.engine import ContainerOptions
from runner.executors.containers.executor import ContainerExecutor
from runner.executors.containers.podman import PodmanEngine
from tests.engines import CACHE, IMAGE

SHOW = """
for part in status limits cgroup mountinfo oom_score_adj; do echo "== $part"; cat /proc/self/$part; done
echo "== environment"; env | sort
echo "== rest"; pwd; umask; ls /sys/class/net; cat /proc/sys/kernel/hostname | wc -c; ls /proc/self/fd | wc -l
"""
STATUS = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cap", "Sig[BI]", "Cpus_allowed")
# Our own, and what differs between any two containers.
NOISE = re.compile(
    r"[0-9a-f]{64}|\b[A-Z2-7]{26}\b|(?<=HOSTNAME=)\w+|lowerdir=\S+,workdir=\S+|/\S*/pfs-podman-\w+/(run|root)/\S+"
)


def seen(text: str) -> dict[str, list[str]]:
    parts = dict(part.split("\n", 1) for part in text.split("== ")[1:])
    lines = {name: NOISE.sub("…", part).splitlines() for name, part in parts.items()}
    lines["status"] = [line for line in lines["status"] if re.match("|".join(STATUS), line)]
    # without the ids of mounts and devices
    mounts = [line.split() for line in lines["mountinfo"]]
    lines["mountinfo"] = sorted(
        " ".join(words[3:]) for words in mounts if words[4] != "/pfs" and not words[4].startswith("/pfs/")
    )
    return lines


def run_plainly(engine: PodmanEngine | DockerEngine, options: ContainerOptions) -> str:
    options = replace(options, entrypoint="/bin/sh")
    if isinstance(engine, PodmanEngine):
        arguments = [word for word in podman_cli.arguments_of(options) if word != "--detach"]
        command = [*engine.command, "run", *arguments, "-c", SHOW]
        return subprocess.run(command, env=engine.env, capture_output=True, text=True, check=True).stdout
    with closing(engine._connect()) as client:
        arguments_of = {**docker_api.arguments_of(options), "auto_remove": False, "command": ["-c", SHOW]}
        container = client.containers.create(**arguments_of)
        try:
            container.start()
            container.wait()
            return str(container.logs().decode())
        finally:
            container.remove(force=True)


CASES = {
    "as it comes": ContainerOptions(IMAGE, "", ()),
    "with all options": ContainerOptions(
        IMAGE,
        "",
        (),
        user="1000:100",
        workdir="/etc",
        limits=Limits(memory=128 << 20, cpus=0.5, pids=50),
        hermetic=True,
    ),
}


@pytest.mark.parametrize("engine", ["podman", pytest.param("docker", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "options",
    [
        # makes a network, which takes long
        pytest.param(CASES["as it comes"], id="as it comes", marks=pytest.mark.long),
        pytest.param(CASES["with all options"], id="with all options"),
    ],
)
def test_a_datum_has_what_the_engine_gives(
    engine: str, options: ContainerOptions, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(engine)
    if os.geteuid():  # no network of its own, no cgroups
        options = replace(options, hermetic=True, limits=Limits())
    out, work, log = tmp_path / "out", tmp_path / "work", tmp_path / "log"
    out.mkdir()
    work.mkdir()
    executor = ContainerExecutor(
        found,
        options.image,
        work=work,
        cache=CACHE,
        user=options.user,
        workdir=options.workdir,
        limits=options.limits,
        hermetic=options.hermetic,
    )

    async def main() -> None:
        async with executor.open_worker() as worker:
            for _ in range(2):  # the second is as the first
                log.unlink(missing_ok=True)
                outcome = await worker.run(Task([], out, ["sh", "-c", SHOW], {}, None, log))
                assert outcome.ok, log.read_text()

    plain = seen(run_plainly(found, options))
    trio.run(main)
    ours = seen(log.read_text())
    assert len(plain["status"]) >= 14
    assert len(plain["mountinfo"]) > 10
    assert ours == plain
