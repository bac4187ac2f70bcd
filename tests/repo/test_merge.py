"""Merging versions: which commit both come from, what becomes of the branch, and what waits when it cannot be done."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.errors import Conflict, Corrupt, InvalidInput, NotFound
from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.repo import merge as merge_module
from pfsmount.repo import pending_merge
from pfsmount.repo.commit import Commit
from pfsmount.repo.merge import MergeReport, MergeState, abort, look, merge, resolve
from pfsmount.repo.merge_base import Parting, is_ancestor, merge_bases
from pfsmount.repo.pending_merge import read_pending
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.revision import parse_revision
from pfsmount.tree.directory import find, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.merge import Reason, Resolution, carry_out
from tests.semantics.scene import wait_for

MINE, THEIRS, BOTH = Resolution.MINE, Resolution.THEIRS, Resolution.BOTH


def path(text: str) -> RepoPath:
    return tuple(EntryName(part) for part in text.encode().split(b"/") if part)


def change(store: Store, branch: str, files: dict[str, str | None], *more: ObjectId) -> Commit:
    """A commit on a branch, with further parents perhaps."""
    head = store.head("images", branch)
    tree = store.empty_root() if head is None else store.read_commit(head).tree
    with store.objects.batch() as batch:
        edits: dict[RepoPath, Entry | None] = {
            path(name): None if text is None else file_entry(ingest_bytes(batch, text.encode()), len(text))
            for name, text in files.items()
        }
        parents = [*([] if head is None else [head]), *more]
        root = edit_paths(batch, tree, edits)
        made = store.make_commit(batch, tree=root, parents=parents, message="", author=None, origin={"how": "put"})
        move = RefMove(store.repo("images"), RefKind.BRANCH, branch, made.id, head)
        store.publish(batch, [(move, made)], why="put")
    return made


def set_mode(store: Store, branch: str, mode: int, *more: ObjectId) -> Commit:
    """A commit that gives `a` a mode."""
    head = store.head("images", branch)
    assert head is not None
    tree = store.read_commit(head).tree
    entry = find(store.objects, tree, path("a"))
    assert entry is not None
    with store.objects.batch() as batch:
        root = edit_paths(batch, tree, {path("a"): entry.replace(mode=mode)}, mtime_ns=len(more))
        made = store.make_commit(
            batch, tree=root, parents=[head, *more], message="", author=None, origin={"how": "put"}
        )
        move = RefMove(store.repo("images"), RefKind.BRANCH, branch, made.id, head)
        store.publish(batch, [(move, made)], why="put")
    return made


def files(store: Store, branch: str) -> dict[str, str]:
    head = store.head("images", branch)
    assert head is not None
    found = walk(store.objects, store.read_commit(head).tree)
    return {
        b"/".join(where).decode(): store.objects.get(entry.id).decode() if entry.size else ""
        for where, entry in found
        if entry.kind is Kind.FILE
    }


def into_master(store: Store, source: str = "dev", **options: Any) -> MergeReport:
    return merge(store, "images", parse_revision(source), "master", **options)


def fork(store: Store, base: dict[str, str | None], mine: dict[str, str | None], theirs: dict[str, str | None]) -> None:
    """master and dev, from one commit."""
    first = change(store, "master", base)
    store.create_branch("images", "dev", first.id)
    if mine:
        change(store, "master", mine)
    change(store, "dev", theirs)


# Merge bases


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=2, max_size=14), st.integers(0, 1 << 30))
def test_merge_bases_of_any_history(store: Store, shape: list[list[int]], seed: int) -> None:
    """The best common ancestors, by looking at all ancestors, whatever the clocks said when the commits were made."""
    clock = random.Random(seed)
    made: list[Commit] = []
    above: dict[ObjectId, set[ObjectId]] = {}
    with pytest.MonkeyPatch.context() as patched, store.objects.batch() as batch:
        for i, parents in enumerate(shape):
            ids = list(dict.fromkeys(made[n % len(made)].id for n in parents)) if made else []
            patched.setattr("pfsmount.repo.store.time.time_ns", lambda: clock.randrange(6))
            commit = store.make_commit(
                batch, tree=store.empty_root(), parents=ids, message=str(i), author="", origin={"how": "put"}
            )
            made.append(commit)
            above[commit.id] = {commit.id}.union(*(above[id] for id in ids))
        for one, other in itertools.combinations_with_replacement(made[-5:], 2):
            common = above[one.id] & above[other.id]
            want = {id for id in common if not any(id in above[rival] for rival in common - {id})}
            assert {found.id for found in merge_bases(batch, one, other)} == want
            assert merge_bases(batch, one, other) == merge_bases(batch, other, one)
            assert is_ancestor(batch, one, other) == (one.id in above[other.id])
        other = made[-1]
        parting = Parting(batch, other)
        for head in made[-1:] + made:  # mostly one on top of another, now and then a reset
            common = above[head.id] & above[other.id]
            want = {id for id in common if not any(id in above[rival] for rival in common - {id})}
            assert {found.id for found in parting.bases(head)} == want


def test_criss_cross(store: Store) -> None:
    """Both merged each other's old state: what they agreed on since is no conflict, what they did not is one."""
    first = change(store, "master", {"a": "0", "b": "0", "c": "0"})
    store.create_branch("images", "dev", first.id)
    mine, theirs = change(store, "master", {"a": "m"}), change(store, "dev", {"a": "d", "b": "d"})
    change(store, "master", {"a": "settled", "b": "d"}, theirs.id)
    change(store, "dev", {"a": "settled", "c": "d"}, mine.id)
    assert into_master(store).state is MergeState.MERGED
    assert files(store, "master") == {"a": "settled", "b": "d", "c": "d"}
    store.create_branch("images", "again", mine.id)
    change(store, "again", {"a": "settled otherwise"}, theirs.id)
    report = into_master(store, "again")
    assert [conflict.path for conflict in report.conflicts] == [path("a")]


