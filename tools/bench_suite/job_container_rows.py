"""Rows of the jobs in containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.bench_suite.bench import Bench, python_command
from tools.bench_suite.job_rows import run_job_of
from tools.bench_suite.row import Contest, Side, Unavailable, at_most_times, row
from tools.bench_suite.synthetic import REPO

_IMAGE = "localhost/pfs-bench:busybox"
_LEAST = 1e-6
_BUSYBOX = Path("/bin/busybox")
# On a host with both versions of cgroups, or without CAP_SYS_RESOURCE, the defaults of podman fail.
_SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
image_copy_tmp_dir = "{place}"
tmp_dir = "{place}/tmp"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{place}/root"
runroot = "{place}/run"
"""


def _need(*programs: str) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        raise Unavailable(f"not installed: {', '.join(missing)}")


def _podman(bench: Bench) -> Path:
    """Let `podman` have its own storage, with an image of busybox, until the row ends; its path is short enough for sockets."""
    place = Path(tempfile.mkdtemp(prefix="pfs-bench-podman-", dir="/var/tmp"))
    bench.at_end(lambda: shutil.rmtree(place, ignore_errors=True))
    bench.at_end(lambda: _unmount_below(place))
    names = {"CONTAINERS_CONF": ("containers.conf", _SETTINGS), "CONTAINERS_STORAGE_CONF": ("storage.conf", _STORAGE)}
    for variable, (name, text) in names.items():
        (place / name).write_text(text.format(place=place))
        _set_variable(bench, variable, os.fspath(place / name))
    tree = place / "tree"
    for directory in ("bin", "tmp", "var/tmp", "proc", "dev", "sys"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(_BUSYBOX, tree / "bin/busybox")
    for name in ("true", "sleep"):
        (tree / "bin" / name).symlink_to("busybox")
    bench.run(["tar", "-C", tree, "--owner=0", "--group=0", "-cf", place / "tree.tar", "."])
    bench.run(["podman", "import", place / "tree.tar", _IMAGE])
    bench.at_end(lambda: subprocess.run(["podman", "rm", "-af", "-t0"], capture_output=True, check=False))
    return place


def _set_variable(bench: Bench, name: str, value: str) -> None:
    before = os.environ.get(name)

    def restore() -> None:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before

    os.environ[name] = value
    bench.at_end(restore)


def _unmount_below(place: Path) -> None:
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (point := line.split()[4]).startswith(f"{place}/"):
            subprocess.run(["umount", "-l", point], check=False)


def _exec_of(bench: Bench, runtime: str, place: Path) -> Callable[[], float]:
    """The median time of the runtime's own `exec`."""
    bundle = place / f"{runtime}-bundle"
    bundle.mkdir()
    bench.run([runtime, "spec", "--bundle", bundle])
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sleep", "100000"]}
    config["process"].pop("rlimits", None)
    config["root"]["path"] = os.fspath(place / "tree")
    (bundle / "config.json").write_text(json.dumps(config))
    times = str(bench.sizes.container_datums)
    loop = python_command("tools.bench_suite.exec_loop", runtime, bundle, place / f"{runtime}-state", times)
    return lambda: float(bench.run(["unshare", "-m", "--propagation", "private", *loop]))


@row(
    "job-container",
    "one more datum in a warm container of podman, of {container_datums}; one worker",
    at_most_times(1.3, against=0),
    at_most_times(1.3, against=1),
)
def job_container(bench: Bench) -> Contest:
    """The difference between a job of many datums and one of a single datum: what starting and removing a container takes is in both."""
    bench.need_jobs()
    _need("podman", "crun", "runc", "unshare", "tar")
    if os.geteuid():
        raise Unavailable("the runtimes themselves need root")
    if not _BUSYBOX.exists():
        raise Unavailable("there is no /bin/busybox (package busybox-static)")
    place = _podman(bench)
    datums = bench.sizes.container_datums
    source = bench.tree(datums)
    store = bench.directory

    def prepare() -> None:
        nonlocal store
        store = bench.store((REPO, "copies"))
        bench.pfs(store, "put", source, f"{REPO}@master:/")

    def timed(glob: str, output: str, count: int) -> float:
        options = ("--executor", "podman", "--image", _IMAGE, "--env", f"OF={output}")
        started = time.perf_counter()
        run_job_of(bench, store, glob, f"copies@{output}", options, ("true",), count)
        return time.perf_counter() - started

    def run() -> float:
        one = timed("/d0000/file-000000.bin", "one", 1)
        # of three datums the difference is noise
        return max(_LEAST, timed("/*/*", "all", datums) - one) / (datums - 1)

    runtimes = [Side(f"{runtime} exec", _exec_of(bench, runtime, place)) for runtime in ("crun", "runc")]
    return Contest(Side("pfsjob run", run, prepare), runtimes)
