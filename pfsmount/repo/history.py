"""The history of a branch, or of what lies at some paths of it.

A commit is listed when its tree differs from its first parent's at one of the paths: in content, kind, mode, owner, time or xattrs. Both
trees are looked into only where they differ, so a commit costs a look-up or two, whatever the tree's size. A merge is a commit like any
other here: it is listed when it brought a change of the path, and `merged` says where that came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pfsmount.ids import RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.repo.commit import Commit, ancestor_at, first_parents, load_commit
from pfsmount.repo.store import Store
from pfsmount.tree.diff import differs_at
from pfsmount.tree.directory import find
from pfsmount.tree.entry import Entry
from pfsmount.tree.globs import Glob

_OLDER_IN_A_ROW = 100
"""Clocks are not perfect: so many commits in a row must be older than `since` before the search ends."""
_GLOB_SIGNS = frozenset("*?[{(\\")


@dataclass(frozen=True, slots=True)
class Pathspec:
    """Paths that a person means: one path, or what a glob matches from a directory on."""

    path: RepoPath
    """The path, or the directory that the glob starts at."""
    glob: Glob | None = None

    def differs(self, objects: Reader, old: Entry | None, new: Entry) -> bool:
        """Whether two trees differ there, or below. Raises NotFound, Corrupt when the store is damaged."""
        if not differs_at(objects, old, new, self.path):
            return False
        if self.glob is None:
            return True
        before = None if old is None else find(objects, old, self.path)
        return self.glob.differs(objects, before, find(objects, new, self.path))


def is_glob(text: str) -> bool:
    """True for a text that can match something other than itself."""
    return any(sign in _GLOB_SIGNS for sign in text)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which commits of a history are meant; what is None or empty excludes none."""

    paths: Sequence[Pathspec] = ()
    since_ns: int | None = None
    until_ns: int | None = None
    author: re.Pattern[str] | None = None
    message: re.Pattern[str] | None = None


def search_history(store: Store, head: Commit | None, wanted: Wanted) -> Iterator[Commit]:
    """The commit and its first-parent ancestors that are meant, newest first, each as soon as it is found.

    Raises NotFound, Corrupt when the store is damaged.
    """
    older = 0
    for commit in first_parents(store.objects, head):
        if wanted.since_ns is not None:
            older = older + 1 if commit.time_ns < wanted.since_ns else 0
            if older == _OLDER_IN_A_ROW:
                return
        if _is_meant(commit, wanted, older > 0) and _has_change(store.objects, commit, wanted.paths):
            yield commit


def _is_meant(commit: Commit, wanted: Wanted, is_older: bool) -> bool:
    return (
        not is_older
        and (wanted.until_ns is None or commit.time_ns <= wanted.until_ns)
        and (wanted.author is None or wanted.author.search(commit.author) is not None)
        and (wanted.message is None or wanted.message.search(commit.message) is not None)
    )


def _has_change(objects: Reader, commit: Commit, paths: Sequence[Pathspec]) -> bool:
    if not paths:
        return True
    before = load_commit(objects, commit.parents[0]).tree if commit.parents else None
    return any(spec.differs(objects, before, commit.tree) for spec in paths)


def common_ancestor(objects: Reader, one: Commit, other: Commit) -> Commit | None:
    """The last commit that two first-parent chains share, in about log² N reads; None when they share none."""
    low, high = -1, min(one.height, other.height)
    while low < high:
        middle = (low + high + 1) // 2
        if ancestor_at(objects, one, middle).id == ancestor_at(objects, other, middle).id:
            low = middle
        else:
            high = middle - 1
    return None if low < 0 else ancestor_at(objects, one, low)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge brought in: a parent other than the first, and how many commits its own chain has since the two parted."""

    parent: Commit
    commits: int


def merged(objects: Reader, commit: Commit) -> list[Merged]:
    """What a merge brought in; nothing for any other commit."""
    found = []
    for id in commit.parents[1:]:
        parent = load_commit(objects, id)
        base = common_ancestor(objects, load_commit(objects, commit.parents[0]), parent)
        found.append(Merged(parent, parent.height - (-1 if base is None else base.height)))
    return found
