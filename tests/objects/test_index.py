"""The index when LMDB gives up on an environment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from pfsmount.errors import PfsError
from pfsmount.objects import index as index_module
from pfsmount.objects.index import Index, Table


class GaveUp:
    """An environment whose disk failed as its meta page was written: LMDB itself cannot be brought there without one."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def begin(self, **_: object) -> lmdb.Transaction:
        raise lmdb.PanicError("mdb_txn_begin")

    def close(self) -> None:
        self._env.close()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    (tmp_path / "index").mkdir()
    opened = Index(tmp_path / "index", 1 << 26)
    with opened.write() as txn:
        txn.put(Table.META, b"key", b"value")
    yield opened
    opened.close()


def give_up(index: Index) -> None:
    index._env = GaveUp(index._env)  # type: ignore[assignment]


def test_it_is_opened_anew(index: Index) -> None:
    give_up(index)
    assert index.get(Table.META, b"key") == b"value"
    give_up(index)
    with index.write() as txn:
        txn.put(Table.META, b"key", b"other")
    give_up(index)
    with index.read() as txn:
        assert txn.get(Table.META, b"key") == b"other"


def test_not_under_a_reader(index: Index) -> None:
    """Closing an environment takes its memory away: whoever reads is waited for, by as many threads as there are."""
    found: list[bytes | None] = []
    with index.read() as txn:
        give_up(index)
        waiting = [threading.Thread(target=lambda: found.append(index.get(Table.META, b"key"))) for _ in range(4)]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        assert found == []
        assert txn.get(Table.META, b"key") == b"value"
    for thread in waiting:
        thread.join()
    assert found == [b"value"] * 4


def test_a_reader_that_does_not_end(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_END_S", 0.1)
    with index.read() as txn:
        give_up(index)
        with pytest.raises(PfsError, match="somebody is still reading"):
            index.get(Table.META, b"key")
        assert txn.get(Table.META, b"key") == b"value"
    assert index.get(Table.META, b"key") == b"value"


def test_the_disk_still_fails(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the next one tries again."""
    real = Index._open

    def fails(_: Index) -> None:
        raise lmdb.Error("mdb_env_open: Input/output error")

    give_up(index)
    monkeypatch.setattr(Index, "_open", fails)
    for _ in range(2):
        with pytest.raises(PfsError, match="full or failing"):
            index.get(Table.META, b"key")
    monkeypatch.setattr(Index, "_open", real)
    assert index.get(Table.META, b"key") == b"value"
