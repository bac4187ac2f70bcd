"""A mount of a store that lies: what is asked of it is answered or fails with an errno, the daemon lives, and other branches are what they were."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.hostile import ENDLESS, branches, make_hostile_store
from tests.mounted.conftest import Mount, fuse_problem

NAMES_MAX, DEPTH_MAX, PATHS_MAX = 300, 30, 400
"""Names that are looked at in each directory, directories below each other, and paths in all: some trees here are larger than any disk."""
MEMORY = 1 << 30
PLACES = (0, 1 << 22, 1 << 40, (1 << 63) - (1 << 17))


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    problem = fuse_problem()
    if problem is not None:
        pytest.skip(f"NO MOUNT OF A HOSTILE STORE: {problem}")
    top = tmp_path_factory.mktemp("hostile-mount")
    make_hostile_store(top / "store")
    (top / "mnt").mkdir()
    mount = Mount(top / "store", top / "mnt").mount("--real-owner")
    yield mount
    mount.clean_up()


def ask(top: Path) -> None:
    """Everything that can be asked of a path and of some of what is below it."""
    todo = deque([(top, 0)])
    asked = 0
    while todo and asked < PATHS_MAX:
        path, depth = todo.popleft()
        asked += 1
        with suppress(OSError):
            info = path.lstat()
            with suppress(OSError):
                for name in os.listxattr(path, follow_symlinks=False):
                    assert name.startswith("user.")
                    os.getxattr(path, name, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                _read(path)
            elif stat.S_ISDIR(info.st_mode) and depth < DEPTH_MAX:
                with os.scandir(path) as names:
                    found = [entry.name for entry in islice(names, NAMES_MAX)]
                assert not {name for name in found if "/" in name or name in ("", ".", "..")}
                todo.extend((path / name, depth + 1) for name in found)


def _read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        for place in PLACES:
            with suppress(OSError):
                os.pread(fd, 1 << 16, place)
    finally:
        os.close(fd)


def change(top: Path) -> None:
    """Changes of all kinds below the root of a branch. Errors are fine, harm is not."""
    actions = (
        lambda: (top / "new").write_text("new"),
        lambda: os.rename(top / "f", top / "moved"),
        lambda: (top / "a").write_bytes(b"written over"),
        lambda: os.truncate(top / "moved", 5),
        lambda: os.chmod(top / "d", 0o700),
        lambda: os.setxattr(top / "new", "user.x", b"1"),
        lambda: os.rename(top / "d", top / "d2"),
        lambda: os.unlink(top / "moved"),
    )
    for action in actions:
        with suppress(OSError):
            action()


def check_daemon(mount: Mount) -> None:
    record = mount.record()
    assert record is not None, "the daemon has died"
    status = Path(f"/proc/{record.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) * 1024 < MEMORY
    assert "Traceback" not in "\n".join(mount.log_lines())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("branch", [*branches(), *(f"t-{name}" for name in ENDLESS)])
def test_a_mount_of_a_store_that_lies(mounted: Mount, branch: str) -> None:
    """The commit, the branch, changes on top, and a commit of these or a reason why not; the good branch beside it is right all the time."""
    ask(mounted.point / f"images@{branch}~0")
    ask(mounted.point / f"images@{branch}")
    change(mounted.point / f"images@{branch}")
    ask(mounted.point / f"images@{branch}")
    good = mounted.point / "images@good"
    assert {path.name: path.read_bytes() for path in good.iterdir() if path.is_file()} == {"a": b"a"}
    check_daemon(mounted)


@pytest.mark.parametrize("branch", ["t-device", "t-size-2-63"])
def test_what_no_entry_can_be_is_not_shown(mounted: Mount, branch: str) -> None:
    """In a commit, whose entries are listed without being decoded, as in a branch."""
    for version in (f"images@{branch}~0", f"images@{branch}"):
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.point / version / "f").lstat()
