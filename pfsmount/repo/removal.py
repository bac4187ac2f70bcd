"""Deleting repos and branches, with the uncommitted work on top of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pfsmount.errors import Busy, NotPermitted
from pfsmount.ids import display
from pfsmount.objects.layout import disk_errors, fsync_directory
from pfsmount.objects.locks import try_lock
from pfsmount.objects.reserve import reserve_lent
from pfsmount.repo.refs import RefInfo
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_paths


def delete_repo(store: Store, name: str, *, force: bool) -> None:
    """Delete a repo and its worktrees; the objects stay until gc.

    Raises NotFound, Busy (a mount has uncommitted work of it), NotPermitted (uncommitted work on disk, without `force`).
    """
    repo = store.repo(name)
    top = store.path / "worktrees" / f"{repo.id:016x}"
    paths = sorted(top.iterdir()) if top.is_dir() else []
    with worktrees_locked(paths, f"{name} was not deleted", force=force):
        with reserve_lent(store.path), _work_set_aside(paths):
            store.delete_repo(name)
        shutil.rmtree(top, ignore_errors=True)


def delete_abandoned(store: Store) -> None:
    """Delete what a kill in the middle of `delete_repo` left: worktrees of repos that are gone, where nothing is uncommitted."""
    # Directories first, repos afterwards: an id is used once, and its directory is made when the repo is there.
    there = [path for path in (store.path / "worktrees").iterdir() if path.is_dir()]
    repos = {f"{repo.id:016x}" for repo in store.repos()}
    for path in there:
        if path.name not in repos and not any((*path.glob("*/journal.*"), *path.glob("*/merge"))):
            shutil.rmtree(path, ignore_errors=True)


def delete_branch(store: Store, repo: str, name: str, *, force: bool = False) -> RefInfo:
    """Delete a branch and its worktrees; its commits stay readable by id.

    Raises NotFound, NotPermitted (the default branch; uncommitted work, without `force`), Busy.
    """
    info = store.repo(repo)
    paths = worktree_paths(store.path, info, name)
    with worktrees_locked(paths, f"{repo}@{name} was not deleted", force=force):
        with reserve_lent(store.path), _work_set_aside(paths):
            ref = store.delete_branch(repo, name)
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
    return ref


@contextmanager
def _work_set_aside(paths: list[Path]) -> Iterator[None]:
    """Give what makes uncommitted work other names, durable, for the length of a block; back when it raises.

    A crash between a branch's end and that of its directory must not leave its work to another branch of that name, nor let gc keep for ever what
    the work of a repo that is gone was on top of.
    """
    aside: list[tuple[Path, Path]] = []
    try:
        with disk_errors("setting uncommitted work aside"):
            for path in paths:
                for file in [*path.glob("journal.*"), *path.glob("merge")]:
                    file.rename(path / f"deleted.{file.name}")
                    aside.append((file, path / f"deleted.{file.name}"))
                fsync_directory(path)
        yield
    except BaseException:
        for file, other in aside:
            with suppress(OSError):
                other.rename(file)
        raise


@contextmanager
def worktrees_locked(
    paths: list[Path], refusal: str, *, force: bool, hint: str = "commit or discard them first, or use --force"
) -> Iterator[None]:
    """Hold the owner's lock of each worktree, so that nobody begins to write to it meanwhile.

    `refusal` begins the message of what is raised. Raises Busy (a mount has uncommitted work), NotPermitted (such work is on disk, without `force`).
    """
    with ExitStack() as stack:
        for path in paths:
            fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            if not try_lock(fd):
                raise Busy(
                    f"{refusal}: a mount has uncommitted changes of it{_private(path)}",
                    hint="commit or discard them, or unmount",
                )
            if not force and any(path.glob("journal.*")):
                raise NotPermitted(
                    f"{refusal}: it has uncommitted changes{_private(path)}",
                    hint=hint,
                )
        yield


def _private(path: Path) -> str:
    """Which private worktree a directory is of, for a message; nothing for the shared one."""
    _, plus, name = path.name.partition("+")
    return f", in the private worktree +{display(unquote_to_bytes(name))}" if plus else ""
