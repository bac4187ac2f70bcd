"""Processes that compete for one branch, and tell how often they lost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfsmount.ids import EntryName
from pfsmount.repo.commit import Commit
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.merge import MergeState, merge
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.revert import revert
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests import worktrees

_TIMES = 2
_PUTTERS = 3


def put(store: Store, branch: str, name: str, text: str) -> Commit:
    """As `pfs put` of one file."""
    with store.objects.batch() as batch:
        entry = file_entry(ingest_bytes(batch, text.encode()), len(text))
        made = commit_edit(
            store,
            batch,
            "images",
            branch,
            lambda root: edit_paths(batch, root, {(EntryName(name.encode()),): entry}),
            message=f"{name} {text}",
            origin={"how": "put"},
        )
    assert made is not None
    return made


def merges(store: Store, who: str, number: int) -> None:
    put(store, "side", who, str(number))
    assert merge(store, "images", parse_revision("side"), "master").state is MergeState.MERGED


def reverts(store: Store, who: str, number: int) -> None:
    made = put(store, "master", who, str(number))
    assert revert(store, "images", "master", [made]).made


def commits(store: Store, who: str, number: int) -> None:
    with Worktree.open(store, "images", "master") as worktree:
        worktrees.put(worktree, who, b"%d" % number)
        assert worktree.commit("from a worktree").commit is not None


def puts(store: Store, who: str, number: int) -> None:
    put(store, "master", who, str(number))


def _compete(path: Path, who: str, work: Callable[[Store, str, int], None], stop: Any, results: Any) -> None:
    """Do something some times (a putter until all others are done), and tell how often one of them lost at most."""
    losses = [0]

    def counted(turn: Turn, lost: Callable[[Turn], None] = Turn.lost) -> None:
        losses[-1] += 1
        lost(turn)

    Turn.lost = counted  # type: ignore[method-assign,assignment]
    with Store.open(path, author=who) as store:
        while len(losses) <= _TIMES or (work is puts and not stop.is_set()):
            work(store, who, len(losses))
            losses.append(0)
    results.put((who, len(losses) - 1, max(losses)))


def grow(store: Store, branch: str, count: int) -> Commit:
    """A history: so many commits on top of the branch's head, without a change."""
    head = store.head("images", branch)
    assert head is not None
    made = store.read_commit(head)
    with store.objects.batch() as batch:
        for _ in range(count):
            made = store.make_commit(
                batch, tree=made.tree, parents=[made.id], message="history", author=None, origin={"how": "put"}
            )
        store.publish(batch, [(RefMove(store.repo("images"), RefKind.BRANCH, branch, made.id, head), made)], why="put")
    return made


def compete(store: Path) -> dict[str, tuple[int, int]]:
    """Putters in a loop on master, and, until these have done some of their work, what takes longer: who → how often it came through, and lost in a row at most."""
    spawn = multiprocessing.get_context("spawn")
    stop, results = spawn.Event(), spawn.Queue()
    slow = {"merge": merges, "revert": reverts, "worktree": commits}
    tasks = {**{f"put{number}": puts for number in range(_PUTTERS)}, **slow}
    processes = {
        who: spawn.Process(target=_compete, args=(store, who, work, stop, results)) for who, work in tasks.items()
    }
    for process in processes.values():
        process.start()
    for who in slow:
        processes[who].join()
    stop.set()
    for process in processes.values():
        process.join()
        assert process.exitcode == 0
    return {who: (times, most) for who, times, most in (results.get() for _ in processes)}
