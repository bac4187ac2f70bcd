"""The command line"""

from __future__ import annotations

import os

import pytest

from tests.semantics.scene import Scene


def test_nothing_is_lost_unasked(mounted: Scene) -> None:
    """S200 What cannot be got back is given up only after a yes

    `pfs discard`, `pfs repo delete` and `pfs tag --delete` ask on a terminal. Where nobody can be asked, in a script or with input from a file, they refuse, say what would be lost,
    and need `--yes` (`-y`). What other commands take away can be got back: by `pfs reset --undo`, by a commit's id, by the reflog.
    """
    mounted.put({"file": "committed"})
    mounted.pfs("tag", "images@v1")
    (mounted.master / "file").write_text("uncommitted")
    for arguments in (["discard", "images"], ["repo", "delete", "images"], ["tag", "--delete", "images@v1"]):
        said = mounted.pfs(*arguments, code=1)
        assert "--yes" in said, arguments
    assert "M /file" in mounted.pfs("discard", "images", code=1)
    assert "--yes" in mounted.pfs("discard", "images", "--json", code=1)
    assert "--yes" in mounted.pfs("discard", "images:/file", code=1, stdin="y\n")
    assert (mounted.master / "file").read_text() == "uncommitted"
    mounted.pfs("discard", "images", "--yes")
    assert (mounted.master / "file").read_text() == "committed"
    mounted.pfs("discard", "images")
    mounted.pfs("tag", "--delete", "-y", "images@v1")


def test_a_merge_that_waits_is_named(mounted: Scene) -> None:
    """S201 `pfs commit` says when a merge waits on the branch

    A commit does not finish a merge. While one waits, `pfs commit` makes its commit and says which merge it is, how many conflicts are open, and the commands that finish or
    drop it.
    """
    mounted.put({"file": "base"})
    mounted.pfs("branch", "images@dev")
    mounted.put({"file": "theirs"}, "images@dev:/")
    mounted.put({"file": "mine"})
    mounted.pfs("merge", "images@dev", "images", code=3)
    (mounted.master / "new").write_text("n")
    done = mounted.run("pfs", "commit", "images", "-m", "other work")
    assert done.stdout.startswith("committed")
    assert "merge of images@dev into images@master still waits, 1 of 1 conflict open" in done.stderr
    assert "pfs merge --abort images@master" in done.stderr
    mounted.pfs("resolve", "images", "--mine", "--all")
    assert "'pfs merge images@dev images@master' finishes it" in mounted.run("pfs", "commit", "images").stderr
    mounted.pfs("merge", "images@dev", "images@master")
    assert mounted.run("pfs", "commit", "images").stderr == ""


def test_control_file_limits(mounted: Scene) -> None:
    """S202 A message for `.pfs/commit` has at most 64 KiB

    A longer one is refused by its write (EINVAL), nothing is committed, and `.pfs/error` says so.
    """
    (mounted.master / "file").write_text("x")
    fd = os.open(mounted.master / ".pfs/commit", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(fd, b"m" * 65_537)
        assert "at most 65,536 bytes, not 65,537; nothing was committed" in (mounted.master / ".pfs/error").read_text()
        assert mounted.log() == []
        os.write(fd, b"m" * 65_536)
    finally:
        os.close(fd)
    assert len(mounted.log()) == 1
    assert (mounted.master / ".pfs/error").read_text() == ""


def test_places_that_cannot_be_written(scene: Scene) -> None:
    """S203 A place that cannot be written to is named, with what to do

    `pfs get` and `pfs init` say which place it is and that another is needed; they make nothing there.
    """
    scene.put({"file": "x"})
    local = scene.write({"plain": "p"})
    for arguments in (
        ["get", "images:/file", "/proc/x"],
        ["get", "images:/", "/proc/x"],
        ["get", "images:/file", f"{local}/none/file"],
        ["get", "images:/file", f"{local}/plain/"],
        ["get", "images:/", f"{local}/plain/below"],
        ["get", "images:/", "--tar", "/proc/x.tar"],
        ["get", "images:/", "--tar", f"{local}"],
        ["init", "/proc/x/store"],
        ["init", f"{local}/plain/store"],
    ):
        said = scene.pfs(*arguments, code=1)
        assert "[Errno" not in said, arguments
        assert "b'" not in said, arguments
        place = arguments[-1].removesuffix("/").removesuffix("/file").removesuffix("/below").removesuffix("/x")
        assert place in said, arguments
        assert "\n  hint: give " in said, arguments
    assert sorted(os.listdir(local)) == ["plain"]
