"""Conflicts and merges that wait, for people and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pfsmount.cli import output
from pfsmount.ids import RepoPath, display, path_bytes

if TYPE_CHECKING:
    from pfsmount.repo.conflicts import ConflictSide, LastChange, PathConflict
    from pfsmount.repo.merge import PendingLook

_REASONS = {
    "content": "changed on both sides",
    "added": "added on both sides",
    "kind": "of another kind on each side",
    "deleted": "deleted on one side, changed on the other",
    "attributes": "mode, owner or xattrs set on both sides",
}
_SETTLED = {"mine": "settled: mine", "theirs": "settled: theirs", "both": "settled: both"}


def path_text(path: RepoPath) -> str:
    """A path for JSON; bytes that are not UTF-8 appear as lone surrogates."""
    return os.fsdecode(b"/".join(path))


def print_conflicts(conflicts: Sequence[PathConflict]) -> None:
    """Conflicts with both sides, three lines each."""
    for conflict in conflicts:
        what = _REASONS[conflict.reason.value]
        if conflict.resolution is not None:
            what = _SETTLED[conflict.resolution.value]
        slash = "/" if any(side is not None and side.kind == "dir" for side in (conflict.mine, conflict.theirs)) else ""
        output.say(f"C  {display(path_bytes(conflict.path))}{slash}  ({what})")
        if conflict.resolution is None:
            gone = "not there" if conflict.base is None else "deleted"
            output.say(f"     mine    {_side_text(conflict.mine, conflict.mine_last, gone)}")
            output.say(f"     theirs  {_side_text(conflict.theirs, conflict.theirs_last, gone)}")


def _side_text(side: ConflictSide | None, last: LastChange | None, gone: str) -> str:
    parts = [gone]
    if side is not None:
        parts = [output.human_size(side.size) if side.kind == "file" else side.kind]
        if side.kind != "symlink":  # which has no mode of its own
            parts.append(f"mode {side.mode:04o}")
        parts.append("uncommitted" if side.id is None else side.id.hex()[:12])
    if last is not None:
        when = output.relative_time(last.time_ns)
        parts.append(f"by {display(last.author)}, {when} ({last.commit.hex()[:12]})")
    elif side is not None:
        parts.append(f"modified {output.relative_time(side.mtime_ns)}")
    return ", ".join(parts)


def pending_json(look: PendingLook) -> dict[str, Any]:
    """A merge that waits, as JSON."""
    from pfsmount.repo.conflicts import conflict_json

    return {
        "source": look.source,
        "commit": look.theirs.hex(),
        "who": look.who,
        "time_ns": look.time_ns,
        "open": look.open,
        "conflicts": [conflict_json(conflict) for conflict in look.conflicts],
        "dropped": [path_text(path) for path in look.dropped],
    }


def print_pending(look: PendingLook, target: str) -> None:
    """A merge that waits, for a person."""
    count = f"{look.open:,} of {output.plural(len(look.conflicts), 'conflict')} open"
    since = output.relative_time(look.time_ns)
    output.say(f"merge of {display(look.source)} ({look.theirs.hex()[:12]}) waits, {count}, since {since}:")
    print_conflicts(look.conflicts)
    for path in look.dropped:
        output.say(f"-  {display(path_bytes(path))}  (decided, but a branch moved: it will be dropped)")
    if not look.open:
        output.say(f"all settled: finish it with 'pfs merge {display(look.source)} {target}'")
