"""How the files of a datum come to where it sees them.

`CopyStaging` writes them from the store into the job's scratch directory. `runner.staging_mount` binds them out of a mount, and copies nothing.
Either way a datum sees exactly what its key covers: names, kinds, contents and exec bits. Times are all `FIXED_NS`, modes 0644 and 0755,
owners those of the running user, and there are no extended attributes.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Protocol

from pfsmount.config import MIB
from pfsmount.ids import display
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.store import Reader
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import entries
from pfsmount.tree.entry import Entry, Kind
from runner.datum import Datum, Match
from runner.executors.base import MADE_MTIME_NS, Bind

FIXED_NS = MADE_MTIME_NS
_PART = 4 * MIB


class Staging(Protocol):
    """Makes the inputs of datums visible. Thread-safe; blocking."""

    @property
    def name(self) -> str: ...

    def stage(self, datum: Datum, scratch: Path) -> list[Bind]:
        """What to bind for a datum. `scratch` is an empty directory that is deleted after it. Raises NoSpace, Corrupt."""
        ...


class CopyStaging:
    """Writes a datum's files anew."""

    name = "copy"

    def __init__(self, objects: Reader) -> None:
        self._objects = objects

    def stage(self, datum: Datum, scratch: Path) -> list[Bind]:
        base = os.fsencode(scratch)
        binds = []
        with disk_errors("copying the inputs of a datum"):
            for match in datum.matches:
                name = os.fsencode(match.name)
                self._place(match, base + b"/" + name)
                binds.append(Bind(base + b"/" + name, name, read_only=True))
        return binds

    def _place(self, match: Match, place: bytes) -> None:
        """The matched entry, below the directories that lead to it."""
        leading = []
        for part in match.path:
            os.mkdir(place)
            leading.append(place)
            place += b"/" + part
        self._write(match.entry, place)
        for directory in reversed(leading):
            _finish(directory, 0o755)

    def _write(self, entry: Entry, place: bytes) -> None:
        if entry.kind is Kind.SYMLINK:
            assert entry.target is not None
            os.symlink(entry.target, place)
            os.utime(place, ns=(FIXED_NS, FIXED_NS), follow_symlinks=False)
        elif entry.kind is Kind.DIRECTORY:
            os.mkdir(place)
            for name, child in entries(self._objects, entry.id):
                self._write(child, place + b"/" + name)
            _finish(place, 0o755)
        else:
            self._write_file(entry, place)

    def _write_file(self, entry: Entry, place: bytes) -> None:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            content = open_content(self._objects, entry)
            offset = 0
            while data := content.read(offset, _PART):
                offset += os.write(fd, data)
            os.fchmod(fd, 0o755 if entry.executable else 0o644)
            os.utime(fd, ns=(FIXED_NS, FIXED_NS))
        finally:
            os.close(fd)


def _finish(directory: bytes, mode: int) -> None:
    os.chmod(directory, mode)
    os.utime(directory, ns=(FIXED_NS, FIXED_NS))


def dangling_links(objects: Reader, datum: Datum, limit: int = 1) -> list[str]:
    """Symlinks among a datum's matches that lead out of what it sees; only of small directories, at most `limit`."""
    found = []
    for match in datum.matches:
        base = b"/" + b"/".join(match.path)
        for path, target in _links(objects, match):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if place != base and not place.startswith(base.rstrip(b"/") + b"/"):
                found.append(f"{match.name}:{display(path)} → {display(target)}")
                if len(found) >= limit:
                    return found
    return found


_LOOKED_AT_MAX = 1000


def _links(objects: Reader, match: Match) -> list[tuple[bytes, bytes]]:
    """Path (absolute in the repo) and target of the symlinks of a match."""
    found = []
    todo = [(b"/" + b"/".join(match.path), match.entry)]
    looked_at = 0
    while todo and looked_at < _LOOKED_AT_MAX:
        path, entry = todo.pop()
        looked_at += 1
        if entry.kind is Kind.SYMLINK:
            assert entry.target is not None
            found.append((path, entry.target))
        elif entry.is_directory and entry.files <= _LOOKED_AT_MAX:
            todo += [(path.rstrip(b"/") + b"/" + name, child) for name, child in entries(objects, entry.id)]
    return found
