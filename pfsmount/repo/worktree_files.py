"""Contents and attributes of files in a worktree.

A file that is changed gets a data file. Up to `COPY_MAX` bytes it is copied there and the data file is `whole`; of a larger one only what is
written goes there, each range with a journal line after its data. Data goes to the data file at once, so it survives a kill of this
process; it survives a power cut after `fsync`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pfsmount.config import MIB
from pfsmount.errors import InvalidInput, IsADirectory
from pfsmount.objects.layout import error_for
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.ahead import FileAhead
from pfsmount.repo.journal import Record, name_text, value_text
from pfsmount.repo.overlay import NowaitReader, WouldBlock, now_ns
from pfsmount.repo.overlay_data import read_all, read_nowait, write_all
from pfsmount.repo.overlay_nodes import (
    Change,
    FileData,
    NoAttribute,
    Node,
    NodeKind,
    NotSupported,
    Stale,
    State,
    Touched,
)
from pfsmount.repo.worktree_names import WorktreeNames
from pfsmount.tree.content import Content, open_content
from pfsmount.tree.xattrs import VALUE_MAX

COPY_MAX = 4 * MIB
_INLINE_COPY_MAX = 256 * 1024
_SIZE_MAX = (1 << 63) - 1
_SETID = 0o6000
XATTR_PREFIX = b"user."


class Frozen(Exception):
    """A running commit still has to read this file: ask again when it has."""

    def __init__(self, node: Node) -> None:
        super().__init__("a commit is reading the file")
        self.node = node


class WorktreeFiles(WorktreeNames):
    """Names and contents."""

    objects: ObjectStore
    """For reads that may wait."""
    frozen: set[Node]
    """Files that a running commit has not read yet."""

    # Attributes

    def set_attributes(
        self,
        node: Node,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
    ) -> None:
        """Set what is given, and the ctime in any case; the atime lasts until a commit or the end of this process. Raises Stale, ReadOnly, NoSpace, OSError."""
        self.writable(node)
        change = self.promote(node)
        values = {"mode": mode, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}
        if mode is None and (uid is not None or gid is not None) and node.kind is NodeKind.FILE:
            values["mode"] = mode = _without_setid(change.mode)
        if change.data is not None:
            values["mtime_ns"] = None
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            self.append(node, ["attr", change.number, given])
        self.put_attributes(node, mode, uid, gid, mtime_ns, now_ns())
        if atime_ns is not None:
            change.atime_ns = atime_ns
        if change.data is not None and mtime_ns is not None:
            change.data.stat = None
            self.data.set_mtime(change.number, mtime_ns)

    def set_xattr(self, node: Node, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None). Raises NotSupported, NoAttribute, Stale, ReadOnly, NoSpace."""
        if not name.startswith(XATTR_PREFIX):
            raise NotSupported("only user.* attributes are kept")
        if len(name) > 255 or name == XATTR_PREFIX:
            raise InvalidInput("the name of an extended attribute has 1 to 255 bytes")
        if value is not None and len(value) > VALUE_MAX:
            raise InvalidInput(f"the value of an extended attribute has at most {VALUE_MAX >> 10} KiB")
        if value is None and name not in self.xattrs(node):
            raise NoAttribute("there is no such attribute")
        self.xattrs(node)  # what may raise WouldBlock comes before the line
        self.writable(node)
        change = self.promote(node)
        self.append(node, ["xattr", change.number, name_text(name), value_text(value)])
        self.put_xattr(node, name, value, now_ns())

    def get_xattr(self, node: Node, name: bytes) -> bytes:
        """An extended attribute. Raises NoAttribute."""
        value = self.xattrs(node).get(name)
        if value is None:
            raise NoAttribute("there is no such attribute")
        return value

    # Becoming writable

    def file_data(self, node: Node, *, keep: bool = True) -> FileData:
        """The data file of a file that is about to change; its content is copied there unless `keep` is off.

        Raises Frozen, Stale, ReadOnly, NoSpace, OSError, Corrupt.
        """
        if node in self.frozen:
            raise Frozen(node)
        change = node.change
        if change is not None and change.data is not None and (keep or change.data.extents is None):
            if node.state is State.STALE:
                raise Stale("the file went away when changes were discarded")
            return change.data
        if node.kind is not NodeKind.FILE:
            raise (
                IsADirectory("only a file has content")
                if node.kind is NodeKind.DIRECTORY
                else InvalidInput("only a file has content")
            )
        entry = node.entry
        size = entry.size if entry is not None and keep else 0
        content = None
        if size and entry is not None:
            content = self.content_of(node)
            if size <= COPY_MAX:
                self._warm(content, size)
        self.writable(node)
        change = self.promote(node)
        if change.data is not None:  # some ranges are there, and all of it goes away
            self.append(node, ["whole", change.number])
            change.data = FileData()
            self.data.truncate(change.number, 0)
        elif content is not None and size > COPY_MAX:
            self.data.create(change.number)
            self.data.truncate(change.number, size)
            self.data.set_mtime(change.number, change.mtime_ns)
            self._append_shown(node, change, ["size", change.number, size])
            change.data = FileData(size)
        else:
            read = (lambda offset, count: b"") if content is None else content.read
            self.data.fill(change.number, size, change.mtime_ns, read)
            self._append_shown(node, change, ["whole", change.number])
            change.data = FileData()
        self.touch(node)
        return change.data

    def _append_shown(self, node: Node, change: Change, record: Record) -> None:
        """Write a line from which on data shows where the base did."""
        self.data.sync_first(change.number)
        self.append(node, record)

    def _warm(self, content: Content, size: int) -> None:
        """When nothing may wait here: have content verified and in the page cache before it is copied."""
        if not isinstance(self.reader, NowaitReader):
            return
        if size > _INLINE_COPY_MAX or content.read_nowait(0, size) is None:
            key = content.id
            if key in self._warmed:
                self._warmed.discard(key)
                return

            def work() -> None:
                content.read(0, size)
                self._warmed.add(key)

            raise WouldBlock(work)

    _warmed: set[bytes]

    def content_of(self, node: Node) -> Content:
        """What the entry of a file refers to, open for reading. Raises NotFound, Corrupt."""
        assert node.entry is not None
        return open_content(self.reader, node.entry)

    # Reading and writing

    def read_nowait(self, node: Node, content: Content | None, offset: int, size: int) -> bytes | bytearray | None:
        """Bytes of a file, fewer only at its end; None when that would wait. `content` as from `content_of`."""
        change = node.change
        data = None if change is None else change.data
        if data is None:
            return b"" if content is None else content.read_nowait(offset, size)
        assert change is not None
        if data.extents is None:
            return read_nowait(self.data.fd(change.number), offset, size)
        size = min(size, self.stat_data(change).size - offset)
        parts = []
        for from_data, start, end in _spans(data, offset, offset + size):
            if from_data:
                part = read_nowait(self.data.fd(change.number), start, end - start)
            else:
                assert content is not None
                part = content.read_nowait(start, end - start)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def reading(self, node: Node, content: Content | None, offset: int, size: int) -> Reading:
        """The same as a plan whose `run` may wait and may be called in another thread."""
        change = node.change
        data = None if change is None else change.data
        if data is None:
            return Reading(self, None, content, [(False, offset, offset + size)])
        assert change is not None
        end = min(offset + size, self.stat_data(change).size)
        end = max(offset, end)
        spans = [(True, offset, end)] if data.extents is None else _spans(data, offset, end)
        return Reading(self, change, content, spans)

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer only at its end; may wait. Raises OSError, Corrupt."""
        content = None if node.entry is None else self.content_of(node)
        with self.reading(node, content, offset, size) as reading:
            return reading.run()

    def write(self, node: Node, offset: int, buffer: bytes) -> int:
        """Write at an offset and return how much.

        Raises NoSpace, Stale, ReadOnly, OSError.
        """
        data = self.file_data(node)
        change = node.change
        assert change is not None
        try:
            count = write_all(self.data.fd(change.number), buffer, offset)
        except OSError:
            wrote_in_part(data, offset)
            raise
        self.wrote(node, change, data, offset, count)
        return count

    def wrote(self, node: Node, change: Change, data: FileData, offset: int, count: int) -> None:
        """Account for bytes that are in the data file now.

        Setuid and setgid bits are not looked at: the kernel knows who writes, and takes them away with a request of its own.
        """
        data.stat = None
        self.tick += 1
        change.version = self.tick
        change.ctime_ns = now_ns()
        self._look_ahead(change, data, offset, offset + count)  # first: what follows may fail
        if data.extents is not None and offset < data.base_size:
            end = min(offset + count, data.base_size)
            if not data.extents.covers(offset, end):
                self._append_shown(node, change, ["extent", change.number, offset, end - offset])
                data.extents.add(offset, end)

    def _look_ahead(self, change: Change, data: FileData, start: int, end: int) -> None:
        """Bytes were written that a commit may find done already."""
        if data.ahead is None and data.extents is None and end >= self.objects.settings.adopt_bytes:
            data.ahead = FileAhead()
        if data.ahead is not None and data.ahead.wrote(start, end):
            self.data.follow(change.number, data.ahead)

    def _drop_setid(self, node: Node, change: Change) -> None:
        mode = _without_setid(change.mode)
        if mode != change.mode:
            self.append(node, ["attr", change.number, {"mode": mode}])
            change.mode = mode
            change.touched |= Touched.MODE

    def truncate(self, node: Node, size: int, *, keep_setid: bool = True) -> None:
        """Set the size of a file. Without `keep_setid` (O_TRUNC, which the kernel leaves to us) the setuid and setgid bits go.

        Raises NoSpace, Stale, ReadOnly, OSError.
        """
        if not 0 <= size <= _SIZE_MAX:
            raise InvalidInput(f"a file cannot have {size} bytes")
        data = self.file_data(node, keep=size > 0)
        change = node.change
        assert change is not None
        if data.extents is not None and size < data.base_size:
            self.append(node, ["size", change.number, size])
            data.base_size = size
            data.extents.clip(size)
        data.stat = None
        self.touch(node, now_ns())
        self.data.truncate(change.number, size)
        if data.ahead is not None:
            data.ahead.resized(size)
        if not keep_setid and change.mode & _SETID:
            self._drop_setid(node, change)

    # Opening and durability

    def opened(self, node: Node) -> None:
        """Count somebody who has a node open."""
        node.opens += 1

    def closed(self, node: Node) -> None:
        """End one `opened`."""
        node.opens -= 1
        if not node.opens:
            if node.change is not None and node.change.data is not None:
                self.data.release(node.change.number)
            self.drop_unused(node)

    def pinned_for_sync(self, node: Node | None) -> tuple[list[int], list[int]]:
        """Descriptors to fsync so that a file survives a power cut, and the numbers to unpin afterwards."""
        pinned: list[int] = []
        fds: list[int] = []
        if node is not None and node.change is not None and node.change.data is not None:
            fds.append(self.data.pin(node.change.number))
            pinned.append(node.change.number)
        return fds, pinned

    def sync_now(self, fds: list[int]) -> None:
        """fsync data files, then the names of all data files, then the journal; in any thread. Raises OSError.

        The journal's lines are about other files too, so of those the data that its lines show is made durable before.
        """
        for fd in fds:
            self.data.sync(fd)
        self.sync_contents()
        if self.journal is not None:
            self.journal.sync()

    def sync_contents(self, besides: Collection[int] = ()) -> None:
        """Make durable what the lines of the journal show, but for the data files `besides`, so that the lines may be. Raises OSError."""
        self.data.sync_contents(besides)
        self.data.sync_names()

    def fsync(self, node: Node | None = None) -> None:
        """Make a file's content, or only names and attributes, survive a power cut. Raises OSError, NoSpace."""
        fds, pinned = self.pinned_for_sync(node)
        try:
            self.sync_now(fds)
        except OSError as error:
            raise error_for(error, "making a file durable") from error
        finally:
            for number in pinned:
                self.data.unpin(number)


