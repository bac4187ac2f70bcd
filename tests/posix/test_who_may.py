"""Who may do what, and what it does to bits and times: every combination of a directory, what is in it, who asks and what for, on a branch and on ext4.

The combinations are those of pjdfstest's tables: owners and modes of both, sticky and setgid directories, each kind of file. ext4 says what is right.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.mounted.conftest import Mount
from tests.posix.calls import OMIT, RENAME_EXCHANGE, RENAME_NOREPLACE, Call
from tests.posix.conftest import root_only
from tests.posix.test_beside_ext4 import disk
from tests.posix.twins import Difference, Twins

__all__ = ["disk"]
Mounts = Callable[[str], Mount]
Case = tuple[list[Call], Call]
BATCH = 100
OWNER, MEMBER, STRANGER = 4001, 4002, 65534
GROUP = 4100
DIRECTORIES = list(itertools.product((0, OWNER), (0o755, 0o777, 0o1777, 0o3775, 0o2777, 0o711, 0o744, 0o300, 0o500)))
"""Owner and mode of what a name is in."""
KINDS = ("file", "shared", "directory", "full", "link", "link to directory", "dangling", "fifo", "socket", "nothing")
MODES = (0o644, 0o600, 0o666, 0o755, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0o000, 0o040, 0o004, 0o444)
Column = Sequence[Any]


def make(kind: str, path: bytes, owner: int, mode: int) -> Iterator[Call]:
    """What root does so that a file of this kind is there."""
    if kind == "nothing":
        return
    links = {"link": path + b".to", "link to directory": path + b".dir", "dangling": b"nowhere"}
    if kind in links:
        yield Call("mknod", (path + b".to", stat.S_IFREG | 0o600))
        yield Call("chown", (path + b".to", owner, GROUP, False))
        yield Call("chmod", (path + b".to", mode))
        yield Call("mkdir", (path + b".dir", 0o755))
        yield Call("symlink", (os.path.basename(links[kind]), path))
        yield Call("chown", (path, owner, GROUP, False))
        return
    if kind in ("directory", "full"):
        yield Call("mkdir", (path, 0o755))
        if kind == "full":
            yield Call("mkdir", (path + b"/below", 0o755))
    elif kind in ("file", "shared"):
        yield Call("open", (0, path, os.O_CREAT | os.O_WRONLY, 0o600))
        yield Call("write", (0, 7, 5000))
        yield Call("close", (0,))
        if kind == "shared":
            yield Call("link", (path, path + b".twin", False))
    else:
        yield Call("mknod", (path, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | 0o600))
    yield Call("chown", (path, owner, GROUP, False))
    yield Call("chmod", (path, mode))


def directory(path: bytes, owner: int, mode: int) -> tuple[list[Call], list[Call]]:
    """How root makes it, and what must come after things were made in it."""
    return [Call("mkdir", (path, 0o755))], [Call("chown", (path, owner, GROUP, True)), Call("chmod", (path, mode))]


def on_a_path(path: bytes) -> dict[str, Call]:
    """What can be asked for with one path."""
    new = path + b".new"
    opens = {
        f"open {flags:o}": Call("open", (1, path, flags, 0o640))
        for flags in (
            os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_DIRECTORY, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_NOATIME,
        )
    }  # fmt: skip
    return opens | {
        "unlink": Call("unlink", (path,)),
        "rmdir": Call("rmdir", (path,)),
        "rename away": Call("rename", (path, new)),
        "rename onto itself": Call("rename", (path, path)),
        "link away": Call("link", (path, new, False)),
        "link what it leads to": Call("link", (path, new, True)),
        "symlink": Call("symlink", (b"x", path)),
        "mkdir": Call("mkdir", (path, 0o2775)),
        "mkfifo": Call("mknod", (path, stat.S_IFIFO | 0o664)),
        "mknod": Call("mknod", (path, stat.S_IFREG | 0o6775)),
        "bind": Call("bind", (path,)),
        "truncate": Call("truncate", (path, 10)),
        "grow": Call("truncate", (path, 10_000)),
        "chmod": Call("chmod", (path, 0o640)),
        "chmod setuid": Call("chmod", (path, 0o6755)),
        "chmod sticky": Call("chmod", (path, 0o1755)),
        "give away": Call("chown", (path, MEMBER, -1, True)),
        "give the link away": Call("chown", (path, MEMBER, GROUP, False)),
        "chgrp to one's own": Call("chown", (path, -1, GROUP, True)),
        "chgrp to another's": Call("chown", (path, -1, 4001, True)),
        "chown of nothing": Call("chown", (path, -1, -1, True)),
        "utime": Call("utimens", (path, None, True)),
        "utime to": Call("utimens", (path, (5, 7), True)),
        "utime of the link": Call("utimens", (path, (5, 7), False)),
        "utime of one": Call("omit", (path, (9, OMIT), (9, 9), True)),
        "setxattr": Call("setxattr", (path, b"user.x", b"1", 0, True)),
        "getxattr": Call("getxattr", (path, b"user.x", True)),
        "list": Call("listdir", (path,)),
        "readlink": Call("readlink", (path,)),
        "stat": Call("stat", (path,)),
        "access": Call("access", (path, os.R_OK | os.W_OK)),
        "execute": Call("access", (path, os.X_OK)),
        "below": Call("lstat", (path + b"/below",)),
    }


def one_path(prefix: bytes, chosen: tuple[Any, ...]) -> Case:
    """A name in a directory."""
    (dir_owner, dir_mode), kind, owner, mode, uid, act = chosen
    top = prefix + b"d"
    first, last = directory(top, dir_owner, dir_mode)
    call = on_a_path(top + b"/f")[act]
    mode = _chown_of_nothing(act, mode)
    return [*first, *make(kind, top + b"/f", owner, mode), *last], Call(call.name, call.arguments, uid)


def _chown_of_nothing(act: str, mode: int) -> int:
    # setgid without x for the group stays, as in twins.KNOWN, and so there is nothing to be refused
    return mode & ~0o2000 if act.endswith("chown of nothing") and not mode & 0o010 else mode


def two_paths(prefix: bytes, chosen: tuple[Any, ...]) -> Case:
    """A name in a directory, moved onto one in another or in the same."""
    old_dir, kind, owner, new_dir, onto, onto_owner, uid, flags = chosen
    old_top, new_top = prefix + b"d", prefix + (b"d" if new_dir is None else b"e")
    first, last = directory(old_top, *old_dir)
    if new_dir is not None:
        made, closed = directory(new_top, *new_dir)
        first, last = first + made, last + closed
    old, new = old_top + b"/f", new_top + b"/g"
    setup = [*first, *make(kind, old, owner, 0o644), *make(onto, new, onto_owner, 0o644), *last]
    if flags is None:
        return setup, Call("link", (old, new, False), uid)
    return setup, Call("rename2", (old, new, flags), uid)


def open_before(prefix: bytes, chosen: tuple[Any, ...]) -> Case:
    """A file that root opened and somebody else uses."""
    owner, mode, uid, act = chosen
    path, slot = prefix + b"f", int(prefix[1:-1])
    setup = [*make("file", path, owner, _chown_of_nothing(act, mode)), Call("open", (slot, path, os.O_RDWR, 0))]
    name, *arguments = OPEN_ACTS[act]
    return setup, Call(name, (slot, *arguments), uid)


ACTS = list(on_a_path(b""))
OPEN_ACTS: dict[str, tuple[Any, ...]] = {
    "write": ("write", 3, 100),
    "pwrite": ("pwrite", 3, 100, 8000),
    "write nothing": ("write", 3, 0),
    "ftruncate": ("ftruncate", 77),
    "ftruncate to the same": ("ftruncate", 5000),
    "fchmod": ("fchmod", 0o2711),
    "fchown": ("fchown", -1, GROUP),
    "fchown of nothing": ("fchown", -1, -1),
    "futimens": ("futimens", (5, 7)),
    "futimens to now": ("futimens", None),
    "fsetxattr": ("fsetxattr", b"user.x", b"1"),
    "map": ("map_write", 3, 100, 50),
}
OWNERS, USERS = (0, OWNER, MEMBER), (0, OWNER, MEMBER, STRANGER)
HOW = (0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, None)
"""Flags of a rename; None is a link."""
TABLES: dict[str, tuple[Callable[[bytes, tuple[Any, ...]], Case], list[Column]]] = {
    "one path": (one_path, [DIRECTORIES, KINDS, OWNERS, MODES, USERS, ACTS]),
    "two paths": (
        two_paths,
        [DIRECTORIES, KINDS, OWNERS, [None, *DIRECTORIES], KINDS, OWNERS, USERS, HOW],
    ),
    "open before": (open_before, [OWNERS, MODES, USERS, list(OPEN_ACTS)]),
}


def compare(mount: Mount, disk: Path, table: str, count: int, seed: int) -> list[str]:
    """What differs."""
    build, columns = TABLES[table]
    chance = Random(seed)
    found = []
    for start in range(0, count, BATCH):
        setup: list[Call] = []
        acts = []
        for number in range(min(BATCH, count - start)):
            prefix = b"c%d/" % number
            before, act = build(prefix, tuple(chance.choice(column) for column in columns))
            setup += [Call("mkdir", (prefix, 0o755)), *before]
            acts.append(act)
        twins = Twins(mount, disk, f"{table}-{start}", ("--real-owner",))
        try:
            twins.do_all(setup, acts)
            twins.check()
        except Difference as error:
            cases = set(re.findall(r"b'(c\d+/)", str(error)))
            calls = [str(call) for call in [*setup, *acts] if any(f"b'{case}" in str(call) for case in cases)]
            found.append("\n  ".join([str(error), *calls]))
        finally:
            twins.close()
    return found


@root_only
def test_some_of_each(mounts: Mounts, disk: Path) -> None:
    mount = mounts("mnt").mount("--real-owner")
    for table in TABLES:
        assert compare(mount, disk, table, 12, 1) == []
    assert mount.log_lines() == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@root_only
@pytest.mark.parametrize("table", TABLES)
def test_thousands(mounts: Mounts, disk: Path, table: str) -> None:
    mount = mounts("mnt").mount("--real-owner")
    assert compare(mount, disk, table, 4000, 2) == []
    assert mount.log_lines() == []
