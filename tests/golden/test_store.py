"""The golden store of every format still opens and has everything in it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from pfsmount.repo.store import Store
from tests.golden.make_store import describe

HERE = Path(__file__).parent


@pytest.mark.parametrize("archive", sorted(HERE.glob("store-*.tar.xz")), ids=lambda path: path.name)
def test_golden_store(archive: Path, tmp_path: Path) -> None:
    """Every commit, entry, result and uncommitted change of a store made when its format was decided is there."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    with Store.open(tmp_path / "store") as store:
        expected = json.loads(archive.with_name(archive.name.replace(".tar.xz", ".json")).read_text())
        assert describe(store) == expected
