"""Scratch directories of datums: `in/<input>/` for inputs, `out/` for results, `log`.

Making and deleting a directory with a few entries takes a disk about a millisecond, as long as a small program; so they are emptied and
used again, unless a program has changed the directory `out/` itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from pfsmount.objects.layout import disk_errors

# So many of the longest names, behind the path of a store, are still a path that the kernel takes.
_DEEP = 12


class Scratch:
    """The directory of one datum at a time."""

    __slots__ = ("inputs", "log", "out", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs = path / "in"
        self.out = path / "out"
        self.log = path / "log"

    def clean_out(self) -> None:
        """Let another try find an empty `out/`. Raises NoSpace, PfsError."""
        if not (_empty(os.fsencode(self.out)) and _is_fresh(self.out)):
            with disk_errors("emptying the output of a datum"):
                remove_tree(self.out)
                _make_out(self)


class ScratchPool:
    """Makes scratch directories and takes them back. Thread-safe."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._free: list[Scratch] = []
        self._made = 0
        self._lock = Lock()

    def take(self) -> Scratch:
        """An empty one. Raises NoSpace."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._made += 1
            scratch = Scratch(self._place / f"{self._made}")
        with disk_errors("making a scratch directory"):
            scratch.path.mkdir(mode=0o700)
            scratch.inputs.mkdir(mode=0o755)
            _make_out(scratch)
            scratch.log.touch(mode=0o644)
        return scratch

    def give_back(self, scratch: Scratch) -> None:
        """Empty one, for the next datum. One that cannot be emptied stays until the job ends."""
        usable = _empty_inputs(scratch.inputs) and _empty(os.fsencode(scratch.out))
        if usable and not _is_fresh(scratch.out):
            remove_tree(scratch.out)
            usable = _try(_make_out, scratch)
        if usable and _try(os.truncate, scratch.log, 0):
            with self._lock:
                self._free.append(scratch)


def _make_out(scratch: Scratch) -> None:
    scratch.out.mkdir()
    scratch.out.chmod(0o755)


def _is_fresh(out: Path) -> bool:
    """True when a program left no trace on the directory itself, but its time."""
    try:
        info = out.stat()
        attributes = os.listxattr(out)
    except OSError:
        return False
    return stat.S_IMODE(info.st_mode) == 0o755 and info.st_uid == os.geteuid() and not attributes


def remove_tree(path: Path) -> None:
    """Delete a directory whatever modes its directories have; errors leave the rest. What is mounted in it stays."""
    directory = os.fsencode(path)
    if _empty(directory):
        _try(os.rmdir, directory)


def _empty_inputs(inputs: Path) -> bool:
    """The directories of the inputs stay: the next datum has the same ones."""
    try:
        with os.scandir(os.fsencode(inputs)) as scan:
            return all(item.is_dir(follow_symlinks=False) and _empty(item.path) for item in scan)
    except OSError:
        return False


def _empty(top: bytes) -> bool:
    """Delete what is in a directory; False when something stays. No depth of nesting is too much for it."""
    gone = True
    found: list[bytes] = []
    todo = [(top, 0)]
    while todo:
        directory, depth = todo.pop()
        found.append(directory)
        _allow(directory)
        try:
            with os.scandir(directory) as scan:
                items = list(scan)
        except OSError:
            gone = False
            continue
        for item in items:
            if not item.is_dir(follow_symlinks=False):
                gone &= _try(os.unlink, item.path)
                continue
            path, below = item.path, depth + 1
            higher = top + b"/.deep-%d" % len(found)
            if below > _DEEP and _try(os.rename, path, higher):
                path, below = higher, 1
            todo.append((path, below))
    for directory in reversed(found[1:]):
        gone &= _try(os.rmdir, directory)
    return gone


def _allow(directory: bytes) -> None:
    """For an ordinary user whose program took its own permission away."""
    if os.geteuid() and not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        _try(os.chmod, directory, 0o700)


def _try(change: Callable[..., None], *arguments: object) -> bool:
    try:
        change(*arguments)
    except OSError:
        return False
    return True
