"""Rows that write through the mount, and what a mount itself costs.

The yardstick for writing is a filesystem in memory that is nothing but pyfuse3 (`bare`): what a mount in Python can do at best.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from tools.bench_suite.bench import Bench, Mount
from tools.bench_suite.memory_rows import anonymous_memory
from tools.bench_suite.row import Contest, Side, Unavailable, at_least_speed, at_most, at_most_times, row
from tools.bench_suite.synthetic import synthetic_store

_REPLY = re.compile(r"writev\((\d+),")


def _on_all(bench: Bench, write: Callable[[Path], None], work: tuple[int, str], *, keep: bool = False) -> Contest:
    """`write` into a new directory of a mounted branch, of the bare filesystem, and of the disk. Without `keep` the one before is deleted first."""
    bare = bench.bare().place
    mount = bench.mount(bench.store())
    branch = mount.enter()
    disk = bench.fresh("disk")
    disk.mkdir()
    numbers = count()

    def side(name: str, root: Path) -> Side:
        places: list[Path] = []

        def prepare() -> None:
            for old in () if keep else places:
                shutil.rmtree(old)
            places[:] = [root / f"{next(numbers)}"]
            places[0].mkdir()

        return Side(name, lambda: write(places[0]), prepare)

    return Contest(side("through the mount", branch), [side("bare pyfuse3", bare), side("on the disk", disk)], work)


@row("create", "create {created_files} files of {small_size}", at_most_times(1.5))
def create(bench: Bench) -> Contest:
    files = bench.sizes.created_files
    data = random.Random(2).randbytes(bench.sizes.small_size)

    def write(root: Path) -> None:
        _create(root, files, data)

    # many deleted files make ext4 slow for minutes, also below the mount: see `bench`
    return _on_all(bench, write, (files, "files"), keep=True)


def _create(root: Path, files: int, data: bytes) -> None:
    for i in range(files):
        fd = os.open(root / f"file-{i:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)


@row("write-big", "write one file of {big_size}", at_least_speed(0.7))
def write_big(bench: Bench) -> Contest:
    bench.need_space(4 * bench.sizes.big_size)
    block = os.urandom(1 << 20)

    def write(root: Path) -> None:
        with open(root / "big", "xb", buffering=0) as file:
            for _ in range(0, bench.sizes.big_size, len(block)):
                file.write(block)

    return _on_all(bench, write, (bench.sizes.big_size, "bytes"))


class _Unlike:
    """Files of which no part is like another, of one size: what is stored already would be found again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._block = bytearray(os.urandom(1 << 20))

    def write(self, path: Path) -> None:
        with open(path, "xb", buffering=0) as file:
            for _ in range(0, self.size, len(self._block)):
                self._block[:16] = os.urandom(16)
                file.write(self._block)


@row("commit-big", "commit a new file of {big_size} right after it was written through the mount", at_most(0.6))
def commit_big(bench: Bench) -> Contest:
    """By one write to `.pfs/commit`. Beside it what the disk takes to make the same file durable."""
    bench.need_space(4 * bench.sizes.big_size)
    bench.need_mount()
    branch, disk, numbers = bench.mount(bench.store()).enter(), bench.fresh("disk"), count()
    unlike = _Unlike(bench.sizes.big_size)

    def commit() -> float:
        unlike.write(branch / f"big-{next(numbers)}")
        started = time.perf_counter()
        (branch / ".pfs" / "commit").write_bytes(b"big")
        return time.perf_counter() - started

    def sync() -> float:
        disk.unlink(missing_ok=True)
        unlike.write(disk)
        fd = os.open(disk, os.O_RDWR)
        started = time.perf_counter()
        os.fsync(fd)
        os.close(fd)
        return time.perf_counter() - started

    return Contest(Side("the commit", commit), [Side("fsync on the disk", sync)])


