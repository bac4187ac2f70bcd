"""Strangers

What others may see of a store, and what a store or an archive that a stranger made can do."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from tests.fuzz.hostile import make_hostile_store
from tests.semantics.scene import Scene

SCRATCH = "d"
"""In the directory of a job: what its programs see, under a directory that only the owner enters."""


def open_to_others(store: Path) -> list[str]:
    """What of a store is not its owner's only."""
    found = []
    for directory, names, files in os.walk(store):
        if Path(directory).parent.parent == store / "jobs" and SCRATCH in names:
            names.remove(SCRATCH)
        paths = [Path(directory), *(Path(directory, name) for name in files)]
        found += [str(path) for path in paths if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    return found


def test_private(scene: Scene) -> None:
    """S260 A store is its owner's only, whatever the umask

    Every directory is 0700, every file and socket 0600: data, index, logs, uncommitted work, what mounts and jobs leave. Also where `pfs init` was given a directory that was there and open to others.
    """
    before = os.umask(0)
    try:
        given = scene.root / "given"
        given.mkdir(mode=0o777)
        scene.environment["PFS_STORE"] = str(given)
        scene.pfs("init")
        scene.store = given
        scene.pfs("repo", "create", "images")
        scene.put({"a": "a", "d/b": "b" * 5000, "c": "c"})
        point = scene.mount()
        (point / "images@master" / "written").write_text("uncommitted")
        (point / "images@master" / "a").write_text("changed")
        assert open_to_others(given) == []
        scene.pfs("commit", "images@master", "-m", "one")
        (point / "images@master" / "again").write_text("uncommitted")
        scene.pfs("umount", point)
        scene.pfs("branch", "images@try", "images@master")
        scene.put({"a": "other"}, "images@try:/")
        scene.put({"a": "mine"}, "images@master:/")
        scene.pfs("merge", "images@try", "images@master", code=3)
        scene.job("--input", "images@master:/*", "--output", "out@master", "--", "true")
        scene.pfs("gc", "--keep", "0d")
        scene.pfs("fsck")
        assert open_to_others(given) == []
        scene.pfs("fsck", "--rebuild-index")
        assert open_to_others(given) == []
    finally:
        os.umask(before)


def test_of_another(scene: Scene) -> None:
    """S261 A store that belongs to somebody else is not used

    Its owner could decide by it what is written in your name. It is refused, also for root, with what to do; so is one whose directory everybody can write to, and one in which a file is a symlink.
    """
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    scene.put({"a": "a"})
    os.chown(scene.store, 4321, 4321)
    for command in (["ls", "images@master"], ["fsck"], ["gc"], ["mount", scene.root / "mnt"]):
        assert "belongs to user 4321" in scene.pfs(*command, code=1)
    os.chown(scene.store, 0, 0)
    os.chmod(scene.store, 0o777)
    assert "everybody can write" in scene.pfs("ls", "images@master", code=1)
    os.chmod(scene.store, 0o700)
    victim = scene.root / "victim"
    victim.write_text("precious")
    for name in (
        "refs.log",
        "index/lock.mdb",
        *(f"segments/{path.name}" for path in (scene.store / "segments").glob("*.tiny")),
    ):
        kept = scene.root / "kept"
        (scene.store / name).rename(kept)
        (scene.store / name).symlink_to(victim)
        said = scene.pfs("put", scene.write({"b": "b"}), "images@master:/", code=1)
        assert "symlink" in said or "symbolic" in said
        assert victim.read_text() == "precious"
        (scene.store / name).unlink()
        kept.rename(scene.store / name)
    scene.put({"c": "c"})


def test_hostile(scene: Scene) -> None:
    """S262 What a stranger made writes nothing outside of its target, and ends

    A store whose objects lie (names with slashes, sizes, kinds, modes, attributes, histories) and an archive made to do harm get a clear error: no file elsewhere, no endless work, no more memory than for honest ones.
    Device bits and attributes outside of `user.` never come out of a version. A version may be larger than any disk, which no check of names and numbers can tell: `pfs du` says how large.
    """
    (scene.root / "canary").mkdir()
    shutil.rmtree(scene.store)
    make_hostile_store(scene.store)
    (scene.root / "in").mkdir()
    for branch in ("t-slash", "t-twice", "t-capability", "t-device", "t-manifest-10-tib", "c-height-2-70"):
        said = scene.pfs("get", f"images@{branch}", scene.root / "in" / "out", code=1)
        assert "damaged" in said or "says" in said
        assert os.listdir(scene.root / "in") == []
    assert os.listdir(scene.root / "canary") == []
    archive = scene.root / "archive"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("../canary/x"))
    assert "'..'" in scene.pfs("put", "--tar", archive, "images@good:/", code=1)
