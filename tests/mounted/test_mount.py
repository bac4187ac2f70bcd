"""The mount as its users meet it: names in the root, commits, control files, kills, two mounts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.fs.mountpoint import mounted_at
from pfsmount.objects.index import Table
from pfsmount.repo.refs import RefKind, ref_key
from pfsmount.repo.store import Store
from tests.mounted.conftest import Mount, wait_for

Mounts = Callable[[str], Mount]


def fails_with(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is what counts
        act()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def test_root_lists_branches(mount: Mount) -> None:
    mount.pfs("repo", "create", "edges")
    assert sorted(os.listdir(mount.point)) == ["edges@master", "images@master"]
    assert os.readlink(mount.point / "images") == "images@master"
    assert os.listdir(mount.point / "images") == []


def test_a_damaged_row_hides_no_other(mounts: Mounts) -> None:
    """The rows of a repo and of a branch are damaged in the index: the other names are listed and can be used, and the log says what is wrong."""
    mount = mounts("mnt").mount()
    (mount.master / "file").write_text("kept")
    for name in ("broken", "half"):
        mount.pfs("repo", "create", name)
    mount.pfs("branch", "half@other")
    with Store.open(mount.store) as store, store.objects.index.write() as txn:
        txn.put(Table.REPOS, b"broken", b"{}")
        txn.put(Table.REFS, ref_key(store.repo("half"), RefKind.BRANCH, "other"), b"short")
    assert sorted(os.listdir(mount.point)) == ["half@master", "images@master"]
    assert (mount.master / "file").read_text() == "kept"
    assert mount.commit() is not None
    mount.umount()
    mount.mount()
    assert (mount.master / "file").read_text() == "kept"
    wrong = mount.log_lines()
    assert any("broken is not in the root" in line for line in wrong)
    assert any("half@other is not in the root" in line for line in wrong)


def test_root_takes_no_changes(mount: Mount) -> None:
    fails_with(errno.EPERM, lambda: (mount.point / "new").mkdir())
    fails_with(errno.EPERM, lambda: (mount.point / "new").touch())
    fails_with(errno.EPERM, lambda: os.rename(mount.master, mount.point / "other@master"))
    fails_with(errno.EPERM, lambda: os.rmdir(mount.master))


@pytest.mark.parametrize(
    "name", ["nothing", "images@no", "images@master~9", "images@", "@", "images@123456", ".git", "a@b:c"]
)
def test_bad_names_do_not_exist(mount: Mount, name: str) -> None:
    fails_with(errno.ENOENT, lambda: os.stat(mount.point / name))


def test_revisions(mount: Mount) -> None:
    (mount.master / "file").write_text("one")
    first = mount.commit()
    (mount.master / "file").write_text("two")
    second = mount.commit()
    assert first is not None
    assert second is not None
    for name, text in {
        f"images@{first}": "one",
        f"images@{first[:8]}": "one",
        f"images@{second[:12]}": "two",
        "images@master~1": "one",
        "images@master^": "one",
        "images@master.1": "one",
        "images@master~0": "two",
        f"images@master@{first[:10]}": "one",
        "images": "two",
    }.items():
        assert (mount.point / name / "file").read_text() == text, name
    (mount.master / "file").write_text("three")
    mount.commit()
    assert (mount.point / "images@master~1" / "file").read_text() == "two"
    assert (mount.point / f"images@{first}" / "file").read_text() == "one"


def test_commits_are_read_only(mount: Mount) -> None:
    (mount.master / "file").write_text("one")
    (mount.master / "dir").mkdir()
    commit = mount.point / f"images@{mount.commit()}"
    for act in (
        lambda: (commit / "new").touch(),
        lambda: (commit / "new").mkdir(),
        lambda: (commit / "file").write_text("two"),
        lambda: (commit / "file").unlink(),
        lambda: (commit / "dir").rmdir(),
        lambda: (commit / "file").rename(commit / "other"),
        lambda: (commit / "file").chmod(0o600),
        lambda: os.truncate(commit / "file", 0),
        lambda: os.setxattr(commit / "file", "user.x", b"y"),
        lambda: os.utime(commit / "file", (1, 1)),
        lambda: os.link(commit / "file", commit / "other"),
    ):
        fails_with(errno.EROFS, act)
    assert (commit / "file").read_text() == "one"


def test_files_cannot_move_between_branches(mount: Mount) -> None:
    mount.pfs("repo", "create", "other")
    (mount.master / "file").write_text("x")
    fails_with(errno.EXDEV, lambda: os.rename(mount.master / "file", mount.point / "other@master" / "file"))
    shutil.move(mount.master / "file", mount.point / "other@master" / "file")
    assert (mount.point / "other@master" / "file").read_text() == "x"
    assert os.listdir(mount.master) == []


def test_what_no_mount_takes(mount: Mount) -> None:
    fails_with(errno.ENAMETOOLONG, lambda: (mount.master / ("x" * 256)).touch())
    (mount.master / ("x" * 255)).touch()
    fails_with(errno.EPERM, lambda: os.mknod(mount.master / "null", 0o020666, os.makedev(1, 3)))
    fails_with(errno.EPERM, lambda: (mount.master / ".pfs").rmdir())
    fails_with(errno.EEXIST, lambda: (mount.master / ".pfs").mkdir())
    fails_with(errno.EOPNOTSUPP, lambda: os.setxattr(mount.master, "trusted.x", b""))
    assert os.statvfs(mount.master).f_namemax == 255
    assert os.statvfs(mount.master).f_bavail > 0


def test_commit_shows_at_once(mount: Mount) -> None:
    """An open, stat or readdir that starts after `pfs commit` returned sees the new head in this mount."""
    for number in range(5):
        (mount.master / f"file{number}").write_text(str(number))
        commit = mount.commit()
        assert (mount.master / ".pfs" / "head").read_text().strip() == commit
        assert len(os.listdir(mount.point / "images@master~0")) == number + 1


def test_control_files(mount: Mount) -> None:
    control = mount.master / ".pfs"
    assert ".pfs" not in os.listdir(mount.master)
    assert sorted(os.listdir(control)) == ["commit", "error", "head", "log", "status"]
    assert (control / "head").read_text() == ""
    (mount.master / "new").write_text("x")
    assert (control / "status").read_text() == "A new\n"
    subprocess.run(["sh", "-c", "echo 'from a shell' > .pfs/commit"], cwd=mount.master, check=True)
    assert (control / "status").read_text() == ""
    assert (control / "error").read_text() == ""
    assert "from a shell" in (control / "log").read_text()
    (control / "commit").write_text("again")
    assert (control / "error").read_text() == "nothing changed\n"
    assert len((control / "log").read_text().splitlines()) == 1
    with (control / "commit").open("w", buffering=1 << 20) as file:
        file.write("x" * 70_000)
        fails_with(errno.EINVAL, file.flush)
        fails_with(errno.EINVAL, file.close)


def test_put_by_others_shows(mount: Mount, tmp_path: Path) -> None:
    """A head moved by `pfs put` shows in the mount; open files keep their bytes, changes here stay."""
    (mount.master / "mine").write_text("mine")
    (mount.master / "theirs").write_text("old")
    mount.commit()
    (mount.master / "mine").write_text("changed here")
    source = tmp_path / "theirs"
    source.write_text("new from outside")
    with (mount.master / "theirs").open() as held:
        mount.pfs("put", source, "images@master:/theirs")
        wait_for(lambda: (mount.master / "theirs").read_text() == "new from outside", "the new head")
        assert held.read() == "old"
    assert (mount.master / "mine").read_text() == "changed here"
    assert (mount.master / ".pfs" / "status").read_text() == "M mine\n"
    mount.commit()
    assert (mount.point / "images@master~0" / "theirs").read_text() == "new from outside"


def test_what_is_done_after_a_put_shows_it(mount: Mount, tmp_path: Path) -> None:
    """At once, though the kernel keeps what `images@master` means, and somebody uses the mount all the time."""
    code = "import os, sys\nwhile True: os.path.exists(sys.argv[1])"
    source = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", code, str(mount.master / "file")]) as busy:
        try:
            for i in range(8):
                source.write_text(str(i))
                mount.pfs("put", source, "images@master:/")
                assert (mount.master / "file").read_text() == str(i)
        finally:
            busy.kill()


def test_a_name_that_is_used_again(mount: Mount) -> None:
    """The kernel keeps names of branches: not beyond their end."""
    for i in range(3):
        mount.pfs("branch", "images@dev")
        dev = mount.point / "images@dev"
        (dev / f"file-{i}").touch()
        assert os.listdir(dev) == [f"file-{i}"]
        mount.pfs("discard", "images@dev", "--yes")
        mount.pfs("branch", "--delete", "images@dev")
        assert not dev.exists()


def test_others_files_and_directories_come_and_go(mount: Mount, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / "a").write_text("a")
    fails_with(errno.ENOENT, lambda: os.stat(mount.master / "dir"))
    mount.pfs("put", source, "images@master:/")
    wait_for(lambda: os.path.exists(mount.master / "dir" / "a"), "a name that was not there")
    assert os.listdir(mount.master / "dir") == ["a"]
    fails_with(errno.ENOENT, lambda: os.stat(mount.master / "dir" / "b"))
    (source / "dir" / "b").write_text("b")
    mount.pfs("put", source, "images@master:/")
    wait_for(lambda: os.path.exists(mount.master / "dir" / "b"), "a name in a directory that is known")
    mount.pfs("rm", "-r", "images@master:/dir", check=False)
    wait_for(lambda: not os.path.exists(mount.master / "dir"), "a directory to go")


def test_conflict(mount: Mount, tmp_path: Path) -> None:
    """Changes of both sides at one path: the commit is refused by name, mine stays, nothing is lost."""
    (mount.master / "file").write_text("base")
    mount.commit()
    (mount.master / "file").write_text("mine")
    source = tmp_path / "file"
    source.write_text("theirs")
    mount.pfs("put", source, "images@master:/file")
    done = mount.pfs("commit", "images@master", "-m", "x", check=False)
    assert done.returncode == 3
    assert "file" in done.stderr
    assert (mount.master / "file").read_text() == "mine"
    assert "! file" in (mount.master / ".pfs" / "status").read_text()
    fails_with(errno.ESTALE, lambda: (mount.master / ".pfs" / "commit").write_text("x"))
    assert "file" in (mount.master / ".pfs" / "error").read_text()
    mount.pfs("discard", "images@master:/file", "--force")
    wait_for(lambda: (mount.master / "file").read_text() == "theirs", "their version")


def test_discard(mount: Mount) -> None:
    (mount.master / "keep").write_text("base")
    (mount.master / "dir").mkdir()
    (mount.master / "dir" / "x").write_text("x")
    mount.commit()
    (mount.master / "keep").write_text("changed")
    (mount.master / "new").write_text("new")
    shutil.rmtree(mount.master / "dir")
    mount.pfs("discard", "images@master:/keep", "--force")
    assert (mount.master / "keep").read_text() == "base"
    assert (mount.master / "new").exists()
    mount.pfs("discard", "images@master", "--force")
    assert sorted(os.listdir(mount.master)) == ["dir", "keep"]
    assert (mount.master / "dir" / "x").read_text() == "x"
    assert not (mount.master / "new").exists()


def test_kill_and_remount(mounts: Mounts) -> None:
    """Uncommitted work survives a kill -9 of the daemon and a remount."""
    mount = mounts("mnt").mount()
    (mount.master / "base").write_text("base" * 1000)
    mount.commit()
    (mount.master / "dir").mkdir()
    (mount.master / "dir" / "new").write_bytes(os.urandom(3_000_000))
    (mount.master / "base").chmod(0o700)
    os.utime(mount.master / "base", ns=(7, 123_456_789))
    os.symlink("dir/new", mount.master / "link")
    os.mkfifo(mount.master / "fifo")
    os.setxattr(mount.master / "base", "user.x", b"\0\xff")
    name = b"\xff\xfe not utf-8"
    with open(os.path.join(os.fsencode(mount.master), name), "wb") as file:
        file.write(b"x")
    data = (mount.master / "dir" / "new").read_bytes()
    mount.kill()
    fails_with(errno.ENOTCONN, lambda: os.statvfs(mount.point))
    done = mount.pfs("mount", mount.point)
    assert "dead mount" in done.stderr
    assert (mount.master / "dir" / "new").read_bytes() == data
    assert (mount.master / "base").stat().st_mode & 0o777 == 0o700
    assert (mount.master / "base").stat().st_mtime_ns == 123_456_789
    assert os.readlink(mount.master / "link") == "dir/new"
    assert os.getxattr(mount.master / "base", "user.x") == b"\0\xff"
    assert name in os.listdir(os.fsencode(mount.master))
    assert (mount.master / "fifo").is_fifo()
    done = mount.pfs("commit", "images@master", "-m", "after the kill")
    assert "fifo" in done.stderr
    assert (mount.point / "images@master~0" / "dir" / "new").read_bytes() == data
    assert not os.path.lexists(mount.point / "images@master~0" / "fifo")
    assert (mount.master / "fifo").is_fifo()
    assert mount.commit() is None


def test_umount_of_a_dead_mount(mounts: Mounts) -> None:
    mount = mounts("mnt").mount()
    mount.kill()
    assert "dead" in mount.pfs("umount", mount.point).stdout
    assert os.listdir(mount.point) == []


@pytest.mark.skipif(os.getuid() != 0, reason="ONLY ROOT CAN LET THE KERNEL READ AHEAD FURTHER")
def test_the_kernel_reads_ahead_in_large_steps(mount: Mount) -> None:
    found = mounted_at(str(mount.point))
    assert found is not None
    ahead = Path(f"/sys/class/bdi/{found.device}/read_ahead_kb")
    if not os.access(ahead, os.W_OK):
        pytest.skip("READ-AHEAD CANNOT BE SET HERE")
    wait_for(lambda: ahead.read_text() == "4096\n", "the kernel to read ahead in steps of 4 MiB")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_read_a_large_file_at_once(mounts: Mounts, tmp_path: Path) -> None:
    """From front to back and anywhere, while nothing of it was checked: its list of pieces has several nodes, which come from the disk too."""
    size, block = 1200 << 20, os.urandom(1 << 20)
    with (tmp_path / "large").open("wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(8, "little") + block[8:])
    mount = mounts("mnt")
    mount.pfs("put", tmp_path / "large", "images@master:/")
    if os.getuid() == 0:
        subprocess.run("sync; echo 3 > /proc/sys/vm/drop_caches", shell=True, check=True)
    mount.mount()
    large = mount.master / "large"
    anywhere = (
        "import os, random, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "for _ in range(300):\n"
        "    n = random.randrange(1200)\n"
        "    assert os.pread(fd, 8, n << 20) == n.to_bytes(8, 'little'), n"
    )
    one, other = ["cmp", str(large), str(tmp_path / "large")], [sys.executable, "-c", anywhere, str(large)]
    running = [subprocess.Popen(command) for command in (one, one, other, other)]
    try:
        assert [process.wait(400) for process in running] == [0, 0, 0, 0]
    finally:
        for process in running:
            process.kill()


def test_umount_busy_and_forced(mounts: Mounts) -> None:
    mount = mounts("mnt").mount()
    (mount.master / "file").write_text("kept")
    with (mount.master / "file").open():
        done = mount.pfs("umount", mount.point, check=False)
        assert done.returncode == 1
        assert f"({os.getpid()})" in done.stderr
        assert "--force" in done.stderr
        mount.pfs("umount", "--force", mount.point)
    assert mount.record() is None
    mount.mount()
    assert (mount.master / "file").read_text() == "kept"
    mount.umount()


def test_a_branch_that_is_made_again_is_another_one(mount: Mount) -> None:
    """Deleted or renamed after it was written to through the mount; its name can be used at once."""
    for name, way in (("dev", ("--delete",)), ("next", ("--move",))):
        branch = mount.point / f"images@{name}"
        mount.pfs("branch", f"images@{name}", "--empty")
        (branch / "old").write_text("old")
        mount.pfs("commit", f"images@{name}", "-m", "m")
        with open(branch / "old") as old:
            mount.pfs("branch", *way, f"images@{name}", *(["moved"] if way == ("--move",) else []))
            mount.pfs("branch", f"images@{name}", "--empty")
            assert os.listdir(branch) == []
            (branch / "new").write_text("new")
            (branch / "old").write_text("another")
            assert old.read() == "old"
        mount.pfs("commit", f"images@{name}", "-m", "m")
        assert sorted(os.listdir(branch)) == ["new", "old"]
        assert (branch / "old").read_text() == "another"
        mount.pfs("branch", "--delete", f"images@{name}")
    assert (mount.point / "images@moved" / "old").read_text() == "old"


def test_two_mounts(mounts: Mounts) -> None:
    """A second mount shows the changes of the first read-only and says who has them; commits show within 200 ms."""
    one, two = mounts("one").mount(), mounts("two").mount()
    assert os.listdir(two.master) == []
    (one.master / "file").write_text("uncommitted")
    wait_for(lambda: os.path.exists(two.master / "file"), "an uncommitted file of the other mount")
    assert (two.master / "file").read_text() == "uncommitted"
    fails_with(errno.EROFS, lambda: (two.master / "file").write_text("x"))
    fails_with(errno.EROFS, lambda: (two.master / "other").touch())
    assert str(one.point) in (two.master / ".pfs" / "status").read_text()
    done = two.pfs("commit", "images@master", "-m", "through the owner")
    assert "committed" in done.stdout
    assert os.listdir(two.point / "images@master~0") == ["file"]
    (two.master / "other").write_text("now the second may")
    wait_for(lambda: os.path.exists(one.master / "other"), "an uncommitted file of the second")
    fails_with(errno.EROFS, lambda: (one.master / "third").touch())
    two.kill()
    wait_for(lambda: _writable(one.master), "the first to take over what a dead mount left")
    assert (one.master / "other").read_text() == "now the second may"
    assert [found["state"] for found in json.loads(one.pfs("mounts", "--json").stdout)] == ["mounted", "dead"]


def _writable(directory: Path) -> bool:
    try:
        (directory / "third").touch()
    except OSError:
        return False
    return True


def test_mount_point_in_use(mount: Mount) -> None:
    done = mount.pfs("mount", mount.point, check=False)
    assert done.returncode == 1
    assert str(mount.record().pid) in done.stderr  # type: ignore[union-attr]
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("case", ["missing", "file", "full", "inside", "no store"])
def test_bad_mount_points(mounts: Mounts, tmp_path: Path, case: str) -> None:
    mount = mounts("mnt")
    point = {
        "missing": tmp_path / "nowhere",
        "file": tmp_path / "a file",
        "full": tmp_path,
        "inside": mount.store / "tmp",
        "no store": mount.point,
    }[case]
    (tmp_path / "a file").touch()
    if case == "no store":
        mount.store = tmp_path / "none"
    done = mount.pfs("mount", point, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("pfs: ")
    assert len(done.stderr.splitlines()) <= 2
    word = {
        "missing": "does not exist",
        "file": "not a directory",
        "full": "not empty",
        "inside": "inside the store",
        "no store": "no store",
    }[case]
    assert word in done.stderr


def test_foreground_ends_on_signals(mounts: Mounts) -> None:
    mount = mounts("mnt")
    env = {**os.environ, "PFS_STORE": str(mount.store), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, "-m", "pfsmount.cli.app", "mount", "-f", str(mount.point)], env=env, stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: os.path.ismount(mount.point), "the mount")
        assert os.listdir(mount.point) == ["images@master"]
        process.terminate()
        assert process.wait(20) == 0
    assert not os.path.ismount(mount.point)


def test_signals_do_not_cut_the_cleaning_up_short(mounts: Mounts) -> None:
    """`umount --force` takes the mount away and sends SIGTERM then, to a daemon that may be cleaning up already."""
    mount = mounts("mnt")
    for _ in range(3):
        record = mount.mount().record()
        assert record is not None
        (mount.master / "file").write_text("one")
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(record.pid, signal.SIGTERM)
                time.sleep(0.0005)
        assert f"unmounted {mount.point}" in Path(record.log).read_text()
        assert list((mount.store / "run").glob(f"mount-{record.pid}.*")) == [Path(record.log)]


def test_mounts_lists_what_is_uncommitted(mount: Mount) -> None:
    (mount.master / "a").touch()
    (found,) = json.loads(mount.pfs("mounts", "--json").stdout)
    assert found["mount"] == str(mount.point)
    assert found["uncommitted"] == {"images@master": {"changes": 1, "bytes": 0}}


def test_partial_commit(mount: Mount) -> None:
    for name in ("a", "b"):
        (mount.master / name).mkdir()
        (mount.master / name / "file").write_text(name)
    mount.pfs("commit", "images@master:/a", "-m", "only a")
    assert os.listdir(mount.point / "images@master~0") == ["a"]
    assert (mount.master / "b" / "file").read_text() == "b"
    mount.commit()
    assert sorted(os.listdir(mount.point / "images@master~0")) == ["a", "b"]


def test_a_jobs_view(mounts: Mounts) -> None:
    """`--present job`: commits by full id only, read-only, with one time, two modes, no xattrs; no record, no lock."""
    mount = mounts("mnt").mount()
    (mount.master / "dir").mkdir(0o700)
    (mount.master / "dir" / "script").write_text("x")
    (mount.master / "dir" / "script").chmod(0o750)
    (mount.master / "file").write_text("y")
    (mount.master / "file").chmod(0o4600)
    os.setxattr(mount.master / "file", "user.x", b"1")
    commit = mount.commit()
    job = mounts("job")
    job.mount("--present", "job")
    try:
        assert os.listdir(job.point) == []
        assert len(json.loads(mount.pfs("mounts", "--json").stdout)) == 1
        fails_with(errno.ENOENT, lambda: os.stat(job.master))
        root = job.point / f"images@{commit}"
        assert [oct((root / name).stat().st_mode & 0o7777) for name in ("dir", "dir/script", "file")] == [
            "0o755", "0o755", "0o644"
        ]  # fmt: skip
        assert {path.stat().st_mtime for path in (root, root / "dir", root / "file")} == {946684800}
        assert os.listxattr(root / "file") == []
        assert (root / "file").read_text() == "y"
        fails_with(errno.EROFS, lambda: (root / "file").write_text("z"))
    finally:
        job.pfs("umount", job.point)
    assert not os.path.ismount(job.point)
