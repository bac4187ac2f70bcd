"""The socket by which commands ask the daemon that serves a mount: one JSON line there, one back.

| request | answer |
|---|---|
| `{"op": "info"}` | what is mounted and how much is uncommitted |
| `{"op": "refresh"}` | `{}`, once the mount shows all heads as they are |
| `{"op": "status", "repo", "branch"}` | see `status_json` |
| `{"op": "commit", "repo", "branch", "message", "paths", "author"}` | `{"commit": id or null, "unversioned": [paths]}` |
| `{"op": "discard", "repo", "branch", "paths"}` | `{}` |
| `{"op": "resolve", "repo", "branch", "paths", "how": mine, theirs or both}` | `{"settled": [paths], "open": how many are not}` |

What names a branch may name one of its private worktrees: `"worktree"`.

An error is `{"error": {"kind", "message", "hint", "paths"}}`. The socket lies in the store's `run/`, which only its owner can enter.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

import trio

from pfsmount.errors import Busy, InvalidInput, PfsError
from pfsmount.fs.answers import Answer, Request, error_json, short_path, status_json
from pfsmount.fs.filesystem import Branch, Filesystem
from pfsmount.fs.records import MountRecord
from pfsmount.fs.turning import in_thread
from pfsmount.ids import RepoPath, display, parse_path, path_bytes
from pfsmount.repo.overlay_nodes import ReadOnly
from pfsmount.tree.merge import Resolution

log = logging.getLogger(__name__)
_LINE_MAX = 1 << 20
_FIELDS = {
    "info": (),
    "refresh": (),
    "status": ("repo", "branch"),
    "commit": ("repo", "branch", "message"),
    "discard": ("repo", "branch"),
    "resolve": ("repo", "branch", "how"),
}
"""What each request must have, all strings."""


class ControlServer:
    """Answers requests of one mount."""

    def __init__(self, filesystem: Filesystem, record: MountRecord) -> None:
        self._fs = filesystem
        self._record = record

    async def serve(self, path: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen at `path` until cancelled; started once it can be connected to."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            with short_path(path) as name:
                listener.bind(name)
            os.chmod(path, 0o600)
            listener.listen(64)
            task_status.started()
            await trio.serve_listeners(self._handle, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])

    async def _handle(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                answer = await self._answer(await _receive_line(stream))
                await stream.send_all(json.dumps(answer).encode("ascii") + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever asked is gone; what was asked for is done all the same

    async def _answer(self, line: bytes) -> Answer:
        try:
            return await self._dispatch(request_of(line))
        except PfsError as error:
            return error_json(error)
        except OSError as error:
            return error_json(PfsError(f"the mount could not do it: {error}"))
        except Exception as error:  # one request must not end the daemon
            log.exception("a request on the control socket failed")
            return error_json(
                PfsError(f"something unforeseen went wrong in the mount: {error!r}", hint=self._record.log)
            )

    async def _dispatch(self, request: Request) -> Answer:
        op = request["op"]
        if op == "info":
            return await self._info()
        if op == "refresh":
            await self._fs.follow()
            return {}
        if op not in _FIELDS:
            raise InvalidInput(
                f"the mount does not know the request '{display(op)}'", hint="unmount and mount again after an upgrade"
            )
        branch = await self._fs.branch(request["repo"], request["branch"], request.get("worktree", ""))
        if op == "status":
            return status_json(await branch.status())
        if op == "commit":
            return await self._commit(branch, request)
        if op == "discard":
            await branch.turning.discard(_paths(request))
            return {}
        settled, left = await branch.turning.resolve(Resolution(request["how"]), _paths(request))
        return {"settled": [os.fsdecode(path_bytes(path)) for path in settled], "open": left}

    async def _commit(self, branch: Branch, request: Request) -> Answer:
        try:
            result = await branch.turning.commit(request["message"], _paths(request), request.get("author"))
        except ReadOnly as error:
            raise Busy(error.message, hint=error.hint) from None
        return {
            "commit": None if result.commit is None else result.commit.id.hex(),
            "unversioned": [os.fsdecode(path_bytes(path)) for path in result.unversioned],
        }

    async def _info(self) -> Answer:
        uncommitted = {}
        for branch in self._fs.opened_branches():
            if branch.worktree.owned and not branch.worktree.is_clean:
                size = await in_thread(branch.worktree.data.bytes_on_disk)
                uncommitted[branch.title] = {"changes": branch.worktree.count_changes(), "bytes": size}
        return {**self._record.as_json(), "uncommitted": uncommitted}


def request_of(line: bytes) -> Request:
    """A request whose fields are of the right kinds: what goes wrong afterwards is no fault of who asked. Raises InvalidInput."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    good = isinstance(request, dict) and isinstance(request.get("op"), str)
    if good:
        paths, author, worktree = request.get("paths"), request.get("author"), request.get("worktree", "")
        texts = [request.get(name) for name in _FIELDS.get(request["op"], ())]
        texts += [worktree] if author is None else [worktree, author]
        good = (
            isinstance(paths, list | None)
            and all(_is_text(text) for text in (*texts, *(paths or ())))
            and request.get("how", "mine") in [how.value for how in Resolution]
        )
    if not good:
        raise InvalidInput(
            f"the mount does not understand the request: {display(line[:200])}",
            hint="unmount and mount again after an upgrade",
        )
    return request  # type: ignore[no-any-return]


def _is_text(value: object) -> bool:
    """Whether it is a text that stands for bytes: half a surrogate pair does not."""
    try:
        return isinstance(value, str) and os.fsencode(value) is not None
    except UnicodeEncodeError:
        return False


def _paths(request: Request) -> list[RepoPath] | None:
    paths = request.get("paths")
    return None if paths is None else [parse_path(path) for path in paths]


async def _receive_line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        block = await stream.receive_some(65536)
        line += block
        if not block or len(line) > _LINE_MAX:
            break
    return bytes(line)
