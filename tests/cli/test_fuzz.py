"""Every command of `pfs` with odd arguments: an answer in time, an exit code of the table, never a traceback.

Each case runs in a fork of this process, which has loaded all commands: a start of Python would take longer than all the rest.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pfsmount.cli.app import PfsCommands, app, main
from pfsmount.repo.fsck import check_store
from pfsmount.repo.store import Store

Argument = str
_SECONDS = 60
_CODES = {0, 1, 2, 3}
_LONG = "x" * 5000
ODD: list[Argument] = [
    "", " ", "-", "--", "-1", "0", "-0", "1e999", "nan", "99999999999999999999", "٣", "\udcff\udcfe", "\n", "\x1b[31m", _LONG, "/" + _LONG,
    "/nope/nope", ".", "..", "/", "/dev/null", "/proc/self/mem", "~", "*", "[", "[!", "{a,b", "**", "\\", "a\udcffb/c", "x/" * 3000,
]  # fmt: skip
WRONG_REVISIONS: list[Argument] = [
    "@", "@@", ":", "::", "images@", "images:", "images::", "images@:", "images@master:", "images@master://", "images@master:/..", "images@master:/a/../b",
    "images@master:/./a", "images@master:a//b", "images@master:/a/", "images@master:/file/below", "images@master~", "images@master~~", "images@master^^^^", "images@master^999",
    "images@master~-1", "images@master~x", "images@master~99999999999999999999", "images@master.", "images@master.0", "images@master.-1", "images@master.1.1", "images@~1",
    "images~1", "images^", "images+x", "images@+x", "images@master+", "images@master+nope", "images@master+x+y", "images@master~1+x", "images@v1+x", "images@master+x@123456",
    "images@master@", "images@master@zz", "images@master@123456", "images@master@master", "a@b@c@d", "images@123456", "images@12345", "images@ABCDEF", "images@" + "f" * 64,
    "images@" + "f" * 65, "images@" + "m" * 300, "images@ma/ster", "images@master/file", "images/file", "images @master", "images@master ", "IMAGES@master", "images@\udcff",
    "images@master:/\udcff", "images@master:/" + "d/" * 3000, "images@master..master", "images@HEAD", "images@{1}", "nope", "nope@master:/x", "-images", "images@-x", "images@.", "images@..",
    "job-123456", "images@v1:/file", "images@master:/nope", "images@empty", "images@empty~1", "images@empty:/x",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store that has two versions, a tag, an empty branch, uncommitted work; all commands are loaded."""
    top = tmp_path_factory.mktemp("fuzz")
    (top / "file").write_text("content")
    Store.create(top / "store")
    for arguments in (
        ["repo", "create", "images"],
        ["put", "file", "images@master:/file", "-m", "one"],
        ["put", "file", "images@master:/dir/file", "-m", "two"],
        ["tag", "images@v1"],
        ["branch", "images@empty", "--empty"],
        ["begin", "images@master", "private"],
    ):
        assert run(top, arguments)[0] == 0, arguments
    for command in PfsCommands.places.values():
        importlib.import_module(command.place.partition(":")[0])
    return top


def run(top: Path, arguments: list[Argument]) -> tuple[int, str]:
    """Exit code, and what was complained; -1 for a hang."""
    said = top / "stderr"
    child = os.fork()
    if child == 0:
        _in_child(top, said, arguments)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")


def _in_child(top: Path, said: Path, arguments: list[Argument]) -> None:
    code = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        os.chdir(top)
        os.environ.update(PFS_STORE=str(top / "store"), PFS_AUTHOR="tester@here", HOME=str(top))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        sys.stdin, sys.stdout = open(0), open(1, "w", errors="surrogateescape")  # noqa: SIM115
        sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
        logging.getLogger().handlers.clear()  # pytest's, which write to what a daemon closes
        sys.argv = ["pfs", *arguments]
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def commands() -> dict[tuple[str, ...], Any]:
    """All commands by their words."""
    from typer.main import get_command

    found: dict[tuple[str, ...], Any] = {}
    group: Any = get_command(app)
    for name in group.commands:
        command = group.commands[name]
        below = getattr(command, "commands", None)
        for words, one in [((name, sub), below[sub]) for sub in below] if below else [((name,), command)]:
            found[words] = one
    return found


def cases(dice: random.Random, count: int) -> Iterator[list[Argument]]:
    """Command lines: each command, some of its options with and without values, arguments of all kinds."""
    known = list(commands().items())
    values = ODD + WRONG_REVISIONS
    good = ["images@master", "images@master:/file", "images@v1", "file", "images", "5", "master"]
    for n in range(count):
        words, command = known[n % len(known)]
        line = list(words)
        for _ in range(dice.choice([0, 0, 1, 1, 2])):
            option = dice.choice([one for one in command.params if one.param_type_name == "option"])
            line.append(dice.choice(option.opts))
            if dice.random() < 0.6:
                line.append(dice.choice(values))
        line += [dice.choice(good if dice.random() < 0.4 else values) for _ in range(dice.randrange(4))]
        # no mount is made, nothing is waited for at a terminal, no index is made anew beside the test
        if words == ("mount",) or "--rebuild-index" in line:
            line += ["--present", "nonsense", "/nope"]
        yield line


def check(top: Path, line: list[Argument], *, lines: int = 1000) -> str | None:
    """What is wrong with the answer to a command line."""
    code, said = run(top, line)
    crashed = code not in _CODES or "Traceback" in said or "bug in pfs" in said
    if crashed or (code and not said.strip()) or len(said.splitlines()) > lines:
        return f"{[part[:80] for part in line]}: exit code {code}\n{said[-2000:]}"
    return None


@pytest.mark.parametrize("each", [1, pytest.param(3, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_wrong_revisions(place: Path, each: int) -> None:
    """In a command that reads, one that takes a branch, and one that looks for a mount point too: two lines at most."""
    forms = [["ls"], ["status"], ["mount"]]
    lines = []
    for n, text in enumerate(WRONG_REVISIONS):
        for command in (forms * 2)[n % 3 :][:each]:
            lines.append([*command, text, *(["/nope"] if command == ["mount"] else [])])
    problems = [problem for line in lines if (problem := check(place, line, lines=2)) is not None]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 100), pytest.param(None, 5000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
def test_odd_arguments(place: Path, seed: int | None, count: int) -> None:
    seed = random.randrange(1 << 30) if seed is None else seed
    problems = [problem for line in cases(random.Random(seed), count) if (problem := check(place, line)) is not None]
    assert not problems, f"seed {seed}: " + "\n".join(problems)
    assert check_store(place / "store", data=True).clean
