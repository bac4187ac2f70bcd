"""The command line as a whole: what is loaded, where `--store` may stand, and what a wrong command line is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfsmount.cli.other_names import ANSWERS
from pfsmount.cli.output import wrapped
from tests.conftest import ROOT, Run, run_command


def modules_loaded_by(store: Path, *args: str) -> set[str]:
    """The modules of `pfsmount.cli` that a command imports."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from pfsmount.cli.app import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env={**os.environ, "PFS_STORE": str(store), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = done.stderr.split()
    return {name.removeprefix("pfsmount.cli.") for name in names if name.startswith("pfsmount.cli.")}


def test_a_command_loads_only_what_it_needs(pfs: Run) -> None:
    store: Path = pfs.store  # type: ignore[attr-defined]
    assert modules_loaded_by(store, "ls") == {"app", "commands", "files", "interruption", "output", "repos", "waiting"}
    (store.parent / "file").write_text("x")
    assert pfs("repo", "create", "images").returncode == 0
    put = modules_loaded_by(store, "put", str(store.parent / "file"), "images@master:/file")
    assert put == {"app", "commands", "files", "interruption", "output", "repos", "transfer", "waiting"}


@pytest.mark.parametrize("module", ["pfsmount.cli.app", "runner.cli"])
def test_the_store_may_be_named_at_any_place(tmp_path: Path, module: str) -> None:
    store, missing = tmp_path / "named", tmp_path / "missing"
    assert run_command("pfsmount.cli.app", missing, "--store", str(store), "init").returncode == 0
    commands = [["list"]] if module == "runner.cli" else [["ls"], ["repo", "list"], ["mounts"], ["du", "r"]]
    assert run_command("pfsmount.cli.app", store, "repo", "create", "r").returncode == 0
    for command in commands:
        for place in range(len(command) + 1):
            line = [*command[:place], "--store", str(store), *command[place:]]
            done = run_command(module, missing, *line)
            assert done.returncode == 0, (line, done.stderr)
        assert run_command(module, missing, *command).returncode == 1


@pytest.mark.parametrize("name", ["add", "checkout", "clone", "mv", "pull", "push", "restore", "stash", "switch"])
def test_verbs_of_git_are_answered_with_what_to_do(pfs: Run, name: str) -> None:
    said = pfs(name, "whatever", "--flag")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == f"pfs: there is no 'pfs {name}'\n  hint: {ANSWERS[name]}\n"


def test_no_answer_hides_a_command(pfs: Run) -> None:
    listed = pfs("--help").stdout.partition("Commands:")[2].split("\n")
    commands = {line.split()[0] for line in listed if line.strip()}
    assert "status" in commands
    assert not commands & ANSWERS.keys()


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (["sstatus"], ["pfs: no such command 'sstatus'. Did you mean 'status'", "  hint: pfs [OPTIONS] COMMAND"]),
        (["rm"], ["pfs rm: missing argument", "  hint: pfs rm [OPTIONS] "]),
        (["ls", "--foo"], ["pfs ls: no such option: --foo", "  hint: pfs ls [OPTIONS] "]),
        (["repo", "create", "a", "b"], ["pfs repo create: got unexpected", "  hint: pfs repo create [OPTIONS] "]),
        (["ls", "--store"], ["pfs: option '--store' requires an argument", "  hint: 'pfs --help'"]),
    ],
    ids=lambda value: value[0],
)
def test_a_wrong_command_line_takes_two_lines(pfs: Run, args: list[str], lines: list[str]) -> None:
    said = pfs(*args)
    assert (said.returncode, said.stdout) == (2, "")
    told = said.stderr.splitlines()
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True)), said.stderr


def test_long_messages_are_broken_between_words() -> None:
    text = "pfs: what happened, in many words\n  hint: what can be done about it, in many words"
    assert wrapped(text, 30) == (
        "pfs: what happened, in many\n  words\n  hint: what can be done about\n    it, in many words"
    )
    assert wrapped(text, 200) == text
    path = "pfs: there is no /" + "x" * 50
    assert wrapped(path, 30).split() == path.split(), "a path stays in one piece"


def test_usage_is_written_as_in_manuals(pfs: Run) -> None:
    for module, command in (("pfsmount.cli.app", "put"), ("pfsmount.cli.app", "cp"), ("runner.cli", "run")):
        usage = run_command(module, pfs.store, command, "--help").stdout.splitlines()[0]  # type: ignore[attr-defined]
        arguments = usage.partition("[OPTIONS] ")[2]
        assert arguments == {"put": "[SOURCE…] [TARGET]", "cp": "SOURCE… TARGET", "run": "[COMMAND…]"}[command]


def test_stores_at_any_place(tmp_path: Path) -> None:
    """A name that is not UTF-8; the root directory, which is refused like every other that is not empty."""
    store = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    (tmp_path / "file").write_text("content")
    for args in (["init"], ["repo", "create", "images"], ["put", tmp_path / "file", "images@master:/"]):
        assert run_command("pfsmount.cli.app", store, *args).returncode == 0
    assert run_command("pfsmount.cli.app", store, "cat", "images@master:/file").stdout == "content"
    assert run_command("pfsmount.cli.app", store, "fsck", "--data").returncode == 0
    refused = run_command("pfsmount.cli.app", Path("/"), "init")
    assert refused.returncode == 1
    assert "/ is not empty" in refused.stderr
