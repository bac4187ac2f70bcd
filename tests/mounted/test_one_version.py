"""`pfs mount TARGET DIR`: one version at a directory of its own; how it is presented; what `pfs mounts` says."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.conftest import ROOT, Mount, wait_for
from tests.mounted.test_mount import fails_with

Mounts = Callable[[str], Mount]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="presents files to other users, which needs root")


def put(mount: Mount, tmp_path: Path, files: dict[str, str], target: str = "images@master:/") -> None:
    source = tmp_path / "source"
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    mount.pfs("put", source, target, "-m", "files")


def mount_one(mount: Mount, target: str, *args: str) -> Path:
    mount.pfs("mount", target, mount.point, *args)
    return mount.point


def listed(mount: Mount) -> list[dict[str, object]]:
    found = json.loads(mount.pfs("mounts", "--json").stdout)
    assert isinstance(found, list)
    return found


def test_a_branch_at_a_directory_of_its_own(mounts: Mounts, tmp_path: Path) -> None:
    """Written to, committed, followed, listed; the store's other mounts see it as always."""
    one = mounts("one")
    put(one, tmp_path, {"a": "a", "dir/b": "b"})
    top = mount_one(one, "images@master")
    assert sorted(os.listdir(top)) == ["a", "dir"]
    assert os.stat(top).st_ino == 1
    (top / "dir" / "c").write_text("new")
    (top / ".pfs" / "commit").write_text("through the control file")
    assert one.pfs("cat", "images@master:/dir/c").stdout == "new"
    put(one, tmp_path, {"d": "d"})
    wait_for(lambda: (top / "d").exists(), "what others committed")
    (top / "x").write_text("four")
    (found,) = listed(one)
    assert (found["revision"], found["read_only"], found["state"]) == ("images@master", False, "mounted")
    assert found["uncommitted"] == {"images@master": {"changes": 1, "bytes": 4}}
    one.umount()
    assert "A  /x" in one.pfs("status").stdout
    assert one.log_lines() == []


@pytest.mark.parametrize("name", ["tag", "commit", "ancestor"])
def test_what_is_no_branch_is_read_only(mounts: Mounts, tmp_path: Path, name: str) -> None:
    one = mounts("one")
    put(one, tmp_path, {"a": "old"})
    put(one, tmp_path, {"a": "new"})
    one.pfs("tag", "images@v1", "images@master~1")
    commit = json.loads(one.pfs("log", "images@v1", "--json").stdout)[0]["commit"]
    target = {"tag": "images@v1", "commit": f"images@{commit[:10]}", "ancestor": "images@master~1"}[name]
    top = mount_one(one, target)
    assert (top / "a").read_text() == "old"
    fails_with(errno.EROFS, lambda: (top / "a").write_text("x"))
    fails_with(errno.EROFS, lambda: (top / "b").mkdir())
    (found,) = listed(one)
    assert (found["revision"], found["commit"], found["read_only"]) == (target, commit, True)
    put(one, tmp_path, {"a": "newer"})
    one.pfs("gc", "--keep", "0d")
    assert (top / "a").read_text() == "old"
    one.umount()


def test_a_directory_of_a_branch(mounts: Mounts, tmp_path: Path) -> None:
    """Its root is the directory: renames, listings, others' commits and conflicts work as in the whole branch."""
    one, all_of_it = mounts("one"), mounts("all")
    put(one, tmp_path, {"photos/2026/a": "a", "photos/b": "b", "other": "x"})
    top = mount_one(one, "images@master:photos")
    all_of_it.mount()
    branch = all_of_it.master
    assert sorted(os.listdir(top)) == ["2026", "b"]
    assert not (top / ".pfs").exists()
    assert os.path.realpath(top / "2026" / "..") == str(top)
    os.rename(top / "2026" / "a", top / "c")
    (top / "new").write_text("new")
    (top / "b").unlink()
    os.rmdir(top / "2026")
    wait_for(lambda: sorted(os.listdir(branch / "photos")) == ["c", "new"], "the other mount to show it")
    put(one, tmp_path, {"photos/d": "d", "elsewhere": "e"})
    wait_for(lambda: (top / "d").exists(), "what others put into the directory")
    assert sorted(os.listdir(top)) == ["c", "d", "new"]
    os.chmod(top, 0o750)
    assert one.commit() is not None
    assert sorted(os.listdir(top)) == ["c", "d", "new"]
    assert stat.S_IMODE(os.stat(top).st_mode) == 0o750
    assert one.pfs("ls", "images@master", "-R").stdout.split() == [
        "elsewhere", "other", "photos/", "photos/c", "photos/d", "photos/new"
    ]  # fmt: skip
    (top / "new").write_text("mine")
    put(one, tmp_path, {"photos/new": "theirs"})
    assert one.pfs("commit", "images@master", "-m", "x", check=False).returncode == 3
    one.pfs("discard", "--yes", "images@master:/photos/new")
    wait_for(lambda: (top / "new").read_text() == "theirs", "their version")
    all_of_it.umount()
    one.umount()


