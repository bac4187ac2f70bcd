"""`get`: files and directories of a commit become local ones.

Everything is written under directory descriptors opened without following symlinks, so neither a hostile tree nor a link in
the target directory can lead out of it. Each file appears whole, by rename.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import EEXIST, ELOOP, ENOTDIR, ENOTSUP

from pfsmount.errors import AlreadyExists, IsADirectory, NotADirectory
from pfsmount.ids import EntryName, display
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.content import Content, open_content
from pfsmount.tree.directory import entries
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.xattrs import load_xattrs

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class ExportReport:
    """What was written so far."""

    files: int = 0
    size: int = 0


Progress = Callable[[ExportReport], None]


class Export:
    """Writes entries of a store to the local filesystem."""

    def __init__(self, objects: ObjectStore, progress: Progress | None = None) -> None:
        self._objects = objects
        self._progress = progress
        self._root = os.geteuid() == 0
        self.report = ExportReport()

    def directory(self, entry: Entry, path: bytes) -> None:
        """Write a directory's contents into `path`, which is made if need be; existing files are overwritten.

        Raises NotADirectory, IsADirectory, NoSpace, PermissionDenied.
        """
        with disk_errors(f"writing to {display(path)}"):
            try:
                os.mkdir(path)
            except FileExistsError:
                if not os.path.isdir(path):
                    raise NotADirectory(f"{display(path)} is not a directory") from None
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._contents(entry, fd, path)
            finally:
                os.close(fd)

    def file(self, entry: Entry, directory: bytes, name: bytes) -> None:
        """Write a file or symlink as `name` into an existing directory."""
        with disk_errors(f"writing to {display(directory)}"):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._entry(entry, fd, EntryName(name), os.path.join(directory, name))
            finally:
                os.close(fd)

    def stream(self, entry: Entry, fd: int) -> None:
        """Write a file's bytes to a descriptor. Raises OSError."""
        self._copy(open_content(self._objects, entry), fd, sparse=False)

    def _contents(self, entry: Entry, fd: int, path: bytes) -> None:
        for name, child in entries(self._objects, entry.id):
            self._entry(child, fd, name, os.path.join(path, name))

    def _entry(self, entry: Entry, parent: int, name: EntryName, path: bytes) -> None:
        if entry.kind is Kind.DIRECTORY:
            self._subdirectory(entry, parent, name, path)
            return
        temporary = b".pfs-get-" + secrets.token_hex(8).encode("ascii")
        try:
            if entry.kind is Kind.SYMLINK:
                assert entry.target is not None
                os.symlink(entry.target, temporary, dir_fd=parent)
            else:
                self._write_file(entry, parent, temporary)
            self._owner(entry, temporary, parent)
            os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            raise IsADirectory(f"{display(path)} is a directory; a file cannot replace it") from None
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
        self.report.files += 1
        if self._progress is not None:
            self._progress(self.report)

    def _subdirectory(self, entry: Entry, parent: int, name: EntryName, path: bytes) -> None:
        made = True
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except OSError as error:
            if error.errno != EEXIST:
                raise
            made = False
        try:
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        except OSError as error:
            if error.errno in (ENOTDIR, ELOOP):
                raise AlreadyExists(f"{display(path)} is not a directory; a directory cannot replace it") from None
            raise
        try:
            self._contents(entry, fd, path)
            if made:
                self._attributes(entry, fd)
                self._owner(entry, name, parent)
                os.chmod(fd, entry.mode)
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _write_file(self, entry: Entry, parent: int, name: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            self._copy(open_content(self._objects, entry), fd, sparse=True)
            self._attributes(entry, fd)
            if self._root:
                os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, stat.S_IMODE(entry.mode))
        finally:
            os.close(fd)

    def _owner(self, entry: Entry, name: bytes, parent: int) -> None:
        if self._root and entry.kind is not Kind.FILE:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)

    def _attributes(self, entry: Entry, fd: int) -> None:
        for name, value in load_xattrs(self._objects, entry).items():
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno != ENOTSUP:  # a filesystem without xattrs
                    raise

    def _copy(self, content: Content, fd: int, *, sparse: bool) -> None:
        for offset, data in content.parts(PIECE_MAX):
            if data is None:
                if not sparse:
                    _write_zeros(fd, offset.stop - offset.start)
            else:
                _write_all(fd, data, offset.start if sparse else None)
            self.report.size += offset.stop - offset.start
            if self._progress is not None:
                self._progress(self.report)
        if sparse:
            os.ftruncate(fd, content.size)


def _write_all(fd: int, data: bytes, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        count = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        offset = None if offset is None else offset + count
        view = view[count:]


def _write_zeros(fd: int, count: int) -> None:
    while count:
        part = min(count, PIECE_MAX)
        _write_all(fd, bytes(part), None)
        count -= part
