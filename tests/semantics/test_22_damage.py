"""Damage

What disks, copies that were cut short and mistaken `rm` do to a store, and what you can do then. `pfs fsck` names each invariant that does not hold; docs/FSCK.md lists them.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.repo.test_rebuild import assert_same, tables
from tests.semantics.scene import Scene

CAT, DOG = b"cat" * 2000, b"dog" * 2000


def _damage(scene: Scene, content: bytes) -> None:
    """Flip a byte of a file where it is stored."""
    for path in (scene.store / "segments").iterdir():
        at = path.read_bytes().find(content)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + 10)
                file.write(b"\0")
            return
    raise AssertionError("it is not stored")


def test_fsck_beside_work(mounted: Scene) -> None:
    """S220 Checking disturbs nobody and changes nothing

    `pfs fsck` checks a store that is mounted and written to, takes no lock that others wait for, and does not take for damage what somebody is just doing. Exit code 0 and
    one line say that all is well.
    """
    mounted.put({"cat.jpg": CAT})
    (mounted.master / "dog.jpg").write_bytes(DOG)
    with (mounted.master / "open").open("wb") as file:
        file.write(b"not closed yet")
        file.flush()
        assert len(mounted.pfs("fsck", "--data").splitlines()) == 1
    mounted.pfs("commit", "images@master", "-m", "dog")
    assert mounted.json("fsck", "--data")["clean"]


def test_fsck_says_what_is_lost(scene: Scene) -> None:
    """S221 Damage is told by version and path, and so is what is intact

    `pfs fsck --data` reads every byte and finds any that is wrong. It says which files cannot be read, in which commits, branches and tags, and that all others are intact; the exit code
    is 1. The damaged file itself is an error that points to fsck, never other bytes; everything else can be read on.
    """
    first = scene.put({"a/cat.jpg": CAT, "a/dog.jpg": DOG})
    scene.put({"a/cat.jpg": b"another cat" * 500})
    _damage(scene, CAT)
    scene.pfs("fsck")
    found = json.loads(scene.run("pfs", "fsck", "--data", "--json", code=1).stdout)
    (repo,) = found["repos"]
    (lost,) = repo["lost_paths"]
    assert (lost["path"], lost["commits"]) == ("/a/cat.jpg", [first])
    assert {ref["name"]: ref["lost_paths"] for ref in repo["refs"]} == {"master": 0}
    text = scene.run("pfs", "fsck", "--data", code=1).stdout
    assert "/a/cat.jpg" in text
    assert "intact: master" in text
    assert "--repair-from" in text
    assert "pfs fsck" in scene.pfs("cat", f"images@{first}:/a/cat.jpg", code=1)
    assert scene.cat(f"images@{first}:/a/dog.jpg") == DOG.decode()


def test_rebuilding_the_index(scene: Scene) -> None:
    """S222 A lost index is no lost data

    Without `index/`, or with garbage in it, every command says that `pfs fsck --rebuild-index` makes it anew. That needs only the segments and `refs.log` and gives back
    the same store: repos, branches, tags, history, reflog, results of jobs, and uncommitted work.
    """
    scene.put({"cat.jpg": CAT})
    scene.pfs("tag", "images@v1", "images@master")
    scene.put({"dog.jpg": DOG})
    before = scene.log(), scene.json("reflog", "images"), scene.ls("images@v1")
    shutil.rmtree(scene.store / "index")
    assert "--rebuild-index" in scene.pfs("ls", "images@master", code=1)
    assert "--rebuild-index" in scene.run("pfs", "fsck", code=1).stdout
    scene.pfs("fsck", "--rebuild-index", "--data")
    assert (scene.log(), scene.json("reflog", "images"), scene.ls("images@v1")) == before
    scene.put({"more": "works on"})
    (scene.store / "index" / "data.mdb").write_bytes(os.urandom(50_000))
    scene.pfs("fsck", code=1)
    scene.pfs("fsck", "--rebuild-index")
    assert scene.cat("images@master:/more") == "works on"


def test_rebuilding_needs_the_store_alone(mounted: Scene) -> None:
    """S223 The index is not rebuilt under a mount

    `pfs fsck --rebuild-index` refuses while anybody has the store open, and changes nothing then. Uncommitted work survives it.
    """
    mounted.put({"cat.jpg": CAT})
    (mounted.master / "uncommitted").write_text("work")
    assert "in use" in mounted.pfs("fsck", "--rebuild-index", code=1)
    mounted.pfs("umount", mounted.mount_point)
    shutil.rmtree(mounted.store / "index")
    mounted.pfs("fsck", "--rebuild-index")
    mounted.mount()
    assert (mounted.master / "uncommitted").read_text() == "work"


def test_repairing_from_another_store(scene: Scene) -> None:
    """S224 Another store that has the files makes a damaged one whole

    `pfs fsck --data --repair-from STORE` takes each object that is damaged or missing from another store, in whatever repo that has it, and checks it first. A copy of the store helps, and so does a store into which the
    same files were put.
    """
    other = Scene(scene.root / "elsewhere")
    (scene.root / "elsewhere").mkdir()
    other.pfs("init")
    other.pfs("repo", "create", "images")
    other.put({"under/another/name": CAT})
    first = scene.put({"cat.jpg": CAT, "dog.jpg": DOG})
    _damage(scene, CAT)
    assert "repaired 1 object" in scene.pfs("fsck", "--data", "--repair-from", other.store)
    assert scene.cat(f"images@{first}:/cat.jpg") == CAT.decode()
    scene.pfs("fsck", "--data")


def test_putting_a_lost_file_again(scene: Scene) -> None:
    """S225 Putting a lost file again heals all versions of it

    `pfs fsck --data --repair` forgets what cannot be read, and mends what it can without help. After that a `put` of the same content, to any path of any repo, stores it again, and every version that had it is whole.
    """
    first = scene.put({"cat.jpg": CAT})
    scene.pfs("rm", "images@master:/cat.jpg", "-m", "gone")
    _damage(scene, CAT)
    assert "forgot 1 object" in scene.run("pfs", "fsck", "--data", "--repair", code=1).stdout
    scene.put({"found/again.jpg": CAT})
    assert scene.cat(f"images@{first}:/cat.jpg") == CAT.decode()
    scene.pfs("fsck", "--data")


def test_damaged_refs_log(scene: Scene) -> None:
    """S226 A torn end of `refs.log` is nothing, damage inside it is found and mended

    A power cut may leave half a line: that is harmless. A damaged line in the middle is found by `pfs fsck`, and `--rebuild-index` writes it again from what the index knows.
    """
    scene.put({"cat.jpg": CAT})
    log = scene.store / "refs.log"
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:20])
    scene.pfs("fsck")
    log.write_bytes(whole[:30] + b"?" + whole[31:])
    assert "refs-log" in scene.run("pfs", "fsck", code=1).stdout
    scene.run("pfs", "fsck", "--rebuild-index")
    assert log.read_bytes() == whole
    scene.pfs("fsck")


def test_lost_segment(scene: Scene, tmp_path: Path) -> None:
    """S227 A lost or shortened segment takes with it only what was in it

    Whatever of `segments/` is gone or cut short: fsck says which versions and paths that concerns, all others can be read, new commits can be made, and the same segment put back in its place heals it.
    """
    scene.put({"cat.jpg": CAT, "tiny": "t"})
    (segment,) = (scene.store / "segments").glob("*.data")
    segment.rename(tmp_path / "kept")
    found = json.loads(scene.run("pfs", "fsck", "--json", code=1).stdout)
    assert [lost["path"] for lost in found["repos"][0]["lost_paths"]] == ["/cat.jpg"]
    assert scene.cat("images@master:/tiny") == "t"
    (tmp_path / "kept").rename(segment)
    scene.pfs("fsck", "--data")
    os.truncate(segment, 100)
    assert "segment-length" in scene.run("pfs", "fsck", code=1).stdout
    scene.put({"new.jpg": DOG})
    assert scene.cat("images@master:/new.jpg") == DOG.decode()


def test_results_of_jobs_survive(jobs: Scene) -> None:
    """S228 What jobs have computed is known to a rebuilt index

    Results of datums and the lineage of commits come back with the index: a job over one more file runs for that file only.
    """
    copy = (
        "--input",
        "images@master:/*",
        "--output",
        "out@master",
        "--",
        "/bin/sh",
        "-ec",
        "cp /pfs/images/* /pfs/out",
    )
    jobs.put({"a": "1", "b": "2"})
    assert jobs.job(*copy)["processed"] == 2
    lineage, before = jobs.pfs("lineage", "out@master:/a"), tables(jobs.store)
    shutil.rmtree(jobs.store / "index")
    jobs.pfs("fsck", "--rebuild-index")
    assert_same(before, tables(jobs.store))
    assert jobs.pfs("lineage", "out@master:/a") == lineage
    jobs.put({"c": "3"})
    result = jobs.job(*copy)
    assert (result["processed"], result["skipped"]) == (1, 2)
    jobs.pfs("fsck", "--data")