def test_criss_cross_of_attributes(store: Store) -> None:
    """Each side settled a conflict of modes for itself: neither wins silently."""
    first = change(store, "master", {"a": "0"})
    store.create_branch("images", "dev", first.id)
    mine, theirs = set_mode(store, "master", 0o600), set_mode(store, "dev", 0o755)
    set_mode(store, "master", 0o600, theirs.id)
    set_mode(store, "dev", 0o755, mine.id)
    report = into_master(store)
    assert [(conflict.path, conflict.reason) for conflict in report.conflicts] == [(path("a"), Reason.ATTRIBUTES)]


def test_unrelated_histories(store: Store) -> None:
    change(store, "master", {"a": "1", "same": "="})
    store.create_branch("images", "dev", None)
    change(store, "dev", {"b": "2", "same": "="})
    report = into_master(store)
    assert (report.state, report.unrelated) == (MergeState.MERGED, True)
    assert files(store, "master") == {"a": "1", "b": "2", "same": "="}


# What becomes of the branch


def test_fast_forward(store: Store) -> None:
    """A branch without anything of its own is moved, unless a commit is wanted."""
    fork(store, {"a": "1"}, {}, {"b": "2"})
    before = store.head("images", "master")
    report = into_master(store, fast_forward=False)
    assert report.state is MergeState.MERGED
    assert report.commit is not None
    assert report.commit.parents == (before, store.head("images", "dev"))
    store.create_branch("images", "old", before)
    assert merge(store, "images", parse_revision("dev"), "old").state is MergeState.FAST_FORWARD
    assert store.head("images", "old") == store.head("images", "dev")
    assert into_master(store).state is MergeState.UP_TO_DATE
    assert store.head("images", "master") == report.commit.id


def test_into_an_empty_branch_and_from_one(store: Store) -> None:
    store.create_branch("images", "dev", None)
    with pytest.raises(InvalidInput, match="no commits"):
        into_master(store)
    change(store, "dev", {"a": "1"})
    assert into_master(store).state is MergeState.FAST_FORWARD
    assert files(store, "master") == {"a": "1"}


def test_the_commit(store: Store) -> None:
    """Two parents, a message, and how it came about."""
    fork(store, {"a": "1"}, {"m": "1"}, {"d": "1"})
    mine, theirs = store.head("images", "master"), store.head("images", "dev")
    commit = into_master(store).commit
    assert commit is not None
    assert commit.parents == (mine, theirs)
    assert commit.message == "merge images@dev into images@master"
    assert theirs is not None
    assert (commit.origin["how"], commit.origin["source"], commit.origin["commit"]) == (
        "merge",
        "images@dev",
        theirs.hex(),
    )
    change(store, "dev", {"d": "2"})
    second = into_master(store, message="mine").commit
    assert second is not None
    assert second.message == "mine"
    assert len(second.origin["bases"]) == 1


