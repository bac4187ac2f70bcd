"""The store"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.semantics.scene import Scene


def test_a_store_is_a_directory(tmp_path: Path) -> None:
    """S1 A store is a directory, and needs nothing else

    `pfs init` makes it, readable by its owner only. There is no service to start and nothing to configure. Which store a command means: `--store`,
    else `$PFS_STORE`, else the user's data directory.
    """
    scene = Scene(tmp_path)
    del scene.environment["PFS_STORE"]
    scene.environment["XDG_DATA_HOME"] = str(tmp_path / "data")
    scene.pfs("init")
    default = tmp_path / "data" / "pfs" / "store"
    assert stat.S_IMODE(default.stat().st_mode) == 0o700
    scene.environment["PFS_STORE"] = str(tmp_path / "named")
    scene.pfs("init")
    scene.pfs("--store", tmp_path / "given", "init")
    scene.pfs("--store", tmp_path / "given", "repo", "create", "here")
    assert scene.json("repo", "list") == []
    assert [
        repo["name"] for repo in json.loads(scene.pfs("--store", tmp_path / "given", "repo", "list", "--json"))
    ] == ["here"]


def test_many_processes(scene: Scene) -> None:
    """S2 Any number of processes use one store at once

    Who reads waits for no writer, but for the instant in which the store is opened. Writers to one branch at the same time all succeed: each put becomes a commit on top of the others', and none is lost.
    """
    writers = []
    for i in range(4):
        source = scene.write({f"file{i}": f"{i}"}, f"source{i}")
        writers.append(scene.start("pfs", "put", source, "images@master:/"))
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    assert len(scene.log()) == 4
    assert scene.ls("images@master") == ["file0", "file1", "file2", "file3"]


def test_errors(scene: Scene) -> None:
    """S3 What cannot be done is refused in one clear line, and nothing is half-done

    The message says what is wrong and, where there is something to do, what. Exit codes: 0 done, or nothing to do; 1 it failed; 2 the command line cannot
    be understood; 3 a conflict; 130 interrupted.
    """
    good = scene.write({"good": "x"})
    wrong: list[tuple[list[str | Path], int, str]] = [
        (["put", good / "good", scene.root / "missing", "images@master:/"], 1, "there is no file"),
        (["put", good, "pictures@master:/"], 1, "there is no repo 'pictures'"),
        (["put", good, "images@mster:/"], 1, "did you mean 'master'?"),
        (["put", good, "images@master:/../x"], 2, "'..'"),
    ]
    for arguments, code, says in wrong:
        said = scene.pfs(*arguments, code=code)
        assert says in said
        assert len(said.splitlines()) <= 2
    assert scene.log() == []


def test_newer_store(scene: Scene) -> None:
    """S4 A store of a newer version is refused by name

    Never read with an old understanding of the format, and never changed: not by the commands that mend and collect either. What is refused is a format above
    our own, or a feature that we do not know.
    """
    source = scene.write({"file": "x"})
    scene.pfs("put", source, "images@master:/")
    place = scene.store / "store.json"
    good = json.loads(place.read_text())
    point = scene.root / "mnt"
    point.mkdir()
    commands: list[list[str | Path]] = [
        ["repo", "list"],
        ["log", "images@master"],
        ["get", "images@master:/", scene.root / "out"],
        ["put", source, "images@dev:/"],
        ["branch", "images@dev"],
        ["fsck"],
        ["fsck", "--data", "--repair"],
        ["fsck", "--rebuild-index"],
        ["gc", "--keep", "0d"],
        ["mount", point],
        ["init"],
    ]
    for newer, says, tried in (
        ({"format": 2}, "has format 2, this pfs knows formats up to 1", commands),
        ({"features": ["packed", "sealed"]}, "has the feature 'packed'", commands[3:4]),
    ):
        place.write_text(json.dumps({**good, **newer}))
        before = _bytes_of(scene.store)
        for command in tried:
            said = scene.pfs(*command, code=1)
            assert says in said or command == ["init"]
        assert _bytes_of(scene.store) == before
    place.write_text(json.dumps(good))
    assert scene.cat("images@master:/file") == "x"


def _bytes_of(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_full_disk(scene: Scene) -> None:
    """S5 A full disk is an error, and the store is as it was before

    The space that the failed command took is given back. When there is room again, the command works.
    """
    small = scene.root / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small], check=False).returncode:
        pytest.skip("a small filesystem cannot be mounted here")
    try:
        scene.environment["PFS_STORE"] = str(small / "store")
        scene.pfs("init")
        scene.pfs("repo", "create", "images")
        scene.put({"small": "x" * 5000})
        source = scene.write({"big": os.urandom(12 << 20)})
        assert "no space left" in scene.pfs("put", source, "images@master:/", code=1)
        assert len(scene.log()) == 1
        assert scene.cat("images@master:/small") == "x" * 5000
        subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
        scene.pfs("put", source, "images@master:/")
        assert scene.ls("images@master") == ["big", "small"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_damage(scene: Scene) -> None:
    """S6 Damage on the disk is an error, never wrong bytes

    Each piece of a file is checked against its hash when it is read for the first time.
    """
    scene.put({"file": os.urandom(100_000)})
    (data,) = (scene.store / "segments").glob("*.data")
    with open(data, "r+b") as file:
        file.seek(50_000)
        byte = file.read(1)[0]
        file.seek(50_000)
        file.write(bytes([byte ^ 1]))
    assert "damaged" in scene.pfs("cat", "images@master:/file", code=1)
    assert "damaged" in scene.pfs("get", "images@master:/file", scene.root / "out", code=1)
    assert not (scene.root / "out").exists()
