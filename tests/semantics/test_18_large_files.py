"""Large files

Files of more than 4 MiB. A version of such a file shares with the version before it; a file with another name or in another repo shares whole pieces.
"""

from __future__ import annotations

import os

from blake3 import blake3

from tests.semantics.scene import Scene

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