def test_again_when_the_head_moves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of somebody else between plan and commit is merged too."""
    fork(store, {"a": "1"}, {"m": "1"}, {"d": "1"})
    moves = iter(range(3))

    def interrupted(batch: Any, plan: Any) -> Entry:
        if next(moves, None) is not None:
            change(store, "master", {f"late{store.refs_version()}": "x"})
        return carry_out(batch, plan)

    monkeypatch.setattr(merge_module, "carry_out", interrupted)
    assert into_master(store).state is MergeState.MERGED
    assert sum(name.startswith("late") for name in files(store, "master")) == 3
    assert files(store, "master").keys() >= {"a", "m", "d"}


# What waits


def test_conflicts_wait(store: Store) -> None:
    """Nothing changes but the record; decisions are kept one by one, and the same merge then goes through."""
    fork(store, {"a": "0", "b": "0", "d/x": "0"}, {"a": "m", "b": "m", "d": None}, {"a": "d", "b": "d", "d/x": "d"})
    head = store.head("images", "master")
    report = into_master(store, message="kept")
    assert report.state is MergeState.CONFLICT
    assert [conflict.path for conflict in report.conflicts] == [path("a"), path("b"), path("d/x")]
    assert [conflict.mine_last is not None for conflict in report.conflicts] == [True] * 3
    assert store.head("images", "master") == head
    settled, after = resolve(store, "images", "master", BOTH, [path("a")])
    assert (settled, after.open) == ([path("a")], 2)
    assert [one.path for one in into_master(store).conflicts] == [path("b"), path("d/x")]
    assert resolve(store, "images", "master", THEIRS, [path("d")])[0] == [path("d/x")]
    resolve(store, "images", "master", MINE, [path("a")])  # on second thoughts
    assert resolve(store, "images", "master", BOTH, [path("a")])[1].open == 1
    assert resolve(store, "images", "master", MINE, None)[1].open == 0
    report = into_master(store)
    assert (report.state, report.settled) == (MergeState.MERGED, 3)
    assert report.commit is not None
    assert report.commit.message == "kept"
    assert files(store, "master") == {"a": "m", "a~dev": "d", "b": "m", "d/x": "d"}
    assert look(store, "images", "master") is None
    assert read_pending(store, "images", "master") is None


@pytest.mark.parametrize(("side", "want"), [(MINE, {"a": "m", "b": "d"}), (THEIRS, {"a": "d", "b": "d"})])
def test_all_at_once(store: Store, side: Resolution, want: dict[str, str]) -> None:
    fork(store, {"a": "0", "b": "0"}, {"a": "m"}, {"a": "d", "b": "d"})
    assert into_master(store, side=side).state is MergeState.MERGED
    assert files(store, "master") == want


def test_a_decision_that_fits_no_longer(store: Store) -> None:
    """When the branch or the source moves, only decisions about the same conflict count; the others are named, and nothing is merged that time."""
    fork(store, {"a": "0", "b": "0"}, {"a": "m", "b": "m"}, {"a": "d", "b": "d"})
    into_master(store)
    resolve(store, "images", "master", MINE, None)
    change(store, "master", {"a": "m2", "other": "x"})
    waiting = look(store, "images", "master")
    assert waiting is not None
    assert (waiting.open, waiting.dropped) == (1, (path("a"),))
    report = into_master(store)
    assert (report.state, report.dropped) == (MergeState.CONFLICT, (path("a"),))
    assert [conflict.path for conflict in report.conflicts] == [path("a")]
    resolve(store, "images", "master", THEIRS, [path("a")])
    change(store, "master", {"a": "0"})  # no conflict any more, but not what was decided either
    report = into_master(store)
    assert (report.state, report.conflicts, report.dropped) == (MergeState.CONFLICT, (), (path("a"),))
    assert into_master(store).state is MergeState.MERGED
    assert files(store, "master") == {"a": "d", "b": "m", "other": "x"}


def test_abort(store: Store) -> None:
    fork(store, {"a": "0"}, {"a": "m"}, {"a": "d"})
    with pytest.raises(NotFound, match="no merge"):
        abort(store, "images", "master")
    with pytest.raises(NotFound, match="no merge"):
        resolve(store, "images", "master", MINE, None)
    into_master(store)
    resolve(store, "images", "master", THEIRS, None)
    abort(store, "images", "master")
    assert look(store, "images", "master") is None
    assert into_master(store).state is MergeState.CONFLICT


def test_abort_beside_resolve(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolve that is about to write what was decided does not bring back a merge that is dropped at that moment."""
    fork(store, {"a": "base"}, {"a": "mine"}, {"a": "theirs"})
    into_master(store)
    directory = worktree_path(store.path, store.repo("images"), "master")
    dropping = threading.Thread(target=abort, args=(store, "images", "master"))
    write = pending_merge.write_pending

    def is_waiting() -> bool:
        blocked = [line for line in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in line]
        return any(f":{directory.stat().st_ino} " in line for line in blocked)

    def beside(*arguments: Any) -> None:
        dropping.start()
        wait_for(lambda: is_waiting() or not dropping.is_alive(), "the abort to be done, or to wait")
        write(*arguments)

    monkeypatch.setattr(merge_module, "write_pending", beside)
    with suppress(NotFound):  # it looks again in the end, and may find it dropped
        resolve(store, "images", "master", MINE, None)
    dropping.join()
    assert read_pending(store, "images", "master") is None


