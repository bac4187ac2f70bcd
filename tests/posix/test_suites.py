"""Suites that others wrote, in a mounted branch: CPython's own tests, stress-ng's filesystem stressors, fio with verification. Each must find nothing that it does not find on the disk."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.conftest import Mount

Mounts = Callable[[str], Mount]
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
CPYTHON = [
    "os", "posix", "posixpath", "shutil", "tempfile", "fileio", "io", "mmap", "zipfile", "tarfile", "glob", "pathlib", "dbm", "dbm_dumb", "dbm_gnu",
    "sqlite3", "largefile", "fcntl", "file", "genericpath", "stat", "filecmp", "fileinput", "mailbox", "shelve", "gzip", "bz2", "lzma", "compileall",
    "zipimport", "import", "unicode_file", "unicode_file_functions",
]  # fmt: skip
# Not io: it opens every filesystem of the machine, those of tests beside this one too, which are then in use.
STRESSORS = [
    "access", "chattr", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "dnotify", "dup", "fallocate", "fcntl", "fiemap",
    "file-ioctl", "filename", "flock", "fpunch", "fsize", "fstat", "getdent", "hdd", "inode-flags", "inotify", "iomix", "lease", "link", "locka",
    "lockf", "lockofd", "mknod", "open", "readahead", "rename", "revio", "seek", "sendfile", "splice", "symlink", "sync-file", "touch", "utime", "xattr",
]  # fmt: skip
FIO_JOBS = {
    "psync": ["--ioengine=psync", "--rw=randrw", "--bsrange=512-64k"],
    "direct": ["--ioengine=psync", "--rw=randrw", "--bs=4k", "--direct=1"],
    "mmap": ["--ioengine=mmap", "--rw=randrw", "--bs=4k"],
    "sequential": ["--ioengine=sync", "--rw=write", "--bs=1m"],
    "io_uring": ["--ioengine=io_uring", "--rw=randwrite", "--bs=4k", "--iodepth=8"],
    "aio": ["--ioengine=libaio", "--rw=randwrite", "--bs=4k", "--iodepth=8"],
}


def test_cpython(mounts: Mounts, tmp_path: Path) -> None:
    if importlib.util.find_spec("test.test_os") is None:
        pytest.skip("CPYTHON'S TESTS NOT RUN: this Python came without them")
    mount = mounts("mnt").mount("--real-owner")
    found = {}
    for where in (tmp_path / "disk", mount.master / "tmp"):
        where.mkdir()
        command = [
            sys.executable,
            "-m",
            "test",
            "--tempdir",
            str(where),
            "-u",
            "largefile",
            *(f"test_{name}" for name in CPYTHON),
        ]
        done = subprocess.run(
            command, cwd=where, env={**os.environ, "TMPDIR": str(where)}, capture_output=True, text=True, check=False
        )
        found[where.name] = set(re.findall(r"^(?:FAIL|ERROR): (.*)$", done.stdout + done.stderr, re.MULTILINE))
        assert "Total duration" in done.stdout
    assert found["tmp"] - found["disk"] == set()
    assert mount.log_lines() == []


def test_stress_ng(mounts: Mounts, tmp_path: Path) -> None:
    if shutil.which("stress-ng") is None:
        pytest.skip("STRESS-NG NOT RUN: it is not installed")
    mount = mounts("mnt").mount("--real-owner")
    places = [tmp_path / "disk", mount.master / "stress"]
    failed = {}
    for where in places:
        where.mkdir()
    for stressor in STRESSORS:
        codes = [_stress(stressor, where) for where in places]
        if codes[1][0] not in (codes[0][0], 0):
            failed[stressor] = codes[1]
    assert failed == {}
    mount.commit()
    assert mount.log_lines() == []


def _stress(stressor: str, where: Path) -> tuple[int, str]:
    command = ["stress-ng", f"--{stressor}", "1", "--timeout", "3", "--verify", "--temp-path", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "fail" in line)


@pytest.mark.parametrize("job", FIO_JOBS)
def test_fio(mounts: Mounts, job: str) -> None:
    """Written, committed, and verified by its checksums; then again over the committed file."""
    if shutil.which("fio") is None:
        pytest.skip("FIO NOT RUN: it is not installed")
    mount = mounts("mnt").mount()
    command = [
        "fio",
        "--name=job",
        "--filename=data",
        "--size=48m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=7",
        *FIO_JOBS[job],
    ]
    for _ in range(2):
        done = subprocess.run(command, cwd=mount.master, capture_output=True, text=True, check=False)
        if "engine" in done.stderr and "not loadable" in done.stderr:
            pytest.skip(f"FIO NOT RUN WITH {job.upper()}: this fio has not got it")
        assert (done.returncode, done.stderr) == (0, "")
        mount.commit()
    assert mount.log_lines() == []
