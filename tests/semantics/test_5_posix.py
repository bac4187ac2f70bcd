"""A branch as a disk

What programs rely on without knowing it. `docs/SYSCALLS.md` lists what each call costs, and where a branch is not quite a disk; `tests/posix` compares it with ext4,
call by call.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.semantics.scene import Scene, wait_for


def fails_with(act: Callable[[], object]) -> str:
    """The name of the errno with which something fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is what counts
        act()
    return errno.errorcode[caught.value.errno or 0]


def test_times(mounted: Scene) -> None:
    """S300 Times change when they do on a disk

    mtime with the content, of a directory with its names; ctime with anything, also with a `chown` or a time of access that changes nothing; what fails changes nothing. All are set and
    shown to the nanosecond. A version has the mtime only: of what was committed the next mount shows the other two as the same.
    """
    path = mounted.master / "file"
    path.write_text("x")
    os.utime(path, ns=(5, 1_000_000_007))
    before = path.stat()

    def is_seen() -> bool:
        path.chmod(0o600)
        return path.stat().st_ctime_ns > before.st_ctime_ns

    wait_for(is_seen, "the clock to go on")
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5, 1_000_000_007)
    assert fails_with(lambda: path.mkdir()) == "EEXIST"
    top = mounted.master.stat().st_mtime_ns
    path.write_text("y")
    assert mounted.master.stat().st_mtime_ns == top
    os.utime(path, ns=(5, 1_000_000_007))
    mounted.pfs("commit", "images@master", "-m", "x")
    mounted.pfs("umount", mounted.mount_point)
    mounted.mount()
    after = path.stat()
    assert after.st_mtime_ns == after.st_ctime_ns == after.st_atime_ns == 1_000_000_007


def test_listing(mounted: Scene) -> None:
    """S301 A directory can be changed while it is listed

    Names that are there all the time come exactly once, whatever is made, deleted or committed meanwhile; others come or do not. A position (telldir) is valid as long as
    the directory is open.
    """
    directory = mounted.master / "many"
    directory.mkdir()
    names = {f"{number:04}" for number in range(600)}
    for name in names:
        (directory / name).touch()
    seen = []
    with os.scandir(directory) as entries:
        for at, entry in enumerate(entries):
            seen.append(entry.name)
            if at == 10:
                (directory / "0599").unlink()
                (directory / "0000-new").touch()
                (mounted.master / ".pfs" / "commit").write_text("meanwhile")
    assert len(seen) == len(set(seen))
    assert names - {"0599"} <= set(seen)


def test_inode_numbers(mounted: Scene) -> None:
    """S302 Inode numbers stay as long as the mount lives

    Over renames and commits, and each file has one of its own; so `tar`, `find -samefile` and editors that compare them work. After the next `pfs mount` they are others, as the device
    number is.
    """
    path = mounted.master / "file"
    path.write_text("x")
    (mounted.master / "dir").mkdir()
    number = path.stat().st_ino
    path = path.rename(mounted.master / "dir" / "moved")
    mounted.pfs("commit", "images@master", "-m", "x")
    assert path.stat().st_ino == number
    path.write_text("y")
    mounted.pfs("commit", "images@master", "-m", "y")
    assert path.stat().st_ino == number
    assert (mounted.master / "dir").stat().st_ino != number


def test_open_files(mounted: Scene) -> None:
    """S303 An open file goes on through commits, deletion and discards

    What is open and deleted can be read and written on. When a discard or somebody else's commit puts another file in its place, whoever has it open reads the old bytes on; writing fails (ESTALE), since
    it would go nowhere.
    """
    path = mounted.master / "log"
    with path.open("w+b", buffering=0) as file:
        file.write(b"one")
        mounted.pfs("commit", "images@master", "-m", "x")
        file.write(b"two")
        path.unlink()
        mounted.pfs("commit", "images@master", "-m", "y")
        file.write(b"three")
        assert os.pread(file.fileno(), 100, 0) == b"onetwothree"
        assert os.fstat(file.fileno()).st_nlink == 0
    path.write_bytes(b"committed")
    mounted.pfs("commit", "images@master", "-m", "z")
    with path.open("r+b", buffering=0) as file:
        file.write(b"X")
        mounted.pfs("discard", "images@master", "--yes")
        assert path.read_bytes() == b"committed"
        assert os.pread(file.fileno(), 100, 0) == b"Xommitted"
        assert fails_with(lambda: file.write(b"Y")) == "ESTALE"


