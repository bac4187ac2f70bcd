"""What the parts of a mount have in common: inode numbers, what a lookup finds, what an open file is.

A mount is made of **places**: the root, the branches, the commits, the files of all commits. An inode number is the number of its place in the
upper 19 bits and the place's own number in the lower 44, so finding the place of a request is a shift. Place 0 is the root, and its inode 1 is
FUSE's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pfsmount.fs.listings import Told
from pfsmount.ids import ObjectId
from pfsmount.repo.overlay import INO_BITS, ROOT_INO, WouldBlock
from pfsmount.repo.overlay_nodes import Attributes, NodeKind, ReadOnly
from pfsmount.tree.content import PieceCheck
from pfsmount.tree.entry import Entry, Kind

INO_MASK = (1 << INO_BITS) - 1
PLACES_MAX = 1 << 19
FOREVER = 1e9
"""Seconds that the kernel may keep what cannot change without its knowledge."""

__all__ = ["FOREVER", "INO_BITS", "INO_MASK", "ROOT_INO", "Found", "Later", "Place", "WouldBlock"]


FACTS = b"user.pfs."
"""Attributes that the mount shows of itself, and that nobody can set."""


class Later(Exception):
    """The request must wait for something: `wait()`, then ask again."""

    async def wait(self) -> None:
        """Raises what the request is to fail with."""
        raise NotImplementedError


class Found(NamedTuple):
    """An inode as a reply shows it."""

    ino: int
    """Global: place and number."""
    attributes: Attributes
    timeout: float
    """Seconds for which the kernel may believe the attributes."""
    name_timeout: float = FOREVER
    """Seconds for which it may believe that the name means this, if that is less."""


class Encoder(Protocol):
    """Makes of inodes what replies have."""

    def encode(self, found: Found) -> Any:
        """Of any inode."""

    def encode_file(self, ino: int, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> Any:
        """The same of a file of the store that the kernel may believe for ever: most of what listings have."""


class OpenFile:
    """An open file. Places make subclasses."""

    __slots__ = ("direct_io", "keep_cache", "place")

    def __init__(self, place: Place, *, direct_io: bool = False, keep_cache: bool = True) -> None:
        self.place = place
        self.direct_io = direct_io
        self.keep_cache = keep_cache

    def read_nowait(self, offset: int, size: int) -> bytes | bytearray | None:
        """Bytes, fewer only at the end; None when that would wait: then `read`."""
        raise NotImplementedError

    def unchecked(self, offset: int, size: int) -> PieceCheck | None:
        """What must be checked before `read_nowait` has any of a range, so that all who ask for it wait for the same check."""
        return None

    def pieces_of(self, offset: int, size: int) -> list[PieceCheck]:
        """The large pieces of the store that together have all of a range; none if something else has a part of it."""
        return []

    def reading(self, offset: int, size: int) -> Reading:
        """A read that may wait."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> int:
        """Write all of it. Raises ReadOnly, NoSpace, OSError."""
        raise ReadOnly("this file cannot be written to")

    def writing(self, offset: int, size: int) -> Writing | None:
        """A large write that is better done in another thread; None where `write` is as good."""
        return None

    def syncing(self) -> Syncing | None:
        """What makes the file survive a power cut; None when there is nothing to do."""
        return None

    def close(self) -> None:
        """Called once."""


class Reading(Protocol):
    """A read for another thread, used as a context manager."""

    def __enter__(self) -> Reading: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self) -> bytes:
        """Read. Raises OSError, Corrupt."""


class Writing(Protocol):
    """A write for another thread, used as a context manager; `done` comes before its end."""

    def __enter__(self) -> Writing: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self, data: bytes) -> int:
        """Write. Raises OSError."""

    def done(self, count: int) -> None:
        """Account for what was written."""


class Syncing(Protocol):
    """An fsync for another thread, used as a context manager."""

    def __enter__(self) -> Syncing: ...

    def __exit__(self, *_: object) -> None: ...

    def run(self) -> None:
        """Raises OSError."""


