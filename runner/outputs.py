"""What a datum left in `/pfs/out` becomes a tree.

Files and symlinks keep mode, owner, time and user attributes as the program left them. A symlink into an input becomes what it points to, by reference,
so nothing is copied or stored twice. FIFOs, sockets and devices cannot be kept: the datum fails.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from functools import cached_property

from pfsmount.config import KIB
from pfsmount.errors import PfsError
from pfsmount.ids import RESERVED_ROOT_NAME, ObjectId, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.tree.directory import DirectorySummary, directory_entry, lookup
from pfsmount.tree.edit import DirectoryBuilder
from pfsmount.tree.entry import Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_fd
from pfsmount.tree.node import entry_item
from pfsmount.tree.xattrs import with_xattrs
from runner.datum import Datum, Visible

_OUT = b"/pfs/out"
_PFS = b"/pfs/"
_LINKS_MAX = 40
_DEPTH_MAX = 300
_AT_ONCE = 64
_SMALL = 64 * KIB
_OF_THE_PROGRAM = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}


class OutputRefused(PfsError):
    """The datum left something that cannot be a result."""


class OutputReader:
    """Reads the output directory of one datum into a batch."""

    def __init__(self, batch: Batch, datum: Datum) -> None:
        self._batch, self._datum = batch, datum
        self._small: list[tuple[ObjectId, bytes]] = []
        """Files that are read and not added yet."""
        self.outside: list[bytes] = []
        """Symlinks that lead out of what the datum saw; they are kept, and dangle."""

    @cached_property
    def _visible(self) -> Mapping[bytes, Sequence[Visible]]:
        """Made for the first symlink: most datums leave none."""
        return {os.fsencode(name): shown for name, shown in self._datum.visible().items()}

    def read(self, out: bytes) -> Entry:
        """The directory `out` as an entry. Raises OutputRefused, NoSpace, PfsError."""
        with disk_errors("reading the results of a datum"):
            try:
                return self._directory(out, b"", 0)
            except OSError as error:
                if error.errno not in _OF_THE_PROGRAM:
                    raise
                raise OutputRefused(f"/pfs/out has something that cannot be read: {error.strerror}") from error

    def _directory(self, place: bytes, path: bytes, depth: int) -> Entry:
        if depth > _DEPTH_MAX:
            raise OutputRefused(f"/pfs/out{display(path[:60])}… is more than {_DEPTH_MAX} directories deep")
        info = os.stat(place, follow_symlinks=False)
        _make_accessible(place, info, 0o700)
        with os.scandir(place) as scan:
            builder = DirectoryBuilder(self._batch)
            items = sorted(scan, key=lambda item: item.name)
            if not path and any(item.name == RESERVED_ROOT_NAME for item in items):
                raise OutputRefused("/pfs/out/.pfs: this name at the root of a branch belongs to pfs")
            for start in range(0, len(items), _AT_ONCE):
                part = items[start : start + _AT_ONCE]
                entries = [self._item(item, path + b"/" + item.name, depth) for item in part]
                self._add_small()
                for item, entry in zip(part, entries, strict=True):
                    builder.add(entry_item(item.name, entry))
            entry = directory_entry(
                DirectorySummary.of(builder.finish()),
                mode=stat.S_IMODE(info.st_mode),
                uid=info.st_uid,
                gid=info.st_gid,
                mtime_ns=info.st_mtime_ns,
            )
            return self._with_attributes(place, entry)

    def _item(self, item: os.DirEntry[bytes], path: bytes, depth: int) -> Entry:
        if item.is_symlink():
            return self._link(item, path)
        if item.is_dir(follow_symlinks=False):
            return self._directory(item.path, path, depth + 1)
        info = item.stat(follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            kind = _KINDS.get(stat.S_IFMT(info.st_mode), "no file")
            raise OutputRefused(f"/pfs/out{display(path)} is {kind}, which cannot be kept")
        return self._file(item.path, info)

    def _file(self, place: bytes, info: os.stat_result) -> Entry:
        _make_accessible(place, info, 0o400)
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            id, size = self._content(fd, info)
            mode = stat.S_IMODE(info.st_mode)
            entry = file_entry(id, size, mode=mode, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)
            return self._with_attributes(fd, entry)
        finally:
            os.close(fd)

    def _content(self, fd: int, info: os.stat_result) -> tuple[ObjectId, int]:
        """Id and size of an open file; what is small is added with others like it (`_add_small`)."""
        if info.st_size <= _SMALL:
            data = os.pread(fd, _SMALL + 1, 0)
            if len(data) <= _SMALL:
                id = hash_bytes(data)
                self._small.append((id, data))
                return id, len(data)
        return ingest_fd(self._batch, fd)

    def _add_small(self) -> None:
        """One look into the index for many files: 6 000 of 3 KB took 0.51 s of processor time, and take 0.36."""
        small, self._small = self._small, []
        self._batch.add_pieces([id for id, _ in small], lambda i: small[i][1])

    def _with_attributes(self, place: int | bytes, entry: Entry) -> Entry:
        try:
            names = [os.fsencode(name) for name in os.listxattr(place)]
        except OSError:
            return entry  # a filesystem without them
        wanted = [name for name in names if name.startswith(b"user.") and not name.startswith(b"user.pfs.")]
        if not wanted:
            return entry
        return with_xattrs(self._batch, entry, {name: os.getxattr(place, name) for name in wanted})

    def _link(self, item: os.DirEntry[bytes], path: bytes) -> Entry:
        target = os.readlink(item.path)
        info = item.stat(follow_symlinks=False)
        here = posixpath.dirname(_OUT + path)
        place = posixpath.normpath(posixpath.join(here, target))
        if place == _OUT or place.startswith(_OUT + b"/"):
            if target.startswith(b"/"):
                target = posixpath.relpath(place, here)
        elif place.startswith(_PFS) and (entry := self._of_input(place)) is not None:
            return entry
        else:
            self.outside.append(path)
        return symlink_entry(target, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)

    def _of_input(self, place: bytes) -> Entry | None:
        """What the datum sees at a path in /pfs, symlinks inside the input followed; None for nothing."""
        for _ in range(_LINKS_MAX):
            found = self._lookup(place)
            if found is None:
                return None
            entry, at = found
            if entry.kind is not Kind.SYMLINK:
                return entry
            assert entry.target is not None
            rest = place[len(at) :].lstrip(b"/")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(at), entry.target, rest))
        return None

    def _lookup(self, place: bytes) -> tuple[Entry, bytes] | None:
        """The entry at a path in /pfs, or the first symlink on the way, and its own path."""
        name, *parts = place[len(_PFS) :].split(b"/")
        shown = self._visible.get(name, ())
        visible = next((one for one in shown if tuple(parts[: len(one.path)]) == one.path), None)
        if visible is None:
            return None
        entry = visible.entry
        at = b"/".join((_PFS.rstrip(b"/"), name, *visible.path))
        for part in parts[len(visible.path) :]:
            if entry.kind is Kind.SYMLINK:
                break
            below = lookup(self._batch, entry.id, part) if entry.is_directory else None
            if below is None:
                return None
            entry, at = below, at + b"/" + part
        return entry, at


def _make_accessible(place: bytes, info: os.stat_result, needed: int) -> None:
    """For an ordinary user whose program took its own permission away; the scratch directory is about to be deleted."""
    if info.st_mode & needed != needed and os.geteuid() == info.st_uid:
        os.chmod(place, stat.S_IMODE(info.st_mode) | needed)
