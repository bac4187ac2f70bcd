"""Rows that read through the mount: the same files through it and on the disk beside it.

Each is measured of a commit and of a changed branch: one with `changes_mounted` files written anew and not committed, or, where there is one large file, as
many places written in it.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from itertools import count as counting
from pathlib import Path
from typing import NamedTuple

from tools.bench_suite.bench import Bench
from tools.bench_suite.row import Broken, Contest, Goal, Side, at_least_speed, at_most_times, row

_BLOCK = 4096
_COLD_SHARE = 5
_READ_ANYWHERE = """
import os, random, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
draw = random.Random(int(sys.argv[3]))
blocks = os.fstat(fd).st_size // 4096
places = [4096 * draw.randrange(blocks) for _ in range(int(sys.argv[2]))]
started = time.perf_counter()
for place in places:
    os.pread(fd, 4096, place)
print(time.perf_counter() - started)
"""


class Setting(NamedTuple):
    """Under which circumstances something is read."""

    cold: bool
    """A new daemon, and nothing in the kernel's caches; else the same was read just before."""
    changed: bool
    """A branch with uncommitted changes; else a commit."""


Read = Callable[[Path], float | None]
"""Reads below a directory; returns seconds when it measures them itself."""


def _changed_store(bench: Bench, source: Path) -> Path:
    """A store with a directory as `images@master`, and uncommitted changes to it; made once."""

    def make(path: Path) -> None:
        bench.make_store(path)
        bench.pfs(path, "put", source, "images@master:/")
        mount = bench.mount(path)
        root = mount.enter()
        names = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())
        draw = random.Random(1)
        if len(names) > 1:
            for name in draw.sample(names, min(len(names), bench.sizes.changes_mounted)):
                (root / name).write_bytes(draw.randbytes((source / name).stat().st_size))
        else:
            with open(root / names[0], "r+b", buffering=0) as file:
                blocks = os.fstat(file.fileno()).st_size // _BLOCK
                for block in draw.sample(range(blocks), min(blocks, bench.sizes.changes_mounted)):
                    os.pwrite(file.fileno(), draw.randbytes(_BLOCK), block * _BLOCK)
        mount.leave()

    return bench.once(f"changed-{source.name}", make)


def _both(
    bench: Bench,
    source: Path,
    read: Read,
    programs: tuple[str, ...],
    setting: Setting,
    work: tuple[int, str],
    warm: Read | None = None,
) -> Contest:
    """`read` of the mounted version and of the directory that was put into it; beside them of the same files in a filesystem that is nothing but pyfuse3 and memory, which a mount in
    Python is at best. `warm` is done before, where `read` does not do for that."""
    bench.need_mount()
    if setting.cold:
        bench.need_cold()
    mount = bench.mount(_changed_store(bench, source) if setting.changed else bench.store_with(source))
    mount.enter()
    root = mount.root if setting.changed else mount.commit()
    _check_same(root, source)

    def side(name: str, path: Path, fresh: Callable[[], object]) -> Side:
        def prepare() -> None:
            if setting.cold:
                fresh()
                bench.drop_caches(*programs)
            else:
                (warm or read)(path)

        return Side(name, lambda: read(path), prepare)

    bare = bench.bare(source).place
    yardsticks = [side("on the disk", source, lambda: None), side("bare pyfuse3", bare, lambda: None)]
    return Contest(side("through the mount", root, mount.enter), yardsticks, work)


def _check_same(root: Path, source: Path) -> None:
    """Both sides have the same names and sizes: a fast wrong answer is none."""
    ours, theirs = (
        sorted(
            (os.path.relpath(os.path.join(directory, name), top), os.lstat(os.path.join(directory, name)).st_size)
            for directory, _, names in os.walk(top)
            for name in names
        )
        for top in (root, source)
    )
    if ours != theirs:
        raise Broken(f"the mount shows {len(ours)} files where {len(theirs)} were put, or others")


