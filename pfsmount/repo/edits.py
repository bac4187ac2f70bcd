"""Changes of a branch that need no data: copy by reference, remove."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pfsmount.errors import IsADirectory, NotFound
from pfsmount.ids import RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch, again_if_collected
from pfsmount.repo.commit import Commit
from pfsmount.repo.ingest import Placement, commit_edit, place_all
from pfsmount.repo.store import Store
from pfsmount.tree.directory import find
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind


@dataclass(frozen=True, slots=True)
class Source:
    """What is copied: how the user named it, its own name (empty for a root), and the entry."""

    text: str
    name: RepoPath
    entry: Entry


def copy(
    store: Store,
    sources: Sequence[Source],
    repo: str,
    branch: str,
    target: RepoPath,
    *,
    into: bool,
    message: str,
) -> Commit | None:
    """Copy entries by reference into a branch, in one commit; None when nothing changed.

    One directory becomes the target itself; files, and several sources, go into a directory. Raises IsADirectory, NotADirectory,
    NotPermitted.
    """
    several = len(sources) > 1
    placements = [
        Placement(
            source.entry,
            source.name[0] if source.name and (several or source.entry.kind is not Kind.DIRECTORY) else None,
        )
        for source in sources
    ]
    origin: dict[str, object] = {"how": "cp", "sources": [source.text for source in sources[:100]]}

    def work() -> Commit | None:
        with store.objects.batch() as batch:

            def edit(root: Entry) -> Entry:
                return place_all(batch, root, target, placements, into=into or several, delete=False)

            return commit_edit(store, batch, repo, branch, edit, message=message, origin=origin)

    return again_if_collected(work)


def remove(
    store: Store,
    repo: str,
    branch: str,
    paths: Sequence[RepoPath],
    *,
    recursive: bool,
    missing_ok: bool,
    message: str,
) -> Commit | None:
    """Remove paths from a branch, in one commit; None when nothing changed.

    Raises NotFound (unless `missing_ok`) and IsADirectory (unless `recursive`); then nothing has changed.
    """

    def edit(batch: Batch, root: Entry) -> Entry:
        for path in paths:
            entry = find(batch, root, path)
            if entry is None and not missing_ok:
                raise NotFound(f"there is no {display(path_bytes(path))} on {repo}@{branch}")
            if entry is not None and entry.kind is Kind.DIRECTORY and not recursive:
                raise IsADirectory(f"{display(path_bytes(path))} is a directory", hint="rm -r deletes it whole")
        gone = {path: None for path in paths if find(batch, root, path) is not None}
        return edit_paths(batch, root, gone, mtime_ns=time.time_ns())

    origin: dict[str, object] = {"how": "rm", "paths": len(paths)}

    def work() -> Commit | None:
        with store.objects.batch() as batch:
            return commit_edit(
                store, batch, repo, branch, lambda root: edit(batch, root), message=message, origin=origin
            )

    return again_if_collected(work)
