"""Commits: their encoding, and moving along the first-parent chain.

A commit is ASCII JSON with sorted keys and no blanks; its id is the hash of these bytes. Keys: `v`, `tree`, `parents`, `height`, `jump`,
`message`, `author`, `time_ns`, `origin`, `provenance` (docs/FORMAT.md). Names that are not UTF-8 stand as lone surrogates, which JSON's
`\\udcXX` carries, so any bytes survive.

`jump` makes the N-th ancestor a matter of log N reads (skew-binary jump pointers, after Myers, "An applicative random-access
stack", 1983): with parent p and j = jump(p), it is jump(j) when height(p) - height(j) = height(j) - height(jump(j)), else p.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.reading import Reader, get_as
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.entry import SIZE_MAX, XATTRS_INLINE_MAX, Entry, Kind

_VERSION = 1
_SOURCE = ("name", "repo", "branch", "glob")
_NS = 1_000_000_000
_U32_MAX, _I64_MAX = (1 << 32) - 1, (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Commit:
    """An immutable version of a repo."""

    id: ObjectId
    tree: Entry
    """The root directory with its attributes."""
    parents: tuple[ObjectId, ...]
    """The first is the one that `~` follows."""
    height: int
    """Commits before it on the first-parent chain."""
    jump: ObjectId | None
    message: str
    author: str
    time_ns: int
    """Unix time in nanoseconds."""
    origin: Mapping[str, Any]
    """How it came about: `how` (put, mount, job, cp, rm …) and what goes with that."""
    provenance: Mapping[str, Any] | None = None
    """What a job ran, on what; None for what a person did."""


def dump_json(value: Any) -> str:
    """The one JSON encoding of the format: ASCII, sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def dump_root(entry: Entry) -> dict[str, Any]:
    """A directory's entry as it stands in JSON."""
    seconds, ns = divmod(entry.mtime_ns, _NS)
    assert entry.content_id is not None
    root: dict[str, Any] = {
        "content": entry.content_id.hex(),
        "files": entry.files,
        "gid": entry.gid,
        "id": entry.id.hex(),
        "mode": entry.mode,
        "mtime": [seconds, ns],
        "size": entry.size,
        "uid": entry.uid,
    }
    if entry.xattrs:
        root["xattrs"] = base64.b64encode(entry.xattrs).decode("ascii")
    if entry.xattrs_id is not None:
        root["xattrs_id"] = entry.xattrs_id.hex()
    return root


def parse_root(root: Mapping[str, Any]) -> Entry:
    """The reverse of `dump_root`: numbers are in the ranges that an entry of a node can hold. Raises KeyError, TypeError, ValueError."""
    seconds, ns = root["mtime"]
    xattrs_id = root.get("xattrs_id")
    xattrs = base64.b64decode(root.get("xattrs", ""), validate=True)
    if len(xattrs) > XATTRS_INLINE_MAX or (xattrs and xattrs_id is not None):
        raise ValueError("attributes that no entry has")
    return Entry(
        Kind.DIRECTORY,
        number_in(root["mode"], 0, 0o7777),
        number_in(root["uid"], 0, _U32_MAX),
        number_in(root["gid"], 0, _U32_MAX),
        number_in(seconds, -_I64_MAX - 1, _I64_MAX) * _NS + number_in(ns, 0, _NS - 1),
        number_in(root["size"], 0, SIZE_MAX),
        _id(root["id"]),
        _id(root["content"]),
        number_in(root["files"], 0, _I64_MAX),
        None,
        xattrs,
        None if xattrs_id is None else _id(xattrs_id),
    )


