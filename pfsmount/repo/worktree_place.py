"""Where worktrees lie in a store: `worktrees/<repo id>/<branch, percent-encoded>[+name]/`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.refs import RepoInfo

_LEAF_MAX = 255
_BRANCH_MAX = 200


def worktree_path(store: Path, repo: RepoInfo, branch: str, name: str = "") -> Path:
    """Where a worktree lies."""
    leaf = _quoted(branch, _BRANCH_MAX, 150)
    if name:
        leaf += "+" + _quoted(name, _LEAF_MAX - len(leaf) - 1, 20)
    return store / "worktrees" / f"{repo.id:016x}" / leaf


def worktree_paths(store: Path, repo: RepoInfo, branch: str) -> list[Path]:
    """Where all worktrees of a branch lie, as far as they are on disk."""
    first = worktree_path(store, repo, branch)
    if not first.parent.is_dir():
        return []
    return sorted(
        path for path in first.parent.iterdir() if path.name == first.name or path.name.startswith(first.name + "+")
    )


def _quoted(name: str, longest: int, keep: int) -> str:
    """A name percent-encoded; of a longer encoding its beginning, `%-` (which no encoding has) and 32 digits of its hash."""
    quoted = quote(os.fsencode(name), safe="")
    if len(quoted) <= longest:
        return quoted
    return f"{quoted[:keep]}%-{hash_bytes(quoted.encode('ascii')).hex()[:32]}"
