"""`.pfs` at the root of a branch: control files for programs that have no command line.

| file | |
|---|---|
| `commit` | a write of at most 64 KiB is one commit with that message; the errno is that write's, the text is in `error` |
| `status` | what is uncommitted, what conflicts, who has the worktree |
| `log` | the last commits, newest first |
| `head` | the id of the branch's head |
| `error` | what the last commit through `commit` said |

A commit has `log` and `head`. readdir of the branch does not list `.pfs`, so cp, tar and rsync --delete pass it by.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from pfsmount.errors import InvalidInput, NotPermitted, PfsError
from pfsmount.fs.listings import Told
from pfsmount.fs.places import ROOT_INO, Encoder, Found, Later, OpenFile, Place, Reading, plain_attributes
from pfsmount.fs.turning import in_thread
from pfsmount.ids import ObjectId
from pfsmount.repo.overlay_nodes import NodeKind, NoEntry
from pfsmount.repo.worktree_status import WorktreeStatus, display_path

if TYPE_CHECKING:
    from pfsmount.repo.store import Store
    from pfsmount.repo.worktree import CommitResult
    from pfsmount.tree.entry import Entry

MESSAGE_MAX = 64 * 1024
LOG_COMMITS = 100
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_NAMES = {b"commit": 2, b"status": 3, b"log": 4, b"head": 5, b"error": 6}
_COMMIT = _NAMES[b"commit"]


History = list[tuple[ObjectId, int, str, str]]
"""Id, time in ns, author and message of commits."""


class Versioned(Protocol):
    """What the control files tell about."""

    @property
    def title(self) -> str: ...

    @property
    def owner(self) -> tuple[int, int]: ...

    @property
    def mode(self) -> int: ...

    async def history(self, count: int) -> History:
        """The newest commits."""

    async def head(self) -> ObjectId | None: ...


class Controlled(Versioned, Protocol):
    """What they act on."""

    async def commit(self, message: str) -> CommitResult: ...

    async def status(self) -> WorktreeStatus: ...


class OfCommit:
    """A commit as the control files tell about it."""

    def __init__(self, store: Store, title: str, commit: ObjectId, root: Entry) -> None:
        self._store, self.title, self._commit = store, title, commit
        self.owner = (root.uid, root.gid)
        self.mode = root.mode

    async def head(self) -> ObjectId | None:
        return self._commit

    async def history(self, count: int) -> History:
        return await newest(self._store, self._commit, count)


async def newest(store: Store, head: ObjectId | None, count: int) -> History:
    """The newest commits up to one."""

    def read() -> History:
        commit = None if head is None else store.read_commit(head)
        return [(c.id, c.time_ns, c.author, c.message) for c in islice(store.history(commit), count)]

    return await in_thread(read)


def status_text(status: WorktreeStatus) -> str:
    """A status for people: one line a path, a letter first."""
    lines = []
    if status.refused is not None:
        lines.append(f"# autocommit was refused: {status.refused}")
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
    """The directory `.pfs` of one branch or commit."""

    def __init__(self, number: int, shown: Versioned, branch: Controlled | None = None) -> None:
        """`branch` is `shown`, where there is something to act on."""
        super().__init__(number)
        self._shown = shown
        self._branch = branch
        self._names = _NAMES if branch is not None else {name: _NAMES[name] for name in (b"log", b"head")}
        self._error = ""

    @property
    def title(self) -> str:
        return f"{self._shown.title}/.pfs"

    @property
    def branch(self) -> Controlled:
        """What is acted on; for a branch."""
        assert self._branch is not None
        return self._branch

    def refuse(self) -> Exception:
        return NotPermitted("the control files cannot be changed, only written to or read")

    def lookup(self, parent: int, name: bytes) -> Found | None:
        """`.` is the directory itself."""
        ino = ROOT_INO if name == b"." else self._names.get(name)
        return None if ino is None else self.found(ino)

    def found(self, ino: int) -> Found:
        mode, kind = 0o444, NodeKind.FILE
        if ino == ROOT_INO:
            mode, kind = 0o555, NodeKind.DIRECTORY
        elif ino == _COMMIT:
            mode = self._shown.mode & 0o222
        now = time.time_ns()
        return Found(self.prefix | ino, plain_attributes(ino, kind, mode, self._shown.owner, 0, now), 0)

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        for name, number in sorted(self._names.items()):
            if name > after:
                yield Told(name, encoder.encode(self.found(number)), None)

    def set_attributes(self, ino: int, values: dict[str, int]) -> Found:
        if ino != ROOT_INO and values.keys() <= {"size", "mtime_ns", "atime_ns"}:
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
        for id, time_ns, author, message in await self._shown.history(LOG_COMMITS):
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 1_000_000_000))
            first = message.partition("\n")[0]
            lines.append(f"{id.hex()} {when} {author} {first}\n")
        return "".join(lines)

    async def _head(self) -> str:
        head = await self._shown.head()
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
