"""Large files

Files of more than 4 MiB. A version of such a file shares with the version before it; a file with another name or in another repo shares whole pieces.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from blake3 import blake3

from tests.semantics.scene import Scene, wait_for

MIB = 1 << 20


def _grown_by(scene: Scene, data: bytes, name: str = "large") -> int:
    """Put the next version of a file; how much larger the store is."""
    before = scene.stored_bytes()
    scene.put({name: data})
    assert scene.json("show", f"images@master:/{name}")["id"] == blake3(data).hexdigest()
    return scene.stored_bytes() - before


def test_shifted_data_is_shared(scene: Scene) -> None:
    """S180 What an insertion or deletion only shifts is not stored again

    Inserting into a large file, deleting from it, moving parts of it: the new version costs the new bytes and a few pieces of 4 MiB around each place, at any
    offset, without a block size to keep to. This holds for files that are put, and for those saved through the mount.
    """
    data, new = os.urandom(40 * MIB), os.urandom(MIB)
    _grown_by(scene, data)
    at = 13 * MIB + 4321
    assert _grown_by(scene, data[:at] + new + data[at:]) < 6 * MIB
    assert _grown_by(scene, b"#!" + data[:at] + data[at + 3 * MIB :]) < 6 * MIB
    assert _grown_by(scene, data[at:] + data[:at]) < 9 * MIB
    scene.pfs("get", "images@master:/large", scene.root / "out")
    assert (scene.root / "out").read_bytes() == data[at:] + data[:at]


def test_appending_again_and_again(scene: Scene) -> None:
    """S181 A file that grows costs what is added

    However long it was: its last piece is kept as it is once it has 512 KiB; a shorter one is stored again together with what is added.
    """
    data = os.urandom(7 * MIB)
    _grown_by(scene, data)
    for added in (100, 1000, 100_000):
        data += os.urandom(added)
        assert _grown_by(scene, data) < 600_000 + added


def test_saving_as_editors_do(mounted: Scene) -> None:
    """S182 A file saved by renaming shares with the file that it replaces

    Many programs write a new file and rename it over the old one. At the commit what stood under that name before is its earlier version.
    """
    data = os.urandom(17 * MIB)
    mounted.put({"large": data})
    changed = data[: 6 * MIB] + b"one more line\n" + data[6 * MIB :]
    before = mounted.stored_bytes()
    branch = mounted.mount_point / "images@master"
    (branch / "large.tmp").write_bytes(changed)
    os.rename(branch / "large.tmp", branch / "large")
    mounted.pfs("commit", "images@master", "-m", "saved")
    assert mounted.stored_bytes() - before < 5 * MIB
    assert (branch / "large").read_bytes() == changed


def _written(scene: Scene) -> int:
    """Bytes that the daemon has given to the disk since it began."""
    words = Path(f"/proc/{scene.daemon()}/io").read_text().split()
    return int(words[words.index("write_bytes:") + 1])


def _segments(scene: Scene) -> dict[int, int]:
    """Bytes on the disk of each file in the store that holds data, by inode."""
    files = [*scene.store.glob("segments/*"), *scene.store.glob("worktrees/*/*/data/*")]
    return {info.st_ino: info.st_blocks * 512 for info in (file.stat() for file in files)}


def test_a_large_new_file_is_not_written_twice(mounted: Scene) -> None:
    """S280 The commit of a large file that was written through the mount writes none of its bytes again

    A file of at least 64 MiB of which all is new: what was written to the mount becomes a part of the store as it is, on the disk once, before the commit and after it. A smaller one, one that
    shares with an earlier version or with other files, and one to which something was appended after a commit are stored as others are: only what the store does not have is written.
    """
    scene = mounted
    exactly, more, less = os.urandom(64 * MIB), os.urandom(64 * MIB + 4321), os.urandom(8 * MIB)
    (scene.master / "exactly").write_bytes(exactly)
    (scene.master / "more").write_bytes(more)
    os.sync()
    inodes, before, written = {*_segments(scene)}, sum(_segments(scene).values()), _written(scene)
    scene.pfs("commit", "images@master", "-m", "large")
    assert _written(scene) - written < 4 * MIB
    assert sum(_segments(scene).values()) - before < 4 * MIB
    assert len(inodes & {*_segments(scene)}) >= 2, "the same files on the disk"
    for name, data in (("exactly", exactly), ("more", more)):
        assert (scene.master / name).read_bytes() == data
        assert scene.json("show", f"images@master:/{name}")["id"] == blake3(data).hexdigest()
    (scene.master / "again").write_bytes(exactly)
    with (scene.master / "exactly").open("ab") as file:
        file.write(less)
    before = sum(_segments(scene).values())
    scene.pfs("commit", "images@master", "-m", "what is known")
    assert sum(_segments(scene).values()) < before - 60 * MIB, "the copy is not kept"
    assert (scene.master / "exactly").read_bytes() == exactly + less
    scene.pfs("umount", scene.mount_point)
    scene.pfs("fsck", "--data")


def test_programs_go_on_with_a_large_file(mounted: Scene) -> None:
    """S281 A program that has a large file open goes on with it during the commit and after it

    It may wait as long as the commit reads the file in. What it writes then, changes of the file's name and attributes, and its deletion are uncommitted, and never change the version.
    """
    scene = mounted
    data = os.urandom(65 * MIB)
    path = scene.master / "large"
    path.write_bytes(data)
    ending, count = threading.Event(), [0]
    fd = os.open(path, os.O_RDWR)

    def write() -> None:
        while not ending.is_set():
            count[0] += 1
            os.pwrite(fd, b"%08d" % count[0], 8 * MIB)
            os.fchmod(fd, 0o600 + count[0] % 2)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(lambda: count[0] > 3, "the writer")
        for name in ("first", "second"):
            done = count[0]
            scene.pfs("commit", "images@master", "-m", name)
            wait_for(lambda done=done: count[0] > done + 3, "the writer")  # type: ignore[misc]
    finally:
        ending.set()
        writer.join()
    numbers = []
    for version in ("images@master~1", "images@master"):
        scene.pfs("get", f"{version}:/large", scene.root / version)
        got = (scene.root / version).read_bytes()
        numbers.append(int(got[8 * MIB : 8 * MIB + 8]))
        assert got[: 8 * MIB] + got[8 * MIB + 8 :] == data[: 8 * MIB] + data[8 * MIB + 8 :]
    assert 0 < numbers[0] < numbers[1] <= count[0]
    assert os.pread(fd, 8, 8 * MIB) == b"%08d" % count[0]
    os.rename(path, scene.master / "other")
    os.pwrite(fd, b"once more", 0)
    os.unlink(scene.master / "other")
    assert os.pread(fd, 9, 0) == b"once more"
    os.close(fd)
    scene.pfs("fsck", "--data")


def test_a_killed_daemon_leaves_a_large_file(mounted: Scene) -> None:
    """S282 A kill while a large file is committed leaves it committed or uncommitted, whole

    Uncommitted it can be changed and committed as before; nothing of it is lost, and none of its space.
    """
    scene = mounted
    data = os.urandom(64 * MIB)
    (scene.master / "large").write_bytes(data)
    commit = scene.start("pfs", "commit", "images@master", "-m", "large")
    wait_for(
        lambda: commit.poll() is not None or any(f.stat().st_nlink == 2 for f in scene.store.glob("segments/*.data")),
        "the commit to be where the file has two names",
    )
    scene.kill_daemon()
    commit.communicate(timeout=60)
    scene.pfs("umount", "--force", scene.mount_point, code=0)
    scene.mount()
    assert (scene.master / "large").read_bytes() == data
    with (scene.master / "large").open("r+b") as file:
        file.write(b"changed")
    scene.pfs("commit", "images@master", "-m", "changed")
    assert (scene.master / "large").read_bytes() == b"changed" + data[7:]
    assert scene.json("show", "images@master:/large")["id"] == blake3(b"changed" + data[7:]).hexdigest()
    scene.pfs("fsck", "--data")
