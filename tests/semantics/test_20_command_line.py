"""The command line"""

from __future__ import annotations

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
