"""How the files of a datum come to where it sees them.

`CopyStaging` writes them from the store into the job's scratch directory. `runner.staging_mount` binds them out of a mount, and copies nothing.
Either way a datum sees exactly what its key covers: names, kinds, contents and exec bits. Times are all `FIXED_NS`, modes 0644 and 0755,
owners those of the running user, and there are no extended attributes.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pfsmount.config import MIB
from pfsmount.ids import display
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.reading import Reader
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import entries
from pfsmount.tree.entry import Entry, Kind
from runner.datum import Datum, Visible
from runner.executors.base import MADE_MTIME_NS, Bind

FIXED_NS = MADE_MTIME_NS
_PART = 4 * MIB


@dataclass(frozen=True, slots=True)
class Staged:
    """The inputs of one datum, ready to be bound."""

    binds: tuple[Bind, ...]
    dangling: tuple[str, ...] = ()
    """Symlinks that lead out of what the datum sees, for people."""


class Staging(Protocol):
    """Makes the inputs of datums visible. Thread-safe; blocking."""

    @property
    def name(self) -> str: ...

    def stage(self, datum: Datum, scratch: Path) -> Staged:
        """What to bind for a datum. `scratch` is a directory of its own, in which there may be empty ones of the inputs' names.

        Raises NoSpace, Corrupt.
        """
        ...


class CopyStaging:
    """Writes a datum's files anew."""

    name = "copy"

    def __init__(self, objects: Reader) -> None:
        self._objects = objects

    def stage(self, datum: Datum, scratch: Path) -> Staged:
        base = os.fsencode(scratch)
        binds, dangling = [], []
        with disk_errors("copying the inputs of a datum"):
            for text, shown in datum.visible().items():
                name = os.fsencode(text)
                links = self.copy(shown, base + b"/" + name)
                binds.append(Bind(base + b"/" + name, name, read_only=True))
                dangling += [_describe(text, *link) for link in links if _leads_out(shown, name, *link)]
        return Staged(tuple(binds), tuple(dangling))

    def copy(self, shown: Sequence[Visible], top: bytes) -> list[tuple[bytes, bytes]]:
        """Write all this below the directory `top`, which is made. Returns path and target of the symlinks. Raises OSError, Corrupt."""
        _make_top(top)
        links: list[tuple[bytes, bytes]] = []
        leading: dict[bytes, None] = {}
        for one in shown:
            place = top
            for part in one.path:
                if place not in leading:
                    leading[place] = None
                    if place != top:
                        os.mkdir(place)
                place += b"/" + part
            self._write(one.entry, place, b"/" + b"/".join(one.path), links, empty=one.empty)
        for directory in reversed(leading):
            _finish(directory)
        return links

    def _write(self, entry: Entry, place: bytes, path: bytes, links: list[tuple[bytes, bytes]], *, empty: bool) -> None:
        if entry.kind is Kind.SYMLINK:
            assert entry.target is not None
            os.symlink(entry.target, place)
            os.utime(place, ns=(FIXED_NS, FIXED_NS), follow_symlinks=False)
            links.append((path, entry.target))
        elif entry.kind is Kind.DIRECTORY:
            if path != b"/":
                os.mkdir(place)
            for name, child in entries(self._objects, entry.id):
                self._write(child, place + b"/" + name, path.rstrip(b"/") + b"/" + name, links, empty=empty)
            _finish(place)
        else:
            self._write_file(entry, place, empty=empty)

    def _write_file(self, entry: Entry, place: bytes, *, empty: bool) -> None:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not empty:
                content = open_content(self._objects, entry)
                offset = 0
                while data := content.read(offset, _PART):
                    offset += os.write(fd, data)
            os.fchmod(fd, 0o755 if entry.executable else 0o644)
            os.utime(fd, ns=(FIXED_NS, FIXED_NS))
        finally:
            os.close(fd)


def _make_top(place: bytes) -> None:
    """The directory of an input; there already when the scratch directory has been used before."""
    with suppress(FileExistsError):
        os.mkdir(place)


def _finish(directory: bytes) -> None:
    os.chmod(directory, 0o755)
    os.utime(directory, ns=(FIXED_NS, FIXED_NS))


def _leads_out(shown: Sequence[Visible], name: bytes, path: bytes, target: bytes) -> bool:
    """True for a symlink whose target is not among what is shown, read as text."""
    base = b"/pfs/" + name
    end = posixpath.normpath(posixpath.join(posixpath.dirname(base + path), target))
    places = (b"/".join((base, *one.path)) for one in shown)
    return not any(end == place or end.startswith(place + b"/") for place in places)


def _describe(name: str, path: bytes, target: bytes) -> str:
    return f"{name}:{display(path)} → {display(target)}"
