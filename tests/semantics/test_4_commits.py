"""Commits"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.semantics.scene import Scene

# Runs pfs with every write to, and every sync of, a file of the store noted on standard error.
_WATCHED = """
import os, sys
def name(fd):
    return os.readlink(f"/proc/self/fd/{fd}")
def watch(what, function):
    def watched(fd, *rest):
        result = function(fd, *rest)
        if isinstance(fd, int) and "/store/" in name(fd):
            sys.stderr.write(f"{what} {name(fd)}\\n")
        return result
    return watched
for call in ("write", "pwrite", "pwritev"):
    setattr(os, call, watch("write", getattr(os, call)))
for call in ("fsync", "fdatasync"):
    setattr(os, call, watch("sync", getattr(os, call)))
from pfsmount.cli.app import main
main()
"""


def test_a_commit_never_changes(scene: Scene) -> None:
    """S40 A commit never changes

    `images@<commit>` reads the same bytes for ever, whatever is later put, removed or deleted.
    """
    first = scene.put({"file": "one", "dir/a": "a"})
    shown = scene.pfs("ls", "-lR", f"images@{first}")
    scene.put({"file": "two"})
    scene.pfs("rm", "-r", "images@master:/dir")
    scene.pfs("branch", "images@other", "master")
    scene.pfs("branch", "--delete", "images@other")
    assert scene.pfs("ls", "-lR", f"images@{first}") == shown
    assert scene.cat(f"images@{first}:/file") == "one"
    assert scene.cat(f"images@{first}:/dir/a") == "a"


def test_a_killed_command(scene: Scene) -> None:
    """S41 A command that is killed leaves the store as it was

    At any instant, with `kill -9` or a power cut. There is nothing to repair; the next command works.
    """
    before = scene.put({"file": "one"})
    writer = scene.start("pfs", "put", "-", "images@master:/big", stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write("x" * (9 << 20))  # more than a pipe holds: two pieces are stored when this returns
    writer.stdin.flush()
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert [commit["commit"] for commit in scene.log()] == [before]
    assert scene.ls("images@master") == ["file"]
    scene.put({"big": "complete"})
    assert scene.cat("images@master:/big") == "complete"


def test_durable(scene: Scene) -> None:
    """S42 When the command that made a commit returns, a power cut does not lose it

    Everything that the commit needs has been forced to the disk before: data, directories, then the branch.
    """
    source = scene.write({"data": os.urandom(3000), "tiny": "x"})
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, "put", source, "images@master:/"],
        env=scene.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    last = {}
    for line in done.stderr.splitlines():
        what, _, path = line.partition(" ")
        last[os.path.basename(path)] = what
    del last["openers"]  # says who has the store open; means nothing after a crash
    assert set(last.values()) == {"sync"}, done.stderr
    assert {name.rpartition(".")[2] for name in last} >= {"data", "tiny", "meta", "log"}


def test_nothing_changed(scene: Scene) -> None:
    """S43 When nothing has changed, there is no commit

    The command says so, and it is no failure.
    """
    source = scene.write({"file": "x"})
    scene.pfs("put", source, "images@master:/")
    assert "nothing changed" in scene.pfs("put", source, "images@master:/")
    assert "nothing to commit" in scene.pfs("commit", "images@master", "-m", "again")
    assert len(scene.log()) == 1


def test_log(scene: Scene) -> None:
    """S44 Every commit says who made it, when, why and how

    `pfs log` lists a branch's commits, newest first.
    """
    scene.put({"a": "1"}, message="the first")
    scene.put({"b": "2"}, message="the second")
    second, first = scene.log()
    assert (first["message"], second["message"]) == ("the first", "the second")
    assert second["parents"] == [first["commit"]]
    assert (second["author"], second["origin"]["how"]) == ("tester@here", "put")
    assert first["time_ns"] <= second["time_ns"]
    assert "the second" in scene.pfs("log", "images")


def test_diff(scene: Scene) -> None:
    """S45 `pfs diff` says what differs between any two versions

    One path a line, with a letter: A added, D deleted, M content, T another kind, m only permissions, owner, time or attributes
    (whether a file is executable counts as content).
    """
    top = scene.write({"same": "=", "changed": "old", "gone": "x", "mode": "x", "kind": "x"})
    scene.pfs("put", top, "images@master:/")
    (top / "changed").write_text("new")
    (top / "gone").unlink()
    (top / "mode").chmod(0o640)
    (top / "kind").unlink()
    (top / "kind").symlink_to("same")
    (top / "new").write_text("x")
    scene.pfs("put", "--delete", top, "images@master:/")
    changes = {change["path"]: change["change"] for change in scene.json("diff", "images@master~1", "images@master")}
    assert {name: letter for name, letter in changes.items() if name} == {
        "changed": "M",
        "gone": "D",
        "kind": "T",
        "mode": "m",
        "new": "A",
    }
    assert scene.json("diff", "images@master", "images@master") == []
