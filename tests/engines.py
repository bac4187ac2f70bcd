"""Container engines for tests: each with its own storage, an image of busybox in it, and nothing left at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from runner.executors.containers.docker_api import DockerEngine
from runner.executors.containers.podman import PodmanEngine

IMAGE = "localhost/pfs-test:busybox"
SCRATCH = "localhost/pfs-test:scratch"
HOME = Path("/home")  # a directory of the first image, and where it works
CACHE = Path(tempfile.gettempdir(), f"pfs-test-init-{os.geteuid()}")  # the one thing kept between runs
BUSYBOX = Path("/bin/busybox")
# On a host with both versions of cgroups, or without CAP_SYS_RESOURCE, the defaults of podman fail.
SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "{runtime}"
image_copy_tmp_dir = "{place}"
tmp_dir = "{place}/tmp"
"""
SU_ROOT = "#include <unistd.h>\nint main(int c, char **v) { return setuid(0) || execvp(v[1], v + 1) || c; }"
_STARTING_S = 30


def skip_without(*programs: str) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"NO TEST OF CONTAINERS: not installed: {', '.join(missing)}")


def run(command: Sequence[str | Path], **options: object) -> str:
    """What it prints; a failure fails the test with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


def image_of(engine: Sequence[str], place: Path, **options: object) -> None:
    """Two images, for an engine's command line: one of busybox with a user of its own, one of a single static file."""
    tree = place / "tree"
    for directory in ("bin", "etc", "tmp", "var/tmp", "home"):
        (tree / directory).mkdir(parents=True)
    for directory in ("tmp", "var/tmp"):
        (tree / directory).chmod(0o1777)
    shutil.copy(BUSYBOX, tree / "bin/busybox")
    for name in run([BUSYBOX, "--list"]).split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    run(["gcc", "-static", "-s", "-x", "c", "-o", tree / "bin/su-root", "-"], input=SU_ROOT)
    (tree / "bin/su-root").chmod(0o4755)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nsomeone:x:1000:1000:someone:/home:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nsomeone:x:1000:\nusers:x:100:someone\n")
    archive = place / "tree.tar"
    run(["tar", "-C", tree, "--owner=0", "--group=0", "-cf", archive, "."])
    changes = ("--change", "ENV COLOUR=green", "--change", "WORKDIR /home", "--change", 'CMD ["echo", "the image"]')
    run([*engine, "import", *changes, str(archive), IMAGE], **options)
    bare = place / "bare.tar"
    run(["tar", "-C", tree / "bin", "--owner=0", "--group=0", "-cf", bare, "busybox"])
    run([*engine, "import", str(bare), SCRATCH], **options)


@contextmanager
def storage(name: str) -> Iterator[Path]:
    """A directory whose path is short enough for sockets in it; what is mounted below is taken away first."""
    place = Path(tempfile.mkdtemp(prefix=f"pfs-{name}-"))
    try:
        yield place
    finally:
        unmount_below(place)
        shutil.rmtree(place, ignore_errors=os.geteuid() != 0)


def podman_environment(place: Path, environ: Mapping[str, str]) -> dict[str, str]:
    settings = place / "containers.conf"
    runtime = "runc" if shutil.which("runc") else "crun"
    settings.write_text(SETTINGS.format(place=place, runtime=runtime))
    return {**environ, "CONTAINERS_CONF": str(settings)}


@contextmanager
def podman_storage() -> Iterator[PodmanEngine]:
    skip_without("podman", "gcc")
    with storage("podman") as place, ExitStack() as undo:
        command = ("podman", "--root", f"{place}/root", "--runroot", f"{place}/run")
        env = podman_environment(place, os.environ)
        undo.callback(subprocess.run, [*command, "rm", "-af", "-t0"], env=env, capture_output=True, check=False)
        try:
            image_of(command, place, env=env)
            run([*command, "run", "--rm", "--network=none", IMAGE, "true"], env=env)
        except AssertionError as error:
            pytest.skip(f"NO TEST OF PODMAN: it cannot run a container here: {error}")
        yield PodmanEngine(command, env=env)
        assert not run([*command, "ps", "-aq"], env=env), "containers are left behind"


def unmount_below(place: Path) -> None:
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point = line.split()[4]
        if point.startswith(f"{place}/"):
            subprocess.run(["umount", "-l", point], check=True)


@contextmanager
def docker_daemon() -> Iterator[DockerEngine]:
    """A daemon of its own, which leaves the host's network alone."""
    skip_without("dockerd", "docker", "gcc")
    if os.geteuid():
        pytest.skip("NO TEST OF DOCKER: dockerd needs root")
    with storage("docker") as place, ExitStack() as undo, (place / "log").open("wb") as log:
        host = f"unix://{place}/docker.sock"
        command = ["dockerd", f"--data-root={place}/data", f"--exec-root={place}/exec", f"--host={host}"]
        command += [f"--pidfile={place}/docker.pid", "--storage-driver=overlay2", "--iptables=false"]
        command += ["--ip6tables=false", "--bridge=none"]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        undo.callback(daemon.wait, 30)
        undo.callback(daemon.terminate)
        wait_for(place / "docker.sock", daemon)
        client = ("docker", "-H", host)
        for _ in range(100):
            if subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            pytest.skip(f"NO TEST OF DOCKER: dockerd does not work here: {(place / 'log').read_text()[-500:]}")
        image_of(client, place)
        yield DockerEngine(host)
        assert not run([*client, "ps", "-aq"]), "containers are left behind"


@contextmanager
def podman_service() -> Iterator[DockerEngine]:
    """Podman behind Docker's API."""
    with podman_storage() as engine, storage("service") as place, ExitStack() as undo:
        socket = place / "podman.sock"
        service = subprocess.Popen(
            [*engine.command, "system", "service", "--time=0", f"unix://{socket}"],
            env=engine.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        undo.callback(service.wait, 30)
        undo.callback(service.terminate)
        wait_for(socket, service)
        yield DockerEngine(f"unix://{socket}")


def wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(_STARTING_S * 20):
        if socket.exists():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.skip(f"NO TEST OF CONTAINERS: {process.args!r} does not work here")
