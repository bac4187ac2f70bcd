"""All of `test_limits.py` on a kernel whose controllers are v2's, as root and as a user with a delegated cgroup.

Most machines that run tests have v1, or are containers without a cgroup of their own. User-mode Linux is a kernel that runs as
a process: it has this machine's files, read-only, and cgroups of its own.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_sandbox import PROJECT, needs_root, python_for, user_env

UML = shutil.which(os.environ.get("PFS_TEST_UML", "linux.uml"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    needs_root,
    pytest.mark.skipif(UML is None, reason="needs linux.uml: apt-get install user-mode-linux, or PFS_TEST_UML=PATH"),
]

# As systemd does it: what is delegated belongs to the user, and the session below it has the user's processes.
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir /run/disk
mount /dev/ubda /run/disk
chmod 777 /run/disk
cgroups=/sys/fs/cgroup
mount -t cgroup2 cgroup2 $cgroups
mkdir -p $cgroups/user.slice/session.scope
echo +memory +pids +cpu > $cgroups/cgroup.subtree_control
for place in user.slice user.slice/session.scope; do
    chown {uid} $cgroups/$place $cgroups/$place/cgroup.*
done
test {uid} = 0 || echo $$ > $cgroups/user.slice/session.scope/cgroup.procs
cd {project}
setpriv --reuid {uid} --regid {gid} --clear-groups {command}
echo status $?
echo o > /proc/sysrq-trigger
sleep 60
"""


@pytest.mark.parametrize("name", ["root", "nobody"])
def test_limits_on_unified_cgroups(tmp_path: Path, name: str) -> None:
    assert UML is not None
    user = pwd.getpwnam(name)
    python = python_for(user) if user.pw_uid else sys.executable
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["/sbin/mkfs.ext4", "-q", disk], check=True)
    options = [
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "--color=no",
        "--timeout=120",
        "tests/test_limits.py",
    ]
    env = {**user_env(), "HOME": "/tmp", "PFS_TEST_DISK": "/run/disk", "PFS_TEST_SLOWNESS": "6"}
    variables = " ".join(f"{key}={value}" for key, value in env.items())
    command = f"env {variables} {python} -m pytest {' '.join(options)}"
    init = tmp_path / "init"
    init.write_text(INIT.format(uid=user.pw_uid, gid=user.pw_gid, project=PROJECT, command=command))
    init.chmod(0o755)
    kernel = [UML, "mem=1024M", f"ubd0={disk}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"]
    console = [f"init={init}", f"uml_dir={tmp_path}", "con=null", "con0=fd:0,fd:1"]
    run = subprocess.run(
        [*kernel, *console], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=500
    )
    print(run.stdout[-20_000:], run.stderr[-2000:])
    assert re.search(r"^status 0\s*$", run.stdout, re.MULTILINE)
    assert " passed" in run.stdout
    assert all("needs root" in line for line in re.findall(r"^SKIPPED .*", run.stdout, re.MULTILINE))