class OpenDirectory:
    """An open directory.

    Positions are counted from the first entry of this opening (`.` and `..` are 1 and 2), and the names given out are kept, so a position goes on behind
    the name that it followed, whatever was made or deleted meanwhile.
    """

    __slots__ = ("_at", "_encoder", "_names", "_steps", "ino", "place")

    def __init__(self, place: Place, ino: int, encoder: Encoder) -> None:
        self.place = place
        self.ino = ino
        self._encoder = encoder
        self._names: list[bytes] = []
        self._steps: Iterator[Told] | None = None
        self._at = 0

    def steps(self, position: int) -> Iterator[Told]:
        """The entries from a position that was given out before (0: from the start)."""
        if position == 0:
            self._names.clear()
            self._steps = None
        if self._steps is None or position != self._at:
            self._steps = self._from(position)
        self._at = position
        return self._steps

    def _from(self, position: int) -> Iterator[Told]:
        place, ino, encoder = self.place, self.ino, self._encoder
        if position < 1:
            yield Told(b".", encoder.encode(place.found(ino)), None)
        if position < 2:
            yield Told(b"..", encoder.encode(place.found(place.parent(ino))), None)
        yield from place.list(ino, self._names[position - 1] if position > 2 else b"", encoder)

    def took(self, name: bytes) -> int:
        """The kernel took the entry; returns the position behind it."""
        if self._at == len(self._names):
            self._names.append(name)
        self._at += 1
        return self._at

    def stop(self) -> None:
        """The kernel has no room for the entry that `steps` gave last, or it failed: start again behind the one before."""
        self._steps = None


class Place:
    """A part of the mount with inodes of its own. What it does not offer, it refuses as read-only."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.prefix = number << INO_BITS

    @property
    def title(self) -> str:
        """As people name it, for the log."""
        raise NotImplementedError

    def describe(self, ino: int) -> str:
        """The path of an inode, for the log."""
        return f"{self.title}/#{ino}"

    # All numbers below are the place's own.

    def lookup(self, parent: int, name: bytes) -> Found | None:
        """Look a name up and count the lookup. None: there is no such name."""
        raise NotImplementedError

    negative_timeout: float = 0
    """Seconds for which the kernel may believe that a name is not there, unless `timeout` is 0."""

    @property
    def timeout(self) -> float:
        """0 while somebody else changes the place."""
        return FOREVER

    def found(self, ino: int) -> Found:
        """An inode as it is now."""
        raise NotImplementedError

    def parent(self, ino: int) -> int:
        """The directory above a directory; of the topmost one itself."""
        return ROOT_INO

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave back `count` lookups."""

    def readlink(self, ino: int) -> bytes:
        raise ReadOnly("not a symlink")

    def open(self, ino: int, flags: int, uid: int) -> OpenFile:
        raise ReadOnly("not a file")

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        """Entries of a directory behind a name. The kernel took an entry, which counts as a lookup, when the next one is asked for; else this is closed."""
        raise NotImplementedError

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return {}

    def facts(self, ino: int) -> dict[bytes, bytes]:
        """What `user.pfs.*` attributes show: of what the store has, id, size and a commit that has it."""
        return {}

    def sync_directory(self) -> Syncing | None:
        return None

    # Changes

    def refuse(self) -> Exception:
        """Why nothing can be changed here."""
        return ReadOnly(f"{self.title} cannot be changed")

    def make(
        self, parent: int, name: bytes, kind: NodeKind, mode: int, uid: int, gid: int, target: bytes | None = None
    ) -> Found:
        raise self.refuse()

    def link(self, ino: int, parent: int, name: bytes) -> Found:
        raise self.refuse()

    def remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        raise self.refuse()

    def move(self, parent: int, name: bytes, parent2: int, name2: bytes, flags: int) -> None:
        raise self.refuse()

    def set_attributes(self, ino: int, values: dict[str, int]) -> Found:
        """`values`: mode, uid, gid, mtime_ns, atime_ns, size; what is not given stays."""
        raise self.refuse()

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        raise self.refuse()


def entry_facts(entry: Entry, commit: ObjectId | None) -> dict[bytes, bytes]:
    """What `user.pfs.*` attributes show of something stored. Symlinks have none: the kernel lists them, and refuses to read what it has listed."""
    if entry.kind is Kind.SYMLINK:
        return {}
    found = {b"user.pfs.id": entry.id.hex().encode(), b"user.pfs.size": b"%d" % entry.size}
    if commit is not None:
        found[b"user.pfs.commit"] = commit.hex().encode()
    return found


def plain_attributes(
    ino: int, kind: NodeKind, mode: int, owner: tuple[int, int], size: int, time_ns: int
) -> Attributes:
    """Attributes of something that is not stored: the root, a control file."""
    return Attributes(ino, kind, mode, 1, *owner, size, time_ns, time_ns, math.ceil(size / 512))
