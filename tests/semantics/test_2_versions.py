"""Repos, branches and versions"""

from __future__ import annotations

from tests.semantics.scene import Scene


def test_a_new_repo(scene: Scene) -> None:
    """S10 A repo begins with an empty branch `master`

    It can be written to at once. `pfs repo delete` deletes a repo with its branches; what others share with it stays.
    """
    scene.pfs("repo", "create", "edges")
    assert scene.ls("edges@master") == []
    assert scene.json("log", "edges@master") == []
    scene.put({"a": "x"}, "edges@master:/")
    scene.pfs("cp", "edges@master:/a", "images@master:/a")
    scene.pfs("repo", "delete", "--force", "edges")
    assert "there is no repo 'edges'" in scene.pfs("ls", "edges@master", code=1)
    assert scene.cat("images@master:/a") == "x"


def test_branches_are_pointers(scene: Scene) -> None:
    """S11 A branch is a pointer to a commit

    Making one copies nothing, and what is then done on one branch is not seen on another. When a branch is deleted, its commits stay readable by id.
    """
    first = scene.put({"file": "one"})
    before = scene.stored_bytes()
    scene.pfs("branch", "images@try", "master")
    assert scene.stored_bytes() == before
    second = scene.put({"file": "two"}, "images@try:/")
    assert scene.cat("images@master:/file") == "one"
    scene.pfs("branch", "--delete", "images@try")
    assert scene.cat(f"images@{second}:/file") == "two"
    assert [commit["commit"] for commit in scene.log(f"images@{second}")] == [second, first]


def test_revisions(scene: Scene) -> None:
    """S12 One way to write a version, everywhere the same

    `images@master` is a branch, `images` its default branch, `images@3f9c2a7d` a commit by at least six digits of its id. `~N` and `^N` are the N-th commit
    before it, `.N` the N-th from the start, and they combine: `master~2^`. `images@master@3f9c2a7d` is that commit if it is in the branch's history. `:/path`
    comes last. Commands, mount paths and jobs all understand exactly this.
    """
    ids = [scene.put({"file": str(number)}) for number in range(1, 5)]
    for version, content in {
        "images": "4",
        "images@master": "4",
        f"images@{ids[1]}": "2",
        f"images@{ids[1][:8]}": "2",
        "images@master~0": "4",
        "images@master~": "3",
        "images@master^2": "2",
        "images@master~2^": "1",
        "images@master.1": "1",
        "images@master.3~1": "2",
        f"images@master@{ids[2][:10]}": "3",
    }.items():
        assert scene.cat(f"{version}:/file") == content, version


def test_no_guessing(scene: Scene) -> None:
    """S13 A version that does not exist is an error, never a guess

    That is so for steps past the first commit, unknown branches, digits that fit no commit or more than one, and a commit that is not in the branch's history.
    """
    scene.put({"file": "1"})
    other = scene.put({"file": "2"}, "images@master:/")
    scene.pfs("branch", "images@old", "master~1")
    for version, says in {
        "master~2": "has 2 commits",
        "master.3": "has 2 commits",
        "mastre": "did you mean 'master'?",
        "abcdef": "no branch, tag or commit 'abcdef'",
        f"old@{other[:8]}": "not in the history",
    }.items():
        assert says in scene.pfs("cat", f"images@{version}:/file", code=1), version


def test_names_of_branches(scene: Scene) -> None:
    """S14 The name of a branch cannot be mistaken for anything else

    It has none of `/ @ : ^ ~ +`, does not end in a dot and digits, is not six or more hex digits, and does not begin with `-`.
    """
    for name in ("a/b", "a@b", "a:b", "a^", "a~1", "a+b", "master.2", "deadbeef", "-x"):
        scene.pfs("branch", f"images@{name}", code=2)
    assert [branch["name"] for branch in scene.json("branch", "images")] == ["master"]
    for name in ("release-1.0b", "größe", "abc12", "face"):
        scene.pfs("branch", "--empty", f"images@{name}")
