"""History, and looking into versions"""

from __future__ import annotations

import os

from tests.semantics.scene import Scene


def test_tags_never_move(scene: Scene) -> None:
    """S160 A tag never moves

    `pfs tag images@v1 master~2` gives a commit a name that stays: making the tag again fails and says where it is, also with `--force`, and nothing can be
    written to it. Tags and branches share their names. Only `pfs tag --delete --force` ends one.
    """
    first = scene.put({"file": "1"})
    scene.pfs("tag", "images@v1")
    scene.put({"file": "2"})
    assert f"tag already, at {first[:12]}" in scene.pfs("tag", "--force", "images@v1", code=1)
    scene.pfs("branch", "images@v1", code=1)
    scene.pfs("rm", "images@v1:/file", code=1)
    assert [(tag["name"], tag["commit"]) for tag in scene.json("tag", "images")] == [("v1", first)]
    assert scene.cat("images@v1:/file") == "1"
    scene.pfs("tag", "--delete", "images@v1", code=1)
    scene.pfs("tag", "--delete", "--force", "images@v1")
    scene.pfs("cat", "images@v1:/file", code=1)


def test_the_reflog(scene: Scene) -> None:
    """S161 The reflog knows where every branch was

    Each move of a branch or tag, with old and new commit, who, how and when, newest first; that of deleted branches and repos too. So a deleted branch can be made again
    where it was.
    """
    first = scene.put({"file": "1"})
    scene.pfs("branch", "images@try")
    second = scene.put({"file": "2"}, "images@try:/")
    scene.pfs("branch", "--delete", "images@try")
    moves = scene.json("reflog", "images@try")
    assert [(move["old"], move["new"], move["deleted"]) for move in moves] == [
        (second, None, True),
        (first, second, False),
        (None, first, False),
    ]
    assert {move["who"] for move in moves} == {"tester@here"}
    scene.pfs("branch", "images@try", moves[0]["old"])
    assert scene.cat("images@try:/file") == "2"
    scene.pfs("repo", "delete", "--force", "images")
    assert [move["op"] for move in scene.json("reflog", "images", "-n", "1")] == ["repo-delete"]


def test_reset(mounted: Scene) -> None:
    """S162 `pfs reset` moves a branch to any commit, and back again

    Nothing is lost: the commits left behind stay readable by id, and the command says how to go back; `--undo` takes back the last move, another `--undo` that. Live mounts
    show it when the command returns. Uncommitted work stays, on top of where the branch is then.
    """
    first = mounted.put({"file": "1"})
    second = mounted.put({"file": "2", "new": "n"})
    (mounted.master / "mine").write_text("not committed")
    said = mounted.pfs("reset", "images@master", "~1")
    assert f"pfs reset images@master {second[:12]}" in said
    assert "1 uncommitted change kept" in said
    assert ((mounted.master / "file").read_text(), sorted(os.listdir(mounted.master))) == ("1", ["file", "mine"])
    assert mounted.cat(f"images@{second}:/file") == "2"
    mounted.pfs("reset", "images@master", "--undo")
    assert (mounted.master / "file").read_text() == "2"
    mounted.pfs("reset", "images@master", "--undo")
    assert [commit["commit"] for commit in mounted.log()] == [first]
    mounted.pfs("reset", "images@master", second)
    mounted.pfs("commit", "images@master", "-m", "mine")
    assert mounted.ls("images@master") == ["file", "mine", "new"]


def test_revert(scene: Scene) -> None:
    """S168 `pfs revert` undoes what commits changed, and keeps what came later

    Each is undone by a new commit, by a three-way merge back to its first parent; several are undone all or none. Where a later commit changed the same path, nothing
    is changed and the conflicts are listed with both sides (exit code 3); `--mine` keeps what the branch has there, `--theirs` brings back what was.
    """
    scene.put({"one": "1"})
    wrong = scene.put({"one": "wrong", "two": "wrong"})
    scene.put({"three": "later"})
    scene.pfs("revert", "images@master", wrong)
    assert (scene.ls("images@master"), scene.cat("images@master:/one")) == (["one", "three"], "1")
    assert scene.log()[0]["message"].startswith('revert "files"')
    other = scene.put({"one": "2", "four": "4"})
    scene.put({"one": "3"})
    before = scene.log()
    assert "1 conflict; nothing was changed" in scene.pfs("revert", "images@master", other, code=3)
    assert scene.log() == before
    scene.pfs("revert", "images@master", other, "--theirs")
    assert (scene.ls("images@master"), scene.cat("images@master:/one")) == (["one", "three"], "1")


