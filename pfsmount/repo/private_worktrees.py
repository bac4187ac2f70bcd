"""Private worktrees: uncommitted work on a branch beside the one that all share, `images@master+NAME`.

The row in the index is what makes one: `begin` puts it there, `end` takes it away. Between them it is a worktree like any other. An order of steps
that a crash may cut short anywhere:

    begin   what is left of an earlier one of this name is deleted; the row (the directory comes with the first change)
    end     nothing is changed in it (a commit or discard has seen to that); the row; the directory

So there never is a row with somebody else's journal, and work whose row is gone is none.
"""

from __future__ import annotations

import shutil

from pfsmount.errors import AlreadyExists, Busy, NotFound
from pfsmount.repo.refs import RefKind, WorktreeState, get_ref, get_repo, get_worktree, put_worktree
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.revision import check_ref_name


def begin(store: Store, repo: str, branch: str, name: str) -> None:
    """Make a private worktree on a branch's head; durable. Raises AlreadyExists, InvalidInput, NotFound, Busy, NoSpace."""
    check_ref_name(name, "worktree")
    title = f"{repo}@{branch}+{name}"
    taken = AlreadyExists(f"there is a private worktree {title} already", hint="give it another name")
    if store.has_worktree(repo, branch, name):
        raise taken
    path = worktree_path(store.path, store.repo(repo), branch, name)
    if path.exists():
        with Worktree.leftover(store, repo, branch, name) as left:
            if store.has_worktree(repo, branch, name):
                raise taken
            shutil.rmtree(left.path, ignore_errors=True)
    with store.objects.index.write() as txn:
        info = get_repo(txn, repo)
        ref = get_ref(txn, info, RefKind.BRANCH, branch)
        if ref is None:
            raise NotFound(f"'{repo}' has no branch '{branch}'", hint=f"'pfs branch {repo}' lists them")
        if get_worktree(txn, info, branch, name) is not None:
            raise taken
        put_worktree(txn, info, branch, name, WorktreeState(0, ref.commit))


def end(store: Store, repo: str, branch: str, name: str) -> bool:
    """End a private worktree if nothing is changed in it; False when something is. Raises NotFound."""
    try:
        worktree = Worktree.open(store, repo, branch, name, own=True)
    except Busy:  # somebody writes to it
        return False
    with worktree:
        if worktree.journal is not None:
            return False
        store.drop_worktree(repo, branch, name)
        shutil.rmtree(worktree.path, ignore_errors=True)
    return True