def number_in(value: object, least: int, most: int) -> int:
    """A whole number from JSON, when it lies in a range. Raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError("not a number of the range that it must have")
    return value


def _id(text: str) -> ObjectId:
    raw = bytes.fromhex(text)
    if len(raw) != 32:
        raise ValueError("an id has 32 bytes")
    return ObjectId(raw)


def encode_commit(
    *,
    tree: Entry,
    parents: tuple[ObjectId, ...],
    height: int,
    jump: ObjectId | None,
    message: str,
    author: str,
    time_ns: int,
    origin: Mapping[str, Any],
    provenance: Mapping[str, Any] | None,
) -> bytes:
    """The bytes of a commit."""
    value = {
        "author": author,
        "height": height,
        "jump": None if jump is None else jump.hex(),
        "message": message,
        "origin": dict(origin),
        "parents": [parent.hex() for parent in parents],
        "provenance": None if provenance is None else dict(provenance),
        "time_ns": time_ns,
        "tree": dump_root(tree),
        "v": _VERSION,
    }
    return dump_json(value).encode("ascii")


def decode_commit(raw: bytes) -> Commit:
    """The commit with these bytes. Raises Corrupt."""
    try:
        value = json.loads(raw)
        if value["v"] != _VERSION:
            raise Corrupt(f"a commit has version {value['v']}, which this pfs does not know")
        jump, origin, provenance = value["jump"], value["origin"], value["provenance"]
        if not isinstance(origin, dict) or not (provenance is None or _is_provenance(provenance)):
            raise ValueError
        if not isinstance(value["message"], str) or not isinstance(value["author"], str):
            raise ValueError
        return Commit(
            hash_bytes(raw, HashKind.COMMIT),
            parse_root(value["tree"]),
            tuple(_id(parent) for parent in value["parents"]),
            number_in(value["height"], 0, _I64_MAX),
            None if jump is None else _id(jump),
            value["message"],
            value["author"],
            number_in(value["time_ns"], -_I64_MAX - 1, _I64_MAX),
            origin,
            provenance,
        )
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Corrupt("a commit is damaged") from None


def _is_provenance(value: Any) -> bool:
    """Whether what a commit says of a job has what everybody reads of it. Raises KeyError, TypeError, ValueError, AttributeError for some that has not."""
    spec, code = value.get("spec") or {"inputs": []}, value.get("code") or {}
    texts = [value["job"], *value.get("command", ()), *(code[key] for key in ("executor", "program") if key in code)]
    for source in value["inputs"]:
        _id(source["commit"])
        texts += [of for key, of in source.items() if key in _SOURCE]
    for source in spec.get("inputs", ()):
        texts += [source[key] for key in _SOURCE]
    if "output" in spec:
        texts += [spec["output"]["repo"], spec["output"]["branch"]]
    if value.get("record") is not None:
        parse_root(value["record"])
    return all(isinstance(text, str) for text in texts) and isinstance(value["inputs"], list)


def load_commit(objects: Reader, id: ObjectId) -> Commit:
    """Read, verify and decode a commit, or take it from the cache. Raises NotFound, Corrupt."""
    commit = objects.decoded.get(id)
    if commit is None:
        commit = decode_commit(get_as(objects, id, RecordKind.COMMIT))
        objects.decoded.put(id, commit)
    if not isinstance(commit, Commit):
        raise Corrupt(f"{id.hex()} is no commit, where one should be")
    return commit


def chain_position(objects: Reader, parent: ObjectId | None) -> tuple[int, ObjectId | None]:
    """Height and jump of a new commit on top of `parent`."""
    if parent is None:
        return 0, None
    above = load_commit(objects, parent)
    jump = above if above.jump is None else load_commit(objects, above.jump)
    far = jump if jump.jump is None else load_commit(objects, jump.jump)
    if above.height - jump.height == jump.height - far.height:
        return above.height + 1, far.id
    return above.height + 1, above.id


def ancestor_at(objects: Reader, commit: Commit, height: int) -> Commit:
    """The commit at `height` of the first-parent chain that ends in `commit`, in about 2·log2 reads.

    Raises NotFound when the chain does not go there.
    """
    if not 0 <= height <= commit.height:
        raise NotFound(f"the history of {commit.id.hex()[:12]} has {commit.height + 1} commits")
    while commit.height > height:
        jump = None if commit.jump is None else load_commit(objects, commit.jump)
        if jump is not None and jump.height >= height:
            commit = jump
        elif commit.parents:
            commit = load_commit(objects, commit.parents[0])
        else:
            raise Corrupt(f"the commit {commit.id.hex()[:12]} says that {commit.height} are before it, and names none")
    return commit


def first_parents(objects: Reader, commit: Commit | None) -> Iterator[Commit]:
    """The commit and its first-parent ancestors, newest first."""
    while commit is not None:
        yield commit
        commit = load_commit(objects, commit.parents[0]) if commit.parents else None