def test_log_of_paths(scene: Scene) -> None:
    """S163 `pfs log` lists the commits that changed a path

    `pfs log images@master -- PATH…` (or `images@master:/path`) lists those whose tree differs from their first parent's at a file, at a directory or
    below it, or at what a glob matches. A name with glob characters is also taken as it is.
    """
    scene.put({"a/one": "1", "a/two": "1", "b[1]": "1"}, message="first")
    scene.put({"a/one": "2"}, message="second")
    scene.put({"b[1]": "2"}, message="third")
    scene.pfs("rm", "images@master:/a/two", "-m", "fourth")

    def log(*arguments: str) -> list[str]:
        return [commit["message"] for commit in scene.json("log", *arguments)]

    assert log("images@master:/a/one") == ["second", "first"]
    assert scene.pfs("log", "images@master", "--oneline", "--", "a").split()[1::2] == ["fourth", "second", "first"]
    assert log("images@master", "*/tw?") == ["fourth", "first"]
    assert log("images@master", "b[1]", "nothing") == ["third", "first"]
    assert log("images@master", "-n", "1", "--author", "tester", "--since", "1 hour ago") == ["fourth"]


def test_find(scene: Scene) -> None:
    """S164 `pfs find` searches any version, with the words of find(1)

    It prints TARGET with the path below it, so the output names places that other commands take; `-0` prints any name as it is. A path that
    does not exist is an error, nothing found is none.
    """
    scene.put({"2026/cat.jpg": "123", "2026/notes.txt": "12345", "dog.jpg": ""})
    assert scene.pfs("find", "images@master", "-name", "*.jpg").split() == [
        "images@master:/2026/cat.jpg",
        "images@master:/dog.jpg",
    ]
    assert scene.pfs("find", "images@master:/2026", "--type", "f", "--size", "+3").split() == [
        "images@master:/2026/notes.txt"
    ]
    assert [found["path"] for found in scene.json("find", "images", "--empty")] == ["dog.jpg"]
    scene.pfs("rm", "images@master:/dog.jpg")
    name = scene.root / "new\nline"
    name.write_text("x")
    scene.pfs("put", name, "images@master")
    found = scene.pfs("find", "images@master", "--maxdepth", "1", "--type", "f", "-0")
    assert found == "images@master:/new\nline\0"
    assert scene.cat(found.rstrip("\0")) == "x"
    assert scene.pfs("find", "images@master", "--name", "none") == ""
    assert "there is no images@master:/none" in scene.pfs("find", "images@master:/none", code=1)


def test_glob(scene: Scene) -> None:
    """S165 `pfs glob` shows what a pattern matches, by the rules of a job's inputs

    `*` and `?` stay within one name, `**` does not; files and directories match alike; `/` is the root. No match prints nothing and is no error.
    """
    scene.put({"a.jpg": "", "2026/b.jpg": "", "2026/c.png": ""})
    for pattern, expected in {
        "/*": ["/2026", "/a.jpg"],
        "*.jpg": ["/a.jpg"],
        "**.jpg": ["/2026/b.jpg", "/a.jpg"],
        "/*/*": ["/2026/b.jpg", "/2026/c.png"],
        "/2026/{b,x}.@(jpg|png)": ["/2026/b.jpg"],
        "/": ["/"],
        "/x*": [],
    }.items():
        assert scene.pfs("glob", f"images@master:{pattern}").split() == [f"images@master:{path}" for path in expected]


def test_du_and_stats(scene: Scene) -> None:
    """S166 `pfs du` and `pfs stats` tell what files have from what the store holds for them

    Sizes are those of the files; stored is what the segments hold for them, each different piece once, in blocks of 4 KiB, with metadata. What occurs twice counts where
    it comes first, so a second version shows what it added. `pfs stats` says for each repo what no other one needs.
    """
    data = os.urandom(100_000)
    scene.put({"one": data, "two": data})
    (line,) = scene.json("du", "-s", "images@master")
    assert (line["size"], line["files"]) == (200_000, 2)
    assert 102_400 < line["stored"] < 103_000
    scene.put({"three": os.urandom(4000)})
    _, added = scene.json("du", "-s", "images@master~1", "images@master")
    assert added["size"] == 204_000
    assert 4096 < added["stored"] < 5000
    scene.pfs("repo", "create", "copy")
    scene.pfs("cp", "images@master", "copy@master")
    stats = scene.json("stats")
    assert stats["versions_size"] == 200_000 + 2 * 204_000
    assert stats["stored"] < 110_000
    assert {repo["name"] for repo in stats["repos"] if repo["unique"] < 3000 and repo["stored"] > 100_000} == {
        "copy",
        "images",
    }


def test_rename_and_default(scene: Scene) -> None:
    """S167 A branch can be renamed, and any branch be the default

    `pfs branch --move images@master main` keeps its history; if it was the default branch, it still is. `pfs repo default images try` lets `images` mean `images@try`.
    """
    first = scene.put({"file": "1"})
    scene.pfs("branch", "--move", "images@master", "main")
    scene.put({"file": "2"}, "images:/")
    assert [commit["commit"] for commit in scene.log("images@main")][1:] == [first]
    scene.pfs("branch", "images@try", first)
    scene.pfs("repo", "default", "images", "try")
    assert scene.cat("images:/file") == "1"
    scene.pfs("log", "images@master", code=1)
