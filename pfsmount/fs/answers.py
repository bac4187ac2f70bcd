"""Requests and answers of the control socket, as both ends see them: see `fs.server` for what there is to ask."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pfsmount.errors as errors
from pfsmount.errors import Conflict, Corrupt, InvalidInput, PfsError
from pfsmount.ids import RepoPath, parse_object_id, parse_path, path_bytes
from pfsmount.repo.conflicts import conflict_json, conflict_of
from pfsmount.repo.worktree_status import WorktreeChange, WorktreeStatus
from pfsmount.tree.entry import decode_entry

Request = dict[str, Any]
Answer = dict[str, Any]


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of its address, however deep the directory is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def status_json(status: WorktreeStatus) -> Answer:
    """A status as an answer. Paths are text with surrogateescape."""
    return {
        "repo": status.repo,
        "branch": status.branch,
        "name": status.name,
        "base": None if status.base is None else status.base.hex(),
        "head": None if status.head is None else status.head.hex(),
        "changes": [_change_json(change) for change in status.changes],
        "unversioned": [_path_text(path) for path in status.unversioned],
        "conflicts": [conflict_json(conflict) for conflict in status.conflicts],
        "owner": status.owner,
        "times": status.times,
        "refused": status.refused,
    }


def _change_json(change: WorktreeChange) -> Answer:
    old = None
    if change.old is not None:
        fixed, extra = change.old.encode()
        old = [fixed.hex(), extra.hex()]
    return {
        "path": _path_text(change.path),
        "what": change.what,
        "kind": change.kind,
        "size": change.size,
        "files": change.files,
        "old": old,
    }


def status_of(answer: Answer) -> WorktreeStatus:
    """The status in an answer. Raises ConnectionError for what is none."""
    try:
        return _status_of(answer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, Corrupt, InvalidInput):
        raise ConnectionError("the mount answered a status that makes no sense") from None


def _status_of(answer: Answer) -> WorktreeStatus:
    return WorktreeStatus(
        answer["repo"],
        answer["branch"],
        answer["name"],
        None if answer["base"] is None else parse_object_id(answer["base"]),
        None if answer["head"] is None else parse_object_id(answer["head"]),
        tuple(_change_of(change) for change in answer["changes"]),
        tuple(parse_path(path) for path in answer["unversioned"]),
        tuple(conflict_of(conflict) for conflict in answer["conflicts"]),
        answer["owner"],
        answer["times"],
        answer.get("refused"),
    )


def _change_of(answer: Answer) -> WorktreeChange:
    old = answer["old"]
    return WorktreeChange(
        parse_path(answer["path"]),
        answer["what"],
        answer["kind"],
        answer["size"],
        answer["files"],
        None if old is None else decode_entry(bytes.fromhex(old[0]), bytes.fromhex(old[1])),
    )


def _path_text(path: RepoPath) -> str:
    return os.fsdecode(path_bytes(path))


def error_json(error: PfsError) -> Answer:
    """An error as an answer."""
    paths = [os.fsdecode(path) for path in error.paths] if isinstance(error, Conflict) else []
    kind = type(error)
    while kind.__module__ != errors.__name__:
        kind = kind.__mro__[1]
    return {"error": {"kind": kind.__name__, "message": error.message, "hint": error.hint, "paths": paths}}


def answer_of(line: bytes) -> Answer:
    """What a mount answered. Raises the error that it answered; ConnectionError for what is no answer."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ConnectionError("the mount answered something that is no answer")
    if "error" in answer:
        raise error_of(answer)
    return answer


def error_of(answer: Answer) -> PfsError:
    """The error in an answer."""
    try:
        error = answer["error"]
        kind, message, hint = getattr(errors, error["kind"], PfsError), str(error["message"]), error["hint"]
        if not isinstance(kind, type) or not issubclass(kind, PfsError) or not isinstance(hint, str | None):
            kind, hint = PfsError, None
        if kind is Conflict:
            return Conflict(message, hint=hint, paths=tuple(os.fsencode(path) for path in error["paths"]))
        return kind(message, hint=hint)
    except (KeyError, TypeError, ValueError, AttributeError):
        return PfsError("the mount answered with an error that makes no sense")
