"""A hand on a worktree: what several tests do to its files."""

from __future__ import annotations

from pfsmount.ids import EntryName, RepoPath
from pfsmount.repo.overlay_nodes import Node, NodeKind
from pfsmount.repo.worktree import Worktree


def path(text: str) -> RepoPath:
    return tuple(EntryName(part) for part in text.encode().split(b"/") if part)


def at(worktree: Worktree, text: str) -> Node:
    node = worktree.find(path(text))
    assert node is not None, text
    return node


def put(worktree: Worktree, text: str, data: bytes) -> Node:
    """Write a file, making what is missing."""
    directory = worktree.root
    *above, name = path(text)
    for part in above:
        directory = worktree.lookup(directory, part) or worktree.make(
            directory, part, NodeKind.DIRECTORY, mode=0o755, uid=0, gid=0
        )
    node = worktree.lookup(directory, name)
    if node is None:
        node = worktree.make(directory, name, NodeKind.FILE, mode=0o644, uid=0, gid=0)
    worktree.truncate(node, 0)
    worktree.write(node, 0, data)
    return node
