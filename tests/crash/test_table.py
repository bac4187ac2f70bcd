"""The crash table of `docs/CRASHES.md`: each row is a command killed at a step, what that leaves, what fsck says of it, and what the next process makes of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pfsmount.errors import NotAStore
from pfsmount.objects.invariants import Severity
from pfsmount.repo import fsck
from pfsmount.repo.reflog import last_number
from tests.conftest import ROOT
from tests.crash.checking import View, check_stopped, in_child, shape_at, view_at
from tests.crash.jobs import FILES, MENDED, RUN
from tests.crash.shim import TORN, Mode
from tests.crash.workloads import (
    ADOPT,
    BRANCHED,
    DIRTY,
    FILLED,
    IMAGES,
    INIT,
    SEALS,
    Command,
    World,
)

DEV_WORK = DIRTY[1].replace('"master"', '"dev"')
"""Uncommitted changes on the branch `dev`."""
DOCUMENT = ROOT / "docs" / "CRASHES.md"
PUT: Command = ("pfs", "put", "{files}/photos", "images@master:/")
ADOPTING: Command = ("python", ADOPT, "{log}")
COMMIT: Command = ("pfs", "commit", "images@master", "-m", "work")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table."""

    name: str
    prepare: tuple[Command, ...]
    command: Command
    step: str
    """A pattern: the process is killed before the step."""
    left: Callable[[Path], bool]
    """What is there then."""
    at: int = 1
    torn: bool = False
    """Half of the write is done."""
    harmless: tuple[str, ...] = ()
    """What fsck mentions."""
    done: bool | None = None
    """Whether the command's change is there; None: either."""


def files(pattern: str) -> Callable[[Path], bool]:
    """Something like this is there."""
    return lambda store: any(store.glob(pattern))


def longer(suffix: str) -> Callable[[Path], bool]:
    """A segment of this kind has bytes."""
    return lambda store: any(path.stat().st_size for path in store.glob(f"segments/*.{suffix}"))


def names(count: int) -> Callable[[Path], bool]:
    """A data segment has so many names."""
    return lambda store: any(path.stat().st_nlink == count for path in store.glob("segments/*.data"))


def log_ends_torn(store: Path) -> bool:
    return not (store / "refs.log").read_bytes().endswith(b"\n")


