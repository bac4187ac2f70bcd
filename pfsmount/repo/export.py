"""`get`: files and directories of a commit become local ones.

Everything is written under directory descriptors opened without following symlinks, so neither a hostile tree nor a link in
the target directory can lead out of it. What is new appears whole, by rename: a file that is replaced, and a directory that was
not there with all that is in it. So an interruption leaves nothing half-written under a name that anybody asked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EEXIST, ELOOP, ENOTDIR, ENOTEMPTY, ENOTSUP

from pfsmount.errors import AlreadyExists, IsADirectory, NotADirectory, NotFound, PfsError
from pfsmount.ids import EntryName, display
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.descent import DIRECTORY_FLAGS, Descent, remove_tree
from pfsmount.tree.content import Content, open_content
from pfsmount.tree.directory import entries
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.xattrs import load_xattrs

_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = b".pfs-get-"
_WRITE_MAX = 512 * 1024
"""Bytes in one write. Larger ones get memory in units that are dear on some virtual machines: see `objects.segment_writer`."""


@dataclass(slots=True)
class ExportReport:
    """What was written so far."""

    files: int = 0
    size: int = 0


Progress = Callable[[ExportReport], None]


class Export:
    """Writes entries of a store to the local filesystem."""

    def __init__(self, objects: ObjectStore, progress: Progress | None = None, *, owners: bool = True) -> None:
        """With `owners`, root gives files to those they are stored with."""
        self._objects = objects
        self._progress = progress
        self._user, self._groups = os.geteuid(), {os.getegid(), *os.getgroups()}
        self._owners = owners and self._user == 0
        self.report = ExportReport()

    def directory(self, entry: Entry, path: bytes) -> None:
        """Write a directory's contents into `path`, which is made if need be; existing files are overwritten.

        Raises NotADirectory, IsADirectory, NotFound, NoSpace, PermissionDenied.
        """
        with disk_errors(f"writing to {display(path)}"):
            if not os.path.lexists(path):
                above, name = os.path.split(path.rstrip(b"/"))
                parent = _open_directory(above or b".")
                try:
                    self._new_directory(entry, parent, EntryName(name), path)
                finally:
                    os.close(parent)
                return
            fd = _open_directory(path)
            try:
                with Descent(fd, path) as descent:
                    self._fill(entry, descent, fresh=False)
            finally:
                os.close(fd)

    def file(self, entry: Entry, directory: bytes, name: bytes) -> None:
        """Write a file or symlink as `name` into an existing directory."""
        with disk_errors(f"writing to {display(directory)}"):
            fd = _open_directory(directory)
            try:
                self._replace(entry, fd, EntryName(name), lambda: os.path.join(directory, name))
            finally:
                os.close(fd)

    def stream(self, entry: Entry, fd: int) -> None:
        """Write a file's bytes to a descriptor. Raises OSError."""
        self._copy(open_content(self._objects, entry), fd, sparse=False)

    def _fill(self, entry: Entry, descent: Descent, *, fresh: bool) -> None:
        """Write what is in a directory; `fresh`: nobody else knows of it and it is empty, so that final names can be written at once."""
        stack = [(entry, entries(self._objects, entry.id))]
        while stack:
            directory, items = stack[-1]
            below = self._fill_one(items, descent, fresh=fresh)
            if below is not None:
                stack.append((below, entries(self._objects, below.id)))
                continue
            stack.pop()
            if stack:
                fd = descent.leave()
                try:
                    if fresh:
                        self._attributes(
                            directory, fd
                        )  # last: it may forbid writing, and its time is that of its last change
                finally:
                    os.close(fd)

    def _fill_one(self, items: Iterator[tuple[EntryName, Entry]], descent: Descent, *, fresh: bool) -> Entry | None:
        """Write entries of a directory up to the next one that is a directory, and go down into that; None at the end."""
        fd = descent.fd
        for name, child in items:
            if child.kind is Kind.DIRECTORY:
                if fresh:
                    os.mkdir(name, 0o700, dir_fd=fd)
                    descent.enter(name)
                    return child
                if self._join(child, descent, name):
                    return child
            elif fresh:
                self._make(child, fd, name)
                self._count()
            else:
                self._replace(child, fd, name, lambda name=name: descent.path(name))  # type: ignore[misc]
        return None

    def _count(self) -> None:
        self.report.files += 1
        if self._progress is not None:
            self._progress(self.report)

    # Directories

    def _join(self, entry: Entry, descent: Descent, name: EntryName) -> bool:
        """Go down into a directory that is there; False when it was not, and is now, with all in it."""
        try:
            descent.enter(name)
        except FileNotFoundError:
            self._new_directory(entry, descent.fd, name, descent.path(name))
            return False
        except OSError as error:
            if error.errno in (ENOTDIR, ELOOP):
                raise AlreadyExists(
                    f"{display(descent.path(name))} is not a directory; a directory cannot replace it"
                ) from None
            raise
        return True

    def _new_directory(self, entry: Entry, parent: int, name: EntryName, path: bytes) -> None:
        """A directory that is not there yet appears with everything in it, or not at all."""
        temporary = _TEMPORARY + os.urandom(8).hex().encode("ascii")
        try:
            os.mkdir(temporary, 0o700, dir_fd=parent)
            fd = os.open(temporary, DIRECTORY_FLAGS, dir_fd=parent)
            try:
                with Descent(fd, path) as descent:
                    self._fill(entry, descent, fresh=True)
                self._attributes(entry, fd)
            finally:
                os.close(fd)
            try:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError as error:
                if error.errno in (EEXIST, ENOTEMPTY, ENOTDIR):
                    raise AlreadyExists(f"{display(path)} was made by somebody else meanwhile") from None
                raise
        except BaseException:
            with suppress(OSError, PfsError):
                remove_tree(temporary, parent)
            raise

    # Files and symlinks

    def _replace(self, entry: Entry, parent: int, name: EntryName, path: Callable[[], bytes]) -> None:
        temporary = _TEMPORARY + os.urandom(8).hex().encode("ascii")
        try:
            self._make(entry, parent, EntryName(temporary))
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            if isinstance(error, IsADirectoryError):
                raise IsADirectory(f"{display(path())} is a directory; a file cannot replace it") from None
            raise
        self._count()

    def _make(self, entry: Entry, parent: int, name: EntryName) -> None:
        """A file or symlink under a name that is not there."""
        if entry.kind is Kind.SYMLINK:
            assert entry.target is not None
            os.symlink(entry.target, name, dir_fd=parent)
            if self._owners:
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
            return
        fd = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
        try:
            if entry.size:
                self._copy(open_content(self._objects, entry), fd, sparse=True)
            self._attributes(entry, fd)
        finally:
            os.close(fd)

    def _attributes(self, entry: Entry, fd: int) -> None:
        """Of a file or directory. The order matters: a change of the owner takes setuid away."""
        if entry.xattrs or entry.xattrs_id is not None:
            self._xattrs(entry, fd)
        mode = entry.mode
        if self._owners:
            os.fchown(fd, entry.uid, entry.gid)
        elif mode & (stat.S_ISUID | stat.S_ISGID) and (entry.uid != self._user or entry.gid not in self._groups):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # as cp: what was to run as somebody else is not to run as me
        os.fchmod(fd, mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _xattrs(self, entry: Entry, fd: int) -> None:
        for name, value in load_xattrs(self._objects, entry).items():
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno != ENOTSUP:  # a filesystem without xattrs
                    raise

    def _copy(self, content: Content, fd: int, *, sparse: bool) -> None:
        end = 0
        for offset, data in content.parts(PIECE_MAX):
            if data is not None:
                _write_all(fd, data, offset.start if sparse else None)
                end = offset.stop
            elif not sparse:
                _write_zeros(fd, offset.stop - offset.start)
            self.report.size += offset.stop - offset.start
            if self._progress is not None:
                self._progress(self.report)
        if sparse and end < content.size:  # it ends with a hole
            os.ftruncate(fd, content.size)


def _open_directory(path: bytes) -> int:
    """A directory that the user named: symlinks are followed. Raises NotFound, NotADirectory, OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no directory {display(path)}") from None
    except NotADirectoryError:
        raise NotADirectory(f"{display(path)} is not a directory") from None


def _write_all(fd: int, data: bytes, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        part = view[:_WRITE_MAX]
        count = os.write(fd, part) if offset is None else os.pwrite(fd, part, offset)
        offset = None if offset is None else offset + count
        view = view[count:]


def _write_zeros(fd: int, count: int) -> None:
    while count:
        part = min(count, PIECE_MAX)
        _write_all(fd, bytes(part), None)
        count -= part
