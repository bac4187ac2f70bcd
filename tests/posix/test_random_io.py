"""Reads, writes, maps, truncations of one file at random, against its bytes in memory, with commits and remounts between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from pfsmount.config import MIB
from tests.mounted.conftest import Mount

Mounts = Callable[[str], Mount]


class File:
    """The file, the bytes that it should have, and one way at a time to reach it."""

    def __init__(self, path: Path, seed: int, longest: int, part: int) -> None:
        self.path = path
        self.random = Random(seed)
        self.longest, self.part = longest, part
        self.bytes = bytearray()
        self.history: list[str] = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._map: mmap.mmap | None = None

    def _range(self) -> tuple[int, int]:
        offset = self.random.randrange(self.longest)
        return offset, min(self.random.choice([1, 100, 4096, self.random.randrange(self.part)]), self.longest - offset)

    def _put(self, offset: int, data: bytes) -> None:
        if len(self.bytes) < offset:
            self.bytes.extend(bytes(offset - len(self.bytes)))
        self.bytes[offset : offset + len(data)] = data

    def _check(self, offset: int, found: bytes, size: int) -> None:
        wanted = self.bytes[offset : offset + size]
        if found != wanted:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
            )
            pytest.fail(
                f"read {len(found)} bytes at {offset}, {len(wanted)} were due; the first difference is at {offset + at}\n"
                + "\n".join(self.history[-40:])
            )

    def step(self) -> None:
        """One operation."""
        makers = (
            (self.write, 6), (self.read, 6), (self.map_write, 5), (self.map_read, 4), (self.truncate, 2), (self.append, 2),
            (self.sync, 1), (self.reopen, 1), (self.write_private, 1), (self.size, 2),
        )  # fmt: skip
        act = self.random.choices([one for one, _ in makers], [weight for _, weight in makers])[0]
        offset, size = self._range()
        self.history.append(f"{act.__name__}({offset}, {size})")
        act(offset, size)

    def write(self, offset: int, size: int) -> None:
        data = self.random.randbytes(size)
        assert os.pwrite(self.fd, data, offset) == size
        self._put(offset, data)

    def append(self, offset: int, size: int) -> None:
        size = min(size, self.longest - len(self.bytes))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        data = self.random.randbytes(max(size, 0))
        assert os.write(fd, data) == len(data)
        os.close(fd)
        self._put(len(self.bytes), data)

    def read(self, offset: int, size: int) -> None:
        self._check(offset, os.pread(self.fd, size, offset), size)

    def size(self, offset: int, size: int) -> None:
        assert os.fstat(self.fd).st_size == os.lseek(self.fd, 0, os.SEEK_END) == len(self.bytes), self.history[-40:]

    def _mapped(self) -> mmap.mmap | None:
        if self._map is not None and len(self._map) != len(self.bytes):
            self.unmap()
        if self._map is None and self.bytes:
            self._map = mmap.mmap(self.fd, 0)
        return self._map

    def unmap(self) -> None:
        """Let go of the map."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def map_write(self, offset: int, size: int) -> None:
        mapped = self._mapped()
        if mapped is None:
            return
        size = max(0, min(size, len(self.bytes) - offset))
        data = self.random.randbytes(size)
        mapped[offset : offset + size] = data
        if size:
            self._put(offset, data)
        if self.random.random() < 0.3:
            mapped.flush()

    def map_read(self, offset: int, size: int) -> None:
        mapped = self._mapped()
        if mapped is not None:
            self._check(offset, mapped[offset : offset + size], size)

    def write_private(self, offset: int, size: int) -> None:
        """What is written through a private map is nobody else's."""
        if len(self.bytes) > offset:
            with mmap.mmap(self.fd, 0, mmap.MAP_PRIVATE) as private:
                private[offset : offset + 1] = bytes([private[offset] ^ 0xFF])
                self._check(offset, os.pread(self.fd, 1, offset), 1)

    def truncate(self, offset: int, size: int) -> None:
        self.unmap()
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, offset)
        else:
            os.truncate(self.path, offset)
        del self.bytes[offset:]
        self.bytes.extend(bytes(offset - len(self.bytes)))

    def sync(self, offset: int, size: int) -> None:
        (os.fsync if size % 2 else os.fdatasync)(self.fd)

    def reopen(self, offset: int, size: int) -> None:
        self.close()
        self.fd = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        """Close it."""
        self.unmap()
        os.close(self.fd)

    def check_all(self, path: Path) -> None:
        """All of a file is as it should be."""
        self.history.append(f"all of {path.parent.name}")
        self._check(0, path.read_bytes(), len(self.bytes) + 1)


class Rig:
    """The mount under the file."""

    def __init__(self, mount: Mount, file: File) -> None:
        self.mount, self.file = mount, file

    def run(self, count: int, turns: list[str]) -> None:
        """Steps, with turns spread among them."""
        every = count // (len(turns) + 1)
        for number in range(1, count + 1):
            self.file.step()
            if number % every == 0 and turns:
                turn = turns.pop()
                self.file.history.append(turn)
                getattr(self, turn)()
        self.file.check_all(self.file.path)
        self.commit()

    def commit(self) -> None:
        """Dirty pages of the map are in it."""
        (self.mount.master / ".pfs" / "commit").write_text("a commit")
        self.file.check_all(self.mount.point / "images@master~0" / self.file.path.name)

    def discard(self) -> None:
        """The file goes back to what was committed; whoever has it open keeps what he sees."""
        self.commit()
        self.file.write(0, 10)
        self.mount.pfs("discard", "images@master", "--force")
        self.file.close()
        self.file.fd = os.open(self.file.path, os.O_RDWR)
        self.file.bytes[:] = (self.mount.point / "images@master~0" / self.file.path.name).read_bytes()

    def remount(self) -> None:
        with self._closed():
            self.mount.umount()

    def kill(self) -> None:
        """Everything but pages of a map that nobody forced out."""
        if self.file._map is not None:
            self.file._map.flush()
        with self._closed():
            self.mount.kill()

    @contextmanager
    def _closed(self) -> Iterator[None]:
        self.file.close()
        yield
        self.mount.mount()
        self.file.fd = os.open(self.file.path, os.O_RDWR)
        self.file.check_all(self.file.path)


@pytest.mark.parametrize(("longest", "part"), [(300_000, 70_000), (9 * MIB, 300_000)], ids=["small", "in parts"])
def test_some_hundred_operations(mounts: Mounts, longest: int, part: int) -> None:
    """In a file that is copied when it is changed, and in one of which only what is written is kept."""
    mount = mounts("mnt").mount()
    file = File(mount.master / "file", longest, longest, part)
    Rig(mount, file).run(400, ["commit", "discard", "kill"])
    file.close()
    assert mount.log_lines() == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("longest", "part"), [(300_000, 70_000), (9 * MIB, 300_000)], ids=["small", "in parts"])
def test_a_hundred_thousand_operations(mounts: Mounts, longest: int, part: int) -> None:
    """With both sizes together."""
    mount = mounts("mnt").mount()
    for seed in range(5):
        file = File(mount.master / f"file{seed}", seed, longest, part)
        Rig(mount, file).run(10_000, ["commit", "discard", "remount", "commit", "kill", "commit", "commit", "kill"] * 2)
        file.close()
    assert mount.log_lines() == []
