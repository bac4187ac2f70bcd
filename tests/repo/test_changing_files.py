"""Files that change while `put` reads them: what is stored is what was there at one time, or nothing is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsmount.errors import PfsError
from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.ingest import put
from pfsmount.repo.local_files import IngestReport, LocalFiles
from pfsmount.repo.reading_worker import is_whole
from pfsmount.repo.store import Store
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry

LARGE = 9 << 20


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 5 << 20)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def once(change: Callable[[Path], None], path: Path) -> Callable[[IngestReport], None]:
    """A progress callback that changes a file when the first bytes were read."""
    changed = False

    def progress(report: IngestReport) -> None:
        nonlocal changed
        if report.size and not changed:
            changed = True
            change(path)

    return progress


@pytest.mark.parametrize("in_directory", [False, True])
@pytest.mark.parametrize("change", [shrink, overwrite])
def test_a_large_file_that_changes_once(
    store: Store, tmp_path: Path, change: Callable[[Path], None], in_directory: bool
) -> None:
    """It is read again."""
    file = tmp_path / "top" / "large"
    file.parent.mkdir()
    file.write_bytes(b"x" * LARGE)
    with store.objects.batch() as batch:
        source = os.fsencode(file.parent if in_directory else file)
        entry: Entry | None = LocalFiles(batch, once(change, file)).path(source)
        if in_directory:
            assert entry is not None
            entry = lookup(batch, entry.id, b"large")
    assert entry is not None
    assert entry.id == hash_bytes(file.read_bytes())
    assert (entry.size, entry.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)


@pytest.mark.parametrize("size", [LARGE, LARGE // 3, 1])
def test_a_file_that_grows_as_fast_as_it_is_read(store: Store, tmp_path: Path, size: int) -> None:
    """What it held when its reading began is taken, once."""
    file = tmp_path / "log"
    file.write_bytes(b"x" * size)
    before = file.stat()
    with store.objects.batch() as batch:
        entry = LocalFiles(batch, lambda report: grow(file)).path(os.fsencode(file))
    assert (entry.id, entry.size) == (hash_bytes(b"x" * size), size)
    assert entry.mtime_ns == before.st_mtime_ns
    assert file.stat().st_size > size


def test_a_small_file_in_the_middle_of_a_change(tmp_path: Path) -> None:
    """One that changed lately is looked at again after it was read; one that did not is not."""
    file = tmp_path / "small"
    file.write_bytes(b"half")
    with file.open("rb") as open_file:
        fd = open_file.fileno()
        info = os.fstat(fd)
        assert is_whole(fd, info, time.time_ns())
        os.utime(file, ns=(1, 1))  # a change that no clock is too coarse for
        assert not is_whole(fd, info, time.time_ns())
        assert is_whole(fd, info, time.time_ns() + 3_600_000_000_000)


def test_files_of_proc_have_bytes_and_no_size(store: Store) -> None:
    """They are read to their end."""
    with store.objects.batch() as batch:
        entry = LocalFiles(batch).path(b"/proc/version")
    assert entry.id == hash_bytes(Path("/proc/version").read_bytes())
    assert entry.size > 0


def test_a_file_that_never_rests(store: Store, tmp_path: Path) -> None:
    """An error that names it, and no commit."""
    file = tmp_path / "log"
    file.write_bytes(b"x" * LARGE)
    with store.objects.batch() as batch, pytest.raises(PfsError, match="log is being written to"):
        LocalFiles(batch, lambda report: overwrite(file)).path(os.fsencode(file))


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"new")


def to_file(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"a file now")


def no_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


CHANGES = [
    ("1/file", Path.unlink, "there is no file"),
    ("1/file", to_directory, "was a file and is none any more"),
    ("1/file", to_fifo, "was a file and is none any more"),
    ("1/file", to_symlink, "is not what it was"),
    ("1/file", no_directory, "there is no file"),
    ("1/file", replaced, None),
    ("1/link", to_file, "is not what it was"),
    ("1/link", Path.unlink, "there is no file"),
]


@pytest.mark.parametrize(("name", "change", "complaint"), CHANGES)
def test_what_is_something_else_by_then(
    store: Store, tmp_path: Path, name: str, change: Callable[[Path], None], complaint: str | None
) -> None:
    """Between the reading of a directory and that of what is in it. The message names the path, and nothing is committed."""
    top = tmp_path / "top"
    for directory in ("0", "1"):
        (top / directory).mkdir(parents=True)
        (top / directory / "file").write_bytes(b"old")
        (top / directory / "link").symlink_to("file")
    changed = False

    def progress(report: IngestReport) -> None:
        nonlocal changed
        if report.files and not changed:
            changed = True
            change(top / name)

    def commit() -> None:
        put(store, [os.fsencode(top)], "images", "master", (), into=False, message="", origin={}, progress=progress)

    if complaint is None:
        commit()
        return
    with pytest.raises(PfsError, match=complaint) as caught:
        commit()
    assert str(top / name) in caught.value.message
    assert "nothing was committed" in caught.value.message
    assert store.head("images", "master") is None


def test_a_symlink_to_nothing(store: Store, tmp_path: Path) -> None:
    """One that is given is followed, so it is said where it leads; one in a directory is kept."""
    (tmp_path / "top").mkdir()
    link = tmp_path / "top" / "link"
    link.symlink_to("no\nwhere")
    with store.objects.batch() as batch:
        with pytest.raises(PfsError, match=r"link is a symlink to \S+, which is not there") as caught:
            LocalFiles(batch).path(os.fsencode(link))
        assert "\n" not in caught.value.message
        entry = lookup(batch, LocalFiles(batch).path(os.fsencode(tmp_path / "top")).id, b"link")
    assert entry is not None
    assert entry.target == b"no\nwhere"
