"""Who waits for the owner of a worktree, and who is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfsmount.errors import Busy
from pfsmount.objects.locks import is_path_locked
from pfsmount.repo.ownership import Ownership, owner_of
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree

HOLD = """
import json, os, sys, time
from pathlib import Path
from pfsmount.objects.locks import try_lock
from pfsmount.repo.ownership import Ownership
directory, run, who, seconds, record = sys.argv[1:]
lock = Ownership(Path(directory), Path(run), json.loads(who))
assert lock.take()
if record:
    fd = os.open(record, os.O_RDWR | os.O_CREAT)
    assert try_lock(fd)
print("held", flush=True)
time.sleep(float(seconds))
"""


def hold(store: Store, who: dict[str, object], seconds: float, record: str = "") -> subprocess.Popen[str]:
    """Another process that has the lock of images@master for so many seconds."""
    where = Worktree.open(store, "images", "master").path
    given = [str(where), str(store.path / "run"), json.dumps(who), str(seconds), record]
    process = subprocess.Popen([sys.executable, "-c", HOLD, *given], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("who", [{"pid": 1}, {"pid": 1, "socket": "mount-1.sock"}], ids=["command", "dying mount"])
def test_who_gives_the_lock_back_is_waited_for(store: Store, who: dict[str, object]) -> None:
    with hold(store, who, 0.7), Worktree.open(store, "images", "master", own=True) as worktree:
        assert worktree.owned


def test_a_live_mount_is_not_waited_for(store: Store) -> None:
    record = store.path / "run" / "mount-1.json"
    with hold(store, {"pid": 1, "socket": "mount-1.sock"}, 60, str(record)) as process:
        assert is_path_locked(record)
        started = time.monotonic()
        with pytest.raises(Busy):
            Worktree.open(store, "images", "master", own=True)
        assert time.monotonic() - started < 2
        process.kill()
    assert not is_path_locked(record)


def test_a_look_is_no_lock(tmp_path: Path) -> None:
    """Whoever asks who has the lock stops nobody from taking it, however long it takes."""
    lock = Ownership(tmp_path, tmp_path, {"pid": 1})
    assert lock.take()
    lock.give_back()
    code = "import sys\nfrom pathlib import Path\nfrom pfsmount.repo.ownership import owner_of\nprint(flush=True)\nwhile True: owner_of(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as looker:
        assert looker.stdout is not None
        looker.stdout.readline()
        try:
            for _ in range(3000):
                assert lock.take()
                lock.give_back()
        finally:
            looker.kill()
    assert owner_of(tmp_path) is None