class Reading:
    """A read that may wait; a context manager that keeps its descriptor open meanwhile."""

    __slots__ = ("_change", "_content", "_fd", "_spans", "_worktree")

    def __init__(
        self,
        worktree: WorktreeFiles,
        change: Change | None,
        content: Content | None,
        spans: list[tuple[bool, int, int]],
    ) -> None:
        self._worktree, self._change, self._content, self._spans = worktree, change, content, spans
        self._fd = -1

    def __enter__(self) -> Reading:
        if self._change is not None:
            self._fd = self._worktree.data.pin(self._change.number)
        return self

    def __exit__(self, *_: object) -> None:
        if self._change is not None:
            self._worktree.data.unpin(self._change.number)

    def run(self) -> bytes:
        """Read. Raises OSError, Corrupt."""
        parts = [self._part(*span) for span in self._spans]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def blocks(self, size: int) -> Iterator[bytes]:
        """Read in blocks of at most `size` bytes. Raises OSError, Corrupt."""
        for from_data, start, end in self._spans:
            for at in range(start, end, size):
                yield self._part(from_data, at, min(end, at + size))

    def _part(self, from_data: bool, start: int, end: int) -> bytes:
        if not from_data:
            return b"" if self._content is None else self._content.read(start, end - start)
        part = read_all(self._fd, start, end - start)
        # a writer may have cut the file short meanwhile; only the last part may then be shorter
        return part if len(self._spans) == 1 else part.ljust(end - start, b"\0")


def wrote_in_part(data: FileData, offset: int) -> None:
    """A write failed, and perhaps some of it was done."""
    if data.ahead is not None:
        data.ahead.wrote_in_part(offset)


def _spans(data: FileData, start: int, end: int) -> list[tuple[bool, int, int]]:
    """Which parts of a range are in the data file."""
    assert data.extents is not None
    spans = list(data.extents.spans(start, min(end, data.base_size))) if start < data.base_size else []
    tail = max(start, data.base_size)
    if tail < end:
        spans.append((True, tail, end))
    return spans


def _without_setid(mode: int) -> int:
    """Setuid goes; setgid goes where it is not the mark of mandatory locking."""
    mode &= ~0o4000
    return mode & ~0o2000 if mode & 0o010 else mode
