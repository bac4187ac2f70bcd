"""Uncommitted work as the commands see it: through the mount that owns it, or directly when no mount does.

    with open_worktree(store, "images", "master") as worktree:
        worktree.status(), worktree.commit("message"), worktree.discard(paths)

Nothing here imports trio or pyfuse3.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pfsmount.errors import Busy, PfsError
from pfsmount.fs.answers import Answer, Request, answer_of, short_path, status_of
from pfsmount.fs.mountpoint import mounts
from pfsmount.fs.records import MountRecord, live_mounts
from pfsmount.ids import RepoPath, parse_object_id, parse_path, path_bytes
from pfsmount.repo.conflicts import last_changes
from pfsmount.repo.overlay_nodes import Effects
from pfsmount.repo.ownership import owner_of
from pfsmount.repo.private_worktrees import end
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import CommitResult, Worktree
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.repo.worktree_status import WorktreeChange, WorktreeStatus
from pfsmount.tree.merge import Resolution

T = TypeVar("T")
_CONNECT_SECONDS = 10
_REFRESH_SECONDS = 2
_TRIES = 5
_LAST_MAX = 100


def ask(path: Path, request: Request, *, timeout: float | None = None) -> Answer:
    """One request to a mount's control socket; without `timeout` (seconds) it may take as long as it takes.

    Raises what the mount answers, OSError when there is nobody.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout or _CONNECT_SECONDS)
        with short_path(path) as name:
            connection.connect(name)
        connection.settimeout(timeout)
        connection.sendall(json.dumps(request).encode("ascii") + b"\n")
        connection.shutdown(socket.SHUT_WR)
        line = b"".join(iter(lambda: connection.recv(65536), b""))
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the mount ended before it answered")
    return answer_of(line)


class OpenWorktree:
    """The worktree of a branch, or a private one, whoever has it. Each call asks the owner, or becomes the owner for that call."""

    def __init__(self, store: Store, repo: str, branch: str, name: str = "") -> None:
        """Raises NotFound."""
        self._store, self._repo, self._branch, self._name = store, repo, branch, name
        self._path = worktree_path(store.path, store.repo(repo), branch, name)
        store.head(repo, branch)

    @property
    def title(self) -> str:
        """As people name it."""
        return f"{self._repo}@{self._branch}" + (f"+{self._name}" if self._name else "")

    def _open(self, *, own: bool) -> Worktree:
        return Worktree.open(self._store, self._repo, self._branch, self._name, own=own)

    def _anyhow(self, request: Request, remote: Callable[[Answer], T], local: Callable[[Worktree], T]) -> T:
        """Ask the owner of the worktree, or become the owner for one call. Raises Busy, and what the call raises."""
        failure: PfsError | None = None
        for _ in range(_TRIES):
            owner = owner_of(self._path)
            if owner is not None and owner.get("socket"):
                path = self._store.path / "run" / os.path.basename(str(owner["socket"]))
                try:
                    place = {"repo": self._repo, "branch": self._branch, "worktree": self._name}
                    return remote(ask(path, {**request, **place}))
                except OSError as error:
                    failure = Busy(f"the mount that has the changes of {self.title} does not answer: {error}")
                    continue
            try:
                with self._open(own=True) as worktree:
                    return local(worktree)
            except Busy as error:  # somebody became the owner meanwhile
                failure = error
        assert failure is not None
        raise failure

    def status(self) -> WorktreeStatus:
        """What is uncommitted. Raises Busy, OSError, Corrupt."""
        if owner_of(self._path) is None and not any(self._path.glob("journal.*")):
            with self._open(own=False) as worktree:  # nothing to take the lock for
                return worktree.status()
        return self._with_last(self._anyhow({"op": "status"}, status_of, _followed_status))

    def _with_last(self, status: WorktreeStatus) -> WorktreeStatus:
        """The status with who changed the other side of each conflict last; for the first hundred. Here, because it reads many commits."""
        if not status.conflicts or status.head is None:
            return status
        paths = [conflict.path for conflict in status.conflicts[:_LAST_MAX]]
        found = last_changes(self._store.objects, self._store.read_commit(status.head), paths)
        conflicts = tuple(replace(one, theirs_last=found.get(one.path)) for one in status.conflicts)
        return replace(status, conflicts=conflicts)

    def changes(self) -> tuple[WorktreeChange, ...]:
        """The changes in `status`."""
        return self.status().changes

    def commit(
        self, message: str, paths: Sequence[RepoPath] | None = None, *, author: str | None = None
    ) -> CommitResult:
        """Commit what is uncommitted, or what is at and below `paths`. Every live mount shows it when this returns.

        Raises Conflict, NotFound, Busy, NoSpace, OSError, Corrupt; then nothing is committed and nothing lost.
        """
        author = self._store.author if author is None else author
        request: Request = {"op": "commit", "message": message, "author": author, "paths": _texts(paths)}

        def remote(answer: Answer) -> CommitResult:
            id = answer["commit"]
            commit = None if id is None else self._store.read_commit(parse_object_id(id))
            return CommitResult(commit, tuple(parse_path(path) for path in answer["unversioned"]), Effects([], []))

        done = self._anyhow(request, remote, lambda worktree: worktree.commit(message, paths, author=author))
        refresh(self._store.path)
        return done

    def resolve(self, how: Resolution, paths: Sequence[RepoPath] | None = None) -> tuple[list[RepoPath], int]:
        """Settle conflicts at and below `paths`, or all that are open: what was settled, and how many are open. Durable.

        When none is open any more, the uncommitted work is on top of the branch's head. Raises NotFound, Busy, NoSpace, OSError, Corrupt.
        """
        request: Request = {"op": "resolve", "how": how.value, "paths": _texts(paths)}
        done = self._anyhow(
            request,
            lambda answer: ([parse_path(path) for path in answer["settled"]], int(answer["open"])),
            lambda worktree: worktree.resolve(how, paths)[:2],
        )
        refresh(self._store.path)
        return done

    def discard(self, paths: Sequence[RepoPath] | None = None) -> None:
        """Give up what is uncommitted, or what is at and below `paths`. Raises NotFound, Busy, NoSpace, OSError, Corrupt."""
        request: Request = {"op": "discard", "paths": _texts(paths)}
        self._anyhow(request, lambda answer: None, lambda worktree: _discard(worktree, paths))
        refresh(self._store.path)

    def end(self) -> bool:
        """End a private worktree; False when something is changed in it, as a FIFO or what was written since. Raises NotFound."""
        ended = end(self._store, self._repo, self._branch, self._name)
        refresh(self._store.path)
        return ended