ROWS = (
    Row("init-unfinished", (), INIT, "rename /store.json", files("index/data.mdb")),
    Row("segment-announced", IMAGES, PUT, "create /segments/*", lambda store: not any(store.glob("segments/*.data"))),
    Row("segment-empty", IMAGES, PUT, "fsync /segments", files("segments/*")),
    Row("data-unpublished", IMAGES, PUT, "fdatasync /segments/*.data", longer("data"), done=False),
    Row("data-torn", IMAGES, PUT, "write /segments/*.data", longer("data"), torn=True, done=False),
    Row("contents-torn", IMAGES, PUT, "write /segments/*.meta", longer("meta"), at=2, torn=True, done=False),
    Row("index-unsynced", IMAGES, PUT, "fdatasync /index/data.mdb", longer("meta"), at=4, done=False),
    Row("log-behind", IMAGES, PUT, "write /refs.log", lambda store: last_number(store / "refs.log") == 2, done=True),
    Row("log-torn", IMAGES, PUT, "write /refs.log", log_ends_torn, torn=True, done=True),
    Row("seal-unlisted", IMAGES, ("python", SEALS, "{log}"), "fdatasync /segments/*.data", longer("data"), at=4),
    Row("work-data-unnamed", FILLED, DIRTY, "write */journal.0", files("worktrees/*/master/data/*"), at=2),
    Row("work-line-torn", FILLED, DIRTY, "write */journal.0", files("worktrees/*/master/journal.0"), at=3, torn=True),
    Row("adopt-announced", FILLED, ADOPTING, "link /segments/*.data", names(1), done=False),
    Row("adopt-linked", FILLED, ADOPTING, "fsync /segments", names(2), done=False),
    Row("adopt-recorded", FILLED, ADOPTING, "fdatasync /index/data.mdb", names(2), at=2, done=False),
    Row("adopt-committed", FILLED, ADOPTING, "unlink */data/*", names(2), done=True),
    Row("adopt-unsealed", FILLED, ADOPTING, "fdatasync /segments/*.data", longer("data"), at=2, done=True),
    Row("adopt-withdrawn", FILLED, ADOPTING, "unlink /segments/*.data", names(2), harmless=("segment-known",)),
    Row(
        "turn-next-journal",
        (*FILLED, DIRTY),
        ("pfs", "commit", "images@master:/new", "-m", "one of them"),
        "fdatasync */journal.1",
        files("worktrees/*/master/journal.1"),
        done=False,
    ),
    Row(
        "turn-old-journal",
        (*FILLED, DIRTY),
        COMMIT,
        "unlink */journal.*",
        files("worktrees/*/master/journal.0"),
        done=True,
    ),
    Row("turn-old-data", (*FILLED, DIRTY), COMMIT, "unlink */data/*", files("worktrees/*/master/data/*"), done=True),
    Row(
        "branch-deleted",
        (*BRANCHED, ("python", DEV_WORK, "{log}")),
        ("pfs", "branch", "-d", "-f", "images@dev"),
        "unlink /worktrees/*",
        files("worktrees/*/dev"),
        done=True,
    ),
    Row(
        "branch-moved",
        (*BRANCHED, ("python", DEV_WORK, "{log}"), ("pfs", "commit", "images@dev", "-m", "work")),
        ("pfs", "branch", "--move", "images@dev", "side"),
        "unlink /worktrees/*",
        files("worktrees/*/dev"),
        done=True,
    ),
    Row(
        "repo-deleted",
        (*FILLED, DIRTY, ("pfs", "repo", "create", "other")),
        ("pfs", "repo", "delete", "-f", "images"),
        "unlink /worktrees/*",
        files("worktrees/*/master/deleted.journal.0"),
        done=True,
    ),
    Row("job-interrupted", FILES, RUN, "write /segments/*.tiny", files("jobs/job-*/d"), done=None),
    Row("job-left-over", (*FILES, MENDED), RUN, "unlink /jobs/*/d/*/log", files("jobs/job-*/d"), done=True),
    Row(
        "merge-unrecorded",
        BRANCHED,
        ("pfs", "merge", "images@dev", "images@master"),
        "rename */merge",
        files("worktrees/*/master/merge.new"),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda one: one.name)
def test_a_row(row: Row, world: World) -> None:
    """Killed there, exactly this is left; the next process goes on, with the change whole or not at all."""
    for command in row.prepare:
        world.good(command)
    kept, before = view_at(world.store), shape_at(world.store)
    options = TORN if row.torn else 0
    killed = world.run(row.command, mode=Mode.KILL, at=row.at, options=options, match=row.step)
    assert killed.code == -9, f"there is no such step: {killed}"
    assert row.left(world.store), sorted(str(path) for path in world.store.rglob("*"))
    problem = in_child(partial(_judge, world.store, row, kept, before))
    assert problem is None, f"{killed.at}: {problem}"


def _judge(store: Path, row: Row, kept: View, before: View) -> None:
    with suppress(NotAStore):
        report = fsck.check_store(store, data=True)
        assert report.clean, [str(one) for one in report.findings]
        assert {one.invariant.label for one in report.findings if one.severity is Severity.HARMLESS} <= {*row.harmless}
    now = shape_at(store)
    if row.done is not None:
        assert (now != before) is row.done
    check_stopped(store, kept, (now,))


@dataclass(frozen=True, slots=True)
class Removal:
    """A command after which a name is free, and what makes it a branch again."""

    name: str
    prepare: tuple[Command, ...]
    command: Command
    again: tuple[Command, ...]
    """The first of these fails while the command has not done its work."""
    empty: tuple[str, ...]
    """Branches without uncommitted work, whenever the name is free."""


DELETE: Command = ("pfs", "branch", "-d", "-f", "images@dev")
REMOVALS = (
    Removal(
        "delete",
        (*BRANCHED, ("python", DEV_WORK, "{log}")),
        DELETE,
        (("pfs", "branch", "images@dev", "images@master"),),
        ("images@dev",),
    ),
    Removal(
        "move",
        (*BRANCHED, ("python", DEV_WORK, "{log}"), ("pfs", "commit", "images@dev", "-m", "work")),
        ("pfs", "branch", "--move", "images@dev", "side"),
        (("pfs", "branch", "images@dev", "images@master"),),
        ("images@dev", "images@side"),
    ),
    Removal(
        "delete-repo",
        (*FILLED, DIRTY),
        ("pfs", "repo", "delete", "-f", "images"),
        (("pfs", "repo", "create", "images"), ("pfs", "put", "{files}/old", "images@master:/old")),
        ("images@master",),
    ),
)


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda one: one.name)
def test_a_new_branch_has_nothing_of_an_old_one(removal: Removal, world: World) -> None:
    """Killed at any step of deleting or renaming a branch, or of deleting a repo: a branch that is made with its name afterwards has no uncommitted work."""
    for command in removal.prepare:
        world.good(command)
    steps = kept_before(world, removal.command)
    for at in range(1, steps + 1):
        world.copy_from(world.root / "kept")
        assert world.run(removal.command, mode=Mode.KILL, at=at).code == -9
        free = world.run(removal.again[0]).code == 0
        for command in removal.again[1:] if free else ():
            world.good(command)
        for branch in removal.empty if free else ():
            said = world.good(("pfs", "status", branch)).out
            assert "nothing" in said, f"killed at step {at}: {said}"


