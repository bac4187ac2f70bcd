"""Branches and tags as people handle them: fix a tag, rename a branch, choose the default. All by reference, so of no size."""

from __future__ import annotations

import os
import shutil
import time

from pfsmount.errors import AlreadyExists, InvalidInput, NotFound, NotPermitted
from pfsmount.ids import ObjectId
from pfsmount.objects.index import Table, Transaction
from pfsmount.repo.pending_merge import read_pending
from pfsmount.repo.refs import (
    RefInfo,
    RefKind,
    RefMove,
    RepoInfo,
    get_ref,
    get_repo,
    log_change,
    move_ref,
)
from pfsmount.repo.removal import worktrees_locked
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_paths
from pfsmount.revision import check_ref_name


def create_tag(store: Store, repo: str, name: str, commit: ObjectId) -> None:
    """Fix a name to a commit of the repo. Raises AlreadyExists (it never moves), InvalidInput, NotFound."""
    check_ref_name(name, "tag")
    with store.change_refs() as txn:
        info = get_repo(txn, repo)
        _refuse_taken(txn, info, name, "tag")
        move = RefMove(info, RefKind.TAG, name, commit)
        move_ref(txn, move, who=store.author, why="tag", time_ns=time.time_ns())


def _refuse_taken(txn: Transaction, repo: RepoInfo, name: str, kind: str) -> None:
    for taken in RefKind:
        ref = get_ref(txn, repo, taken, name)
        if ref is None:
            continue
        at = "no commit" if ref.commit is None else ref.commit.hex()[:12]
        hint = f"give the {kind} another name"
        if taken is RefKind.TAG:
            hint = f"a tag stays where it is; {hint}, or delete this one first (pfs tag --delete --force)"
        raise AlreadyExists(f"{repo.name}@{name} is a {taken.name.lower()} already, at {at}", hint=hint)


def delete_tag(store: Store, repo: str, name: str) -> RefInfo:
    """Delete a tag; its commit stays readable by id. Raises NotFound."""
    with store.change_refs() as txn:
        info = get_repo(txn, repo)
        ref = get_ref(txn, info, RefKind.TAG, name)
        if ref is None:
            raise NotFound(f"'{repo}' has no tag '{name}'", hint=f"'pfs tag {repo}' lists them")
        move = RefMove(info, RefKind.TAG, name, None, ref.commit)
        move_ref(txn, move, who=store.author, why="tag delete", time_ns=time.time_ns())
    return ref


def rename_branch(store: Store, repo: str, old: str, new: str) -> None:
    """Give a branch another name, and make that the default if it was.

    Raises AlreadyExists, InvalidInput, NotFound, NotPermitted (uncommitted work or a merge that waits: both lie under the old name), Busy.
    """
    check_ref_name(new)
    if read_pending(store, repo, old) is not None:
        raise NotPermitted(
            f"{repo}@{old} was not renamed: a merge into it waits to be settled",
            hint=f"finish it, or drop it with 'pfs merge --abort {repo}@{old}'",
        )
    private = [f"+{name}" for branch, name in store.worktrees(repo) if branch == old]
    if private:
        raise NotPermitted(
            f"{repo}@{old} was not renamed: it has private worktrees, {', '.join(private)}",
            hint="end them first, with 'pfs commit' or 'pfs discard'",
        )
    paths = worktree_paths(store.path, store.repo(repo), old)
    refusal, hint = f"{repo}@{old} was not renamed", "commit or discard them first"
    with worktrees_locked(paths, refusal, force=False, hint=hint):
        with store.change_refs() as txn:
            info = get_repo(txn, repo)
            ref = _existing_branch(txn, info, old)
            _refuse_taken(txn, info, new, "branch")
            now = time.time_ns()
            for move in (
                RefMove(info, RefKind.BRANCH, new, ref.commit, create_empty=ref.commit is None),
                RefMove(info, RefKind.BRANCH, old, None, ref.commit),
            ):
                move_ref(txn, move, who=store.author, why=f"rename {old} to {new}", time_ns=now)
            for key in [key for key, _ in txn.scan(Table.WORKTREES, info.key + os.fsencode(old) + b"+")]:
                txn.delete(Table.WORKTREES, key)
            if info.default_branch == old:
                _set_default(txn, store, info, new)
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def set_default_branch(store: Store, repo: str, branch: str) -> None:
    """Let `repo` alone mean this branch. Raises NotFound."""
    with store.change_refs() as txn:
        info = get_repo(txn, repo)
        _existing_branch(txn, info, branch)
        _set_default(txn, store, info, branch)


def _existing_branch(txn: Transaction, repo: RepoInfo, name: str) -> RefInfo:
    ref = get_ref(txn, repo, RefKind.BRANCH, name)
    if ref is None:
        if get_ref(txn, repo, RefKind.TAG, name) is not None:
            raise InvalidInput(f"{repo.name}@{name} is a tag, not a branch")
        raise NotFound(f"'{repo.name}' has no branch '{name}'", hint=f"'pfs branch {repo.name}' lists them")
    return ref


def _set_default(txn: Transaction, store: Store, repo: RepoInfo, branch: str) -> None:
    changed = RepoInfo(repo.name, repo.id, repo.description, repo.created_ns, branch)
    txn.put(Table.REPOS, os.fsencode(repo.name), changed.encode())
    line = {"op": "default", "repo_id": f"{repo.id:016x}", "name": branch}
    log_change(txn, line, who=store.author, why="default branch", time_ns=time.time_ns())
