"""Giving space back"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

from tests.semantics.scene import Scene

MIB = 1 << 20


def disk(store: Path) -> int:
    """What the segments take, as `du` says."""
    return sum(path.stat().st_blocks * 512 for path in (store / "segments").iterdir())


def data(seed: int, size: int = 6 * MIB) -> bytes:
    """Bytes that are in no other file."""
    return random.Random(seed).randbytes(size)


def test_gc_frees_what_no_version_needs(scene: Scene) -> None:
    """S210 `pfs gc` gives back what no version needs

    What branches, tags, jobs and uncommitted work reach stays, with all of its history; what is left behind by deleted branches and resets goes, and the disk has
    its space again. A second `pfs gc` finds nothing more.
    """
    kept = data(1)
    scene.put({"kept": kept})
    scene.pfs("branch", "images@try")
    gone = scene.put({"gone": data(2), "shared": kept}, "images@try:/")
    scene.pfs("branch", "--delete", "images@try")
    before = disk(scene.store)
    assert "freed 6.0 MiB" in scene.pfs("gc", "--keep", "0d")
    assert disk(scene.store) <= before - 6 * MIB + 16384
    scene.pfs("get", "images@master:/kept", scene.root / "out")
    assert (scene.root / "out").read_bytes() == kept
    assert "no branch, tag or commit" in scene.pfs("ls", f"images@{gone}", code=1)
    assert scene.json("gc", "--keep", "0d")["freed"] == 0
    scene.pfs("fsck", "--data")


def test_gc_waits_ninety_days(scene: Scene) -> None:
    """S211 What was reset or deleted can be brought back for 90 days

    The reflog keeps what it names: `pfs gc` without options takes nothing that a branch or tag was at in the last 90 days. `--keep 12h` or `--keep 0d` shortens that, also for results of datums
    that were not used, and for failed jobs.
    """
    first = scene.put({"file": "1"})
    second = scene.put({"file": "2"})
    scene.pfs("reset", "images@master", first)
    plan = scene.json("gc")
    assert (plan["dead"], plan["kept"]["the reflog"]["objects"]) == ({}, 3)
    scene.pfs("reset", "images@master", second)
    assert scene.cat("images@master:/file") == "2"
    scene.pfs("reset", "images@master", first)
    scene.pfs("gc", "--keep", "0d")
    scene.pfs("reset", "images@master", second, code=1)
    assert scene.cat("images@master:/file") == "1"


def test_a_dry_run_changes_nothing_and_is_exact(scene: Scene) -> None:
    """S212 `pfs gc --dry-run` says exactly what would go

    Objects by kind and bytes on disk, and what keeps the rest; nothing is changed. The same numbers come from the real one if nobody does anything between.
    """
    scene.put({f"d/{i}": f"{i}" * 50 for i in range(50)} | {"large": data(3)})
    scene.pfs("branch", "images@other")
    scene.put({f"{i}": f"{i}" * 9000 for i in range(9)} | {"larger": data(4)}, "images@other:/")
    scene.pfs("branch", "--delete", "images@other")
    before = disk(scene.store)
    planned = scene.json("gc", "--dry-run", "--keep", "0d")
    assert disk(scene.store) == before
    done = scene.json("gc", "--keep", "0d")
    assert planned["dead"] == done["dead"] != {}
    assert (planned["frees"], done["before"]) == (done["freed"], before)
    assert done["after"] == disk(scene.store)


def test_gc_keeps_uncommitted_work(mounted: Scene) -> None:
    """S213 Uncommitted work, and everything below it, is kept

    Also when the branch was moved away from what was changed: files that the work only renamed are still those of the old version.
    """
    kept = data(4)
    mounted.put({"old/name": kept})
    os.rename(mounted.master / "old", mounted.master / "new")
    (mounted.master / "note").write_text("not committed")
    mounted.pfs("umount", mounted.mount_point)
    mounted.pfs("gc", "--keep", "0d")
    mounted.mount()
    assert (mounted.master / "new/name").read_bytes() == kept
    assert (mounted.master / "note").read_text() == "not committed"
    mounted.pfs("commit", "images@master", "-m", "renamed")
    assert mounted.ls("images@master:/") == ["new/", "note"]


def test_gc_keeps_what_a_mount_shows(mounted: Scene) -> None:
    """S214 What a mount shows or has open stays readable

    A commit that is looked at through a mount, and a file that is open there, are kept as long as that lasts, whatever becomes of the branch. Then they can be collected.
    """
    first = mounted.put({"file": "first"})
    content = data(5)
    second = mounted.put({"file": content})
    assert (mounted.mount_point / f"images@{second}" / "file").stat().st_size == len(content)
    with (mounted.master / "file").open("rb") as opened:
        mounted.pfs("reset", "images@master", first)
        deadline = time.monotonic() + 20
        while (mounted.master / "file").read_bytes() != b"first":
            assert time.monotonic() < deadline
        assert mounted.json("gc", "--keep", "0d")["dead"] == {}
        assert hashlib.file_digest(opened, "sha256").digest() == hashlib.sha256(content).digest()
        assert (mounted.mount_point / f"images@{second}" / "file").read_bytes() == content
    mounted.pfs("umount", mounted.mount_point)
    assert mounted.json("gc", "--keep", "0d")["freed"] >= len(content)


def test_gc_beside_everything_else(scene: Scene) -> None:
    """S215 gc runs beside everything else, and may be killed

    Others read, write, commit and mount meanwhile. Two at a time are refused. A gc that is killed leaves a whole store, and the next one ends its work.
    """
    for number in range(3):
        scene.put({f"{i}": f"{i} {number}" * 300 for i in range(200)})
    scene.pfs("branch", "images@gone")
    scene.put({"large": data(6)}, "images@gone:/")
    scene.pfs("branch", "--delete", "images@gone")
    files = scene.write({f"{i}": f"new {i}" * 200 for i in range(300)}, "new")
    with scene.start("pfs", "put", files, "images@master:/new", "-m", "new") as putting:
        for _ in range(3):
            with scene.start("pfs", "gc", "--keep", "0d") as collecting:
                assert collecting.stdout is not None
                collecting.kill()
        scene.pfs("gc", "--keep", "0d")
        assert putting.wait(timeout=100) == 0
    scene.pfs("gc", "--keep", "0d")
    assert len(scene.ls("images@master:/new")) == 300
    assert scene.json("gc", "--keep", "0d")["freed"] == 0
    scene.pfs("fsck", "--data")


def test_gc_takes_nothing_from_a_stream(scene: Scene) -> None:
    """S291 gc takes nothing away from a `put` that reads a stream

    `pfs put -` and `pfs put --tar -` cannot read their input twice. What they find in the store and use again stays, also when nothing else needs it any more and `pfs gc`
    runs before they commit.
    """
    content = data(3)
    scene.put({"file": content})
    scene.pfs("repo", "create", "other")
    scene.pfs("repo", "delete", "images", "--yes")
    with scene.start("pfs", "put", "-", "other@master:/again", stdin=subprocess.PIPE) as stream:
        assert stream.stdin is not None
        os.write(stream.stdin.fileno(), content)  # returns when all of it but what a pipe holds was read
        freed = scene.json("gc", "--keep", "0d")["freed"]
        _, errors = stream.communicate()
    assert stream.returncode == 0, errors
    assert freed < 3 * MIB  # not the first piece; the second was not there as a whole
    scene.pfs("get", "other@master:/again", scene.root / "out")
    assert (scene.root / "out").read_bytes() == content
    scene.pfs("fsck", "--data")
