"""Merging and conflicts"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from pfsmount.repo.store import Store
from tests.repo import competing
from tests.semantics.scene import Scene, wait_for


def fork(scene: Scene, mine: dict[str, str | bytes], theirs: dict[str, str | bytes]) -> None:
    """images@dev starts at images@master; then both change."""
    scene.put({"a.txt": "base", "b": "base", "d/x": "base"})
    scene.pfs("branch", "images@dev", "master")
    scene.put(mine)
    scene.put(theirs, "images@dev:/")


def test_merge(scene: Scene) -> None:
    """S140 `pfs merge` brings the changes of a version into a branch, as one commit with two parents

    What only one side changed since the commit that both come from is taken from that side: content, permission bits, owner, time and attributes each by itself. The
    same change on both sides is one change; different times alone are no conflict. A branch without changes of its own is moved instead, unless `--no-ff`
    is given; merging again does nothing.
    """
    fork(scene, {"a.txt": "mine", "new/m": "1"}, {"d/x": "theirs", "new/d": "2"})
    mine, theirs = scene.log()[0]["commit"], scene.log("images@dev")[0]["commit"]
    scene.pfs("merge", "images@dev", "images@master", "-m", "together")
    assert [scene.cat(f"images@master:/{name}") for name in ("a.txt", "d/x", "new/m", "new/d")] == [
        "mine",
        "theirs",
        "1",
        "2",
    ]
    commit = scene.log()[0]
    assert (commit["parents"], commit["message"]) == ([mine, theirs], "together")
    assert (commit["origin"]["how"], commit["origin"]["source"]) == ("merge", "images@dev")
    assert "up to date" in scene.pfs("merge", "images@dev", "images@master")
    assert "fast-forward" in scene.pfs("merge", "images@master", "images@dev")
    assert scene.log("images@dev")[0]["commit"] == scene.log()[0]["commit"] == commit["commit"]


def test_merge_conflict(scene: Scene) -> None:
    """S141 A merge with conflicts changes nothing and lists them all with both sides

    One path changed differently, a file against a directory, a deletion against a change (also when a directory was deleted and something below it changed). Exit code 3.
    `pfs resolve` settles them path by path, `--mine`, `--theirs`, or `--both`: mine stays, theirs comes beside it under a name like `a~dev.txt`. A directory stands for all
    below it. Then the same `pfs merge` makes the commit. `pfs status` shows how it stands.
    """
    fork(scene, {"a.txt": "mine", "b": "mine"}, {"a.txt": "theirs", "b": "theirs", "d/x": "theirs"})
    scene.pfs("rm", "-r", "images@master:/d")
    head = scene.log()[0]["commit"]
    done = scene.run("pfs", "merge", "images@dev", "images@master", "--json", code=3)
    listed = {
        one["path"]: (one["reason"], one["mine"], one["theirs"]["size"]) for one in json.loads(done.stdout)["conflicts"]
    }
    assert {path: reason for path, (reason, _, _) in listed.items()} == {
        "a.txt": "content",
        "b": "content",
        "d/x": "deleted",
    }
    assert (listed["a.txt"][1]["size"], listed["a.txt"][2], listed["d/x"][1]) == (4, 6, None)
    assert "tester@here" in scene.run("pfs", "merge", "images@dev", "images@master", code=3).stdout
    assert scene.log()[0]["commit"] == head
    scene.pfs("resolve", "images@master", "--both", "a.txt")
    assert scene.json("status", "images@master")["merge"]["open"] == 2
    assert "settled: both" in scene.pfs("status")
    scene.pfs("merge", "images@dev", "images@master", code=3)
    scene.pfs("resolve", "images@master:/d", "--theirs")
    assert "pfs merge images@dev images@master" in scene.pfs("resolve", "images@master", "--mine", "--all")
    scene.pfs("merge", "images@dev", "images@master")
    found = {name: scene.cat(f"images@master:/{name}") for name in ("a.txt", "a~dev.txt", "b", "d/x")}
    assert found == {"a.txt": "mine", "a~dev.txt": "theirs", "b": "mine", "d/x": "theirs"}
    assert scene.json("status", "images@master")["merge"] is None


def test_merge_side(scene: Scene) -> None:
    """S142 `pfs merge --mine` and `--theirs` settle all conflicts at once

    Only conflicts: what one side alone changed is taken in any case.
    """
    fork(scene, {"a.txt": "mine"}, {"a.txt": "theirs", "b": "theirs"})
    scene.pfs("merge", "--mine", "images@dev", "images@master")
    assert (scene.cat("images@master:/a.txt"), scene.cat("images@master:/b")) == ("mine", "theirs")


def test_merge_waits(scene: Scene) -> None:
    """S143 What was decided about a merge counts as long as the conflict is the same

    It survives everything but `pfs merge --abort`. When a branch moves and a path is another conflict than the one that was settled, that decision is dropped and
    named, and nothing is merged that time. Other work on the branch goes on meanwhile.
    """
    fork(scene, {"a.txt": "mine", "b": "mine"}, {"a.txt": "theirs", "b": "theirs"})
    scene.pfs("merge", "images@dev", "images@master", code=3)
    scene.pfs("resolve", "images@master", "--mine", "--all")
    scene.put({"b": "mine, changed", "other": "x"})
    complaint = scene.pfs("merge", "images@dev", "images@master", code=3)
    assert "/b fits no longer" in complaint
    scene.pfs("resolve", "images@master:/b", "--theirs")
    scene.pfs("merge", "images@dev", "images@master")
    assert [scene.cat(f"images@master:/{name}") for name in ("a.txt", "b", "other")] == ["mine", "theirs", "x"]
    scene.put({"a.txt": "theirs again"}, "images@dev:/")
    scene.put({"a.txt": "mine again"})
    scene.pfs("merge", "images@dev", "images@master", code=3)
    scene.pfs("merge", "--abort", "images@master")
    assert "no merge" in scene.pfs("merge", "--abort", "images@master", code=1)


def test_merge_under_a_mount(mounted: Scene) -> None:
    """S144 A merge into a branch with uncommitted work keeps that work

    The mount shows the merged files and the uncommitted ones, and the next commit has both.
    """
    fork(mounted, {"b": "mine"}, {"d/x": "theirs"})
    (mounted.master / "a.txt").write_text("uncommitted")
    mounted.pfs("merge", "images@dev", "images@master")
    assert (mounted.master / "d" / "x").read_text() == "theirs"
    assert (mounted.master / "a.txt").read_text() == "uncommitted"
    assert [change["path"] for change in mounted.json("status", "images@master")["changes"]] == ["a.txt"]
    mounted.pfs("commit", "images@master", "-m", "after the merge")
    assert [mounted.cat(f"images@master:/{name}") for name in ("a.txt", "b", "d/x")] == [
        "uncommitted",
        "mine",
        "theirs",
    ]


def test_merge_deleted_directory(scene: Scene) -> None:
    """S195 A directory that one side deleted and the other changed is a conflict

    Changed permission bits, owner or attributes of the directory, or of anything below it, count as with files; a time alone does not, for a directory's time changes with whatever
    is in it. Of the directory itself the conflict is one, with all below it: `--theirs` brings back the directory as the other side has it.
    """
    scene.put({"a.txt": "base", "d/x": "base", "e/x": "base"})
    scene.pfs("branch", "images@dev", "master")
    scene.pfs("rm", "-r", "images@master:/d", "images@master:/e")
    scene.pfs("get", "images@dev", "all")
    (scene.root / "all/d").chmod(0o700)
    os.utime(scene.root / "all/e", (1, 1))
    scene.pfs("put", "all", "images@dev:/")
    done = scene.run("pfs", "merge", "images@dev", "images@master", "--json", code=3)
    (conflict,) = json.loads(done.stdout)["conflicts"]
    assert (conflict["path"], conflict["reason"], conflict["mine"]) == ("d", "deleted", None)
    assert int(str(conflict["theirs"]["mode"]), 8) & 0o777 == 0o700
    scene.pfs("resolve", "images@master", "--theirs", "d")
    scene.pfs("merge", "images@dev", "images@master")
    assert (scene.cat("images@master:/d/x"), scene.ls("images@master")) == ("base", ["a.txt", "d/"])


def test_resolve_uncommitted(mounted: Scene) -> None:
    """S145 `pfs resolve` settles conflicts of uncommitted work

    `pfs status` lists both sides of each, and `pfs commit` names them and is refused. With the last decision the work is on top of the branch's head: mine stays uncommitted,
    theirs is what the branch has, `--both` keeps theirs beside mine under a name like `c~master.txt`, uncommitted. Decisions survive the death of the daemon; without a mount it
    works as well.
    """
    names = ("a.txt", "b", "c.txt")
    mounted.put(dict.fromkeys(names, "base"))
    for name in names:
        (mounted.master / name).write_text("mine")
    mounted.put({**dict.fromkeys(names, "theirs"), "other": "x"})
    complaint = mounted.pfs("commit", "images@master", "-m", "x", code=3)
    assert all(name in complaint for name in (*names, "pfs resolve"))
    first = mounted.json("status", "images@master")["conflicts"][0]
    assert (first["path"], first["reason"], first["mine"]["size"], first["theirs"]["size"]) == (
        "a.txt",
        "content",
        4,
        6,
    )
    assert first["last"]["theirs"]["author"] == "tester@here"
    mounted.pfs("resolve", "images@master:/a.txt", "--mine")
    mounted.pfs("resolve", "images@master", "--theirs", "b")
    assert [(mounted.master / name).read_text() for name in names] == ["mine"] * 3
    mounted.kill_daemon()
    assert [one["resolution"] for one in mounted.json("status", "images@master")["conflicts"]] == [
        "mine",
        "theirs",
        None,
    ]
    mounted.pfs("resolve", "images@master", "--both", "--all")
    want = {"a.txt": "mine", "b": "theirs", "c.txt": "mine", "c~master.txt": "theirs", "other": "x"}
    mounted.mount()
    assert {path.name: path.read_text() for path in mounted.master.iterdir()} == want
    assert mounted.json("status", "images@master")["conflicts"] == []
    mounted.pfs("commit", "images@master", "-m", "settled")
    assert {name: mounted.cat(f"images@master:/{name}") for name in mounted.ls("images@master")} == want


# Writers that race: each makes commits of files of its own, one after the other.
WRITERS = {
    "put": "for i in 0 1; do echo x > put$i; pfs put put$i images@master:/put$i; done",
    "cp": "for i in 0 1; do pfs cp images@master:/seed images@master:/cp$i; done",
    "rm": "for i in 0 1; do pfs rm images@master:/rm$i; done",
    "merge": "for i in 0 1; do echo x > side$i; pfs put side$i images@side:/merge$i; pfs merge images@side images@master; done",
    "commit": "for i in 0 1; do echo x > mnt/images@master/commit$i; pfs commit images@master -m c$i; done",
    "control": "for i in 0 1; do echo x > mnt/images@other/control$i; echo c$i > mnt/images@other/.pfs/commit; pfs merge images@other images@master; done",
}


def test_races(mounted: Scene) -> None:
    """S146 Commits that race and touch different paths are all there in the end

    Whatever makes them: `put`, `cp`, `rm`, `merge`, `pfs commit`, `.pfs/commit`. Who comes second brings the same change on top of the new head by itself.
    """
    mounted.put({"seed": "s", **{f"rm{i}": "x" for i in range(2)}})
    for name in ("side", "other"):
        mounted.pfs("branch", f"images@{name}", "master")
    pfs = mounted.root / "pfs"
    pfs.write_text(f'#!/bin/sh\nexec "{_python()}" -m pfsmount.cli.app "$@"\n')
    pfs.chmod(0o755)
    environment = {**mounted.environment, "PATH": f"{mounted.root}:{mounted.environment['PATH']}"}
    running = {
        name: subprocess.Popen(
            ["sh", "-e", "-c", script],
            cwd=mounted.root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for name, script in WRITERS.items()
    }
    for name, process in running.items():
        _, complaint = process.communicate(timeout=100)
        assert process.returncode == 0, (name, complaint)
    want = {"seed", *(f"{name}{i}" for name in ("put", "cp", "merge", "commit", "control") for i in range(2))}
    assert set(mounted.ls("images@master")) == want
    wait_for(lambda: {path.name for path in mounted.master.iterdir()} == want, "the mount to show all of it")


def test_nobody_loses_for_ever(scene: Scene) -> None:
    """S290 Whoever competes for a branch comes through

    Also a merge of a long history, a revert or a commit of uncommitted work beside puts in a loop. Who came too late three times goes first: the others wait
    for it, at most ten seconds, so that one that was stopped holds up nobody for long.
    """
    with Store.open(scene.store) as store:
        competing.put(store, "master", "base", "0")
        store.create_branch("images", "side", store.head("images", "master"))
        competing.grow(store, "master", 300)
    found = competing.compete(scene.store)
    for who, (times, most) in found.items():
        assert times >= 2, who
        # three times before it goes first, then once for each other that had looked at the head already
        assert most <= 3 + len(found) - 1, f"{who} lost {most} times in a row"


def _python() -> Path:
    import sys

    return Path(sys.executable)
