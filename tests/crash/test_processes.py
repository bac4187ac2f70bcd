"""Processes that behave badly in the middle of what others share: asleep in a transaction, dead with the writer lock, forked, in another PID namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.errors import PfsError
from pfsmount.objects.hashing import file_hasher, hash_bytes
from pfsmount.objects.index import Table
from pfsmount.repo.store import Store
from tests.conftest import ROOT, run_command
from tests.repo.test_store import put

SLEEPER = """
import sys, time
from pathlib import Path
from pfsmount.repo.store import Store
with Store.open(Path(sys.argv[1])) as store, store.objects.index.read() as txn:
    seen = txn.counter(b"refs")
    print("ready", flush=True)
    sys.stdin.readline()
    print(seen == txn.counter(b"refs"), flush=True)
"""
HOLDER = """
import os, signal, sys
from pathlib import Path
from pfsmount.objects.index import Table
from pfsmount.repo.store import Store
store = Store.open(Path(sys.argv[1]))
with store.objects.index.write() as txn:
    txn.put(Table.META, b"half", b"a change")
    print("ready", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, store: Path) -> subprocess.Popen[str]:
    """A process that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, store], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def index_bytes(store: Store) -> int:
    return (store.path / "index" / "data.mdb").stat().st_size


def test_a_reader_asleep_in_a_transaction(store: Store) -> None:
    """Writers do not wait for it, it goes on seeing what it saw; the pages that it held back are used again when it is gone, killed or not."""
    sleeper = start(SLEEPER, store.path)
    for i in range(30):
        put(store, "file", b"%d" % i)
    assert sleeper.communicate("go on\n", timeout=60)[0] == "True\n"
    killed = start(SLEEPER, store.path)
    for i in range(30):
        put(store, "file", b"again %d" % i)
    killed.kill()
    killed.communicate()
    assert (
        run_command("pfsmount.cli.app", store.path, "repo", "list").returncode == 0
    )  # who opens it reaps dead readers
    before = index_bytes(store)
    for i in range(60):
        put(store, "file", b"more %d" % i)
    assert index_bytes(store) <= before + 16 * 4096


def test_a_writer_that_dies_with_the_lock(store: Store) -> None:
    """Whoever waits for the writer lock gets it at once, and finds nothing of the change."""
    holder = start(HOLDER, store.path)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "pfsmount.cli.app", "repo", "create", "waits"],
        cwd=ROOT,
        env={**os.environ, "PFS_STORE": str(store.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    holder.communicate("die\n", timeout=60)
    assert holder.returncode == -signal.SIGKILL
    assert "made repo waits" in waiting.communicate(timeout=60)[0]
    assert store.objects.index.get(Table.META, b"half") is None
    put(store, "file", b"goes on")


def test_a_process_in_another_pid_namespace(store: Store) -> None:
    """It is refused by name while the store is open here: LMDB knows readers by pid."""
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "--pid", "--fork", "--mount-proc", *(() if not os.getuid() else ("-Ur",))]
    if unshare is None or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NO PID NAMESPACE: unshare cannot make one here")
    pfs = [sys.executable, "-m", "pfsmount.cli.app", "repo", "list"]
    done = subprocess.run(
        [*command, *pfs],
        cwd=ROOT,
        env={**os.environ, "PFS_STORE": str(store.path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "another PID namespace" in done.stderr
    assert "hint" in done.stderr
    store.close()
    assert run_command("pfsmount.cli.app", store.path, "repo", "list").returncode == 0


def in_fork(action: Callable[[], None]) -> None:
    """Do something in a fork of this process, which must end well within ten seconds."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            action()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_of_a_process_with_an_open_store(store: Store) -> None:
    """It is told that it cannot use the store, by what it inherited or anew; what it does and its end harm nobody."""
    put(store, "before", b"before")

    def child() -> None:
        for use in (store.repos, lambda: store.create_repo("other"), lambda: Store.open(store.path)):
            with pytest.raises(PfsError, match="fork"):
                use()
        store.close()

    with store.objects.index.read() as txn:
        in_fork(child)
        assert txn.counter(b"refs") == store.refs_version()
    put(store, "after", b"after")
    done = run_command("pfsmount.cli.app", store.path, "fsck", "--data")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fork_can_hash() -> None:
    """The threads that hash large files are not there in a child: it hashes without."""
    data = b"x" * (8 << 20)
    file_hasher().update(data)

    def child() -> None:
        hasher = file_hasher()
        hasher.update(data)
        assert hasher.digest() == hash_bytes(data)

    in_fork(child)
