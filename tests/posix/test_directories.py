"""Large directories that change while they are listed."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.mounted.conftest import Mount, wait_for

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_GETDENTS64 = {"x86_64": 217, "aarch64": 61}


class Listing:
    """An open directory read by getdents64, with the position of each entry: what readdir, telldir and seekdir are made of."""

    def __init__(self, path: Path, size: int = 4096) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer = ctypes.create_string_buffer(size)

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def some(self) -> list[tuple[bytes, int]]:
        """The next names, each with the position behind it; empty at the end."""
        count = _libc.syscall(_GETDENTS64[os.uname().machine], self._fd, self._buffer, len(self._buffer))
        if count < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        found, at = [], 0
        while at < count:
            position, length = struct.unpack_from("<qH", self._buffer, at + 8)
            name = self._buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
            found.append((name, position))
            at += length
        return found

    def seek(self, position: int) -> None:
        """Go to a position that an entry came with, or 0."""
        os.lseek(self._fd, position, os.SEEK_SET)

    def rest(self) -> Iterator[bytes]:
        """All names from here on."""
        while some := self.some():
            for name, _ in some:
                if name not in (b".", b".."):
                    yield name


pytestmark = pytest.mark.skipif(
    os.uname().machine not in _GETDENTS64, reason="NO GETDENTS: its number is not known for this machine"
)


def fill(directory: Path, count: int) -> None:
    """Empty files."""
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    for number in range(count):
        os.mknod(f"{number:06}", dir_fd=fd)
    os.close(fd)


def change_while_listed(directory: Path, count: int, changes: int, meanwhile: Callable[[int], None]) -> None:
    """Names that are there throughout come exactly once; those that come and go at most once."""
    random = Random(count)
    stable = {b"%06d" % number for number in range(count)}
    touched: set[bytes] = set()
    seen: list[bytes] = []
    fd = os.open(directory, os.O_RDONLY)
    with Listing(directory) as listing:
        step = 0
        while some := listing.some():
            seen += [name for name, _ in some]
            step += 1
            if step > changes:
                continue
            meanwhile(step)
            for name in (b"%06d" % random.randrange(count), b"%06d" % random.randrange(count)):
                if name in stable:
                    os.unlink(name, dir_fd=fd)
                    stable.discard(name)
                    touched.add(name)
            new = b"%06d-new" % random.randrange(count)
            if new not in touched:
                os.mknod(new, dir_fd=fd)
                touched.add(new)
            if stable:
                old = random.choice(sorted(stable)) if count < 5000 else next(iter(stable))
                os.rename(old, old + b"-moved", src_dir_fd=fd, dst_dir_fd=fd)
                stable.discard(old)
                touched |= {old, old + b"-moved"}
    os.close(fd)
    names = [name for name in seen if name not in (b".", b"..")]
    assert len(names) == len(set(names))
    assert stable <= set(names)
    assert set(names) <= stable | touched
    assert seen.count(b".") == seen.count(b"..") == 1


def positions_hold(directory: Path) -> None:
    """seekdir to where telldir was goes on with the same names, though others came and went."""
    with Listing(directory, 32768) as listing:
        entries: list[tuple[bytes, int]] = []
        while some := listing.some():
            entries += some
        names = [name for name, _ in entries]
        assert len({position for _, position in entries}) == len(entries)
        random = Random(1)
        for at in [
            0,
            1,
            2,
            len(entries) // 2,
            len(entries) - 2,
            *(random.randrange(len(entries) - 1) for _ in range(5)),
        ]:
            victim = directory / os.fsdecode(names[at])
            gone = at > 2 and random.random() < 0.5
            if gone:
                victim.unlink()
            listing.seek(entries[at][1])
            assert [name for name, _ in listing.some()][:5] == names[at + 1 :][:5]
            if gone:
                victim.touch()
        listing.seek(0)
        assert sorted(listing.rest()) == sorted(name for name in names if name not in (b".", b".."))


def hold_all(mount: Mount, count: int, changes: int) -> None:
    directory = mount.master / "many"
    fill(directory, count)

    def commit_now_and_then(step: int) -> None:
        if step in (2, changes // 2):
            (mount.master / ".pfs" / "commit").write_text(f"at step {step}")

    change_while_listed(directory, count, changes, commit_now_and_then)
    positions_hold(directory)
    assert len(os.listdir(directory)) == len(set(os.listdir(directory)))
    assert mount.log_lines() == []


def test_a_directory_of_two_thousand_changes_while_it_is_listed(mount: Mount) -> None:
    """With commits meanwhile; telldir and seekdir hold."""
    hold_all(mount, 2000, 20)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_directory_of_a_hundred_thousand_changes_while_it_is_listed(mount: Mount) -> None:
    hold_all(mount, 100_000, 300)


def test_new_entries_are_seen_after_rewinding(place: str) -> None:
    fill(Path("many"), 300)
    with Listing(Path("many")) as listing:
        assert len(list(listing.rest())) == 300
        Path("many", "new").touch()
        os.unlink("many/000007")
        listing.seek(0)
        assert len(names := list(listing.rest())) == 300
        assert b"new" in names
        assert b"000007" not in names


def test_others_changes_of_a_listed_directory(mount: Mount, tmp_path: Path) -> None:
    """A commit by another process while it is listed: names that both versions have come once."""
    source = tmp_path / "source"
    fill(source, 1000)
    mount.pfs("put", source, "images@master:/many")
    wait_for(lambda: (mount.master / "many").exists(), "what was put")
    head = (mount.master / ".pfs" / "head").read_text()
    with Listing(mount.master / "many") as listing:
        seen = [name for name, _ in listing.some()]
        (source / "000003").unlink()
        (source / "000500").unlink()
        (source / "000500-new").touch()
        mount.pfs("put", source, "images@master:/many", "--delete")
        wait_for(lambda: (mount.master / ".pfs" / "head").read_text() != head, "the new head")
        seen += listing.rest()
    names = [name for name in seen if name not in (b".", b"..")]
    assert len(names) == len(set(names))
    assert {b"%06d" % number for number in range(1000)} - {b"000003", b"000500"} <= set(names)
