"""What a command names, and what of it decides whether datums run again (docs/decisions/003-code-in-the-datum-key.md)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.errors import NotFound, PermissionDenied
from pfsmount.tree.directory import walk
from runner import source_files
from runner.differences import program_differences
from runner.program import Caller, Program, resolve_program
from tests.runner.world import World


def program(world: World, *command: str, code: str | None = None, env: tuple[str, ...] = ()) -> Program:
    spec = world.spec(*command, code=None if code is None else Path(code), env=env)
    with world.store.objects.batch() as batch:
        found = resolve_program(batch, spec, world.caller())
        batch.flush()
        return found


def write(world: World, path: str, text: str = "text", *, mode: int = 0o644) -> Path:
    place = world.cwd / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)
    return place


def kept(world: World, found: Program) -> set[str]:
    return {
        os.fsdecode(b"/".join(path)) for path, entry in walk(world.store.objects, found.code) if not entry.is_directory
    }


CHANGES: dict[str, tuple[Callable[[World], object], bool]] = {
    "the script": (lambda world: write(world, "src/main.py", "new"), True),
    "a helper beside it": (lambda world: write(world, "src/helper.py", "new"), True),
    "a helper deeper down": (lambda world: write(world, "src/lib/deep/helper.R", "new"), True),
    "the exec bit of a helper": (lambda world: (world.cwd / "src/tool.sh").chmod(0o755), True),
    "a file argument": (lambda world: write(world, "data.csv", "new"), True),
    "a file given as an option": (lambda world: write(world, "options.conf", "new"), True),
    "the executable": (lambda world: (world.bin / "upper").write_text("new"), True),
    "a photo beside the script": (lambda world: write(world, "src/photo.jpg"), False),
    "the time of the script": (lambda world: os.utime(world.cwd / "src/main.py", (1, 1)), False),
    "a compiled module": (lambda world: write(world, "src/__pycache__/helper.cpython.py"), False),
    "a hidden directory": (lambda world: write(world, "src/.git/hooks/post.sh"), False),
    "a virtual environment": (lambda world: (write(world, "src/e/pyvenv.cfg"), write(world, "src/e/a.py")), False),
    "a store": (lambda world: (write(world, "src/s/store.json"), write(world, "src/s/a.py")), False),
    "node_modules": (lambda world: write(world, "src/node_modules/a.js"), False),
    "a file elsewhere": (lambda world: write(world, "other.py"), False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_runs_everything_again(world: World, what: str) -> None:
    change, matters = CHANGES[what]
    for name in ("src/main.py", "src/helper.py", "src/lib/deep/helper.R", "src/tool.sh", "data.csv", "options.conf"):
        write(world, name)
    command = ("upper", "src/main.py", "data.csv", "--config=options.conf", "-v", "not a file")
    before = program(world, *command)
    change(world)
    assert (program(world, *command).id != before.id) is matters


@pytest.mark.parametrize(
    "other",
    [("upper", "b"), ("upper", "a", "b"), ("upper",)],
)
def test_the_command_counts(world: World, other: tuple[str, ...]) -> None:
    assert program(world, "upper", "a").id != program(world, *other).id


def test_the_given_environment_counts(world: World) -> None:
    assert program(world, "upper").id != program(world, "upper", env=("A=1",)).id


def test_files_in_a_shell_command_count(world: World) -> None:
    write(world, "src/main.py")
    write(world, "src/helper.py")
    command = ("upper", "-c", "cat <data.txt | python3 'src/main.py'>/pfs/out/x; true")
    before = program(world, *command)
    assert kept(world, before) >= {"main.py", "helper.py"}
    write(world, "src/helper.py", "new")
    assert program(world, *command).id != before.id


@pytest.mark.parametrize("command", [("-m", "tool"), ("-m", "tool.__main__"), ("tool",), ("-m", "alone")])
def test_what_python_runs_for_a_module_counts(world: World, command: tuple[str, ...]) -> None:
    for name in ("tool/__main__.py", "tool/part.py", "alone.py"):
        write(world, name)
    before = program(world, "upper", *command)
    write(world, "alone.py" if command[-1] == "alone" else "tool/part.py", "new")
    assert program(world, "upper", *command).id != before.id


def test_an_installed_program_in_a_shell_command_is_not_kept(world: World) -> None:
    (world.bin / "tool").write_text("x")
    before = program(world, "upper", "-c", f"{world.bin}/tool --fast")
    assert (kept(world, before), before.notes) == (set(), ())
    (world.bin / "tool").write_text("y")
    assert program(world, "upper", "-c", f"{world.bin}/tool --fast").id != before.id


def test_what_is_kept_and_where(world: World) -> None:
    write(world, "src/main.py")
    write(world, "src/lib/a.py")
    write(world, "data.csv")
    found = program(world, "upper", "src/main.py", "data.csv")
    assert kept(world, found) == {"main.py", "lib/a.py", "+arguments/1/data.csv"}
    assert [(file.text, file.stored) for file in found.files] == [
        ("src/main.py", (b"main.py",)),
        ("data.csv", (b"+arguments", b"1", b"data.csv")),
    ]
    assert found.directory == world.cwd / "src"
    assert found.notes == ()


def test_a_script_that_is_the_command(world: World) -> None:
    write(world, "src/run.sh", "#!/bin/sh\n", mode=0o755)
    write(world, "src/helper.sh")
    found = program(world, "src/run.sh")
    assert kept(world, found) == {"run.sh", "helper.sh"}
    assert found.interpreter is not None
    assert found.interpreter.text == "/bin/sh"


def test_an_executable_that_is_no_script_is_not_kept(world: World) -> None:
    place = write(world, "tool", "\x7fELF", mode=0o755)
    found = program(world, "./tool")
    assert found.executable is not None
    assert (found.executable.place, kept(world, found)) == (place, set())


def test_a_named_code_directory_counts_whole(world: World) -> None:
    for name in ("c/main.py", "c/weights.bin", "c/.hidden/x", "c/.git/config", "c/__pycache__/a.pyc", "c/b.pyc"):
        write(world, name)
    (world.cwd / "c/link").symlink_to("main.py")
    before = program(world, "upper", "c/main.py", code="c")
    assert kept(world, before) == {"main.py", "weights.bin", ".hidden/x", "link"}
    write(world, "c/weights.bin", "new")
    assert program(world, "upper", "c/main.py", code="c").id != before.id


@pytest.mark.parametrize(("limit", "value"), [("ENTRIES_MAX", 3), ("BYTES_MAX", 3)])
def test_a_directory_that_is_too_large_counts_by_its_script_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(source_files, limit, value)
    for i in range(5):
        write(world, f"src/{i}.py")
    write(world, "src/main.py")
    found = program(world, "upper", "src/main.py")
    assert kept(world, found) == {"main.py"}
    assert "only src/main.py itself decides" in found.notes[0]


def test_the_home_directory_is_no_code_directory(world: World) -> None:
    home = world.root / "home"
    home.mkdir()
    (home / "main.py").write_text("x")
    (home / "other.py").write_text("x")
    found = program(world, "upper", os.fspath(home / "main.py"))
    assert kept(world, found) == {"main.py"}


def test_a_large_argument_is_named_and_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.program.KEPT_MAX", 10)
    write(world, "reference.fa", "x" * 11)
    before = program(world, "upper", "reference.fa")
    assert kept(world, before) == set()
    assert before.files[0].stored is None
    assert "is larger than" in before.notes[0]
    write(world, "reference.fa", "y" * 11)
    assert program(world, "upper", "reference.fa").id != before.id


def test_what_cannot_be_run(world: World) -> None:
    write(world, "script.py")
    with pytest.raises(NotFound, match=r"script\.py: command not found") as refused:
        program(world, "script.py")
    assert refused.value.hint is not None
    assert "./script.py" in refused.value.hint
    with pytest.raises(PermissionDenied, match="not executable"):
        program(world, "./script.py")
    with pytest.raises(NotFound, match="there is no program"):
        program(world, "./nowhere")


def test_path_of_the_given_environment_is_searched(world: World) -> None:
    other = world.root / "other"
    other.mkdir()
    (other / "tool").write_text("x")
    (other / "tool").chmod(0o755)
    executable = program(world, "tool", env=(f"PATH={other}",)).executable
    assert executable is not None
    assert executable.place == other / "tool"


def test_the_user_and_the_directory_count(world: World) -> None:
    spec = world.spec("upper")
    caller = world.caller()
    others = [
        Caller(caller.cwd, caller.home, caller.path, caller.uid + 1, caller.user, caller.host),
        Caller(world.root, caller.home, caller.path, caller.uid, caller.user, caller.host),
    ]
    same = Caller(caller.cwd, world.root, f"{caller.path}:/usr", caller.uid, "other", "elsewhere")
    with world.store.objects.batch() as batch:
        mine = resolve_program(batch, spec, caller).id
        assert resolve_program(batch, spec, same).id == mine
        for other in others:
            assert resolve_program(batch, spec, other).id != mine


@pytest.mark.parametrize("words", ["tool", "tool $in >/pfs/out/x", "cat $in | tool"])
def test_a_tool_that_a_shell_finds_decides_by_its_content(world: World, words: str) -> None:
    place = world.bin / "tool"
    place.write_text("#!/bin/sh\necho one")
    place.chmod(0o755)
    before = program(world, "upper", "-c", words)
    assert place in before.places()
    assert program(world, "upper", "-c", words).id == before.id
    place.write_text("#!/bin/sh\necho two")
    assert program(world, "upper", "-c", words).id != before.id
    other = world.root / "other"
    other.mkdir()
    (other / "tool").write_text("#!/bin/sh\necho one")
    (other / "tool").chmod(0o755)
    assert program(world, "upper", "-c", words, env=(f"PATH={other}:{world.bin}",)).files[0].id == before.files[0].id


def test_tools_of_the_system_are_no_files_of_the_command(world: World) -> None:
    found = program(world, "upper", "-c", "ls $in", env=(f"PATH={world.bin}:/usr/bin:/bin",))
    assert found.files == ()


def test_the_packages_of_a_virtual_environment_count(world: World) -> None:
    place = world.root / "venv"
    site = place / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    (place / "pyvenv.cfg").touch()
    (place / "bin").mkdir()
    tool = place / "bin" / "python"
    tool.write_bytes((world.bin / "upper").read_bytes())
    tool.chmod(0o755)
    (site / "numpy-2.0.dist-info").mkdir()
    before = program(world, f"{tool}")
    assert before.packages == ("numpy-2.0",)
    assert program(world, f"{tool}").id == before.id
    (site / "numpy-2.0.dist-info").rename(site / "numpy-2.1.dist-info")
    after = program(world, f"{tool}")
    assert after.id != before.id
    then, now = ({"command": [], "spec": {"env": {}}, "code": one.as_json()} for one in (before, after))
    assert program_differences(then, now) == ["packages of the virtual environment (numpy-2.0, numpy-2.1)"]
