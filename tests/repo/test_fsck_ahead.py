"""`pfs fsck --data` lets a second process hash small pieces: it finds the same, goes on without it, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_all
from pfsmount.objects.index_probe import IndexProbe, begin_probe
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.piece_check import PieceCheck
from pfsmount.objects.segment import PieceColumns, RecordKind
from pfsmount.objects.segment_scan import Window, windows
from pfsmount.objects.windows_ahead import ODD, RIGHT, WindowsAhead, is_small
from pfsmount.repo.fsck import Report, check_store
from pfsmount.repo.store import Store
from tests.repo.damage import SMALL, flip, place_of
from tests.repo.test_fsck_files import add_file

PIECES = 3000
"""Of 4 KiB: three windows."""
TIMEOUT = 20


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A store with many small pieces."""
    path = tmp_path / "store"
    Store.create(path)
    with Store.open(path, SMALL) as store, store.objects.batch() as batch:
        for number in range(PIECES):
            batch.add_piece(piece(number))
        batch.flush()
    return path


def piece(number: int) -> bytes:
    return number.to_bytes(4, "big") * 1024


def ids(path: Path) -> list[ObjectId]:
    """The ids of the pieces."""
    return hash_all(map(piece, range(PIECES)))


def spoil(path: Path, numbers: list[int]) -> set[ObjectId]:
    """Flip a byte in each of these pieces; which they are."""
    all_ids = ids(path)
    with Store.open(path) as store:
        places = [place_of(store, all_ids[number]) for number in numbers]
    for segment, place in places:
        assert place.kind is RecordKind.PIECE
        flip(segment, place.offset + 4000)
    return {all_ids[number] for number in numbers}


def summary(report: Report) -> tuple[object, ...]:
    return sorted(f.message for f in report.findings), report.damage.objects, report.objects, report.bytes_checked


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, two_processors: None) -> list[Window]:
    """The check waits for the other process before it looks for itself; the windows that it then looks at."""
    ask = WindowsAhead.ask

    def ask_and_wait(self: WindowsAhead, table: PieceColumns, *where: object) -> None:
        ask(self, table, *where)  # type: ignore[arg-type]
        count = sum(is_small(window.lengths) for window in windows(table.ids, table.offsets, table.lengths))
        first, pieces, _ = list(self._asked.values())[-1]

        def are_told() -> bool:
            states = self._memory[first : first + pieces]
            return states.count(RIGHT) + states.count(ODD) == count

        wait_until(are_told)

    looked: list[Window] = []
    window = PieceCheck._window

    def look(self: PieceCheck, segment: object, one: Window, *rest: object) -> None:
        looked.append(one)
        window(self, segment, one, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WindowsAhead, "ask", ask_and_wait)
    monkeypatch.setattr(PieceCheck, "_window", look)
    return looked


def test_what_is_right_is_looked_at_elsewhere(small: Path, patient: list[Window]) -> None:
    """The check itself hashes nothing of it, and counts all of it."""
    report = check_store(small, data=True)
    assert report.clean
    assert report.bytes_checked > PIECES * 4096
    assert patient == []


def test_only_damaged_windows_are_looked_at_again(small: Path, patient: list[Window]) -> None:
    """Each damaged piece is found, and the other windows are left to the other process."""
    spoiled = spoil(small, [0, 1, PIECES - 1])
    report = check_store(small, data=True)
    assert {id for id, why in report.damage.objects.items() if why is Invariant.OBJECT_HASH} == spoiled
    assert patient
    assert sum(len(window.ids) for window in patient) < PIECES
    assert spoiled <= {id for window in patient for id in window.ids}


def test_a_large_file_that_ends_among_small_ones_is_read_once(tmp_path: Path, patient: list[Window]) -> None:
    """Its last piece lies in a window that the other process looked at: the check reads that for the file, in its turn."""
    Store.create(tmp_path / "store")
    with Store.open(tmp_path / "store") as store, store.objects.batch() as batch:
        add_file(batch, [bytes(range(256)) * 8000, piece(PIECES)])
        for number in range(PIECES):
            batch.add_piece(piece(number))
        batch.flush()
    said: list[str] = []
    report = check_store(tmp_path / "store", data=True, progress=lambda what, *_: said.append(what))
    assert report.clean
    assert "checking large files" not in said, "nothing was left to read at the end"
    assert patient
    assert sum(len(window.ids) for window in patient) < PIECES


def test_the_same_is_found_without_a_second_process(
    small: Path, monkeypatch: pytest.MonkeyPatch, two_processors: None
) -> None:
    """With one processor, with no memory or process to be had, with one that dies: the same findings."""
    spoil(small, [5, 700, 2222])
    with_it = summary(check_store(small, data=True))

    with begin_probe(small, data=True) as probe:
        wait = probe.wait

        def wait_and_kill() -> str | None:
            problem = wait()
            assert probe.ahead is not None
            process = process_of(probe)
            process.kill()
            process.wait()
            return problem

        monkeypatch.setattr(probe, "wait", wait_and_kill)
        assert summary(check_store(small, data=True, probe=probe)) == with_it

    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        assert summary(check_store(small, data=True)) == with_it

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("no more of it")

    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refuse)
        assert summary(check_store(small, data=True)) == with_it

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert summary(check_store(small, data=True)) == with_it


def process_of(probe: IndexProbe) -> subprocess.Popen[str]:
    assert probe._process is not None
    return probe._process


def of_group(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for directory in Path("/proc").iterdir():
        with suppress(OSError):
            if directory.name.isdigit() and os.getpgid(int(directory.name)) == group:
                found.append(int(directory.name))
    return [pid for pid in found if not has_ended(pid)]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also where nobody collects those that lost their parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_leaving_ends_the_process(small: Path, two_processors: None) -> None:
    """Also through an exception, which is what Ctrl-C is."""

    def interrupted(probe: IndexProbe) -> None:
        with probe:
            assert probe.wait() is None
            assert process_of(probe).poll() is None, "it waits for work"
            raise KeyboardInterrupt

    probe = begin_probe(small, data=True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(probe)
    assert process_of(probe).returncode == -signal.SIGKILL


@pytest.mark.parametrize("waits", [True, False])
def test_the_process_notices_that_the_check_was_killed(small: Path, waits: bool) -> None:
    """kill -9 of the check leaves no process, whether the other one works or waits."""
    program = """\
import os, sys
from pathlib import Path
os.sched_getaffinity = lambda _: {0, 1}
from pfsmount.objects.index_probe import begin_probe
probe = begin_probe(Path(sys.argv[1]), data=True)
if sys.argv[2] == "True":
    probe.wait()
print(probe._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", program, os.fspath(small), str(waits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    wait_until(lambda: has_ended(pid))


def test_ctrl_c_of_the_command(small: Path) -> None:
    """The signal goes to both processes, as from a terminal: the command ends as it always does, and nothing of its group is left."""
    command = [sys.executable, "-m", "pfsmount.cli.app", "--store", os.fspath(small), "fsck", "--data"]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("this kernel does not list the children of a process")
    wait_until(lambda: process.poll() is not None or bool(children.read_text()))
    os.killpg(process.pid, signal.SIGINT)
    said, complained = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, (said, complained)
    assert "Traceback" not in complained
    wait_until(lambda: not of_group(process.pid))