def _in_all_settings(
    name: str, title: str, cold: Goal, warm: Goal
) -> Callable[[Callable[[Bench, Setting], Contest]], None]:
    """Register four rows: cold and warm, of a commit and of a changed branch."""

    def register(set_up: Callable[[Bench, Setting], Contest]) -> None:
        for changed in (False, True):
            for is_cold in (True, False):
                setting = Setting(is_cold, changed)
                what = f"{title}, {'cold' if is_cold else 'warm'}" + (", changed" if changed else "")
                key = f"{name}-{'cold' if is_cold else 'warm'}" + ("-changed" if changed else "")

                def one(bench: Bench, setting: Setting = setting) -> Contest:
                    return set_up(bench, setting)

                one.__module__ = set_up.__module__
                row(key, what, cold if is_cold else warm)(one)

    return register


@_in_all_settings("find", "find over {mount_files} files", at_most_times(1.5), at_most_times(1.5))
def _find(bench: Bench, setting: Setting) -> Contest:
    files = bench.sizes.mount_files
    return _both(
        bench, bench.tree(files), lambda path: bench.to_null("find", path), ("find",), setting, (files, "files")
    )


@_in_all_settings("ls", "ls -lR of {mount_files} files", at_most_times(1.5), at_most_times(1.5))
def _list(bench: Bench, setting: Setting) -> Contest:
    files = bench.sizes.mount_files
    return _both(
        bench, bench.tree(files), lambda path: bench.to_null("ls", "-lR", path), ("ls",), setting, (files, "files")
    )


@_in_all_settings("read-small", "read {read_files} files of {small_size}", at_least_speed(0.8), at_least_speed(0.25))
def _read_small(bench: Bench, setting: Setting) -> Contest:
    """`cat` of each file, by a list that is made beforehand; the paths in it are relative."""
    source = bench.tree(bench.sizes.small_files)
    names = sorted(os.fspath(path.relative_to(source)) for path in source.glob("*/*"))[: bench.sizes.read_files]
    listed = bench.fresh("names")
    listed.write_text("\0".join(names))

    def read(path: Path) -> None:
        bench.to_null("env", "-C", path, "xargs", "-0", "-a", listed, "cat", "--")

    return _both(bench, source, read, ("env", "xargs", "cat"), setting, (len(names), "files"))


def _alone(bench: Bench) -> Path:
    """A directory with nothing but the large file; made once."""

    def make(path: Path) -> None:
        path.mkdir()
        os.link(bench.big_file(), path / "big")

    return bench.once("big", make)


@_in_all_settings(
    "read-big",
    "read one file of {big_size}",
    at_least_speed(0.75 if os.geteuid() == 0 else 0.4),
    at_least_speed(0.6),
)
def _read_big(bench: Bench, setting: Setting) -> Contest:
    return _both(
        bench, _alone(bench), lambda path: _read_through(bench, path), ("dd",), setting, (bench.sizes.big_size, "bytes")
    )


def _read_through(bench: Bench, path: Path) -> None:
    bench.to_null("dd", f"if={path / 'big'}", "of=/dev/null", "bs=1M", "status=none")


@_in_all_settings("read-random", "random reads of 4 KiB in {big_size}", at_least_speed(0.3), at_least_speed(0.6))
def _read_anywhere(bench: Bench, setting: Setting) -> Contest:
    count = bench.sizes.random_reads // (_COLD_SHARE if setting.cold else 1)
    seeds: Iterator[int] = counting()

    def read(path: Path) -> float:
        command: list[str | Path] = [sys.executable, "-c", _READ_ANYWHERE, path / "big", str(count), str(next(seeds))]
        return float(bench.run(command))

    programs = (sys.executable,)
    return _both(
        bench, _alone(bench), read, programs, setting, (count, "reads"), warm=lambda path: _read_through(bench, path)
    )
