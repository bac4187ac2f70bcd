"""What datums leave in /pfs/out, and what they find in /pfs: links, kinds, modes, times, attributes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.ids import parse_path
from pfsmount.tree.directory import find
from pfsmount.tree.xattrs import load_xattrs
from runner.executors.memory import Program, View
from runner.state import Phase
from tests.runner.world import Content, World

INPUT: dict[str, Content] = {"d/a": b"x", "d/sub/b": b"y", "d/link": "a", "d/away": "../other", "other": b"z"}


def leaving(leave: Callable[[Path], object]) -> Program:
    async def program(view: View) -> int:
        leave(view.out)
        return 0

    return program


def run(world: World, leave: Callable[[Path], object]) -> dict[str, bytes | str]:
    """The results of one datum, `d` of INPUT."""
    world.commit(INPUT)
    world.program("leave", leaving(leave))
    result = world.run("leave", inputs=["in@master:/d"])
    assert result.phase is Phase.SUCCESS
    return world.files()


LINKS: dict[str, tuple[str, dict[str, bytes | str]]] = {
    "to an input's file": ("/pfs/in/d/a", {"r": b"x"}),
    "to an input's directory": ("/pfs/in/d/sub", {"r/": "", "r/b": b"y"}),
    "to an input, relative": ("../in/d/sub/b", {"r": b"y"}),
    "through a link of the input": ("/pfs/in/d/link", {"r": b"x"}),
    "to a link of the input that leads out": ("/pfs/in/d/away", {"r": "/pfs/in/d/away"}),
    "to what the datum does not see": ("/pfs/in/other", {"r": "/pfs/in/other"}),
    "to what the input does not have": ("/pfs/in/d/nothing", {"r": "/pfs/in/d/nothing"}),
    "below a file of the input": ("/pfs/in/d/a/b", {"r": "/pfs/in/d/a/b"}),
    "to another result": ("/pfs/out/x/y", {"r": "x/y"}),
    "to another result, relative": ("x/y", {"r": "x/y"}),
    "elsewhere": ("/etc/passwd", {"r": "/etc/passwd"}),
    "to itself": ("r", {"r": "r"}),
}


@pytest.mark.parametrize("what", LINKS)
def test_symlinks(world: World, what: str) -> None:
    target, expected = LINKS[what]
    assert run(world, lambda out: os.symlink(target, out / "r")) == expected


def test_a_link_that_leads_out_is_warned_of(world: World) -> None:
    run(world, lambda out: os.symlink("/etc/passwd", out / "r"))
    assert "a symlink leads out of what its datum sees: /r" in world.notes.lines
    assert "a symlink leads out of what its datum sees: in:/d/away → ../other" in world.notes.lines


def test_an_input_is_taken_by_reference(world: World) -> None:
    run(world, lambda out: os.symlink("/pfs/in/d/sub", out / "r"))
    there = find(world.store.objects, world.head("in@master").tree, parse_path("/d/sub/b"))
    here = find(world.store.objects, world.head().tree, parse_path("/r/b"))
    assert there is not None
    assert here is not None
    assert here.id == there.id


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (lambda out: os.mkfifo(out / "pipe"), "/pfs/out/pipe is a FIFO"),
    "socket": (lambda out: os.mknod(out / "s", stat.S_IFSOCK | 0o600), "/pfs/out/s is a socket"),
    "reserved": (lambda out: (out / ".pfs").mkdir(), "/pfs/out/.pfs: this name"),
    "long": (lambda out: make_deep(out, "d" * 255, 40), "cannot be read: File name too long"),
    "deep": (lambda out: make_deep(out), "is more than 300 directories deep"),
}


def make_deep(out: Path, name: str = "d", count: int = 3000) -> None:
    before = os.getcwd()
    os.chdir(out)
    try:
        for _ in range(count):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("what", SPECIAL)
def test_what_cannot_be_kept_fails_the_datum(world: World, what: str) -> None:
    leave, said = SPECIAL[what]
    world.commit({"a": b"x"})
    world.program("leave", leaving(leave))
    result = world.run("leave")
    assert result.phase is Phase.FAILED
    (failure,) = result.failures
    assert said in failure.how
    assert said in world.record(result).log_tail(failure).decode()
    assert failure.meta["exit"] == 0


def test_modes_times_and_attributes_are_kept(world: World) -> None:
    def leave(out: Path) -> None:
        (out / "d").mkdir()
        (out / "d" / "tool").write_bytes(b"#!")
        os.chmod(out / "d" / "tool", 0o4711)
        os.setxattr(out / "d" / "tool", "user.colour", b"blue")
        os.utime(out / "d" / "tool", ns=(1, 123_456_789_012_345_678))

    run(world, leave)
    tool = find(world.store.objects, world.head().tree, parse_path("/d/tool"))
    assert tool is not None
    assert (tool.mode, tool.mtime_ns, tool.uid) == (0o4711, 123_456_789_012_345_678, os.getuid())
    assert load_xattrs(world.store.objects, tool) == {b"user.colour": b"blue"}


def test_a_scratch_directory_is_as_new_for_each_datum(world: World) -> None:
    seen: list[tuple[int, list[str], list[str]]] = []

    async def look(view: View) -> int:
        info = view.out.stat()
        seen.append((stat.S_IMODE(info.st_mode), os.listxattr(view.out), os.listdir(view.out)))
        os.setxattr(view.out, "user.x", b"y")
        os.makedirs(view.out / view.task.env["in"][8:] / "locked" / "deep")
        os.chmod(view.out / view.task.env["in"][8:] / "locked", 0)
        os.chmod(view.out, 0o500)
        view.print(b"said\n")
        return 0

    world.commit({f"{i}": b"%d" % i for i in range(10)})
    world.program("look", look)
    result = world.run("look", workers=1)
    assert result.phase is Phase.SUCCESS
    assert seen == [(0o755, [], [])] * 10
    logs = {b"".join(world.record(result).read_log(datum)) for datum in world.record(result).datums()}
    assert logs == {b"said\n"}


def test_what_is_staged(world: World) -> None:
    tool = world.commit({"d/a": b"x" * 10_000_000, "d/sub/b": b"", "d/link": "a"})
    entry = find(world.store.objects, tool.tree, parse_path("/d/a"))
    assert entry is not None
    world.commit({"d/tool": entry.replace(mode=0o4710, mtime_ns=77, uid=5), "e": b"not seen"})
    seen: dict[str, tuple[int, int]] = {}

    async def look(view: View) -> int:
        base = view.locate(b"in")
        for path in sorted(base.rglob("*")):
            info = path.lstat()
            seen[str(path.relative_to(base))] = (stat.S_IMODE(info.st_mode), info.st_mtime_ns)
        assert (base / "d" / "tool").read_bytes() == b"x" * 10_000_000
        return 0

    world.program("look", look)
    world.run("look", inputs=["in@master:/d"])
    time = 946_684_800 * 10**9
    assert seen == {
        "d": (0o755, time),
        "d/a": (0o644, time),
        "d/link": (0o777, time),
        "d/sub": (0o755, time),
        "d/sub/b": (0o644, time),
        "d/tool": (0o755, time),
    }
