"""The mount of an ordinary user: nobody, in a mount namespace of its own where /dev/fuse is open to all.

The store, the mount point and the copy of the code that nobody can read lie in a directory of nobody's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def python(home: Path) -> Path:
    """This interpreter where nobody can reach it, wherever it is installed."""
    return home / "python" / "bin" / Path(os.path.realpath(sys.executable)).name


def sandbox(script: str, home: Path, *, device_mode: str = "666") -> subprocess.CompletedProcess[str]:
    """Run a shell script as nobody, where /dev/fuse has this mode. Mounts and daemons go away with the namespaces."""
    outer = f"""
        set -e
        test -e {home}/fusedev || mknod {home}/fusedev c 10 229
        chmod {device_mode} {home}/fusedev
        mount --bind {home}/fusedev /dev/fuse
        mount --bind {sys.base_prefix} {home}/python
        exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all --bounding-set=+all sh -c "$SCRIPT"
    """
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PFS_STORE": str(home / "store"),
        "PFS_AUTHOR": "nobody@here",
        "PYTHONPATH": os.pathsep.join([str(home / "code"), *(path for path in sys.path if "site-packages" in path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": str(home / "python" / "lib"),
        "SCRIPT": f'pfs() {{ {python(home)} -m pfsmount.cli.app "$@"; }}\n{script}',
    }
    return subprocess.run(
        ["unshare", "-mpf", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", outer],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def home() -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("NO ROOTLESS TEST: becoming another user needs root")
    for program in ("unshare", "setpriv", "fusermount3"):
        if shutil.which(program) is None:
            pytest.skip(f"NO ROOTLESS TEST: {program} is not installed")
    with tempfile.TemporaryDirectory(prefix="pfs-nobody-", dir="/tmp") as name:
        path = Path(name)
        shutil.copytree(ROOT / "pfsmount", path / "code" / "pfsmount", ignore=shutil.ignore_patterns("__pycache__"))
        for directory, _, files in os.walk(path):
            os.chown(directory, NOBODY, NOBODY)
            for file in files:
                os.chown(os.path.join(directory, file), NOBODY, NOBODY)
        (path / "python").mkdir()
        probe = sandbox(f"{python(path)} -c 'import trio, pyfuse3'", path)
        if probe.returncode:
            pytest.skip(f"NO ROOTLESS TEST: nobody cannot run this Python: {probe.stderr}")
        yield path


def test_mount_as_an_ordinary_user(home: Path) -> None:
    done = sandbox(
        """
        set -e
        pfs init && pfs repo create images
        pfs mount
        ls $HOME/pfs
        cd $HOME/pfs/images@master
        echo hello > file && mkdir dir && cp file dir/copy && mv dir/copy dir/moved
        stat -c '%U %a' file
        pfs commit images@master -m one
        cat ../images@master~0/dir/moved
        echo more >> file
        cd / && pfs umount
        pfs status images@master
        """,
        home,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "images@master" in lines
    assert "nobody 644" in lines
    assert lines.count("hello") == 1
    assert lines[-1].split()[0] == "M"


def test_one_version_as_an_ordinary_user(home: Path) -> None:
    """The options that fusermount3 passes on, who files are shown to belong to, and the ways to end it, also a stopped daemon."""
    done = sandbox(
        """
        set -e
        pfs init && pfs repo create images && mkdir -p $HOME/in/dir $HOME/one && echo '#!/bin/sh' > $HOME/in/dir/tool && chmod 755 $HOME/in/dir/tool
        pfs put $HOME/in images@master:/ && pfs begin images@master mine
        pfs mount images@master+mine:/dir $HOME/one -o noexec,gid=1234,umask=027,fsname=photos
        stat -c '%u %g %a' $HOME/one/tool
        grep -c "^photos $HOME/one fuse.pfs .*noexec" /proc/mounts
        ! $HOME/one/tool 2>/dev/null
        echo more > $HOME/one/more
        pfs mounts
        fusermount3 -u $HOME/one
        while pfs mounts | grep -q one; do :; done
        pfs commit images@master+mine -m m && pfs ls images@master:/dir
        pfs mount images@master~1 $HOME/one && ! touch $HOME/one/x 2>/dev/null
        kill -STOP $(pfs mounts --json | grep -o '"pid": [0-9]*' | cut -d' ' -f2)
        pfs umount --force $HOME/one && pfs mounts
        """,
        home,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {f"{NOBODY} 1234 750", "1", "more", "tool", "not mounted anywhere"} <= set(lines)
    assert any("images@master+mine:/dir" in line and "1 change, 5 B" in line for line in lines)
    assert "Traceback" not in done.stderr


def test_the_default_mount_point_goes_as_it_came(home: Path) -> None:
    """What pfs made it takes away again, also where a mount fails or its daemon is told to end; a directory that was there stays."""
    done = sandbox(
        """
        set -e
        pfs init && pfs repo create images
        pfs mount && test -d $HOME/pfs
        pfs umount && test ! -e $HOME/pfs
        pfs mount && cd $HOME/pfs && ! pfs umount 2>/dev/null
        cd / && pfs umount --force && test ! -e $HOME/pfs
        ln -s nowhere $HOME/pfs && ! pfs mount && rm $HOME/pfs
        mkdir $HOME/pfs && pfs mount && pfs umount && rmdir $HOME/pfs
        mkdir $HOME/empty && chmod 555 $HOME/empty && HOME=$HOME/empty && ! pfs mount
        """,
        home,
    )
    assert done.returncode == 0, done.stderr
    assert f"cannot make the mount point {home}/empty/pfs: Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


def test_device_that_is_closed_to_users(home: Path) -> None:
    done = sandbox("pfs init >/dev/null; pfs mount", home, device_mode="600")
    assert done.returncode == 1
    assert "mode is 0600" in done.stderr
    assert "chmod 666 /dev/fuse" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_users_need_leave(home: Path) -> None:
    done = sandbox("pfs init >/dev/null; pfs mount --allow-other", home)
    assert done.returncode == 1
    assert "user_allow_other" in done.stderr


def test_no_fusermount(home: Path) -> None:
    done = sandbox("pfs init >/dev/null; export PATH=/nowhere; pfs mount", home)
    assert done.returncode == 1
    assert "fusermount3 is not installed" in done.stderr
