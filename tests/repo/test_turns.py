"""Turns on a branch: who has lost goes first, and nobody waits for one that will not move; the walk that a merge keeps."""

from __future__ import annotations

import multiprocessing
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pfsmount.ids import ObjectId
from pfsmount.repo import turns
from pfsmount.repo.commit import Commit, load_commit
from pfsmount.repo.merge_base import Parting
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from tests.repo.competing import grow, put


def turn(store: Store) -> Turn:
    return Turn(store.path, store.repo("images"), "master")


def take(one: Turn) -> None:
    for _ in range(turns._LOSSES):
        one.lost()
    one.wait()
    assert one.held


def test_who_has_lost_goes_first(store: Store) -> None:
    """Others wait until it is done, also those that have lost as often."""
    with turn(store) as first, turn(store) as second, turn(store) as third:
        take(first)
        waits = [threading.Thread(target=partial(take, third)), threading.Thread(target=second.wait)]
        for wait in waits:
            wait.start()
        assert not second._may_go()
        first.close()
        waits[0].join()
        third.close()
        waits[1].join()
        assert not second.held


def test_branches_have_turns_of_their_own(store: Store) -> None:
    with turn(store) as first, Turn(store.path, store.repo("images"), "side") as other:
        take(first)
        assert other._may_go()
        take(other)


def _take_and_wait(path: Path, taken: Any) -> None:
    with Store.open(path) as store, turn(store) as one:
        take(one)
        taken.set()
        threading.Event().wait()


def test_a_dead_holder_has_no_turn(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    taken = spawn.Event()
    process = spawn.Process(target=_take_and_wait, args=(store.path, taken))
    process.start()
    assert taken.wait(60)
    with turn(store) as one:
        assert not one._may_go()
        process.kill()
        process.join()
        assert one._may_go()


def test_a_stopped_holder_delays_others_and_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE_S", 0.05)
    with turn(store) as stopped:
        take(stopped)
        put(store, "master", "a", "1")
        with turn(store) as one:
            for _ in range(turns._LOSSES):
                one.lost()
            one.wait()
            assert not one.held


def test_without_a_place_for_turns_there_are_none(store: Store) -> None:
    (store.path / "run" / "turns").mkdir()
    with turn(store) as one:
        for _ in range(turns._LOSSES):
            one.lost()
        one.wait()
        assert not one.held
    put(store, "master", "a", "1")


def test_a_second_try_reads_what_is_new(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the history that the first one has read."""
    base = put(store, "master", "base", "0")
    store.create_branch("images", "side", base.id)
    other = put(store, "side", "side", "0")
    head = grow(store, "master", 40)
    read: list[ObjectId] = []

    def counted(objects: Any, id: ObjectId) -> Commit:
        read.append(id)
        return load_commit(objects, id)

    monkeypatch.setattr("pfsmount.repo.merge_base.load_commit", counted)
    parting = Parting(store.objects, other)
    assert parting.bases(head) == [base]
    assert len(read) >= 40
    read.clear()
    head = put(store, "master", "history", "new")
    assert parting.bases(head) == [base]
    assert len(read) <= 2
