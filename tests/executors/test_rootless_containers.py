"""Podman as an ordinary user: the same tests, run by a user who exists only in a mount namespace of the test's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.executors.containers.docker_api import DockerEngine

ROOT = Path(__file__).resolve().parents[2]
USER, UID = "pfstester", 54321
SUITES = (
    "tests/contracts/test_executor.py",
    "tests/executors/test_containers.py",
    "tests/executors/test_privileges.py",
)


def as_user(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script. What it mounts and starts ends with the namespaces."""
    outer = f"""
        set -e
        cd {home}
        for file in passwd group subuid subgid; do cat /etc/$file > etc-$file 2>/dev/null || :; done
        echo '{USER}:x:{UID}:{UID}::{home}:/bin/sh' >> etc-passwd
        echo '{USER}:x:{UID}:' >> etc-group
        for file in subuid subgid; do echo '{USER}:1000000:65536' >> etc-$file; done
        for file in passwd group subuid subgid; do test -e /etc/$file || touch /etc/$file; mount --bind etc-$file /etc/$file; done
        mount --bind {sys.base_prefix} {home}/python
        exec setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all --bounding-set=+all sh -c "$SCRIPT"
    """
    packages = [path for path in sys.path if "site-packages" in path]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "USER": USER,
        "TMPDIR": str(home / "tmp"),
        "XDG_RUNTIME_DIR": str(home / "runtime"),
        "PYTHONPATH": os.pathsep.join([str(home / "code"), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": str(home / "python" / "lib"),
        "PYTHON": str(home / "python" / "bin" / Path(os.path.realpath(sys.executable)).name),
        "SCRIPT": script,
    }
    return subprocess.run(
        ["unshare", "-mpf", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", outer],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def home() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("NO TEST OF ROOTLESS CONTAINERS: becoming another user needs root")
    for program in ("podman", "unshare", "setpriv", "newuidmap", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"NO TEST OF ROOTLESS CONTAINERS: {program} is not installed")
    with tempfile.TemporaryDirectory(prefix="pfs-user-", dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        for part in ("pfsmount", "runner", "tests"):
            shutil.copytree(ROOT / part, place / "code" / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "setup.cfg"):
            shutil.copy(ROOT / file, place / "code")
        for directory in ("python", "tmp", "runtime"):
            (place / directory).mkdir(mode=0o700)
        for directory, _, files in os.walk(place):
            for path in (directory, *(os.path.join(directory, file) for file in files)):
                os.chown(path, UID, UID)
        probe = as_user(place, "$PYTHON -c 'import trio, docker' && podman unshare cat /proc/self/uid_map")
        if probe.returncode:
            pytest.skip(f"NO TEST OF ROOTLESS CONTAINERS: {probe.stderr}")
        assert probe.stdout.split()[:3] == ["0", str(UID), "1"]
        yield place


@pytest.mark.long
@pytest.mark.timeout(320)
def test_all_holds_for_an_ordinary_user(home: Path) -> None:
    done = as_user(home, f"cd code && $PYTHON -m pytest -q -p no:cacheprovider -m '' -k podman {' '.join(SUITES)}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout.splitlines()[-1]
    assert not left_by_user()


DOCKER = """
import os, sys, trio
from pathlib import Path
from runner.executors.base import Task
from runner.executors.containers.docker_api import DockerEngine
from runner.executors.containers.executor import ContainerExecutor
from tests.engines import CACHE, IMAGE
home, engine = Path.home(), DockerEngine(sys.argv[1])
work, out, log = home / "work", home / "out", home / "log"
work.mkdir(); out.mkdir()
async def main():
    print(*await ContainerExecutor(engine, IMAGE, work=work, cache=CACHE).preflight())
    mine = ContainerExecutor(engine, IMAGE, work=work, cache=CACHE, user=f"{os.getuid()}:{os.getgid()}")
    async with mine.open_worker() as worker:
        print((await worker.run(Task([], out, ["sh", "-c", "id -u; echo mine > /pfs/out/file"], {}, None, log))).reason)
    print(log.read_text(), (out / "file").read_text(), os.listdir(work))
trio.run(main)
"""


@pytest.mark.long
def test_docker_needs_the_users_own_id_for_an_ordinary_user(docker: DockerEngine, home: Path) -> None:
    """Somebody of the group docker: what root writes in a container is not theirs."""
    host = docker.host
    assert host is not None
    socket = Path(host.removeprefix("unix://"))
    socket.parent.chmod(0o755)
    socket.chmod(0o666)
    (home / "script").write_text(DOCKER)
    done = as_user(home, f"cd code && $PYTHON ../script {host}")
    assert done.returncode == 0, done.stderr
    obstacle, *rest = done.stdout.splitlines()
    assert obstacle.endswith(f"use podman, run the job as root, or run the command as the user {UID}:{UID}")
    assert rest == ["ok", str(UID), " mine", " []"]


def left_by_user() -> list[str]:
    owners = {path: path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if path.exists()}
    return [str(path) for path, owner in owners.items() if owner == UID or 1_000_000 <= owner < 1_065_536]
