"""Rows of the mount: the same files through it and on the disk beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tools.bench_suite.bench import Bench, Mount
from tools.bench_suite.row import Broken, Contest, Side, at_least_speed, at_most_times, row


def _both(
    bench: Bench,
    source: Path,
    read: Callable[[Path], object],
    programs: tuple[str, ...],
    *,
    cold: bool,
    work: tuple[int, str],
) -> Contest:
    """`read` of the mounted branch and of the directory that was put into it.

    Cold: a new daemon, and nothing in the kernel's caches. Warm: the same was read just before.
    """
    bench.need_mount()
    if cold:
        bench.need_cold()
    mount = bench.mount(bench.store_with(source))
    _check_same(mount, source)

    def prepare_ours() -> None:
        if cold:
            mount.enter()
            bench.drop_caches(*programs)
        else:
            read(mount.root)

    def prepare_theirs() -> None:
        if cold:
            bench.drop_caches(*programs)
        else:
            read(source)

    def run(path: Path) -> Callable[[], None]:
        def measured() -> None:
            read(path)

        return measured

    return Contest(
        Side("through the mount", run(mount.root), prepare_ours),
        [Side("on the disk", run(source), prepare_theirs)],
        work,
    )


def _check_same(mount: Mount, source: Path) -> None:
    """Both sides have the same names and sizes: a fast wrong answer is none."""
    mount.enter()
    ours, theirs = (
        sorted(
            (os.path.relpath(os.path.join(directory, name), top), os.lstat(os.path.join(directory, name)).st_size)
            for directory, _, names in os.walk(top)
            for name in names
        )
        for top in (mount.root, source)
    )
    if ours != theirs:
        raise Broken(f"the mount shows {len(ours)} files where {len(theirs)} were put, or others")


def _find(bench: Bench, *, cold: bool) -> Contest:
    files = bench.sizes.small_files
    return _both(
        bench,
        bench.tree(files),
        lambda path: bench.to_null("find", path),
        ("find",),
        cold=cold,
        work=(files, "files"),
    )


@row("find-cold", "find over {small_files} files, cold", at_most_times(1.5))
def find_cold(bench: Bench) -> Contest:
    return _find(bench, cold=True)


@row("find-warm", "find over {small_files} files, warm", at_most_times(1.5))
def find_warm(bench: Bench) -> Contest:
    return _find(bench, cold=False)


def _read_small(bench: Bench, *, cold: bool) -> Contest:
    """`cat` of each file, by a list that is made beforehand; the paths in it are relative."""
    count = bench.sizes.read_files
    source = bench.tree(bench.sizes.small_files)
    names = sorted(os.fspath(path.relative_to(source)) for path in source.glob("*/*"))[:count]
    listed = bench.fresh("names")
    listed.write_text("\0".join(names))

    def read(path: Path) -> None:
        bench.to_null("env", "-C", path, "xargs", "-0", "-a", listed, "cat", "--")

    programs = ("env", "xargs", "cat")
    return _both(bench, source, read, programs, cold=cold, work=(len(names), "files"))


@row("read-small-cold", "read {read_files} files of 4 KiB, cold", at_least_speed(0.8))
def read_small_cold(bench: Bench) -> Contest:
    return _read_small(bench, cold=True)


@row("read-small-warm", "read {read_files} files of 4 KiB, warm", at_least_speed(0.25))
def read_small_warm(bench: Bench) -> Contest:
    return _read_small(bench, cold=False)


def _read_big(bench: Bench, *, cold: bool) -> Contest:
    source = bench.fresh("big")
    source.mkdir()
    os.link(bench.big_file(), source / "big")

    def read(path: Path) -> None:
        bench.to_null("dd", f"if={path / 'big'}", "of=/dev/null", "bs=1M", "status=none")

    return _both(bench, source, read, ("dd",), cold=cold, work=(bench.sizes.big_size, "bytes"))


@row("read-big-cold", "read one file of {big_size}, cold", at_least_speed(0.75 if os.geteuid() == 0 else 0.4))
def read_big_cold(bench: Bench) -> Contest:
    return _read_big(bench, cold=True)


@row("read-big-warm", "read one file of {big_size}, warm", at_least_speed(0.6))
def read_big_warm(bench: Bench) -> Contest:
    return _read_big(bench, cold=False)
