"""Where a file came from, read from what commits say.

A job's commit carries its provenance: input commits, command, code, and the job record, in which `written-by/` leads from each result to its
datum and the datum names the input paths. Any other commit says who made it and how. Nothing here is computed from anything but
commits and trees, so it is as durable as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import EntryName, ObjectId, RepoPath, display, parse_path, path_bytes
from pfsmount.objects.reading import Reader
from pfsmount.repo.commit import Commit, parse_root
from pfsmount.repo.store import Store
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import find, lookup, walk
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.xattrs import load_xattrs

DATUM_XATTR = b"user.pfs.datum"
DATUM_FILE = EntryName(b"datum.json")
_DEPTH_MAX = 64


@dataclass(slots=True)
class Lineage:
    """A place in a commit, what made it, and what that was made from."""

    repo: str
    commit: Commit | None
    """The commit that brought this version of the file; None when it is not in the store any more."""
    path: RepoPath
    entry: Entry | None
    branch: str | None = None
    datums: list[DatumInfo] = field(default_factory=list)
    """For results of a job: the datums that wrote it."""
    missing: str | None = None
    """Why the search ended here, when that is not because a person made it."""
    lost: ObjectId | None = None
    """The id of the commit, when it is not in the store any more."""


@dataclass(slots=True)
class DatumInfo:
    """One datum of a job: what it saw and how it ended."""

    key: str
    meta: Mapping[str, Any]
    inputs: list[Lineage] = field(default_factory=list)


def lineage(store: Store, repo: str, commit: Commit, path: RepoPath, *, branch: str | None = None) -> Lineage:
    """Everything that made what is at `path` of a commit, back to what people put. Raises NotFound, Corrupt."""
    entry = find(store.objects, commit.tree, path)
    if entry is None:
        raise NotFound(f"there is no {display(path_bytes(path))} in {repo}@{commit.id.hex()[:12]}")
    return _trace(store, repo, commit, path, entry, branch, 0)


def _trace(
    store: Store, repo: str, commit: Commit, path: RepoPath, entry: Entry, branch: str | None, depth: int
) -> Lineage:
    if depth > _DEPTH_MAX:
        return Lineage(repo, commit, path, entry, branch, missing=f"more than {_DEPTH_MAX} jobs deep")
    made = introduced(store, commit, path, entry)
    node = Lineage(repo, made, path, entry, branch)
    if made.provenance is not None:
        record = _record(made)
        for key in _writers(store, record, path):
            node.datums.append(_datum(store, made, record, key, depth))
    return node


def introduced(store: Store, commit: Commit, path: RepoPath, entry: Entry) -> Commit:
    """The commit that brought the content at `path`: the oldest up to which it has been the same without a break, or a job's on the way there.

    Where a merge took it from another parent than the first, the search goes on there.
    """
    while commit.provenance is None:
        older = next((parent for parent in _parents(store, commit) if _has(store, parent, path, entry)), None)
        if older is None:
            break
        commit = older
    return commit


def _parents(store: Store, commit: Commit) -> Iterator[Commit]:
    return (store.read_commit(id) for id in commit.parents)


def _has(store: Store, commit: Commit, path: RepoPath, entry: Entry) -> bool:
    there = find(store.objects, commit.tree, path)
    return there is not None and there.same_content(entry)


def _record(commit: Commit) -> Entry:
    try:
        return parse_root((commit.provenance or {})["record"])
    except (KeyError, TypeError, ValueError):
        raise Corrupt(f"the provenance of commit {commit.id.hex()[:12]} names no job record") from None


def _writers(store: Store, record: Entry, path: RepoPath) -> list[str]:
    """Keys of the datums that wrote a file, or anything below a directory."""
    entry = find(store.objects, record, parse_path(b"written-by/" + b"/".join(path)))
    if entry is None:
        return []
    keys: dict[str, None] = {}
    for _, found in walk(store.objects, entry):
        if found.kind is Kind.SYMLINK and found.target is not None:
            keys[os.fsdecode(found.target.rpartition(b"/")[2])] = None
        elif found.kind is Kind.FILE:  # several wrote it, one after another
            keys |= dict.fromkeys(os.fsdecode(read_small(store.objects, found)).split())
    return list(keys)


def _datum(store: Store, commit: Commit, record: Entry, key: str, depth: int) -> DatumInfo:
    entry = find(store.objects, record, parse_path(f"datums/{key}"))
    if entry is None:
        raise Corrupt(f"the job record of commit {commit.id.hex()[:12]} has no datum {key[:12]}")
    try:
        info = DatumInfo(key, json.loads(read_datum_json(store.objects, entry) or b"{}"))
        sources: list[dict[str, Any]] = (commit.provenance or {})["inputs"]
        used = [(_source_of(store, sources, one), parse_path(one["path"])) for one in info.meta.get("inputs", ())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Corrupt(f"the record of datum {key[:12]} is damaged") from None
    info.inputs += [_input(store, source, path, depth) for source, path in used]
    return info


def read_datum_json(objects: Reader, directory: Entry) -> bytes:
    """What a job's record says of a datum: the attribute of its directory or, where that would be too long, a file in it; else nothing."""
    raw = load_xattrs(objects, directory).get(DATUM_XATTR)
    if raw is not None or not directory.is_directory:
        return raw or b""
    file = lookup(objects, directory.id, DATUM_FILE)
    return b"" if file is None else read_small(objects, file, limit=file.size)


def _source_of(store: Store, sources: list[dict[str, Any]], used: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a job that a datum's file is of: by its name and, where several have that, by the content. Raises KeyError."""
    named = [source for source in sources if source["name"] == used["name"]]
    if not named:
        raise KeyError(used["name"])
    for source in named[:-1]:
        tree = _tree_of(store, source)
        there = None if tree is None else find(store.objects, tree, parse_path(used["path"]))
        if there is not None and there.content.hex() == used["id"]:
            return source
    return named[-1]


def _tree_of(store: Store, source: Mapping[str, Any]) -> Entry | None:
    try:
        return store.read_commit(ObjectId(bytes.fromhex(source["commit"]))).tree
    except NotFound:
        return None


def _input(store: Store, source: Mapping[str, Any], path: RepoPath, depth: int) -> Lineage:
    repo, branch = source["repo"], source.get("branch")
    id = ObjectId(bytes.fromhex(source["commit"]))
    try:
        commit = store.read_commit(id)
    except NotFound:
        why = "this commit is not in the store any more: what deleted repos and branches had goes with 'pfs gc'"
        return Lineage(repo, None, path, None, branch, missing=why, lost=id)
    entry = find(store.objects, commit.tree, path)
    if entry is None:
        return Lineage(repo, commit, path, None, branch, missing="the path is not in that commit")
    return _trace(store, repo, commit, path, entry, branch, depth + 1)