@row(
    "commit-big-bytes",
    "bytes given to the disk for each byte of a new file of {big_size} that is written and committed",
    at_most(1.05),
    unit="count",
    once=True,
)
def commit_big_bytes(bench: Bench) -> Contest:
    bench.need_space(4 * bench.sizes.big_size)
    mount = bench.mount(bench.store())
    branch = mount.enter()
    account = Path(f"/proc/{_daemon(bench, mount)}/io")

    def written() -> int:
        (line,) = [line for line in account.read_text().splitlines() if line.startswith("write_bytes:")]
        return int(line.split()[1])

    def run() -> float:
        before = written()
        _Unlike(bench.sizes.big_size).write(branch / "big")
        (branch / ".pfs" / "commit").write_bytes(b"big")
        return (written() - before) / bench.sizes.big_size

    return Contest(Side("through the mount", run))


@row("create-requests", "requests for each file of {small_size} that is created", at_most(6), unit="count", once=True)
def create_requests(bench: Bench) -> Contest:
    """Replies are counted, as `writev` to /dev/fuse; forgetting an inode has none and costs next to nothing. What comes once (finding the directory, opening the branch) is in both
    counts, and so in neither."""
    if shutil.which("strace") is None:
        raise Unavailable("there is no strace (package strace)")
    mount = bench.mount(bench.store())
    branch = mount.enter()
    bare = bench.bare()
    files = bench.sizes.created_files // 10

    def replies(root: Path, daemon: int) -> float:
        counted = []
        for times in (1, 2):
            (root / f"{times}").mkdir()
            work = partial(_create, root / f"{times}", times * files, b"x" * 4096)
            counted.append(_count_replies(bench, daemon, work))
        return round((counted[1] - counted[0]) / files, 1)  # once a second the root is looked at, too

    return Contest(
        Side("through the mount", lambda: replies(branch, _daemon(bench, mount))),
        [Side("bare pyfuse3", lambda: replies(bare.place, bare.pid))],
    )


def _daemon(bench: Bench, mount: Mount) -> int:
    """The process that serves a mount."""
    (found,) = json.loads(bench.pfs(mount.store, "mounts", "--json"))
    return int(found["pid"])


def _count_replies(bench: Bench, daemon: int, work: Callable[[], None]) -> int:
    (fuse,) = [
        path.name
        for path in Path(f"/proc/{daemon}/fd").iterdir()
        if path.is_symlink() and os.readlink(path) == "/dev/fuse"
    ]
    trace = bench.fresh("trace")
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(daemon), "-e", "trace=writev", "-o", trace], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    try:
        while "attached" not in (said := tracer.stderr.readline()):
            if not said:
                raise Unavailable("strace cannot follow the mount's process")
        work()
    finally:
        tracer.terminate()
        tracer.wait()
    with open(trace, encoding="utf-8", errors="replace") as lines:
        return sum(1 for line in lines if (call := _REPLY.search(line)) is not None and call[1] == fuse)


@row("mount-ready", "mount a store of {many_files} files", at_most(0.5))
def mount_ready(bench: Bench) -> Contest:
    def side(name: str, files: int, directories: int) -> Side:
        mount = bench.mount(synthetic_store(bench, files, directories))

        def run() -> None:
            os.listdir(mount.enter())

        return Side(name, run, mount.leave)

    sizes = bench.sizes
    return Contest(
        side("pfs mount and ls", sizes.many_files, sizes.many_directories),
        [side(f"the same of {sizes.few_files:,}", sizes.few_files, sizes.few_directories)],
    )


@row(
    "memory-mount",
    "memory of a mount for each of {many_files} files that `find` has seen",
    at_most(400),
    unit="bytes",
    heavy=True,
    once=True,
)
def memory_mount(bench: Bench) -> Contest:
    """The yardstick is what is left of it when the kernel has forgotten them."""
    files = bench.sizes.many_files
    mount = bench.mount(synthetic_store(bench, files, bench.sizes.many_directories))
    branch = mount.enter()
    daemon = _daemon(bench, mount)
    before = anonymous_memory(daemon)

    def seen() -> float:
        bench.to_null("find", branch)
        return max(1.0, (anonymous_memory(daemon) - before) / files)

    def forgotten() -> float:
        bench.need_cold()
        bench.drop_caches()
        os.listdir(mount.place)  # answered behind the forgetting
        return max(1.0, (anonymous_memory(daemon) - before) / files)

    return Contest(Side("after find", seen), [Side("after dropping the caches", forgotten)])
