"""Repos, branches, tags and job refs as rows of the index, and what each change says in `refs.log`.

| table | key | value |
|---|---|---|
| repos | name | JSON: id (16 hex), description, created_ns, default_branch |
| refs | repo id u64 BE, kind u8 (1 branch, 2 tag, 3 job), name | commit id (zeros: none yet), n of its last move u64 |
| commits | repo id u64 BE, commit id | height u64 |
| worktrees | repo id u64 BE, branch, `+`, name | generation u64, base commit id |
"""

from __future__ import annotations

import enum
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pfsmount.errors import Conflict, Corrupt, InvalidInput, NotFound
from pfsmount.ids import ObjectId, display
from pfsmount.objects.index import Index, Table, Transaction
from pfsmount.objects.segment import FSCK_HINT
from pfsmount.repo.commit import dump_json
from pfsmount.revision import check_repo_name

_REF = struct.Struct("<32sQ")
_WORKTREE = struct.Struct("<Q32s")
_NONE = bytes(32)


class RefKind(enum.IntEnum):
    """The kinds of pointers to commits."""

    BRANCH = 1
    TAG = 2
    JOB = 3


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """A repo as listed."""

    name: str
    id: int
    description: str
    created_ns: int
    default_branch: str

    @property
    def key(self) -> bytes:
        """The repo's id as a key prefix."""
        return self.id.to_bytes(8, "big")

    def encode(self) -> bytes:
        return dump_json(
            {
                "created_ns": self.created_ns,
                "default_branch": self.default_branch,
                "description": self.description,
                "id": f"{self.id:016x}",
            }
        ).encode("ascii")

    @classmethod
    def decode(cls, name: bytes, raw: bytes) -> RepoInfo:
        """Raises Corrupt."""
        try:
            value = json.loads(raw)
            id, created_ns = int(value["id"], 16), value["created_ns"]
            texts = check_repo_name(os.fsdecode(name)), value["description"], value["default_branch"]
            if id >> 64 or type(created_ns) is not int or not all(isinstance(text, str) for text in texts):
                raise ValueError
            return cls(texts[0], id, texts[1], created_ns, texts[2])
        except (ValueError, KeyError, TypeError, RecursionError, InvalidInput):
            text = f"the row of the repo '{os.fsdecode(name)}' in the index is damaged"
            raise Corrupt(text, hint=FSCK_HINT) from None


@dataclass(frozen=True, slots=True)
class RefInfo:
    """A branch, tag or job ref as listed."""

    name: str
    kind: RefKind
    commit: ObjectId | None
    """None: a branch that has no commit yet."""
    n: int
    """Number of its last move in refs.log."""


@dataclass(frozen=True, slots=True)
class WorktreeState:
    """Where a worktree stands: which journal is valid, on top of which commit."""

    generation: int
    base: ObjectId | None


@dataclass(frozen=True, slots=True)
class RefMove:
    """One change of a ref. `new` None deletes it."""

    repo: RepoInfo
    kind: RefKind
    name: str
    new: ObjectId | None
    expected: ObjectId | None = None
    """The commit at which the ref must be; None: it must not exist, or be a branch without commits."""
    create_empty: bool = False
    """With `new` None: make a branch without commits instead of deleting."""


def ref_key(repo: RepoInfo, kind: RefKind, name: str) -> bytes:
    return repo.key + bytes([kind]) + os.fsencode(name)


def get_ref(txn: Transaction, repo: RepoInfo, kind: RefKind, name: str) -> RefInfo | None:
    """One ref, or None."""
    raw = txn.get(Table.REFS, ref_key(repo, kind, name))
    return None if raw is None else _decode_ref(name, kind, raw)


def _decode_ref(name: str, kind: RefKind, raw: bytes) -> RefInfo:
    try:
        commit, n = _REF.unpack(raw)
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError  # it would be a name in the root of a mount
    except (struct.error, ValueError):
        raise Corrupt(
            f"the row of the {kind.name.lower()} '{display(name)}' in the index is damaged", hint=FSCK_HINT
        ) from None
    return RefInfo(name, kind, None if commit == _NONE else ObjectId(commit), n)


def encode_ref(commit: ObjectId | None, n: int) -> bytes:
    """The row of a ref that change `n` moved."""
    return _REF.pack(commit or _NONE, n)


def scan_refs(txn: Transaction, repo: RepoInfo, kind: RefKind) -> Iterator[RefInfo]:
    """All refs of a kind, by name."""
    for name, raw in _ref_rows(txn, repo, kind):
        yield _decode_ref(name, kind, raw)


def _ref_rows(txn: Transaction, repo: RepoInfo, kind: RefKind) -> Iterator[tuple[str, bytes]]:
    prefix = repo.key + bytes([kind])
    for key, raw in txn.scan(Table.REFS, prefix):
        yield os.fsdecode(key[len(prefix) :]), raw


def get_repo(txn: Transaction, name: str) -> RepoInfo:
    """Raises NotFound with the nearest names."""
    raw = txn.get(Table.REPOS, os.fsencode(name)) if name else None
    if raw is None:
        import difflib

        names = [os.fsdecode(key) for key, _ in txn.scan(Table.REPOS)]
        near = difflib.get_close_matches(name, names, 1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"'pfs repo list' shows what there is, 'pfs reflog {name}' what there was"
        )
        raise NotFound(f"there is no repo '{name}'", hint=hint)
    return RepoInfo.decode(os.fsencode(name), raw)