def test_what_cannot_be_mounted(mounts: Mounts, tmp_path: Path) -> None:
    """One line and what to do; nothing is mounted."""
    one = mounts("one")
    put(one, tmp_path, {"a": "a"})
    for args, said in (
        (["images@nope", one.point], "no branch, tag or commit 'nope'"),
        (["nope@master", one.point], "no repo 'nope'"),
        (["images@master:nope", one.point], "there is no images@master:/nope"),
        (["images@master:a", one.point], "images@master:/a is not a directory"),
        (["images@master~1:a", one.point], "one commit"),
        (["images@master"], "where is images@master to be mounted"),
        ([one.point, "images@master"], "is not a place in a repo"),
        (["images@master", ""], "empty name"),
        (["images@master", one.point, "-o", "ro,nonsense"], "mount option 'nonsense'"),
        (["images@master", one.point, "-o", "uid=ada"], "not a number"),
        (["images@master", one.point, "-o", "uid=5", "--real-owner"], "give one of them"),
        (["images@master", one.point, "--log-file", "/proc/nope/log"], "log file"),
        (["images@master", one.point, "--log-level", "loud"], "log level"),
        (["images@master~0", one.point, "--autocommit", "5"], "nothing to commit by itself"),
        (["images@master", one.point, "--autocommit", "nan"], "more than 0 seconds"),
    ):
        done = one.pfs("mount", *args, check=False)
        assert done.returncode in (1, 2), args
        assert said in done.stderr, (args, done.stderr)
        assert len(done.stderr.splitlines()) <= 2
        assert not os.path.ismount(one.point)


def test_nothing_is_mounted_below_a_mount(mount: Mount, tmp_path: Path) -> None:
    (mount.master / "dir").mkdir()
    for point in (mount.master / "dir", mount.master, mount.point / "elsewhere"):
        done = mount.pfs("mount", "images@master", point, check=False)
        assert (done.returncode, "inside the pfs mount at" in done.stderr) == (2, True)
    (tmp_path / "link").symlink_to(mount.master / "dir")
    assert "inside the pfs mount" in mount.pfs("mount", tmp_path / "link", check=False).stderr


@needs_root
def test_presentation(mounts: Mounts, tmp_path: Path) -> None:
    """uid=, gid=, umask=, noexec, fsname=: what stat, the kernel and mountinfo show."""
    one = mounts("one")
    put(one, tmp_path, {"script": "#!/bin/sh\n", "plain": "x"})
    top = mount_one(one, "images@master", "-o", "uid=1234,gid=4321,umask=027,nosuid", "-o", "noexec,fsname=photos")
    (top / "script").write_text("#!/bin/sh\n")
    (top / "script").chmod(0o755)
    found = os.stat(top / "script")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o750)
    fails_with(errno.EACCES, lambda: subprocess.run([top / "script"], check=False))
    (line,) = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines() if f" {top} " in line]
    assert (line[0], line[2]) == ("photos", "fuse.pfs")
    assert {"noexec", "nosuid", "allow_other", "default_permissions"} <= set(line[3].split(","))
    assert "in use" in one.pfs("mount", one.point, check=False).stderr
    with (top / "script").open():
        assert "in use" in one.pfs("umount", one.point, check=False).stderr
    one.umount()
    assert one.record() is None


def test_log_file_and_level(mounts: Mounts, tmp_path: Path) -> None:
    one = mounts("one")
    log = tmp_path / "a log"
    one.pfs("mount", one.point, "--log-file", log.name, "--log-level", "debug", cwd=tmp_path)
    assert "DEBUG" in log.read_text()
    assert listed(one)[0]["log"] == str(log)
    one.umount()
    log.unlink()
    one.mount("-o", f"log_file={log},log_level=warning")
    one.umount()
    assert log.read_text() == ""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "umount", "fusermount3"])
def test_all_ways_to_leave(mounts: Mounts, how: str) -> None:
    """The daemon ends, its record and socket are gone, and what was written is there at the next mount."""
    if how == "umount" and os.getuid():
        pytest.skip("umount(8) of a FUSE mount is for root")
    one = mounts("one")
    environment = {**os.environ, "PFS_STORE": str(one.store), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pfsmount.cli.app", "mount", "--foreground", "images@master", str(one.point)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(line.startswith(b"mounted images@master at ") for line in process.stderr)
        (one.point / "file").write_text(how)
        if how.startswith("SIG"):
            process.send_signal(getattr(signal, how))
        else:
            subprocess.run([*{"umount": ["umount"], "fusermount3": ["fusermount3", "-u"]}[how], one.point], check=True)
        assert process.wait(20) == 0
    assert not os.path.ismount(one.point)
    assert not list((one.store / "run").glob("mount-*"))
    mount_one(one, "images@master")
    assert (one.point / "file").read_text() == how
    one.umount()


def test_a_log_that_cannot_be_opened(mounts: Mounts) -> None:
    """The daemon says so, and not only that it ended: here a directory is in the way of its log."""
    one = mounts("one")
    code = "import os; os.getpid = lambda: 0; from pfsmount.cli.app import main; main()"  # the log's name has the pid
    (one.store / "run" / "mount-0.log").mkdir()
    environment = {**os.environ, "PFS_STORE": str(one.store), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "mount", str(one.point)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mount-0.log" in done.stderr
    assert "opening the log of the mount" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
