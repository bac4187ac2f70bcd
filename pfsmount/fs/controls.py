"""`.pfs` at the root of a branch: control files for programs that have no command line.

| file | |
|---|---|
| `commit` | a write of at most 64 KiB is one commit with that message; the errno is that write's, the text is in `error` |
| `status` | what is uncommitted, what conflicts, who has the worktree |
| `log` | the last commits, newest first |
| `head` | the id of the branch's head |
| `error` | what the last commit through `commit` said |

readdir of the branch does not list `.pfs`, so cp, tar and rsync --delete pass it by.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from pfsmount.errors import InvalidInput, NotPermitted, PfsError
from pfsmount.fs.places import ROOT_INO, Found, Later, OpenFile, Place, Reading, Step, plain_attributes
from pfsmount.ids import ObjectId
from pfsmount.repo.overlay_nodes import NodeKind, NoEntry
from pfsmount.repo.worktree_status import WorktreeStatus, display_path

if TYPE_CHECKING:
    from pfsmount.repo.worktree import CommitResult

MESSAGE_MAX = 64 * 1024
LOG_COMMITS = 100
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_NAMES = {b"commit": 2, b"status": 3, b"log": 4, b"head": 5, b"error": 6}
_COMMIT = _NAMES[b"commit"]


class Controlled(Protocol):
    """What the control files act on."""

    @property
    def title(self) -> str: ...

    @property
    def owner(self) -> tuple[int, int]: ...

    @property
    def mode(self) -> int: ...

    async def commit(self, message: str) -> CommitResult: ...

    async def status(self) -> WorktreeStatus: ...

    async def history(self, count: int) -> list[tuple[ObjectId, int, str, str]]:
        """Id, time in ns, author and message of the newest commits."""

    async def head(self) -> ObjectId | None: ...


def status_text(status: WorktreeStatus) -> str:
    """A status for people: one line a path, a letter first."""
    lines = []
    if status.owner is not None:
        who = status.owner
        where = f" (mounted at {who['mount']})" if who.get("mount") else ""
        lines.append(
            f"# read-only here: the uncommitted changes are in the hands of process {who.get('pid', '?')}{where}"
        )
    letters = {"new": "A", "modified": "M", "deleted": "D", "attributes": "m", "replaced": "R"}
    for change in status.changes:
        slash = "/" if change.kind == "dir" else ""
        lines.append(f"{letters[change.what]} {display_path(change.path)}{slash}")
    for conflict in status.conflicts:
        settled = "" if conflict.resolution is None else f" (settled: {conflict.resolution.value})"
        lines.append(f"! {display_path(conflict.path)}: changed on the branch too{settled}")
    lines += [f"- {display_path(path)}: not versioned" for path in status.unversioned]
    if status.times:
        lines.append(f"# {status.times} more differ in their time alone, which goes along with the next commit")
    return "".join(f"{line}\n" for line in lines)


class ControlPlace(Place):
    """The directory `.pfs` of one branch."""

    def __init__(self, number: int, controlled: Controlled) -> None:
        super().__init__(number)
        self.branch = controlled
        self._error = ""

    @property
    def title(self) -> str:
        return f"{self.branch.title}/.pfs"

    def refuse(self) -> Exception:
        return NotPermitted("the control files cannot be changed, only written to or read")

    def lookup(self, parent: int, name: bytes) -> Found | None:
        """`.` is the directory itself."""
        ino = ROOT_INO if name == b"." else _NAMES.get(name)
        return None if ino is None else self.found(ino)

    def found(self, ino: int) -> Found:
        mode, kind = 0o444, NodeKind.FILE
        if ino == ROOT_INO:
            mode, kind = 0o555, NodeKind.DIRECTORY
        elif ino == _COMMIT:
            mode = self.branch.mode & 0o222
        now = time.time_ns()
        return Found(self.prefix | ino, plain_attributes(ino, kind, mode, self.branch.owner, 0, now), 0)

    def list(self, ino: int, after: bytes) -> Iterator[Step]:
        for name, number in sorted(_NAMES.items()):
            if name > after:
                yield Step(name, self.found(number), None)

    def set_attributes(self, ino: int, values: dict[str, int], uid: int) -> Found:
        if ino != ROOT_INO and values.keys() <= {"size", "mtime_ns"}:
            return self.found(ino)  # what `>` and touch do before or after writing
        raise self.refuse()

    def open(self, ino: int, flags: int, uid: int) -> OpenFile:
        if ino == ROOT_INO:
            raise NoEntry
        if flags & _WRITE_FLAGS and ino != _COMMIT:
            raise self.refuse()
        if ino == _COMMIT:
            return CommitControl(self)
        return TextControl(self, {3: self._status, 4: self._log, 5: self._head, 6: self._last_error}[ino])

    async def _status(self) -> str:
        return status_text(await self.branch.status())

    async def _log(self) -> str:
        lines = []
        for id, time_ns, author, message in await self.branch.history(LOG_COMMITS):
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 1_000_000_000))
            first = message.partition("\n")[0]
            lines.append(f"{id.hex()} {when} {author} {first}\n")
        return "".join(lines)

    async def _head(self) -> str:
        head = await self.branch.head()
        return "" if head is None else f"{head.hex()}\n"

    async def _last_error(self) -> str:
        return self._error

    def too_long(self, size: int) -> PfsError:
        """The error for a message that is too long, which is in `error` from now on."""
        refused = InvalidInput(f"a message has at most {MESSAGE_MAX:,} bytes, not {size:,}; nothing was committed")
        self._error = f"{refused}\n"
        return refused

    async def commit(self, message: str) -> None:
        """Commit; what went wrong, or that nothing was changed, is in `error`. Raises PfsError."""
        try:
            result = await self.branch.commit(message)
        except PfsError as error:
            self._error = f"{error}\n"
            raise
        except OSError as error:
            self._error = f"the commit failed: {error}\n"
            raise
        self._error = "" if result.commit is not None else "nothing changed\n"


class TextControl(OpenFile):
    """A control file that is read: its text is made at the first read and stays the same for this opening."""

    __slots__ = ("_make", "_text")

    def __init__(self, place: Place, make: Callable[[], Awaitable[str]]) -> None:
        super().__init__(place, direct_io=True, keep_cache=False)
        self._make = make
        self._text: bytes | None = None

    def read_nowait(self, offset: int, size: int) -> bytes | None:
        if self._text is None:
            raise _Make(self._fill)
        return self._text[offset : offset + size]

    def reading(self, offset: int, size: int) -> Reading:
        raise AssertionError("a control file never waits for a thread")

    async def _fill(self) -> None:
        self._text = os.fsencode(await self._make())


class CommitControl(OpenFile):
    """`.pfs/commit`, open."""

    __slots__ = ("_done", "_message")

    def __init__(self, place: ControlPlace) -> None:
        super().__init__(place, direct_io=True, keep_cache=False)
        self._message: bytes | None = None
        self._done = False

    def read_nowait(self, offset: int, size: int) -> bytes | None:
        return b""

    def write(self, offset: int, data: bytes) -> int:
        if self._done:
            self._done = False
            return len(data)
        if len(data) > MESSAGE_MAX:
            assert isinstance(self.place, ControlPlace)
            raise self.place.too_long(len(data))
        self._message = data
        raise _Make(self._commit)

    async def _commit(self) -> None:
        assert isinstance(self.place, ControlPlace)
        message = os.fsdecode(self._message or b"").strip()
        await self.place.commit(message)
        self._done = True


class _Make(Later):
    """Something that takes its time, after which the request is answered."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def wait(self) -> None:
        await self._work()