def readable_repos(index: Index, damaged: Callable[[str, Corrupt], object]) -> list[RepoInfo]:
    """All repos by name, but for those whose rows cannot be read: `damaged` is called with the name of each, and why."""
    found = []
    with index.read() as txn:
        for name, raw in txn.scan(Table.REPOS):
            try:
                found.append(RepoInfo.decode(name, raw))
            except Corrupt as error:
                damaged(os.fsdecode(name), error)
    return found


def readable_refs(
    index: Index, kind: RefKind, damaged: Callable[[str, Corrupt], object]
) -> list[tuple[RepoInfo, RefInfo]]:
    """All refs of a kind in all repos, by name, but for those whose rows cannot be read: `damaged` is called with the name of each repo or ref, and why."""
    found = []
    for repo in readable_repos(index, damaged):
        with index.read() as txn:
            for name, raw in _ref_rows(txn, repo, kind):
                try:
                    found.append((repo, _decode_ref(name, kind, raw)))
                except Corrupt as error:
                    damaged(f"{repo.name}@{name}", error)
    return found


def move_ref(txn: Transaction, move: RefMove, *, who: str, why: str, time_ns: int) -> None:
    """Carry out a move and number it in the reflog. Raises Conflict when the ref is not where it must be."""
    current = get_ref(txn, move.repo, move.kind, move.name)
    at = None if current is None else current.commit
    if at != move.expected:
        raise Conflict(
            f"{move.repo.name}@{move.name} moved while this was prepared: it is at {_short(at)}, "
            f"not at {_short(move.expected)}; nothing was changed",
            hint="run the command again",
        )
    n = log_change(
        txn,
        {
            "op": "ref",
            "repo_id": f"{move.repo.id:016x}",
            "kind": move.kind.name.lower(),
            "name": move.name,
            "old": None if at is None else at.hex(),
            "new": None if move.new is None else move.new.hex(),
            **({"empty": True} if move.create_empty else {}),
        },
        who=who,
        why=why,
        time_ns=time_ns,
    )
    key = ref_key(move.repo, move.kind, move.name)
    if move.new is None and not move.create_empty:
        txn.delete(Table.REFS, key)
    else:
        txn.put(Table.REFS, key, encode_ref(move.new, n))


def _short(commit: ObjectId | None) -> str:
    return "no commit" if commit is None else commit.hex()[:12]


def log_change(txn: Transaction, change: Mapping[str, object], *, who: str, why: str, time_ns: int) -> int:
    """Number a change and put it into the reflog table; `reflog.append_missing` writes it to the file."""
    n = txn.increment(b"refs")
    line = dump_json({**change, "n": n, "t": time_ns, "who": who, "why": why})
    txn.put(Table.REFLOG, n.to_bytes(8, "big"), line.encode("ascii"))
    return n


def worktree_key(repo: RepoInfo, branch: str, name: str) -> bytes:
    return repo.key + os.fsencode(branch) + b"+" + os.fsencode(name)


def get_worktree(txn: Transaction, repo: RepoInfo, branch: str, name: str) -> WorktreeState | None:
    """The row of a worktree, or None."""
    raw = txn.get(Table.WORKTREES, worktree_key(repo, branch, name))
    return None if raw is None else WorktreeState(*decode_worktree(raw))


def decode_worktree(raw: bytes) -> tuple[int, ObjectId | None]:
    """Generation and base commit in a row of the table `worktrees`. Raises Corrupt."""
    try:
        generation, base = _WORKTREE.unpack(raw)
    except struct.error:
        raise Corrupt("the row of a worktree in the index is damaged") from None
    return generation, None if base == _NONE else ObjectId(base)


def worktree_bases(txn: Transaction) -> Iterator[tuple[ObjectId, str]]:
    """The commits under all worktrees, with where (repo id, branch and name)."""
    for key, raw in txn.scan(Table.WORKTREES):
        _, base = decode_worktree(raw)
        if base is not None:
            yield base, f"{key[:8].hex()}/{os.fsdecode(key[8:])}"


def put_worktree(txn: Transaction, repo: RepoInfo, branch: str, name: str, state: WorktreeState) -> None:
    """Set the row of a worktree."""
    txn.increment(b"roots")
    value = _WORKTREE.pack(state.generation, state.base or _NONE)
    txn.put(Table.WORKTREES, worktree_key(repo, branch, name), value)


def drop_worktree(txn: Transaction, repo: RepoInfo, branch: str, name: str) -> None:
    """Take the row of a worktree away."""
    txn.increment(b"roots")
    txn.delete(Table.WORKTREES, worktree_key(repo, branch, name))


def private_worktrees(txn: Transaction, repo: RepoInfo) -> Iterator[tuple[str, str]]:
    """Branch and name of the private worktrees of a repo."""
    for key, _ in txn.scan(Table.WORKTREES, repo.key):
        branch, _, name = os.fsdecode(key[len(repo.key) :]).partition("+")
        if name:
            yield branch, name
