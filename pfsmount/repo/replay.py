"""`refs.log`, line by line, becomes the repos and refs of the index again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pfsmount.ids import ObjectId
from pfsmount.repo.refs import RefKind, RepoInfo, ref_key
from pfsmount.revision import DEFAULT_BRANCH


class Replay:
    """What repos and refs there are after the changes given so far."""

    def __init__(self) -> None:
        self.repos: dict[int, RepoInfo] = {}
        self.refs: dict[bytes, ObjectId | None] = {}
        """Key of the table `refs` → commit; None: a branch without commits."""
        self.moves: dict[bytes, int] = {}
        """Key of the table `refs` → number of its last move."""
        self.commits: set[bytes] = set()
        """Keys of the table `commits`: every commit that a ref of the repo ever named."""
        self.last = 0
        self.gaps = 0
        """How many changes are missing."""

    def apply(self, change: Mapping[str, Any]) -> None:
        """One change. What makes no sense (its repo's line is lost) is left out. It is of the shape that `reflog` checks."""
        n = int(change["n"])
        self.gaps += n != self.last + 1
        self.last = max(n, self.last)
        id = int(change["repo_id"], 16)
        if change["op"] == "repo-create":
            default = change.get("default_branch", DEFAULT_BRANCH)
            self.repos[id] = RepoInfo(change["repo"], id, change["description"], change["t"], default)
        elif change["op"] == "repo-delete":
            self._delete(id)
        elif change["op"] == "default" and id in self.repos:
            self.repos[id] = replace(self.repos[id], default_branch=change["name"])
        elif change["op"] == "ref":
            self._ref(self.repos.get(id) or RepoInfo("", id, "", 0, ""), change, n)

    def _delete(self, id: int) -> None:
        self.repos.pop(id, None)
        prefix = id.to_bytes(8, "big")
        for key in [key for key in self.refs if key.startswith(prefix)]:
            del self.refs[key], self.moves[key]
        self.commits = {key for key in self.commits if not key.startswith(prefix)}

    def _ref(self, repo: RepoInfo, change: Mapping[str, Any], n: int) -> None:
        key = ref_key(repo, RefKind[change["kind"].upper()], change["name"])
        if change["new"] is None and not change.get("empty"):
            self.refs.pop(key, None)
            self.moves.pop(key, None)
            return
        new = None if change["new"] is None else ObjectId(bytes.fromhex(change["new"]))
        self.refs[key] = new
        self.moves[key] = n
        if new is not None:
            self.commits.add(repo.key + new)