def test_resolve_beside_merge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided while the same merge looks for conflicts is not lost; what is dropped then does not come back."""
    fork(store, {"a": "base", "b": "base"}, {"a": "mine", "b": "mine"}, {"a": "theirs", "b": "theirs"})
    into_master(store)
    resolve(store, "images", "master", MINE, [path("a")])
    plan = merge_module._plan

    def planned(then: Callable[[], object]) -> Callable[..., Any]:
        def beside(*arguments: Any) -> Any:
            monkeypatch.setattr(merge_module, "_plan", plan)
            found = plan(*arguments)
            then()
            return found

        return beside

    monkeypatch.setattr(merge_module, "_plan", planned(lambda: abort(store, "images", "master")))
    assert len(into_master(store).conflicts) == 2
    resolve(store, "images", "master", MINE, [path("a")])
    monkeypatch.setattr(merge_module, "_plan", planned(lambda: resolve(store, "images", "master", THEIRS, [path("b")])))
    assert into_master(store).state is MergeState.MERGED
    assert files(store, "master") == {"a": "mine", "b": "theirs"}


def test_one_merge_waits_at_a_time(store: Store) -> None:
    """Decisions are not thrown away for another merge."""
    fork(store, {"a": "0"}, {"a": "m"}, {"a": "d"})
    store.create_branch("images", "third", store.head("images", "dev"))
    into_master(store)
    assert into_master(store, "third").state is MergeState.CONFLICT  # nothing was decided about the first
    resolve(store, "images", "master", THEIRS, None)
    with pytest.raises(InvalidInput, match="waits"):
        into_master(store)
    assert into_master(store, "third").state is MergeState.MERGED
    assert into_master(store).state is MergeState.UP_TO_DATE


def test_a_merge_that_waits_is_over_when_the_branch_has_it(store: Store) -> None:
    fork(store, {"a": "0"}, {"a": "m"}, {"a": "d"})
    into_master(store)
    theirs = store.head("images", "dev")
    assert theirs is not None
    change(store, "master", {"a": "by hand"}, theirs)
    assert look(store, "images", "master") is None
    assert into_master(store).state is MergeState.UP_TO_DATE
    assert read_pending(store, "images", "master") is None


def test_a_damaged_record(store: Store) -> None:
    """It is refused, no commit is affected, and abort gets rid of it."""
    fork(store, {"a": "0"}, {"a": "m"}, {"a": "d"})
    into_master(store)
    file = worktree_path(store.path, store.repo("images"), "master") / "merge"
    raw = file.read_bytes()
    for bad in (raw[:-5], raw.replace(b"dev", b"dex"), b"", b"\n", raw + raw):
        file.write_bytes(bad)
        with pytest.raises(Corrupt, match="damaged"):
            into_master(store)
    abort(store, "images", "master")
    assert into_master(store, side=MINE).state is MergeState.MERGED


def test_gives_up_in_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fork(store, {"a": "1"}, {"m": "1"}, {"d": "1"})

    def interrupted(batch: Any, plan: Any) -> Entry:
        change(store, "master", {f"late{store.refs_version()}": "x"})
        return carry_out(batch, plan)

    monkeypatch.setattr(merge_module, "carry_out", interrupted)
    monkeypatch.setattr(merge_module, "_TRIES", 3)
    with pytest.raises(Conflict, match="moved"):
        into_master(store)
