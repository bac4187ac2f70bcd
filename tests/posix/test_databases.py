"""SQLite and LMDB in a mounted branch: they map, lock, sync and write in place, and trust what the kernel promises."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from tests.mounted.conftest import Mount, wait_for

Mounts = Callable[[str], Mount]
INSERTING = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"PRAGMA journal_mode={sys.argv[2]}")
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, text TEXT)")
first = db.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()[0]
for n in range(first + 1, first + 100000):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * (n * 37 % 3000)))
    db.execute("UPDATE t SET text = text || 'y' WHERE n = ?", (n // 2,))
    db.execute("COMMIT")
    print(n, flush=True)
"""
PUTTING = """
import lmdb, sys
env = lmdb.open(sys.argv[1], map_size=1 << 26, writemap=sys.argv[2] == "writemap")
with env.begin() as txn:
    first = txn.stat()["entries"]
for n in range(first, first + 100000):
    with env.begin(write=True) as txn:
        txn.put(b"%08d" % n, bytes([n % 251]) * (n * 37 % 3000))
    print(n, flush=True)
"""


def killed_after(
    program: str, *arguments: str | Path, lines: int, kill: Callable[[subprocess.Popen[str]], None]
) -> int:
    """The last number that a program printed before it was killed; it is killed while it is at the next."""
    last = -1
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            last = int(line)
            if count == lines:
                kill(process)
        process.kill()
    return last


def kill_it(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "journal",
    [
        "DELETE",
        "WAL",
        pytest.param("TRUNCATE", marks=pytest.mark.long),
        pytest.param("PERSIST", marks=pytest.mark.long),
    ],
)
def test_sqlite_is_killed_and_recovers(mounts: Mounts, journal: str) -> None:
    """By itself, and with the daemon under it: what was acknowledged is there, and the database is whole; commits between."""
    mount = mounts("mnt").mount()
    path = mount.master / "data.db"

    def kill_daemon(process: subprocess.Popen[str]) -> None:
        mount.kill()

    for kill in (kill_it, kill_daemon):
        acknowledged = killed_after(INSERTING, path, journal, lines=5, kill=kill)
        if kill is kill_daemon:
            mount.mount()
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (found,) = db.execute("SELECT max(n) FROM t").fetchone()
            assert found >= acknowledged
            assert db.execute("SELECT count(*) FROM t").fetchone() == (found,)
        db.close()
        mount.commit()
    committed = sqlite3.connect(f"file:{mount.point / 'images@master~0' / 'data.db'}?immutable=1", uri=True)
    assert committed.execute("SELECT max(n) FROM t").fetchone() == (found,)
    committed.close()
    assert mount.log_lines() == []


def test_sqlite_locks_between_processes(mount: Mount) -> None:
    """Four writers: each waits for the others, and no row is lost."""
    path = mount.master / "data.db"
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=100, isolation_level=None)\n"
        "for n in range(15):\n"
        "    db.execute('BEGIN IMMEDIATE'); db.execute('UPDATE t SET n = n + 1'); db.execute('COMMIT')\n"
    )
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (n INTEGER)")
    db.execute("INSERT INTO t VALUES (0)")
    db.commit()
    workers = [subprocess.Popen([sys.executable, "-c", program, path]) for _ in range(4)]
    assert [worker.wait(100) for worker in workers] == [0] * 4
    assert db.execute("SELECT n FROM t").fetchone() == (60,)
    db.close()


@pytest.mark.parametrize("way", ["write", "writemap"])
def test_lmdb_is_killed_and_recovers(mounts: Mounts, way: str) -> None:
    """With its data written by `pwrite` and through the map."""
    mount = mounts("mnt").mount()
    path = mount.master / "data"
    for _ in range(2):
        acknowledged = killed_after(PUTTING, path, way, lines=8, kill=kill_it)
        env = lmdb.open(str(path), map_size=1 << 26)
        with env.begin() as txn:
            count = txn.stat()["entries"]
            assert count > acknowledged
            for n in range(count):
                assert txn.get(b"%08d" % n) == bytes([n % 251]) * (n * 37 % 3000)
        env.close()
        mount.commit()
    assert mount.log_lines() == []


def test_a_database_is_committed_while_it_is_written_to(mount: Mount) -> None:
    """Each commit, opened by itself with its journal, is a whole database with all that was acknowledged before it."""
    path = mount.master / "data.db"
    with subprocess.Popen([sys.executable, "-c", INSERTING, path, "WAL"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in range(3):
            acknowledged = [int(process.stdout.readline()) for _ in range(8)][-1]
            commit = mount.commit()
            copy = mount.store.parent / f"copy{number}"
            copy.mkdir()
            for name in ("data.db", "data.db-wal"):
                (copy / name).write_bytes((mount.point / f"images@{commit}" / name).read_bytes())
            db = sqlite3.connect(copy / "data.db")
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT max(n) FROM t").fetchone()[0] >= acknowledged
            db.close()
        process.kill()
    wait_for(lambda: process.poll() is not None, "the writer to end")
    assert os.path.exists(path)
