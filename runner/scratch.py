"""Scratch directories of datums: `in/` for inputs, `out/` for results, `log`.

Making and deleting a directory with a few entries takes a disk about a millisecond, as long as a small program; so they are emptied and
used again, unless a program has changed the directory `out/` itself.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pfsmount.objects.layout import disk_errors


@dataclass(frozen=True, slots=True)
class Scratch:
    """The directory of one datum at a time."""

    path: Path

    @property
    def inputs(self) -> Path:
        return self.path / "in"

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def log(self) -> Path:
        return self.path / "log"


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
        _empty(os.fsencode(scratch.inputs))
        _empty(os.fsencode(scratch.out))
        if not _is_fresh(scratch.out):
            remove_tree(scratch.out)
            with suppress(OSError):
                _make_out(scratch)
        try:
            os.truncate(scratch.log, 0)
            usable = not os.listdir(scratch.inputs) and not os.listdir(scratch.out)
        except OSError:
            return
        if usable:
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
    _empty(directory)
    with suppress(OSError):
        os.rmdir(directory)


def _empty(directory: bytes) -> None:
    with suppress(OSError):
        for item in _list(directory):
            if item.is_dir(follow_symlinks=False):
                _empty(item.path)
                with suppress(OSError):
                    os.rmdir(item.path)
            else:
                with suppress(OSError):
                    os.unlink(item.path)


def _list(directory: bytes) -> list[os.DirEntry[bytes]]:
    info = os.stat(directory, follow_symlinks=False)
    if stat.S_IMODE(info.st_mode) & 0o700 != 0o700:
        os.chmod(directory, 0o700)
    with os.scandir(directory) as scan:
        return list(scan)
