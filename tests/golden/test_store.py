"""The golden store of every format still opens and has everything in it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from pfsmount.repo.fsck import check_store
from pfsmount.repo.store import Store
from tests.conftest import run_command
from tests.golden.make_store import describe

HERE = Path(__file__).parent


@pytest.mark.parametrize("archive", sorted(HERE.glob("store-*.tar.xz")), ids=lambda path: path.name)
def test_golden_store(archive: Path, tmp_path: Path) -> None:
    """Every commit, entry, result and uncommitted change of a store made when its format was decided is there; it is whole, and can be worked with."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    with Store.open(tmp_path / "store") as store:
        expected = json.loads(archive.with_name(archive.name.replace(".tar.xz", ".json")).read_text())
        assert describe(store) == expected
    assert [str(one) for one in check_store(tmp_path / "store", data=True).findings] == []
    new = tmp_path / "new"
    new.write_bytes(b"new")
    for command in (["put", new, "images@master:/new"], ["status", "images@master"], ["gc"], ["fsck", "--data"]):
        done = run_command("pfsmount.cli.app", tmp_path / "store", *command)
        assert done.returncode == 0, done.stderr