@contextmanager
def open_worktree(store: Store, repo: str, branch: str, name: str = "") -> Iterator[OpenWorktree]:
    """The uncommitted work of a branch, whoever has it; with `name` that in a private worktree. Raises NotFound."""
    yield OpenWorktree(store, repo, branch, name)


def _followed_status(worktree: Worktree) -> WorktreeStatus:
    worktree.follow()
    return worktree.status()


def _discard(worktree: Worktree, paths: Sequence[RepoPath] | None) -> None:
    worktree.discard(paths)


def _texts(paths: Sequence[RepoPath] | None) -> list[str] | None:
    return None if paths is None else [os.fsdecode(path_bytes(path)) for path in paths]


def refresh(store: Path) -> None:
    """Let every live mount of the store show all heads as they are now. One that does not answer follows by itself."""
    for record in live_mounts(store):
        with suppress(OSError, PfsError, ValueError):
            ask(store / "run" / record.socket, {"op": "refresh"}, timeout=_REFRESH_SECONDS)


def mount_info(record: MountRecord) -> dict[str, Any]:
    """What a live mount says of itself; its record alone when it does not answer (`state`)."""
    try:
        said = ask(Path(record.store) / "run" / record.socket, {"op": "info"}, timeout=_REFRESH_SECONDS)
        work = {
            title: {key: int(one[key]) for key in ("changes", "bytes")} for title, one in said["uncommitted"].items()
        }
        return {**record.as_json(), **said, "uncommitted": work, "state": "mounted"}
    except (
        OSError,
        PfsError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ):  # or of a version that says it otherwise
        return {**record.as_json(), "uncommitted": None, "state": "silent"}


def known_mounts(store: Path | None) -> list[dict[str, Any]]:
    """The mounts of a store, or of all stores that are mounted here, the dead ones too; not the private ones of jobs. Touches none of them.

    Each with `state`: mounted, silent (it does not answer), dead (nobody serves it).
    """
    listed = [one for one in mounts() if one.is_pfs and not one.is_of_job]
    stores = [store] if store is not None else sorted({one.store for one in listed if one.store is not None})
    found, alive = [], set()
    for place in stores:
        for record in live_mounts(place):
            found.append(mount_info(record))
            alive.add(record.mount)
    for one in listed:
        if one.point not in alive and one.store in stores:
            what = {"mount": one.point, "store": str(one.store), "revision": one.revision}
            found.append({**what, "pid": None, "uncommitted": None, "state": "dead"})
    return found
