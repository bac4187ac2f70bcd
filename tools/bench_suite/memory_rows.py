"""Rows of memory: the greatest anonymous memory (RssAnon) that `pfs put` has."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tools.bench_suite.bench import Bench, environment_of, python_command
from tools.bench_suite.row import Broken, Contest, Side, at_most, row

_SAMPLE_SECONDS = 0.05
_LIMIT = 200_000_000
_BLOCK = 4096
_CHUNK = 4 << 20
_TINY_BYTES = 16


def anonymous_memory(pid: int) -> int:
    """RssAnon of a process and its children, in bytes; 0 when it has ended."""
    found = 0
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                found = int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += anonymous_memory(int(child))
    return found


def peak_memory(bench: Bench, store: Path, *arguments: str | Path, feed: Callable[[int], None] | None = None) -> float:
    """The greatest anonymous memory of a `pfs` command, looked at 20 times a second. Raises Broken.

    `feed` writes to a descriptor what the command reads from its standard input.
    """
    errors = bench.fresh("errors")
    with open(errors, "wb") as stderr:
        process = subprocess.Popen(
            python_command("pfsmount.cli.app", *arguments),
            env=environment_of(store),
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    peak = 0
    try:
        if feed is not None:
            assert process.stdin is not None
            fd = os.dup(process.stdin.fileno())
            process.stdin.close()
            threading.Thread(target=_feed_and_close, args=(feed, fd), daemon=True).start()
        while True:
            peak = max(peak, anonymous_memory(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_SECONDS)
                break
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise Broken(f"pfs {arguments[0]}: exit code {process.returncode}: {errors.read_text(errors='replace')[-300:]}")
    return float(peak)


def _feed_and_close(feed: Callable[[int], None], fd: int) -> None:
    try:
        with suppress(BrokenPipeError):  # the command has ended, and its exit code says why
            feed(fd)
    finally:
        os.close(fd)


def _unlike_data(size: int) -> Callable[[int], None]:
    """Writes random data of which no block is like another: one random chunk, with a number in each of its blocks."""

    def feed(fd: int) -> None:
        chunk = bytearray(os.urandom(_CHUNK))
        at = 0
        while at < size:
            for offset in range(0, _CHUNK, _BLOCK):
                struct.pack_into("<Q", chunk, offset, at + offset)
            left = memoryview(chunk)[: size - at]
            at += len(left)
            while left:
                left = left[os.write(fd, left) :]

    return feed


def _of_put(bench: Bench, *arguments: str | Path, feed: Callable[[int], None] | None = None) -> Contest:
    """The yardstick is a put of one byte: Python and our modules."""
    tiny = bench.fresh("tiny")
    tiny.write_bytes(b"1")

    def measured(*arguments: str | Path, feed: Callable[[int], None] | None = None) -> float:
        store = bench.store()
        try:
            return peak_memory(bench, store, "put", *arguments, feed=feed)
        finally:
            bench.remove(store)

    return Contest(
        Side("pfs put", lambda: measured(*arguments, feed=feed)),
        [Side("put of one byte", lambda: measured(tiny, "images@master:/tiny"))],
    )


@row("memory-small", "memory for a put of {put_files} files of {small_size}", at_most(_LIMIT), unit="bytes", once=True)
def memory_small(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.put_files)
    bench.let_age(source)
    return _of_put(bench, source, "images@master:/")


@row("memory-big", "memory for a put of one file of {put_size}", at_most(_LIMIT), unit="bytes", once=True)
def memory_big(bench: Bench) -> Contest:
    bench.need_space(2 * bench.sizes.put_size)
    return _of_put(bench, bench.big_file(bench.sizes.put_size), "images@master:/big")


@row(
    "memory-many",
    "memory for a put of {many_files} files",
    at_most(_LIMIT),
    unit="bytes",
    heavy=True,
    once=True,
)
def memory_many(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.many_files, _TINY_BYTES)
    bench.let_age(source)
    return _of_put(bench, source, "images@master:/")


@row(
    "memory-stream",
    "memory for a put of {stream_size} through a pipe",
    at_most(_LIMIT),
    unit="bytes",
    heavy=True,
    once=True,
)
def memory_stream(bench: Bench) -> Contest:
    bench.need_space(bench.sizes.stream_size)
    return _of_put(bench, "-", "images@master:/stream", feed=_unlike_data(bench.sizes.stream_size))
