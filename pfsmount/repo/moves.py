"""What was done to repos and refs, newest first, read from the index's table of `refs.log`'s lines.

The lines are numbered without a gap, so going back is one look-up a line, in short transactions; most lines are told from their bytes to be
of another ref, and are not parsed. A deleted repo or branch is found by the line that deleted it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pfsmount.errors import Corrupt
from pfsmount.ids import ObjectId
from pfsmount.objects.index import Table
from pfsmount.objects.segment import FSCK_HINT
from pfsmount.repo.commit import dump_json
from pfsmount.repo.reflog import parse_change
from pfsmount.repo.refs import RefInfo, RefKind, RepoInfo
from pfsmount.repo.store import Store

_LINES_AT_ONCE = 2000
_KINDS = {kind.name.lower(): kind for kind in RefKind}


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """One line: a ref moved, or a repo was made, changed or deleted."""

    n: int
    time_ns: int
    who: str
    why: str
    op: str
    """`ref`, `repo-create`, `repo-delete`, `default`."""
    repo: str
    """The name of the repo; its id in hex when nothing tells the name any more."""
    kind: RefKind | None = None
    name: str | None = None
    """The ref; of `default`, the branch."""
    old: ObjectId | None = None
    new: ObjectId | None = None
    made_empty: bool = False
    """A branch without commits was made, or a branch lost its commits; without this, `new` None means deleted."""

    @property
    def deletes(self) -> bool:
        """True when the ref or repo was gone afterwards."""
        return self.op == "repo-delete" or (self.op == "ref" and self.new is None and not self.made_empty)


def logged_changes(
    store: Store, repo: str | None = None, name: str | None = None, kinds: Collection[RefKind] = tuple(RefKind)
) -> Iterator[LoggedChange]:
    """The changes of all repos, of one (deleted ones of that name included), or of one ref of it; newest first, as they are found."""
    wanted = None if name is None else dump_json(name).encode("ascii")
    with store.objects.index.read() as txn:
        names = {
            f"{info.id:016x}": info.name
            for info in (RepoInfo.decode(key, raw) for key, raw in txn.scan(Table.REPOS))
            if repo in (None, info.name)
        }
    needles = [_needle(id) for id in names]
    for raw in _lines(store, store.refs_version()):
        if b'"op":"repo-delete"' in raw or b'"op":"repo-create"' in raw:
            line = _parse(raw)
            if repo not in (None, line["repo"]):
                continue
            names[line["repo_id"]] = line["repo"]
            needles.append(_needle(line["repo_id"]))
            if name is not None:
                continue
        else:
            if wanted is not None and wanted not in raw:
                continue
            if repo is not None and not any(needle in raw for needle in needles):
                continue
            line = _parse(raw)
        change = _change(line, names)
        if change.op == "ref" and (change.kind not in kinds or name not in (None, change.name)):
            continue
        if name is None or change.op == "ref":
            yield change


def _parse(raw: bytes) -> dict[str, Any]:
    line = parse_change(raw)
    if line is None:
        raise Corrupt("the row of a change in the index is damaged", hint=FSCK_HINT)
    return line


def _needle(repo_id: str) -> bytes:
    return f'"repo_id":"{repo_id}"'.encode("ascii")


def _lines(store: Store, last: int) -> Iterator[bytes]:
    """The lines from number `last` down to the oldest that the table has."""
    while last > 0:
        lines = []
        with store.objects.index.read() as txn:
            for n in range(last, max(last - _LINES_AT_ONCE, 0), -1):
                raw = txn.get(Table.REFLOG, n.to_bytes(8, "big"))
                if raw is None:
                    last = 0
                    break
                lines.append(raw)
        yield from lines
        last -= _LINES_AT_ONCE


def _change(line: dict[str, Any], names: dict[str, str]) -> LoggedChange:
    return LoggedChange(
        line["n"],
        line["t"],
        line["who"],
        line["why"],
        line["op"],
        names.get(line["repo_id"], line["repo_id"]),
        _KINDS.get(line.get("kind", "")),
        line.get("name"),
        _id(line.get("old")),
        _id(line.get("new")),
        bool(line.get("empty")),
    )


def _id(text: str | None) -> ObjectId | None:
    return None if text is None else ObjectId(bytes.fromhex(text))


def last_moves(store: Store, repo: str, ref: RefInfo) -> Iterator[LoggedChange]:
    """The moves of a ref that exists, newest first; the first one without a search."""
    raw = store.objects.index.get(Table.REFLOG, ref.n.to_bytes(8, "big"))
    if raw is None:
        return
    info = store.repo(repo)
    first = _change(_parse(raw), {f"{info.id:016x}": repo})
    yield first
    for change in logged_changes(store, repo, ref.name, (ref.kind,)):
        if change.n < ref.n:
            yield change
