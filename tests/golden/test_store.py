"""The golden store of every format and release still opens, has everything in it, and can be worked with, mended and collected."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from tests.conftest import run_command
from tests.golden.make_store import UNCOMMITTED, describe, digest_of, digests
from tests.worktrees import at

HERE = Path(__file__).parent
ARCHIVES = sorted(HERE.glob("store-*.tar.xz"))
RELEASED = [archive for archive in ARCHIVES if archive.name.count("-") == 2]


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A golden store, and what must be in it."""
    archive: Path = request.param
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "store", json.loads(archive.with_name(archive.name.replace(".tar.xz", ".json")).read_text())


def check(path: Path, expected: dict[str, Any], *, refs: bool = True) -> None:
    """Compare what is told of the versions of a store."""
    with Store.open(path) as store:
        found = describe(store)
        for name, told in expected.items():
            if name == "sha256":
                assert {version: digests(store, version) for version in told} == told
            elif refs or name not in ("refs", "uncommitted"):
                if isinstance(told, dict) and isinstance(told["entries"], str):
                    found[name]["entries"] = digest_of(found[name]["entries"])
                assert found[name] == told, name


def pfs(path: Path, *arguments: str | Path) -> str:
    """A command, which must do what it is told."""
    done = run_command("pfsmount.cli.app", path, *arguments)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def test_golden_store(golden: tuple[Path, dict[str, Any]]) -> None:
    """Every commit, entry, result and uncommitted change is there, byte for byte, and it takes commits."""
    path, expected = golden
    check(path, expected)
    with Store.open(path) as store, Worktree.open(store, "images", "master") as worktree:
        contents = UNCOMMITTED if "sha256" in expected else {"uncommitted": b"not yet"}
        for name, data in contents.items():
            assert worktree.read(at(worktree, name), 0, len(data) + 1) == data
    pfs(path, "fsck", "--data")
    pfs(path, "commit", "images@master", "-m", "what was uncommitted")
    new = path.parent / "new"
    new.write_bytes(os.urandom(20_000))
    pfs(path, "put", new, "images@master:/new")
    pfs(path, "get", "images@master:/new", path.parent / "back")
    assert (path.parent / "back").read_bytes() == new.read_bytes()
    pfs(path, "get", "images@master:/uncommitted", path.parent / "uncommitted")
    assert (path.parent / "uncommitted").read_bytes() == b"not yet"
    check(path, expected, refs=False)
    pfs(path, "fsck", "--data")


def test_golden_store_without_its_index(golden: tuple[Path, dict[str, Any]]) -> None:
    """Its index is made anew from segments, refs.log and journals; then gc takes what nothing names, and everything is there still."""
    path, expected = golden
    for name in os.listdir(path / "index"):
        (path / "index" / name).unlink()
    pfs(path, "fsck", "--rebuild-index", "--data")
    check(path, expected)
    pfs(path, "gc", "--keep", "0d")
    check(path, expected)
    pfs(path, "fsck", "--data")


def test_golden_merge_that_waits(tmp_path: Path) -> None:
    """The merge that waited in it is finished by whoever comes later."""
    assert RELEASED, "there is no golden store of a release"
    for archive in RELEASED:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / archive.name, filter="data")
        store = tmp_path / archive.name / "store"
        pfs(store, "resolve", "--theirs", "images@master:/mine")
        pfs(store, "merge", "images@waits", "images@master")
        assert pfs(store, "cat", "images@master:/mine") == "both" * 100
