"""Symlinks inside one tree: where they lead."""

from __future__ import annotations

from collections.abc import Iterator

from pfsmount.ids import EntryName, RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry, Kind

_LINKS_MAX = 40


def follow_link(objects: Reader, root: Entry, path: RepoPath) -> Iterator[tuple[RepoPath, Entry]]:
    """What the symlink at `path` needs to be followed: each further symlink on the way, and what stands at the end.

    Nothing at all where it leads out of the tree (an absolute target does), to nothing, or in a circle. Raises NotFound, Corrupt when the
    store is damaged.
    """
    passed: dict[RepoPath, Entry] = {}
    followed = 0
    parts = list(path)
    at: list[EntryName] = []
    entries = [root]
    while parts:
        name = parts.pop(0)
        if name == b"..":
            if not at:
                return
            at.pop()
            entries.pop()
            continue
        if not entries[-1].is_directory:
            return
        entry = lookup(objects, entries[-1].id, name)
        if entry is None:
            return
        here = (*at, name)
        if entry.kind is not Kind.SYMLINK:
            at.append(name)
            entries.append(entry)
            continue
        assert entry.target is not None
        followed += 1
        if entry.target.startswith(b"/") or followed > _LINKS_MAX:
            return
        passed[here] = entry
        parts = [EntryName(part) for part in entry.target.split(b"/") if part not in (b"", b".")] + parts
    passed.pop(path, None)
    yield from passed.items()
    yield tuple(at), entries[-1]