def test_maps(mounted: Scene) -> None:
    """S304 Memory maps are the file

    What one writes through a shared map, others read at once, through `read` and through maps of their own; a commit has it without `msync`. A private map changes nothing.
    """
    path = mounted.master / "mapped"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as one:
        one[5000:5003] = b"abc"
        assert os.pread(file.fileno(), 3, 5000) == b"abc"
        os.pwrite(file.fileno(), b"xyz", 6000)
        assert one[6000:6003] == b"xyz"
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as private:
            private[0:1] = b"p"
        one[7000:7001] = b"m"
        mounted.pfs("commit", "images@master", "-m", "x")
    committed = (mounted.mount_point / "images@master~0" / "mapped").read_bytes()
    assert (committed[0], committed[5000:5003], committed[6000:6003], committed[7000:7001]) == (0, b"abc", b"xyz", b"m")


def test_locks(mounted: Scene) -> None:
    """S305 Locks hold between processes

    `flock` and `fcntl` locks (of ranges, of processes, of open files), waiting and not, among all that use the same mount. They do not reach another mount of the store.
    """
    path = mounted.master / "file"
    path.write_bytes(b"x" * 100)
    take = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.{0}; print('got')"
    with path.open("r+b") as file:
        for hold, other in (
            (lambda: fcntl.flock(file, fcntl.LOCK_EX), "flock(f, fcntl.LOCK_EX)"),
            (lambda: fcntl.lockf(file, fcntl.LOCK_EX, 10, 20), "lockf(f, fcntl.LOCK_EX, 1, 25)"),
        ):
            hold()
            with subprocess.Popen(
                [sys.executable, "-c", take.format(other), path], stdout=subprocess.PIPE, text=True
            ) as waiting:
                again = take.format(other.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"))
                refused = subprocess.run([sys.executable, "-c", again, path], capture_output=True, text=True)
                assert "BlockingIOError" in refused.stderr
                fcntl.flock(file, fcntl.LOCK_UN)
                fcntl.lockf(file, fcntl.LOCK_UN)
                assert waiting.communicate(timeout=60)[0] == "got\n"


def test_attributes(mounted: Scene) -> None:
    """S306 `user.` attributes up to 64 KiB; nothing else is pretended

    Other attributes and POSIX ACLs are refused (EOPNOTSUPP), and the permission bits are what counts, for all users, checked by the kernel.
    """
    path = mounted.master / "file"
    path.write_text("x")
    os.setxattr(path, "user.large", bytes(65536))
    assert len(os.getxattr(path, "user.large")) == 65536
    for name in ("trusted.x", "security.x"):
        assert fails_with(lambda name=name: os.setxattr(path, name, b"")) in ("ENOTSUP", "EOPNOTSUPP", "EPERM")  # type: ignore[misc]
    if os.geteuid() == 0:
        path.chmod(0o600)
        done = subprocess.run(["cat", path], user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
        assert "Permission denied" in done.stderr


def test_free_space(mounted: Scene) -> None:
    """S307 `df` shows the disk that the store is on

    Its size, and what is free on it. When nothing is free, a write fails at once (ENOSPC), never later.
    """
    here, there = os.statvfs(mounted.master), os.statvfs(mounted.store)
    assert here.f_blocks * here.f_frsize == there.f_blocks * there.f_frsize
    assert 0 < here.f_bavail <= here.f_bfree
    assert here.f_namemax == 255