def test_gc_deletes_what_a_killed_deletion_of_a_repo_left(world: World) -> None:
    """The directories with what was uncommitted; those of repos that are there stay."""
    deleted = REMOVALS[-1]
    other = [tuple(part.replace("images", "other") for part in command) for command in (*FILLED[1:], DIRTY)]
    for command in (*deleted.prepare, *other):
        world.good(command)
    assert world.run(deleted.command, mode=Mode.KILL, at=1, match="unlink /worktrees/*").code == -9
    assert len([*world.store.glob("worktrees/*")]) == 2
    world.good(("pfs", "gc", "--keep", "0d"))
    (kept,) = world.store.glob("worktrees/*")
    assert [*kept.glob("master/journal.0")]
    assert "new" in world.good(("pfs", "status", "other")).out


def test_a_branch_moved_to_the_name_of_a_deleted_one_has_nothing_of_it(world: World) -> None:
    """The directory of the deleted branch's uncommitted work is still there; killed at any step, the branch that gets its name begins with nothing."""
    for command in (*BRANCHED, ("python", DEV_WORK, "{log}"), ("pfs", "branch", "images@fine", "images@master")):
        world.good(command)
    assert world.run(DELETE, mode=Mode.KILL, at=1, match="unlink /worktrees/*").code == -9
    assert any(world.store.glob("worktrees/*/dev/deleted.*"))
    move = ("pfs", "branch", "--move", "images@fine", "dev")
    steps = kept_before(world, move)
    for at in range(1, steps + 1):
        world.copy_from(world.root / "kept")
        assert world.run(move, mode=Mode.KILL, at=at).code == -9
        world.run(move)
        said = world.good(("pfs", "status", "images@dev")).out
        assert "nothing" in said, f"killed at step {at}: {said}"


def kept_before(world: World, command: Command) -> int:
    """Keep a copy of the store in `kept`; how many steps a command has in it."""
    shutil.copytree(world.store, world.root / "kept", ignore=shutil.ignore_patterns("lock.mdb"))
    return world.good(command).steps


def test_the_document_has_these_rows() -> None:
    """Each row of the document is one of these or names another test, and each of these is in the document."""
    text = DOCUMENT.read_text()
    named = re.findall(r"^\| `([a-z-]+)` \|.*\|$", text, re.MULTILINE)
    assert {row.name for row in ROWS} <= {*named}
    for line in text.splitlines():
        row = re.match(r"\| `([a-z-]+)` \|", line)
        if row is not None and row[1] not in {one.name for one in ROWS}:
            tests = re.findall(r"`(test_[a-z_]+)`", line)
            assert tests, f"no test: {line}"
            for test in tests:
                assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py")), test
