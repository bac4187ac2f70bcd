"""Crashes and full disks"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess

import pytest

from tests.semantics.scene import Scene


def test_a_kill_needs_no_repair(scene: Scene) -> None:
    """S230 A kill at any moment needs no repair

    `kill -9` of a command or of a mount's daemon, or a power cut, at whatever instant: a commit that was acknowledged is there whole, one that was not is there whole or not
    at all, and the next command just works. `docs/CRASHES.md` says what may be left behind; each row of it is a test.
    """
    scene.put({"kept": b"kept"})
    (scene.root / "large").write_bytes(random.Random(1).randbytes(30 << 20))
    for seconds in (0.2, 0.35, 0.5, 0.65):
        with scene.start("pfs", "put", scene.root / "large", "images@master:/large") as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL)
        assert scene.pfs("cat", "images@master:/kept") == "kept"
        scene.pfs("fsck", "--data")
    scene.pfs("put", scene.root / "large", "images@master:/again")
    scene.pfs("fsck", "--data")


def test_a_full_disk(scene: Scene) -> None:
    """S231 A full disk costs nothing that is stored, and `pfs gc` runs on it

    A command that finds no space says so, exits with 1 and changes nothing; everything can be read. `pfs branch -d` and `pfs gc` work also when not one block is free, and then
    the same command works.
    """
    unshare = ["unshare", "-Urm"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("NO FULL DISK: unshare cannot make a mount namespace here")
    (scene.root / "large").write_bytes(random.Random(1).randbytes(10 << 20))
    (scene.root / "more").write_bytes(random.Random(2).randbytes(6 << 20))
    script = """
    set -e
    mkdir disk; mount -t tmpfs -o size=28m tmpfs disk; export PFS_STORE=$PWD/disk/store
    pfs() { python -m pfsmount.cli.app "$@"; }
    pfs init; pfs repo create images; pfs branch images@old --empty; pfs put large images@old:/large
    echo small > small; pfs put small images@master:/small
    head -c 100m /dev/zero > disk/ballast 2>/dev/null || true
    if pfs put more images@master:/more; then exit 9; fi
    test "$(pfs cat images@master:/small)" = small
    pfs fsck --data
    pfs branch -d -f images@old
    pfs gc --keep 0d
    pfs put more images@master:/more
    pfs fsck --data
    """
    done = subprocess.run(
        [*unshare, "sh", "-c", script],
        cwd=scene.root,
        env=scene.environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pfs: no space left" in done.stderr
    assert "freed 10.0 MiB" in done.stdout


def test_a_killed_job(jobs: Scene) -> None:
    """S270 A crash leaves a job's output and its provenance both, or neither

    At whatever instant `pfsjob run` is killed, or the power fails: the output branch has the results of all datums, and the job that made them is recorded, or it is as before. A job of which datums
    failed is kept as it ended, once the command said so. The next run just works.
    """
    jobs.put({"a": "1", "b": "bad"})
    run = ("--input", "images@master:/*", "--output", "sizes@master", "--", "sh", "-c")
    program = "cd /pfs/images; for f in *; do grep -q bad $f && exit 3; wc -c < $f > /pfs/out/$f; done; exit 0"
    failed = jobs.job(*run, program, code=1)["job"]
    jobs.put({"b": "good"})
    for seconds in (0.4, 1.5, 6):
        with jobs.start("pfsjob", "run", *run, program) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        made = jobs.log("sizes@master")
        listed = json.loads(jobs.run("pfsjob", "list", "--json").stdout)
        assert [job["commit"] for job in listed if job["state"] == "success"] == [commit["commit"] for commit in made]
        if made:
            assert jobs.ls("sizes@master") == ["a", "b"]
        jobs.pfs("fsck", "--data")
    jobs.job(*run, program)
    assert jobs.cat("sizes@master:/b").split() == ["4"]
    shown = json.loads(jobs.run("pfsjob", "inspect", failed, "--json").stdout)
    assert (shown["state"], shown["processed"], shown["failed"]) == ("failed", 1, 1)
