"""A directory of a mounted branch and one of ext4 beside it, kept the same by the same calls, and compared."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mounted.conftest import Mount
from tests.posix.calls import Actor, Call, listed_xattrs, shown

TURNS = ("commit", "remount", "kill")
_CLOCK_REALTIME_COARSE = 5
_HOUR_NS = 3_600_000_000_000
KNOWN = {
    "atime": "is the mtime or what somebody set; a commit forgets it, and reading does not change it (S68)",
    "nlink of directories": "1, which says that subdirectories are not counted (as on btrfs): counting would read every directory that is listed",
    "size of directories": "4096 whatever is in them",
    "blocks": "of a committed file its size; where its holes are is not known",
    "hard links over a commit": "each name is a file of its own from then on (S68)",
    "FIFOs and sockets in commits": "they stay in the worktree and are not versioned (S68)",
    "ctime after a commit, remount or kill": "is the mtime of what was committed; versions have one time",
    "inode numbers after a remount": "are new ones, as is the device number",
    "owners without --real-owner": "are who mounts (S66): changing them is kept and not shown",
    "mmap not forced out before a kill": "is lost, as in a power cut (S64)",
    "open files after a kill": "are gone with the daemon, and what was unlinked with them",
    "trusted.*, security.* and ACLs": "are refused (EOPNOTSUPP): only user.* is versioned",
    "setgid without x for the group": "stays when somebody outside the group writes (or changes owners to what they are): the kernel's FUSE takes away only the pair, and alone it does nothing",
    "times of FIFOs": "stay when something is written through them: the kernel does not tell a FUSE filesystem",
    "times after posix_fallocate": "change only where the C library had to write (see docs/SYSCALLS.md)",
    "user.pfs.*": "tell of the version, and are not the program's",
    "devices": "are refused (EPERM) for root as well (S68)",
}
"""Where a mounted branch is not ext4 and need not be: what is not compared, and why."""


class Look(NamedTuple):
    """What stat shows of one path."""

    same: tuple[int, ...]
    """What must be equal on both sides."""
    ino: int
    mtime_ns: int
    ctime_ns: int
    target: bytes


Tree = dict[bytes, Look]


class Difference(AssertionError):
    """The two sides are not the same."""


def look(top: Path) -> Tree:
    """All that stat, readdir and readlink show below a directory."""
    found: Tree = {}
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    found[b""] = _one(b".", fd)
    _look_below(fd, b"", found)
    return found


def _look_below(fd: int, prefix: bytes, found: Tree) -> None:
    # by descriptors: each absolute path would ask the daemon whether the branch is still the same
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                found[prefix + name] = one = _one(name, fd)
                kind = stat.S_IFMT(one.same[0])
                if (entry.is_symlink(), entry.is_dir(follow_symlinks=False), entry.inode()) != (
                    kind == stat.S_IFLNK, kind == stat.S_IFDIR, one.ino
                ):  # fmt: skip
                    raise Difference(f"readdir and stat disagree about {prefix + name!r}")
                if kind == stat.S_IFDIR:
                    _look_below(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd), prefix + name + b"/", found)
    finally:
        os.close(fd)


def _one(name: bytes, fd: int) -> Look:
    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
    target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(info.st_mode) else b""
    return Look(shown(info), info.st_ino, info.st_mtime_ns, info.st_ctime_ns, target)


def contents(top: Path, tree: Tree) -> dict[bytes, object]:
    """Bytes and extended attributes of everything in a tree."""
    found: dict[bytes, object] = {}
    for path, one in tree.items():
        full = os.path.join(os.fsencode(top), path)
        xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in listed_xattrs(full)}
        digest = ""
        if stat.S_ISREG(one.same[0]):
            with open(full, "rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()
        found[path] = (xattrs, digest)
    return found


def compare_trees(disk: Tree, branch: Tree) -> None:
    """Raises Difference."""
    for path in sorted(disk.keys() | branch.keys()):
        ours, theirs = branch.get(path), disk.get(path)
        if ours is None or theirs is None:
            raise Difference(f"{path!r} is there only {'on the disk' if ours is None else 'in the branch'}")
        if (ours.same, ours.target) != (theirs.same, theirs.target):
            raise Difference(
                f"{path!r}: {(*ours.same, ours.target)} in the branch, {(*theirs.same, theirs.target)} on the disk"
            )
        if not stat.S_ISFIFO(ours.same[0]) and not _same_time(ours.mtime_ns, theirs.mtime_ns):
            raise Difference(f"{path!r}: mtime {ours.mtime_ns} in the branch, {theirs.mtime_ns} on the disk")
    for by_ino in (True, False):
        seen: dict[int, int] = {}
        for path, theirs in disk.items():
            a, b = (theirs.ino, branch[path].ino) if by_ino else (branch[path].ino, theirs.ino)
            if seen.setdefault(a, b) != b:
                raise Difference(f"{path!r}: one file on one side is two on the other")


def _same_time(ours: int, theirs: int) -> bool:
    # a time that a call set is the same to the nanosecond; one that the clock gave is near
    return ours == theirs or abs(ours - theirs) < _HOUR_NS


def compare_steps(disk: tuple[Tree, Tree], branch: tuple[Tree, Tree], call: Call) -> None:
    """What one call did to times and inode numbers is the same on both sides. Raises Difference."""
    for path, after in disk[1].items():
        before = disk[0].get(path)
        ours_before, ours = branch[0].get(path), branch[1][path]
        if before is None or ours_before is None:
            continue
        if (before.ino == after.ino) != (ours_before.ino == ours.ino):
            raise Difference(f"{call}: the inode of {path!r} changed on one side only")
        if before.ino != after.ino or stat.S_ISFIFO(after.same[0]) or call.name == "allocate":
            continue
        for what, theirs_changed, ours_changed in (
            ("mtime", before.mtime_ns != after.mtime_ns, ours_before.mtime_ns != ours.mtime_ns),
            ("ctime", before.ctime_ns != after.ctime_ns, ours_before.ctime_ns != ours.ctime_ns),
        ):
            if what == "ctime" and ours_changed and ours.ctime_ns == ours.mtime_ns and not theirs_changed:
                continue  # the kernel forgot what it knew from before a commit
            if theirs_changed != ours_changed:
                where = "on the disk" if theirs_changed else "in the branch"
                raise Difference(f"{call}: the {what} of {path!r} changed only {where}")


def wait_for_tick() -> None:
    """Let the clock that files are stamped with go on, so that a change is seen by its time.

    It goes by ticks; but since Linux 6.13 a file that somebody looked at gets the time between them, and a tick that comes late is not yet past that.
    """
    started = time.time_ns()
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= started:
        os.sched_yield()


class Twins:
    """Both directories, with what is open in them."""

    def __init__(self, mount: Mount, disk: Path, name: str, options: tuple[str, ...]) -> None:
        self._mount = mount
        self._options = options
        self._relative = Path(name, "top")
        self._disk_top = disk / self._relative
        for top in (self._disk_top, self._branch_top):
            top.mkdir(parents=True)
            top.chmod(0o777)
        self.disk, self.branch = Actor(self._disk_top), Actor(self._branch_top)
        self._last = self._look()

    @property
    def _branch_top(self) -> Path:
        return self._mount.master / self._relative

    def close(self) -> None:
        """Close both."""
        self.disk.close()
        self.branch.close()

    def _look(self) -> tuple[Tree, Tree]:
        return look(self._disk_top), look(self._branch_top)

    def do(self, call: Call) -> None:
        """Do it on both sides and compare. Raises Difference."""
        if call.name in TURNS:
            getattr(self, "_" + call.name)()
            self._last = self._look()
            compare_trees(*self._last)
            self.check()
            return
        wait_for_tick()
        theirs, ours = self.disk.do(call), self.branch.do(call)
        if theirs != ours:
            raise Difference(f"{call}: {_short(ours)} in the branch, {_short(theirs)} on the disk")
        now = self._look()
        try:
            compare_trees(*now)
        except Difference as error:
            raise Difference(f"{call} ({_short(ours)}): {error}") from None
        compare_steps((self._last[0], now[0]), (self._last[1], now[1]), call)
        self._last = now

    def do_all(self, setup: list[Call], calls: list[Call]) -> None:
        """Make things, then do all of the calls, each to things of its own; compare what each returns, and at the end what everything looks like. Raises Difference."""
        for call in setup:
            self.disk.do(call)
            self.branch.do(call)
        self._last = self._look()
        compare_trees(*self._last)
        wait_for_tick()
        differences = []
        for call in calls:
            theirs, ours = self.disk.do(call), self.branch.do(call)
            if theirs != ours:
                differences.append(f"{call}: {_short(ours)} in the branch, {_short(theirs)} on the disk")
        if differences:
            raise Difference("\n".join(differences))
        now = self._look()
        compare_trees(*now)
        compare_steps((self._last[0], now[0]), (self._last[1], now[1]), Call("one of all"))
        self._last = now

    def check(self) -> None:
        """Compare all bytes and attributes, of open files too. Raises Difference."""
        trees = self._last
        theirs, ours = contents(self._disk_top, trees[0]), contents(self._branch_top, trees[1])
        for path in theirs:
            if theirs[path] != ours[path]:
                raise Difference(f"{path!r} has other bytes or attributes")
        for slot in self.disk.slots:
            for call in (Call("fstat", (slot,)), Call("pread", (slot, 10_000_000, 0))):
                results = self.disk.do(call), self.branch.do(call)
                if results[0] != results[1]:
                    raise Difference(
                        f"open file, {call}: {_short(results[1])} in the branch, {_short(results[0])} on the disk"
                    )

    # Turns

    def _commit(self) -> None:
        self._separate_links()
        with open(self._mount.master / ".pfs" / "commit", "w") as file:
            file.write("a commit")
        committed = self._mount.point / "images@master~0" / self._relative
        disk = {
            path: one
            for path, one in look(self._disk_top).items()
            if stat.S_IFMT(one.same[0]) not in (stat.S_IFIFO, stat.S_IFSOCK)
        }
        here = look(committed)
        compare_trees(_alone(disk), _alone(here))
        theirs, ours = contents(self._disk_top, disk), contents(committed, here)
        for path in theirs:
            if theirs[path] != ours[path]:
                raise Difference(f"the commit has other bytes or attributes of {path!r}: {ours[path]}, {theirs[path]}")

    def _separate_links(self) -> None:
        """Leave one name of each file, in both directories: a commit makes each name a file of its own."""
        seen: set[int] = set()
        for path, one in sorted(look(self._disk_top).items()):
            if not stat.S_ISDIR(one.same[0]) and one.ino in seen:
                for top in (self._disk_top, self._branch_top):
                    os.unlink(os.path.join(os.fsencode(top), path))
            seen.add(one.ino)

    def _remount(self) -> None:
        with self._closed():
            self._mount.umount()

    def _kill(self) -> None:
        with self._closed():
            self._mount.kill()

    @contextmanager
    def _closed(self) -> Iterator[None]:
        for actor in (self.disk, self.branch):
            actor.close()
        yield
        self._mount.mount(*self._options)
        self.disk, self.branch = Actor(self._disk_top), Actor(self._branch_top)


def _alone(tree: Tree) -> Tree:
    """Each path as a file of its own."""
    return {path: one._replace(ino=at) for at, (path, one) in enumerate(sorted(tree.items()))}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}… ({len(text)})"


class Disk:
    """A directory on ext4: the one given, or a loop mount in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mounted = False
        self.problem: str | None = None
        if _type_of(path) == "ext4":
            return
        image, point = path / "ext4.img", path / "ext4"
        point.mkdir()
        with open(image, "wb") as file:
            file.truncate(1 << 30)
        for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(point)]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                self.problem = str(error)
                return
            if done.returncode:
                self.problem = done.stderr.strip()
                return
        self._mounted = True
        self.path = point

    def close(self) -> None:
        """Take the loop mount away."""
        if self._mounted:
            subprocess.run(["umount", self.path], check=True)


def _type_of(path: Path) -> str:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return ""
