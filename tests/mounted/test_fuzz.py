"""Odd things done to the names in the root of a mount, and to the control files: each is answered, and the daemon lives and logs no error."""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.repo.fsck import check_store
from tests.cli.test_fuzz import ODD, WRONG_REVISIONS, cases, check, place, run
from tests.mounted.conftest import Mount

__all__ = ["place"]  # a fixture
_ERRNOS = {
    errno.ENOENT, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EXDEV, errno.EROFS, errno.ESTALE,
    errno.EOPNOTSUPP, errno.ENODATA, errno.ENOTEMPTY, errno.ELOOP, errno.ENODEV, errno.EBADF, errno.ESPIPE,
}  # fmt: skip
CONTROLS = ["commit", "status", "log", "head", "error"]


def attempt(act: Callable[[], object]) -> str | None:
    """What is wrong with how something failed; None when it was done or refused as it may be."""
    try:
        act()
    except OSError as error:
        if error.errno not in _ERRNOS:
            return repr(error)
    except (ValueError, BufferError):  # a name with a NUL, an empty map
        pass
    return None


def on_name(path: bytes, other: bytes, dice: random.Random) -> Callable[[], object]:
    """One thing to do to a name in the root."""
    acts: list[Callable[[], object]] = [
        lambda: os.stat(path),
        lambda: os.lstat(path + b"/" + dice.choice([b".pfs/head", b".pfs/nope", b"x", b"..", b"."])),
        lambda: os.listdir(path),
        lambda: os.close(os.open(path, os.O_RDONLY)),
        lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)),
        lambda: os.mkdir(path),
        lambda: os.rmdir(path),
        lambda: os.unlink(path),
        lambda: os.rename(path, other),
        lambda: os.link(path, other),
        lambda: os.symlink(b"x", path),
        lambda: os.mkfifo(path),
        lambda: os.setxattr(path, dice.choice([b"user.x", b"user.pfs.id", b"trusted.x", b"security.x"]), b"y"),
        lambda: os.listxattr(path),
        lambda: os.utime(path),
        lambda: os.readlink(path),
        lambda: os.statvfs(path),
    ]
    return dice.choice(acts)


def on_control(path: Path, dice: random.Random) -> Callable[[], object]:
    """One thing to do to a control file."""
    data = dice.choice(
        [
            b"",
            b"\0",
            b"\n" * 50,
            b"message",
            b"\xff\xfe",
            dice.randbytes(dice.randrange(5000)),
            b"x" * 65536,
            b"x" * 65537,
            b"x" * 300_000,
        ]
    )
    offset = dice.choice([0, 1, 4096, 1 << 40, (1 << 63) - 1])
    flags = dice.choice(
        [
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR,
            os.O_WRONLY | os.O_APPEND,
            os.O_WRONLY | os.O_TRUNC,
            os.O_RDWR | os.O_CREAT,
            os.O_RDONLY | os.O_DIRECTORY,
        ]
    )

    def opened() -> None:
        fd = os.open(path, flags)
        try:
            for _ in range(dice.randrange(1, 4)):
                act = dice.randrange(6)
                if act == 0:
                    os.write(fd, data)
                elif act == 1:
                    os.pwrite(fd, data, offset)
                elif act == 2:
                    os.pread(fd, dice.choice([0, 1, 100_000]), offset)
                elif act == 3:
                    os.ftruncate(fd, dice.choice([0, 5]))
                elif act == 4:
                    os.fsync(fd)
                else:
                    mmap.mmap(fd, 4096, prot=mmap.PROT_READ).close()
        finally:
            os.close(fd)

    others: list[Callable[[], object]] = [
        lambda: os.rename(path, path.with_name("other")),
        lambda: os.rename(path, path.parent.parent / "taken out"),
        lambda: os.link(path, path.parent.parent / "linked"),
        lambda: path.unlink(),
        lambda: path.chmod(dice.choice([0, 0o777])),
        lambda: os.chown(path, 1, 1),
        lambda: path.mkdir(),
        lambda: os.listxattr(path),
        lambda: os.setxattr(path, b"user.x", b"y"),
        lambda: os.truncate(path, dice.choice([0, 1 << 40])),
        lambda: (path / "below").touch(),
        lambda: path.with_name("new").touch(),
        lambda: path.parent.rmdir(),
        lambda: (path.parent.parent / "file").write_bytes(data),
    ]
    return opened if dice.random() < 0.6 else dice.choice(others)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_odd_arguments_beside_a_mount(place: Path) -> None:
    """The commands of `tests.cli.test_fuzz` on a store that is mounted and written to: what they ask the daemon is answered, and it lives."""
    seed = random.randrange(1 << 30)
    dice, point = random.Random(seed), place / "mnt"
    point.mkdir()
    assert run(place, ["mount", str(point)]) == (0, "")
    problems = []
    try:
        for n, line in enumerate(cases(dice, 1000)):
            for branch in ("images@master", "images@master+private"):
                if not n % 10 and (point / branch).exists():
                    (point / branch / f"file-{n % 30}").write_text(str(n))
            if line[0] != "umount" and (problem := check(place, line)) is not None:
                problems.append(problem)
        assert os.path.ismount(point)
    finally:
        assert run(place, ["umount", "--force", str(point)])[0] == 0
    logged = [line for log in (place / "store" / "run").glob("*.log") for line in log.read_text().splitlines()]
    problems += [line for line in logged if " ERROR " in line or "Traceback" in line]
    assert not problems, f"seed {seed}: " + "\n".join(problems)
    assert check_store(place / "store", data=True).clean


@pytest.mark.parametrize(
    ("seed", "rounds"), [(1, 1), pytest.param(None, 60, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_odd_names_and_control_files(mount: Mount, seed: int | None, rounds: int) -> None:
    seed = random.randrange(1 << 30) if seed is None else seed
    dice = random.Random(seed)
    record = mount.record()
    assert record is not None
    (mount.master / "file").write_text("one")
    mount.commit()
    mount.pfs("begin", "images@master", "private")
    root = os.fsencode(mount.point)
    names = [
        os.fsencode(name)[:300].replace(b"/", b"") or b"x" for name in ODD + WRONG_REVISIONS if name not in (".", "..")
    ]
    names += [
        b"images@master~0",
        b"images@master.1",
        b"images@master",
        b"images",
        b"images@master+private",
        b"images@master+",
        b".pfs",
    ]
    places = [mount.master, mount.point / "images@master~0", mount.point / "images@master+private"]
    problems = []
    for _ in range(rounds):
        for name in names:
            for _ in range(2):
                act = on_name(root + b"/" + name, root + b"/" + dice.choice(names), dice)
                problems += [f"{name!r}: {problem}" for problem in [attempt(act)] if problem]
        for _ in range(100):
            path = dice.choice(places) / ".pfs" / dice.choice([*CONTROLS, "nope"])
            problems += [f"{path}: {problem}" for problem in [attempt(on_control(path, dice))] if problem]
    assert not problems, f"seed {seed}: " + "\n".join(problems)
    assert mount.record() == record
    assert stat.S_ISDIR(os.stat(mount.master).st_mode)
    (mount.master / "still").write_text("alive")
    # times and attributes of both roots were changed, perhaps
    mount.pfs("resolve", "images@master", "--mine", "--all", check=False)
    (mount.master / ".pfs" / "commit").write_text("the last one")
    assert mount.pfs("cat", "images@master:/still").stdout == "alive"
