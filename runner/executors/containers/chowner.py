"""The helper of `ownership.py`: root of the containers' user namespace, who changes owners until its stdin ends."""

from __future__ import annotations

import os
import stat

from runner.executors import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    uids, gids = (id_map(name) for name in ("/proc/self/uid_map", "/proc/self/gid_map"))
    while (request := wire.read_one(0)) is not None:
        what, directory, uid, gid = request
        try:
            owner = inside(uids, uid), inside(gids, gid)
            if what == "give":
                os.chown(directory, *owner)
            else:
                take(directory, *owner)
            said = ""
        except (OSError, ValueError) as error:
            said = str(error)
        wire.write_all(1, wire.pack(said))


def id_map(name: str) -> list[tuple[int, int, int]]:
    """First id in here, first id outside, how many."""
    with open(name) as lines:
        return [(int(first), int(outside), int(count)) for first, outside, count in map(str.split, lines)]


def inside(ids: Sequence[tuple[int, int, int]], outside: int) -> int:
    for first, start, count in ids:
        if start <= outside < start + count:
            return first + outside - start
    raise ValueError(f"the id {outside} is not one of the user's (/etc/subuid, /etc/subgid)")


def take(top: bytes, uid: int, gid: int) -> None:
    """Everything gets the owner and keeps its mode, which a change of owner may reduce."""
    todo = [top]
    while todo:
        path = todo.pop()
        info = os.lstat(path)
        if info.st_uid != uid or info.st_gid != gid:
            os.lchown(path, uid, gid)
            if stat.S_ISREG(info.st_mode) and info.st_mode & 0o6000:
                os.chmod(path, stat.S_IMODE(info.st_mode))
        if stat.S_ISDIR(info.st_mode):
            todo.extend(path + b"/" + name for name in os.listdir(path))
