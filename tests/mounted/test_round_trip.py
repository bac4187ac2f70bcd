"""What a mount shows can be copied away by ordinary programs, whole, and put again as the same version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.nasty_tree import everything, make_nasty_tree
from tests.mounted.conftest import Mount

COPIERS = {
    "rsync": ["rsync", "-aHXS", "{from}/", "{to}"],
    "cp": ["cp", "-a", "--sparse=always", "{from}", "{to}"],
    "tar": [
        "sh",
        "-c",
        "mkdir '{to}' && tar -C '{from}' --xattrs --format=posix -S -cf - . |"
        " tar -C '{to}' --xattrs --warning=no-timestamp -xpf -",
    ],
}


def copy(program: str, source: Path, target: Path) -> None:
    command = [part.format(**{"from": source, "to": target}) for part in COPIERS[program]]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, made once; not to be changed."""
    path = tmp_path_factory.mktemp("nasty") / "tree"
    make_nasty_tree(path)
    return path


@pytest.mark.parametrize(("program", "of_branch"), [("rsync", True), ("cp", False), ("tar", True)])
def test_from_a_mount_to_a_disk_and_back(
    mounts: Callable[[str], Mount], nasty: Path, tmp_path: Path, program: str, of_branch: bool
) -> None:
    """Names, bytes, modes, owners, times, symlinks, attributes; holes where the program looks for zeros, for the mount does not say where they are."""
    if shutil.which(program) is None:
        pytest.skip(f"NO ROUND TRIP THROUGH {program.upper()}: it is not installed")
    mount = mounts("mnt")
    commit = json.loads(mount.pfs("put", nasty, "images@master:/t", "--json").stdout)["commit"]
    mount.mount("--real-owner")
    copied = tmp_path / "copied"
    copy(program, mount.point / ("images@master" if of_branch else f"images@{commit}") / "t", copied)
    got, wanted = (everything(path, holes=program != "tar") for path in (copied, nasty))
    assert [path for path in got | wanted if got.get(path) != wanted.get(path)] == []
    assert "nothing changed" in mount.pfs("put", copied, "images@master:/t").stdout
    assert mount.log_lines() == []


def test_owners_are_those_of_who_mounts(mount: Mount, nasty: Path, tmp_path: Path) -> None:
    """Without --real-owner; what the copy differs in is that, and the content is the same."""
    mount.pfs("put", nasty / "modes", "images@master:/t")
    copy("cp", mount.master / "t", tmp_path / "copied")
    got = everything(tmp_path / "copied", root=False)
    assert got == everything(nasty / "modes", root=False)
    assert {(info.st_uid, info.st_gid) for info in map(os.lstat, (tmp_path / "copied").iterdir())} == {
        (os.getuid(), os.getgid())
    }
    mount.pfs("put", tmp_path / "copied", "images@master:/again")
    ids = [
        json.loads(mount.pfs("show", f"images@master:/{name}", "--json").stdout)["content_id"]
        for name in ("t", "again")
    ]
    assert ids[0] == ids[1]
