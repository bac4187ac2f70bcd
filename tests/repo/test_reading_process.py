"""A second process that reads ahead changes how long a put takes and nothing else."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pfsmount.errors import PermissionDenied
from pfsmount.repo import local_steps
from pfsmount.repo.local_files import LocalFiles
from pfsmount.repo.reading_process import ReadingProcess
from pfsmount.repo.store import Store
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import Entry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    Store.create(tmp_path / "store")
    with Store.open(tmp_path / "store", author="tester@here") as store:
        yield store


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with everything between which small plain files may stand; the process is asked from the first run on."""
    monkeypatch.setattr(local_steps, "_WORTH_A_PROCESS", 0)
    top = tmp_path / "source"
    data = random.Random(3)
    for i in range(12):
        (top / f"d{i:02}" / "sub" / "deeper").mkdir(parents=True)
        for j in range(70):
            size = data.choice([0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 30_000, 262_144, 262_145])
            (top / f"d{i:02}" / f"f{j:03}").write_bytes(data.randbytes(size))
            if j % 9 == 0:
                (top / f"d{i:02}" / "sub" / "deeper" / f"same{j}").write_bytes(b"the same everywhere" * 200)
        (top / f"d{i:02}" / "f030-link").symlink_to("f001")
        os.setxattr(top / f"d{i:02}" / "f040", "user.label", b"cat")
        (top / f"d{i:02}" / "f050").chmod(0o755)
    (top / "d03" / os.fsdecode(b"not utf-8 \xff\nnewline")).write_bytes(b"x")
    (top / "d04" / "large").write_bytes(data.randbytes(5 << 20))
    return top


def read_tree(store: Store, source: Path, process: ReadingProcess | None) -> Entry:
    """The directory as an entry, all of it readable."""
    with store.objects.batch() as batch:
        entry = LocalFiles(batch, process=process).path(os.fsencode(source))
        batch.flush()
    return entry


def wait_until_free(process: ReadingProcess) -> None:
    """It takes requests once it has started."""
    process.start()
    until = time.monotonic() + 20
    while not process.is_free and time.monotonic() < until:
        os.sched_yield()
    assert process.is_free


def note_requests(process: ReadingProcess, kill_at: int = -1) -> list[int]:
    """How many files each request from now on names; the process is killed before one of them."""
    asked: list[int] = []
    ask = process.ask

    def noted(directory: int, names: Sequence[bytes]) -> bool:
        if len(asked) == kill_at:
            assert process._process is not None
            process._process.kill()
        asked.append(len(names))
        return ask(directory, names)

    process.ask = noted  # type: ignore[method-assign]
    return asked


needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one processor no second process is used")


@needs_two
def test_the_result_is_the_same(store: Store, source: Path) -> None:
    alone = read_tree(store, source, None)
    Store.create(source.parent / "other")
    with Store.open(source.parent / "other") as other, ReadingProcess() as process:
        wait_until_free(process)
        asked = note_requests(process)
        assert read_tree(other, source, process) == alone
        assert sum(asked) > 300
        for path, entry in walk(other.objects, alone):
            local = source.joinpath(*map(os.fsdecode, path))
            if entry.size and entry.size <= 4 << 20 and local.is_file() and not local.is_symlink():
                assert other.objects.get(entry.id) == local.read_bytes()


@needs_two
def test_a_process_that_dies_is_not_missed(store: Store, source: Path) -> None:
    """Before, between and in the middle of requests."""
    alone = read_tree(store, source, None)
    for after in (0, 1, 3):
        with ReadingProcess() as process:
            wait_until_free(process)
            note_requests(process, kill_at=after)
            assert read_tree(store, source, process) == alone


@needs_two
def test_without_it_everything_works(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = read_tree(store, source, None)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with ReadingProcess() as process:
        assert read_tree(store, source, process) == alone


@needs_two
def test_errors_are_those_of_a_put_without_it(store: Store, source: Path) -> None:
    if os.geteuid() == 0:
        victim = source / "d05" / "f033"
        victim.unlink()
        victim.symlink_to("f033")  # names itself; becomes an error when it is opened as the file that it was
    else:
        (source / "d05" / "f033").chmod(0)
    with ReadingProcess() as process:
        wait_until_free(process)
        if os.geteuid() == 0:
            assert read_tree(store, source, process) == read_tree(store, source, None)
        else:
            with pytest.raises(PermissionDenied):
                read_tree(store, source, process)


@needs_two
def test_it_ends_with_its_user(store: Store, source: Path) -> None:
    with ReadingProcess() as process:
        wait_until_free(process)
        assert process._process is not None
        pid = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
