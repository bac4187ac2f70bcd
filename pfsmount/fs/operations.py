"""The FUSE adapter: decode a request, make one call, encode the reply. Only this module and `fuse_kernel` know pyfuse3.

A call that cannot be answered at once raises (`Later`, `WouldBlock`); `_again` waits and asks again. Any other exception becomes an errno for that one
request; one that nobody foresaw is logged with the path, and life goes on.

`flush` is not implemented on purpose: data is written through, so there is nothing to do on close, and the kernel stops sending it after the first
ENOSYS: one request fewer for each file.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from pfsmount.errors import PfsError
from pfsmount.fs.errnos import errno_of, is_expected
from pfsmount.fs.filesystem import Filesystem
from pfsmount.fs.piece_checks import PieceChecks
from pfsmount.fs.places import FOREVER, Found, Later, OpenFile
from pfsmount.fs.request_wait import RequestWait
from pfsmount.repo.overlay import WouldBlock
from pfsmount.repo.overlay_nodes import STAT_BLOCK, NodeKind, NotSupported

log = logging.getLogger(__name__)
T = TypeVar("T")

_FORMATS = {
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.SYMLINK: stat.S_IFLNK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
}
_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
}
_BLOCK_SIZE = 4096
_BLOCK_HINT = 1 << 20
READ_THREADS = 32
_SMALL_READ = 64 * 1024
_WAIT = RequestWait()
JOB_TIME_NS = 946_684_800 * 1_000_000_000
"""2000-01-01: the one time that jobs see, so that their results cannot depend on when a file was stored."""


class Presented(NamedTuple):
    """How files are shown, whatever they are stored with."""

    owner: tuple[int, int] | None
    """Whom all belong to; None: whoever they belong to."""
    umask: int = 0
    """Permissions that are taken away."""


class Operations(pyfuse3.Operations):
    """Requests of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, filesystem: Filesystem, presented: Presented, ready: Callable[[], None]) -> None:
        """`ready` is called when the kernel is."""
        super().__init__()
        self._fs = filesystem
        self._owner = presented.owner
        self._mask = 0o7777 & ~presented.umask
        self._ready = ready
        self._handles = filesystem.handles
        self._checks = PieceChecks(self._in_thread)
        self._limiter = trio.CapacityLimiter(READ_THREADS)

    def init(self) -> None:
        self._ready()

    # Encoding

    def encode(self, found: Found) -> EntryAttributes:
        (ino, (_, kind, mode, nlink, uid, gid, size, mtime_ns, ctime_ns, blocks, atime_ns), timeout, name_timeout) = (
            found
        )
        entry = self._entry(ino, _FORMATS[kind], mode, uid, gid, size, mtime_ns)
        entry.st_nlink = nlink
        entry.st_blocks = blocks
        if atime_ns is not None:
            entry.st_atime_ns = atime_ns
        entry.st_ctime_ns = ctime_ns
        entry.entry_timeout = timeout if timeout < name_timeout else name_timeout
        entry.attr_timeout = timeout
        return entry

    def encode_file(self, ino: int, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> EntryAttributes:
        entry = self._entry(ino, stat.S_IFREG, mode, uid, gid, size, mtime_ns)
        entry.st_nlink = 1
        entry.st_blocks = -(-size // STAT_BLOCK)
        entry.entry_timeout = entry.attr_timeout = FOREVER
        return entry

    def _entry(self, ino: int, format: int, mode: int, uid: int, gid: int, size: int, mtime_ns: int) -> EntryAttributes:
        """What all have; all times are the mtime."""
        entry = EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = format | (mode & self._mask)
        if self._owner is None:
            entry.st_uid = uid
            entry.st_gid = gid
        else:
            entry.st_uid, entry.st_gid = self._owner
        entry.st_size = size
        entry.st_blksize = _BLOCK_HINT
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = mtime_ns
        return entry

    # Waiting and failing

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        _WAIT.busy += 1
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
        finally:
            _WAIT.busy -= 1

    async def _again(self, error: Exception, call: Callable[..., T], *args: Any) -> T:
        """A call failed: wait for what it needs and repeat it, or fail the request."""
        while True:
            try:
                if isinstance(error, WouldBlock):
                    await self._in_thread(error.work)
                elif isinstance(error, Later):
                    await error.wait()
                else:
                    raise error
                return call(*args)
            except (WouldBlock, Later) as next_error:
                error = next_error
            except Exception as failure:
                raise self._failed(failure, call, args) from None

    async def _soon(self, call: Callable[..., T], *args: Any) -> T:
        """The same for a call that was not made yet."""
        try:
            return call(*args)
        except Exception as error:
            return await self._again(error, call, *args)

    def _failed(self, error: Exception, call: Callable[..., Any], args: tuple[Any, ...]) -> FUSEError:
        number = errno_of(error)
        if not is_expected(error):
            where = self._where(args)
            what = getattr(call, "__name__", str(call))
            known = isinstance(error, (PfsError, OSError))
            log.error("%s of %s failed: %s", what, where, error, exc_info=None if known else error)
        return FUSEError(number)

    def _where(self, args: tuple[Any, ...]) -> str:
        if args and isinstance(args[0], OpenFile):
            node = getattr(args[0], "node", None)
            return args[0].place.describe(node.ino) if node is not None else args[0].place.title
        if args and isinstance(args[0], int):
            name = args[1] if len(args) > 1 and isinstance(args[1], bytes) else b""
            return self._fs.describe(args[0], name)
        return "the mount"

    # Looking

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            found = self._fs.lookup(parent_inode, name)
        except Exception as error:
            found = await self._again(error, self._fs.lookup, parent_inode, name)
        if found is None:
            return self._nothing(parent_inode)
        return self.encode(found)

    def _nothing(self, parent: int) -> EntryAttributes:
        timeout = self._fs.negative_timeout(parent)
        if not timeout:
            raise FUSEError(errno.ENOENT)
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = timeout
        return entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            try:
                self._fs.forget(ino, count)
            except Exception:
                log.exception("forgetting %s failed", self._fs.describe(ino))

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        try:
            found = self._fs.found(inode)
        except Exception as error:
            found = await self._again(error, self._fs.found, inode)
        return self.encode(found)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        try:
            return self._fs.readlink(inode)
        except Exception as error:
            return await self._again(error, self._fs.readlink, inode)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        try:
            return self._fs.open_directory(inode, self)
        except Exception as error:
            return await self._again(error, self._fs.open_directory, inode, self)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        try:
            self._list(fh, start_id, token)
        except Exception as error:
            await self._again(error, self._list, fh, start_id, token)

    def _list(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, reply = self._fs.directories[fh], pyfuse3.readdir_reply
        position = start_id
        try:
            for name, shown, _ in directory.steps(start_id):
                if not reply(token, name, shown, position + 1):
                    directory.stop()
                    return
                position = directory.took(name)
        except Exception:
            directory.stop()
            if position == start_id:
                raise
            # a part is in the reply already; the kernel asks for the rest, and so meets the error again

    async def releasedir(self, fh: int) -> None:
        self._fs.directories.pop(fh, None)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        below = os.statvfs(self._fs.store.path)
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = _BLOCK_SIZE
        scale = below.f_frsize / _BLOCK_SIZE
        result.f_blocks = int(below.f_blocks * scale)
        result.f_bfree = int(below.f_bfree * scale)
        result.f_bavail = int(below.f_bavail * scale)
        result.f_files = below.f_files
        result.f_ffree = below.f_ffree
        result.f_favail = below.f_favail
        result.f_namemax = 255
        return result

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        try:
            handle, file = self._fs.open(inode, flags, ctx.uid)
        except Exception as error:
            handle, file = await self._again(error, self._fs.open, inode, flags, ctx.uid)
        return FileInfo(fh=handle, direct_io=file.direct_io, keep_cache=file.keep_cache)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        uid, gid = ctx.uid, ctx.gid
        try:
            handle, file, found = self._fs.create(parent_inode, name, mode, flags, uid, gid)
        except Exception as error:
            handle, file, found = await self._again(error, self._fs.create, parent_inode, name, mode, flags, uid, gid)
        return FileInfo(fh=handle, direct_io=file.direct_io, keep_cache=file.keep_cache), self.encode(found)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._handles[fh]
        if size > _SMALL_READ and self._checks.busy:
            ahead = await self._checks.at_hand(file, off, size)
            if ahead is not None:
                return ahead  # type: ignore[return-value]  # any buffer will do
        try:
            data = file.read_nowait(off, size)
        except Exception as error:
            data = await self._again(error, file.read_nowait, off, size)
        try:
            while data is None and (check := await self._soon(file.unchecked, off, size)) is not None:
                part = await self._checks.wait(check)
                if part is not None:
                    return part  # type: ignore[return-value]
                data = await self._soon(file.read_nowait, off, size)
            if data is None:
                with file.reading(off, size) as reading:
                    return await self._in_thread(reading.run)
        except FUSEError:
            raise
        except Exception as error:
            raise self._failed(error, file.reading, (file,)) from None
        return data  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._handles[fh]
        try:
            writing = file.writing(off, len(buf))
            if writing is None:
                return file.write(off, buf)
        except Exception as error:
            writing = await self._again(error, file.writing, off, len(buf))
            if writing is None:
                try:
                    return file.write(off, buf)
                except Exception as next_error:
                    return await self._again(next_error, file.write, off, buf)
        try:
            with writing:
                count = await self._in_thread(writing.run, buf)
                writing.done(count)
                return count
        except Exception as error:
            raise self._failed(error, file.write, (file,)) from None

    async def release(self, fh: int) -> None:
        try:
            self._fs.release(fh)
            self._checks.rest()
        except Exception:
            log.exception("closing a file failed")

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._sync(lambda: self._handles[fh].syncing())

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync(lambda: self._fs.sync_directory(fh))

    async def _sync(self, start: Callable[[], Any]) -> None:
        while True:
            try:
                syncing = start()
                if syncing is None:
                    return
                with syncing:
                    await self._in_thread(syncing.run)
                return
            except Later as error:
                await error.wait()
            except Exception as error:
                raise self._failed(error, start, ()) from None

    # Names

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        kind = _KINDS.get(stat.S_IFMT(mode) or stat.S_IFREG)
        if kind is None:
            raise FUSEError(errno.EPERM)  # device nodes
        return await self._make(parent_inode, name, kind, mode, ctx)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return await self._make(parent_inode, name, NodeKind.DIRECTORY, mode, ctx)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return await self._make(parent_inode, name, NodeKind.SYMLINK, 0o777, ctx, target)

    async def _make(
        self, parent: int, name: bytes, kind: NodeKind, mode: int, ctx: RequestContext, target: bytes | None = None
    ) -> EntryAttributes:
        args = (parent, name, kind, stat.S_IMODE(mode), ctx.uid, ctx.gid, target)
        try:
            found = self._fs.make(*args)
        except Exception as error:
            found = await self._again(error, self._fs.make, *args)
        return self.encode(found)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            found = self._fs.link(inode, new_parent_inode, new_name)
        except Exception as error:
            found = await self._again(error, self._fs.link, inode, new_parent_inode, new_name)
        return self.encode(found)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        try:
            self._fs.remove(parent_inode, name, False)
        except Exception as error:
            await self._again(error, self._fs.remove, parent_inode, name, False)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        try:
            self._fs.remove(parent_inode, name, True)
        except Exception as error:
            await self._again(error, self._fs.remove, parent_inode, name, True)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        args = (parent_inode_old, name_old, parent_inode_new, name_new, flags)
        try:
            self._fs.move(*args)
        except Exception as error:
            await self._again(error, self._fs.move, *args)

    # Attributes

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        values: dict[str, int] = {}
        if fields.update_size:
            values["size"] = attr.st_size
        if fields.update_mode:
            values["mode"] = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            values["uid"] = attr.st_uid
        if fields.update_gid:
            values["gid"] = attr.st_gid
        if fields.update_mtime:
            values["mtime_ns"] = attr.st_mtime_ns
        if fields.update_atime:
            values["atime_ns"] = attr.st_atime_ns
        try:
            found = self._fs.set_attributes(inode, values)
        except Exception as error:
            found = await self._again(error, self._fs.set_attributes, inode, values)
        return self.encode(found)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if not name.startswith(b"user."):
            # The kernel asks for security.capability before each write, so this must cost nothing. `ls -l` asks for security.selinux: told that
            # there is none it asks for each file, told that there cannot be any it asks once.
            raise FUSEError(errno.EOPNOTSUPP)
        try:
            xattrs = self._fs.xattrs(inode)
        except Exception as error:
            xattrs = await self._again(error, self._fs.xattrs, inode)
        value = xattrs.get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        try:
            return self._fs.xattr_names(inode)
        except Exception as error:
            return await self._again(error, self._fs.xattr_names, inode)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._set_xattr(inode, name, value)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._set_xattr(inode, name, None)

    async def _set_xattr(self, inode: int, name: bytes, value: bytes | None) -> None:
        try:
            self._fs.set_xattr(inode, name, value)
        except NotSupported:
            raise FUSEError(errno.EOPNOTSUPP) from None
        except Exception as error:
            await self._again(error, self._fs.set_xattr, inode, name, value)

    def stacktrace(self) -> None:
        """Not from a request: whoever may set attributes of the root must not fill the log."""


class JobOperations(Operations):
    """Requests of a mount that shows a job its inputs: only what the datum key covers may be seen."""

    def encode(self, found: Found) -> EntryAttributes:
        entry = super().encode(found)
        kind, mode = found.attributes.kind, found.attributes.mode
        if kind is not NodeKind.SYMLINK:
            runs = kind is NodeKind.DIRECTORY or mode & 0o100
            entry.st_mode = _FORMATS[kind] | (0o755 if runs else 0o644)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = JOB_TIME_NS
        return entry

    def encode_file(self, ino: int, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> EntryAttributes:
        return super().encode_file(ino, 0o755 if mode & 0o100 else 0o644, uid, gid, JOB_TIME_NS, size)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENODATA)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return ()


def _guarded(handler: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """pyfuse3 ends with anything but a FUSEError: nothing else may leave a handler."""

    @functools.wraps(handler)
    async def guard(self: Operations, *args: Any) -> T:
        try:
            return await handler(self, *args)
        except FUSEError:
            raise
        except Exception:
            log.exception("%s of %s failed", handler.__name__, self._where(args))
            raise FUSEError(errno.EIO) from None

    return guard


for _name, _handler in list(vars(Operations).items()):
    if inspect.iscoroutinefunction(_handler) and not _name.startswith("_"):
        setattr(Operations, _name, _guarded(_handler))


def mount(operations: Operations, mount_point: str, options: set[str]) -> None:
    """Mount. Raises RuntimeError when libfuse refuses, after it printed why to stderr."""
    pyfuse3.trio = _WAIT  # type: ignore[attr-defined]  # as pyfuse3.asyncio does
    pyfuse3.init(operations, mount_point, options)


async def serve() -> None:
    """Answer requests until the filesystem is unmounted or `stop` is called."""
    await pyfuse3.main(min_tasks=2, max_tasks=256)


def stop() -> None:
    """Let `serve` return. On the event loop's thread."""
    pyfuse3.terminate()


def unmount() -> None:
    """Clean up after `serve`, and take the mount away if it is still there."""
    pyfuse3.close(unmount=True)
