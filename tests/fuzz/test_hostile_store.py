"""Every command on a store that lies: a clear error or a right answer, in little memory and time, and nothing written outside of the target."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfsmount.repo.descent import remove_tree
from tests.fuzz.hostile import ENDLESS, branches, make_hostile_store

SECONDS = 60
MEMORY = 1 << 30
"""Bytes that a command may have in memory."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    error: str
    peak: int


def run(store: Path, *args: str | bytes, program: str = "pfs") -> Done:
    """A command in a child of this process, which has all modules loaded: a start of Python would cost ten times as much."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _child(store, args, program, out.fileno(), error.fileno())
        _, status, usage = os.wait4(pid, 0)
        out.seek(0)
        error.seek(0)
        return Done(
            os.waitstatus_to_exitcode(status),
            out.read(1 << 20),
            error.read().decode("utf-8", "replace"),
            usage.ru_maxrss * 1024,
        )


def _child(store: Path, args: Sequence[str | bytes], program: str, out: int, error: int) -> None:
    code = 99
    try:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(error, 2)
        sys.stdout = open(1, "w", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.environ["PFS_STORE"] = str(store)
        sys.argv = [program, *map(os.fsdecode, args)]
        if program == "pfs":
            from pfsmount.cli.app import main
        else:
            from runner.cli import main
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as problem:
        os.write(2, f"Traceback: {problem!r}".encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def check(done: Done, *args: object) -> None:
    said = f"{args}: {done}"
    assert done.code in (0, 1, 2, 3), said
    assert "Traceback" not in done.error, said
    assert "bug in pfs" not in done.error, said
    assert done.code == 0 or done.error or args[0] == "fsck", said
    assert done.peak < MEMORY, said
    assert b"\x1b" not in done.out, said
    assert "\x1b" not in done.error, said


def picture(directory: Path) -> dict[str, str]:
    """Names and contents of everything in a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "store"
    make_hostile_store(path)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """`canary` must stay as it is, and nothing may come beside `work`."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "bird").write_text("sings")
    (tmp_path / "work").mkdir()
    before = picture(tmp_path / "canary")
    yield tmp_path / "work"
    assert picture(tmp_path / "canary") == before
    assert sorted(os.listdir(tmp_path)) == ["canary", "work"]


READING = (
    ("ls", "-lR", "{}"),
    ("ls", "-lR", "--json", "{}"),
    ("find", "{}"),
    ("glob", "{}:**/x"),
    ("du", "{}"),
    ("diff", "images@good", "{}"),
    ("diff", "{}", "images@good"),
    ("log", "{}"),
    ("log", "{}", "--", "x"),
    ("show", "{}"),
    ("cat", "{}:/f"),
    ("ls", "{}~1"),
    ("lineage", "{}:/f"),
    ("lineage", "{}:/a"),
)


MUCH = ("t-manifest-holes",)
"""4 EiB of zeros, as it says: a file without them in `get`, endless on standard output."""


def check_reading(store: Path, place: Path, branch: str, commands: Sequence[Sequence[str]]) -> None:
    target = f"images@{branch}"
    for command in commands:
        if command[0] != "cat" or branch not in MUCH:
            args = [part.format(target) for part in command]
            check(run(store, *args), *args)
    inside = place / "in" / "target"
    inside.parent.mkdir()
    check(run(store, "get", target, str(inside)), "get", target)
    assert sorted(os.listdir(place)) == ["in"]
    assert sorted(os.listdir(place / "in")) in ([], ["target"])
    if branch not in MUCH:
        check(run(store, "get", target, "--tar", str(place / "tar")), "get", "--tar", target)
        (place / "tar").unlink(missing_ok=True)
    if branch == "t-deep":
        remove_tree(os.fsencode(inside), os.open(inside.parent, os.O_RDONLY))
        return
    for path in inside.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert all(name.startswith("user.") for name in os.listxattr(path) if name != "security.selinux")


@pytest.mark.parametrize("branch", [name for name in branches() if name not in ("t-deep", "t-wide", "c-chain")])
def test_who_reads_it_is_told(made: Path, place: Path, branch: str) -> None:
    check_reading(made, place, branch, READING[:1])


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("branch", list(branches()))
def test_every_command_that_reads_it(made: Path, place: Path, branch: str) -> None:
    check_reading(made, place, branch, READING)


WRITING = (
    ("put", "SOURCE", "{}:/new"),
    ("cp", "images@good:/a", "{}:/copied"),
    ("rm", "{}:/f"),
    ("merge", "images@good", "{}"),
    ("merge", "{}", "images@good"),
    ("revert", "{}"),
    ("status", "{}"),
    ("tag", "{}", "--json"),
)


@pytest.fixture
def copy(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copy") / "store"
    shutil.copytree(made, path)
    return path


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("branch", [*branches(), *(f"t-{name}" for name in ENDLESS)])
def test_every_command_that_changes_it(copy: Path, place: Path, branch: str) -> None:
    source = place / "source"
    source.mkdir()
    (source / "file").write_text("new")
    for command in WRITING:
        if branch not in ("t-laughs", "t-ranges") or "merge" not in command:
            args = [part.format(f"images@{branch}").replace("SOURCE", str(source)) for part in command]
            check(run(copy, *args), *args)


def test_what_looks_at_the_whole_store(copy: Path, place: Path) -> None:
    """Each object is looked at once, however often it is named: trees that are larger than any disk come to an end."""
    for args in (["fsck"], ["gc"]):
        check(run(copy, *args), *args)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_whatever_looks_at_the_whole_store(copy: Path, place: Path) -> None:
    for args in (["stats"], ["gc", "--dry-run"], ["fsck", "--data"], ["fsck", "--rebuild-index"], ["repo", "list"]):
        check(run(copy, *args), *args)


@pytest.mark.long
@pytest.mark.parametrize("branch", [f"t-{name}" for name in ENDLESS])
def test_what_is_larger_than_any_disk_can_be_left(made: Path, branch: str) -> None:
    for args in (
        ["log", f"images@{branch}"],
        ["ls", f"images@{branch}"],
        ["diff", f"images@{branch}", f"images@{branch}"],
    ):
        check(run(made, *args), *args)


@pytest.mark.long
@pytest.mark.parametrize("branch", list(branches()))
def test_a_job_over_it(copy: Path, place: Path, branch: str) -> None:
    paths = "/00000*" if branch == "t-wide" else "/*"  # 20 000 datums would take minutes
    args = [
        "run",
        "--input",
        f"images@{branch}:{paths}",
        "--output",
        "images@results",
        "--inputs",
        "copy",
        "--",
        "true",
    ]
    check(run(copy, *args, program="pfsjob"), *args)
