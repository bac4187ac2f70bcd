"""Uncommitted work

What is written in a mounted branch is uncommitted until `pfs commit`. It lies in the store, one place for each branch, shared by all users of the store.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.semantics.scene import Scene, wait_for
from tests.semantics.test_5_mount import errno_of


def test_status_commit_discard(mounted: Scene) -> None:
    """S80 `status` shows it, `commit` takes it, `discard` gives it up

    All of it, or the paths given. They work while the branch is mounted and while it is not. What a commit leaves out stays as it is.
    """
    mounted.put({"kept": "x", "changed": "x"})
    (mounted.master / "changed").write_text("mine")
    (mounted.master / "new").mkdir()
    (mounted.master / "new" / "file").write_text("mine")
    (mounted.master / "kept").unlink()
    changes = {change["path"]: change["change"] for change in mounted.json("status", "images@master")["changes"]}
    assert (changes["changed"], changes["kept"], changes["new"]) == ("M", "D", "A")
    mounted.pfs("commit", "images@master:/new", "-m", "only this")
    assert mounted.ls("images@master", "-R") == ["changed", "kept", "new/", "new/file"]
    assert mounted.cat("images@master:/changed") == "x"
    assert (mounted.master / "changed").read_text() == "mine"
    mounted.pfs("discard", "--force", "images@master:/kept")
    assert (mounted.master / "kept").read_text() == "x"
    mounted.pfs("umount", mounted.mount_point)
    mounted.pfs("commit", "images@master", "-m", "the rest")
    assert mounted.cat("images@master:/changed") == "mine"
    assert mounted.json("status", "images@master")["changes"] == []


def test_a_time_alone_is_kept(mounted: Scene) -> None:
    """S292 A time alone is no change, and is not lost

    Where only the time differs (`touch`, the same photos copied again, `rsync -a` of files with new times) there is nothing to commit: `status` says how many there are and lists none. The
    new times stay in the worktree, also when it is mounted again, so a second `rsync -a` or `make` finds what it left; the next commit of something else takes them along, `discard` takes them
    back. A directory's time that follows from a file that came and went is not counted.
    """
    old, new = 1_000_000_000, 2_000_000_000
    mounted.put({"a": "x", "b": "x", "d/file": "x"})
    head = mounted.log()[0]
    for name in ("a", "d/file", "d"):
        os.utime(mounted.master / name, (old, old))
    (mounted.master / "came").write_text("x")
    (mounted.master / "came").unlink()
    status = mounted.json("status", "images@master")
    assert (status["changes"], status["times"]) == ([], 3)
    assert "0 changes\n3 differ in their time alone" in mounted.pfs("status")
    assert (mounted.master / ".pfs" / "status").read_text().startswith("# 3 more differ in their time alone")
    assert "nothing to commit; 3 differ in their time alone, kept until" in mounted.pfs(
        "commit", "images@master", "-m", "m"
    )
    assert mounted.log()[0] == head
    mounted.pfs("umount", mounted.mount_point)
    assert mounted.json("status", "images@master")["times"] == 3
    assert "uncommitted changes" in mounted.pfs("repo", "delete", "images", "--yes", code=1)
    mounted.mount()
    assert (mounted.master / "a").stat().st_mtime == old
    (mounted.master / "b").write_text("y")
    os.utime(mounted.master / "a", (new, new))
    mounted.pfs("commit", "images@master", "-m", "times go along")
    assert mounted.json("status", "images@master")["times"] == 0
    mounted.pfs("get", "images@master", mounted.root / "out")
    times = [(mounted.root / "out" / name).stat().st_mtime for name in ("a", "d/file", "d")]
    assert times == [new, old, old]
    os.utime(mounted.master / "a", (old, old))
    assert "1 changed time of images@master would be lost" in mounted.pfs("discard", "images@master", code=1)
    assert "gave up 1 changed time" in mounted.pfs("discard", "images@master", "--yes")
    assert (mounted.master / "a").stat().st_mtime == new
    assert mounted.json("status", "images@master")["times"] == 0


def test_a_commit_is_one_instant(mounted: Scene) -> None:
    """S81 A commit through the mount is one instant of the whole branch

    While programs go on writing, it has everything that they had written up to one moment and nothing later, in all files together. They wait at most for a file that is just being read in.
    """
    first, second = (os.open(mounted.master / name, os.O_WRONLY | os.O_CREAT) for name in ("first", "second"))
    ending = threading.Event()
    written = [0]

    def write() -> None:
        while not ending.is_set():
            written[0] += 1
            for fd in (first, second):
                os.pwrite(fd, b"%08d" % written[0], 0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            done = written[0]
            wait_for(lambda done=done: written[0] > done + 3, "the writer")  # type: ignore[misc]
            mounted.pfs("commit", "images@master", "-m", "while it is written")
    finally:
        ending.set()
        writer.join()
        os.close(first)
        os.close(second)
    commits = [commit["commit"] for commit in mounted.log()]
    assert len(commits) == 4
    for commit in commits:
        ahead, behind = (int(mounted.cat(f"images@{commit}:/{name}")) for name in ("first", "second"))
        assert behind <= ahead <= behind + 1


def test_one_owner(mounted: Scene) -> None:
    """S82 One mount at a time writes to a branch

    The first that does. In another the uncommitted work is seen read-only, and `.pfs/status` says who has it. When it is committed, or the mount that had it is gone, the other can write.
    """
    other = mounted.mount(at="other") / "images@master"
    (mounted.master / "file").write_text("mine")
    wait_for((other / "file").exists, "the uncommitted file in the other mount")
    assert (other / "file").read_text() == "mine"
    assert errno_of((other / "new").touch) == "EROFS"
    assert str(mounted.mount_point) in (other / ".pfs" / "status").read_text()
    mounted.pfs("commit", "images@master", "-m", "mine")
    wait_for(lambda: _can_write(other / "theirs"), "the second to be the owner")
    assert errno_of((mounted.master / "new").touch) == "EROFS"
    mounted.kill_daemon(mounted.root / "other")
    wait_for(lambda: _can_write(mounted.master / "mine again"), "the first to take over")
    assert (mounted.master / "theirs").exists()


def _can_write(path: Path) -> bool:
    try:
        path.touch()
    except OSError:
        return False
    return True


def test_changes_of_others_join(mounted: Scene, tmp_path: Path) -> None:
    """S83 What others commit meanwhile is joined with uncommitted work

    As long as it touches other paths: the branch in the mount shows both, and the next commit has both.
    """
    mounted.put({"mine": "old", "theirs": "old"})
    (mounted.master / "mine").write_text("new")
    mounted.put({"theirs": "new"})
    wait_for(lambda: (mounted.master / "theirs").read_text() == "new", "the commit of another process")
    assert (mounted.master / "mine").read_text() == "new"
    mounted.pfs("commit", "images@master", "-m", "both")
    assert mounted.cat("images@master:/mine") == mounted.cat("images@master:/theirs") == "new"


def test_conflict(mounted: Scene) -> None:
    """S84 A conflict loses nothing

    When the same path was changed here and by a commit, the work here stays and is what the mount shows. `status` names the path, and `commit` is refused with exit code 3 and changes nothing. `pfs discard` of the path takes
    the other version; taking mine is putting it again.
    """
    mounted.put({"file": "base", "other": "x"})
    (mounted.master / "file").write_text("mine")
    theirs = mounted.put({"file": "theirs"})
    assert "file" in mounted.pfs("commit", "images@master", "-m", "x", code=3)
    assert (mounted.master / "file").read_text() == "mine"
    assert mounted.log()[0]["commit"] == theirs
    assert [one["path"] for one in mounted.json("status", "images@master")["conflicts"]] == ["file"]
    mounted.pfs("discard", "--force", "images@master:/file")
    wait_for(lambda: (mounted.master / "file").read_text() == "theirs", "their version")
    (mounted.master / "file").write_text("mine")
    mounted.pfs("commit", "images@master", "-m", "mine after all")
    assert mounted.cat("images@master:/file") == "mine"
    assert mounted.cat("images@master~1:/file") == "theirs"


def test_deleting_a_branch_with_work(mounted: Scene) -> None:
    """S85 Uncommitted work is not deleted by the way

    `pfs branch --delete` and, without `--force`, `pfs repo delete` are refused while there is any.
    """
    mounted.pfs("branch", "images@side", "--empty")
    (mounted.mount_point / "images@side" / "file").write_text("x")
    assert "uncommitted changes" in mounted.pfs("branch", "--delete", "images@side", code=1)
    mounted.pfs("repo", "delete", "images", code=1)
    assert (mounted.mount_point / "images@side" / "file").read_text() == "x"


def test_private_worktrees(mounted: Scene) -> None:
    """S334 Work can be done apart from all others, in a private worktree

    `pfs begin images@master NAME` makes one, at `images@master+NAME` in the mount; nobody else's uncommitted work is in it, nor its in theirs. `status`, `diff`, `commit`, `discard`, `resolve` take that name,
    `pfs status` and `pfs branch` list it; a job reads commits, and refuses it. `pfs commit` brings its changes into the branch, as from the shared worktree: what others changed meanwhile is joined, the same path is a conflict. With that,
    or with `pfs discard`, it ends. A branch with work in one is not deleted without `--force`.
    """
    mounted.put({"shared": "x", "both": "x"})
    mounted.pfs("branch", "images@dev")
    assert str(mounted.mount_point / "images@dev+mine") in mounted.pfs("begin", "images@dev", "mine")
    assert "already" in mounted.pfs("begin", "images@dev", "mine", code=1)
    private, shared = mounted.mount_point / "images@dev+mine", mounted.mount_point / "images@dev"
    (private / "new").write_text("mine")
    (private / "both").write_text("mine")
    (shared / "theirs").write_text("theirs")
    assert (shared / "both").read_text() == "x"
    assert sorted(os.listdir(private)) == ["both", "new", "shared"]
    assert mounted.log("images@dev+mine") == mounted.log("images@dev")
    assert mounted.pfs("diff", "images@dev+mine").split()[:2] == ["M", "/both"]
    found = {one["worktree"]: [change["path"] for change in one["changes"]] for one in mounted.json("status")}
    assert found == {None: ["theirs"], "mine": ["both", "new"]}
    assert "dev+mine" in mounted.pfs("branch", "images")
    job = ("--input", "images@dev+mine:/*", "--output", "out@master", "--", "true")
    assert "a job reads commits" in mounted.run("pfsjob", "run", *job, code=2).stderr
    refusal = mounted.pfs("branch", "--delete", "images@dev", code=1)
    assert "a mount has uncommitted changes of it" in refusal
    mounted.put({"both": "theirs"}, "images@dev:/")
    assert "/both" in mounted.pfs("commit", "images@dev+mine", "-m", "m", code=3)
    mounted.pfs("resolve", "images@dev+mine:/both", "--mine")
    assert "images@dev+mine has ended" in mounted.pfs("commit", "images@dev+mine", "-m", "m")
    assert mounted.cat("images@dev:/both") == "mine"
    assert not private.exists()
    assert (shared / "new").read_text() == "mine"
    assert mounted.ls("images@dev") == ["both", "new", "shared"]
    mounted.pfs("begin", "images@dev", "mine")
    assert not (private / "dropped").exists()
    (private / "dropped").write_text("x")
    mounted.pfs("discard", "--yes", "images@dev+mine")
    assert not private.exists()
    assert "no private worktree" in mounted.pfs("status", "images@dev+mine", code=1)


def test_autocommit(scene: Scene, need_mounts: None) -> None:
    """S335 `--autocommit SECONDS` commits what was left alone for so long

    Once nothing has been changed for that time and no file is open for writing; the commit's message says so. That goes for what a killed mount has left, too. What cannot be committed stays, and `status` says why until it can.
    """
    scene.put({"both": "x"})
    scene.mount()
    (scene.master / "left").write_text("by a daemon that was killed")
    scene.kill_daemon()
    scene.mount("--autocommit", "0.2")
    wait_for(lambda: len(scene.log()) == 2, "the commit of what was left")
    with (scene.master / "file").open("w") as file:
        file.write("half of it")
        file.flush()
        (scene.master / "other").write_text("x")
        scene.pfs("ls", "images@master")
        assert len(scene.log()) == 2
        (scene.master / "both").write_text("mine")
        scene.put({"both": "theirs"})
    wait_for(lambda: scene.json("status", "images@master")["autocommit_refused"], "the refusal")
    assert (scene.master / "both").read_text() == "mine"
    scene.pfs("resolve", "images@master:/both", "--mine")
    wait_for(lambda: len(scene.log()) == 4, "the commit")
    assert scene.log()[0]["message"] == "autocommit after 0.2 s without a change"
    assert scene.json("status", "images@master")["autocommit_refused"] is None
    assert scene.cat("images@master:/file") == "half of it"
