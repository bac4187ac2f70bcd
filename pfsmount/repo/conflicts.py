"""Conflicts as people see them: one path, why it is one, and what each side has there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId, RepoPath, display, parse_object_id, parse_path, path_bytes
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.reading import Reader
from pfsmount.repo.commit import Commit, load_commit
from pfsmount.tree.directory import find
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.merge import Reason, Resolution, TreeConflict

_WORDS = {Kind.FILE: "file", Kind.DIRECTORY: "dir", Kind.SYMLINK: "symlink"}
_WALK_MAX = 10_000
"""Commits that are looked at to find who changed a path last."""


@dataclass(frozen=True, slots=True)
class ConflictSide:
    """What one side has at a path."""

    kind: str
    """file, dir, symlink, fifo or socket."""
    size: int
    """Bytes; of a directory all below, as far as it is known."""
    mode: int
    mtime_ns: int
    id: ObjectId | None
    """Of the content; None for what is uncommitted."""


@dataclass(frozen=True, slots=True)
class LastChange:
    """The commit that changed a path last."""

    commit: ObjectId
    author: str
    time_ns: int

    @classmethod
    def of(cls, commit: Commit) -> LastChange:
        return cls(commit.id, commit.author, commit.time_ns)


@dataclass(frozen=True, slots=True)
class PathConflict:
    """One conflict. A side that is None has nothing there."""

    path: RepoPath
    reason: Reason
    base: ConflictSide | None
    mine: ConflictSide | None
    theirs: ConflictSide | None
    resolution: Resolution | None = None
    """What was decided, while others are still open."""
    mine_last: LastChange | None = None
    """None: uncommitted, or not looked for."""
    theirs_last: LastChange | None = None


def side_of(entry: Entry | None) -> ConflictSide | None:
    """What a tree has."""
    if entry is None:
        return None
    return ConflictSide(_WORDS[entry.kind], entry.size, entry.mode, entry.mtime_ns, entry.content)


def path_conflict(conflict: TreeConflict, resolution: Resolution | None = None) -> PathConflict:
    """A conflict of two trees."""
    sides = (side_of(conflict.base), side_of(conflict.mine), side_of(conflict.theirs))
    return PathConflict(conflict.path, conflict.reason, *sides, resolution)


def fingerprint(path: RepoPath, reason: Reason, *sides: Entry | ConflictSide | None) -> str:
    """What a decision is about: it fits as long as this stays the same."""
    parts: list[object] = [path, reason.value]
    for side in sides:
        if side is None:
            parts.append(None)
            continue
        content = None if reason is Reason.ATTRIBUTES else side.id
        if isinstance(side, Entry):
            parts.append((int(side.kind), content, side.mode, side.uid, side.gid, side.xattrs, side.xattrs_id))
        else:
            parts.append((side.kind, side.size, content, side.mode, side.mtime_ns))
    return hash_bytes(repr(parts).encode("ascii")).hex()[:32]


def select(conflicts: Iterable[RepoPath], paths: Collection[RepoPath] | None, title: str) -> list[RepoPath]:
    """The conflicts at and below `paths` (None: all). Raises NotFound for a path that is no conflict and has none below."""
    conflicts = list(conflicts)
    if paths is None:
        return conflicts
    chosen = []
    for path in paths:
        below = [conflict for conflict in conflicts if conflict[: len(path)] == path]
        if not below:
            shown = ", ".join(display(path_bytes(conflict)) for conflict in conflicts[:5])
            raise NotFound(
                f"'{display(path_bytes(path))}' of {title} is not in conflict; nothing was settled",
                hint=f"in conflict: {shown}{' …' if len(conflicts) > 5 else ''}" if conflicts else None,
            )
        chosen += below
    return list(dict.fromkeys(chosen))


def last_changes(objects: Reader, head: Commit | None, paths: Sequence[RepoPath]) -> dict[RepoPath, LastChange]:
    """For each path the newest commit that changed it, as far as it is among the last 10 000."""
    found: dict[RepoPath, LastChange] = {}
    todo = [] if head is None else [(head, {path: find(objects, head.tree, path) for path in paths})]
    steps = 0
    while todo:
        commit, wanted = todo.pop()
        while wanted and steps < _WALK_MAX:
            steps += 1
            parents = [load_commit(objects, parent) for parent in commit.parents]
            if not parents or parents[0].tree.id != commit.tree.id:
                for path, entry in list(wanted.items()):
                    same = [parent for parent in parents if find(objects, parent.tree, path) == entry]
                    if parents and same[:1] == parents[:1]:
                        continue
                    del wanted[path]
                    if same:  # it came with a merge
                        todo.append((same[0], {path: entry}))
                    else:
                        found[path] = LastChange.of(commit)
            if not parents:
                break
            commit = parents[0]
    return found


# JSON, for the control socket and for `--json`


def conflict_json(conflict: PathConflict) -> dict[str, Any]:
    """A conflict as JSON. Paths are text with surrogateescape."""
    return {
        "path": os.fsdecode(b"/".join(conflict.path)),
        "reason": conflict.reason.value,
        "base": _side_json(conflict.base),
        "mine": _side_json(conflict.mine),
        "theirs": _side_json(conflict.theirs),
        "resolution": None if conflict.resolution is None else conflict.resolution.value,
        "last": {"mine": _last_json(conflict.mine_last), "theirs": _last_json(conflict.theirs_last)},
    }


def _side_json(side: ConflictSide | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {
        "kind": side.kind,
        "size": side.size,
        "mode": f"{side.mode:04o}",
        "mtime_ns": side.mtime_ns,
        "id": None if side.id is None else side.id.hex(),
    }


def _last_json(last: LastChange | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {"commit": last.commit.hex(), "author": last.author, "time_ns": last.time_ns}


def conflict_of(value: dict[str, Any]) -> PathConflict:
    """The reverse of `conflict_json`. Raises KeyError, TypeError, ValueError."""
    how, last = value["resolution"], value["last"]
    return PathConflict(
        parse_path(value["path"]),
        Reason(value["reason"]),
        _side_of(value["base"]),
        _side_of(value["mine"]),
        _side_of(value["theirs"]),
        None if how is None else Resolution(how),
        _last_of(last["mine"]),
        _last_of(last["theirs"]),
    )


def _side_of(value: dict[str, Any] | None) -> ConflictSide | None:
    if value is None:
        return None
    id = value["id"]
    return ConflictSide(
        value["kind"],
        value["size"],
        int(value["mode"], 8),
        value["mtime_ns"],
        None if id is None else parse_object_id(id),
    )


def _last_of(value: dict[str, Any] | None) -> LastChange | None:
    return None if value is None else LastChange(parse_object_id(value["commit"]), value["author"], value["time_ns"])
