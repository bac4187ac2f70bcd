"""A filesystem in memory with nothing in it but pyfuse3: what a mount in Python can do at best.

    python -m tools.bench_suite.bare DIRECTORY [SOURCE]

mounts it there, with the files of a directory in it perhaps, and serves until it is unmounted. It keeps nothing, checks nothing and answers from dictionaries, with all the caching that the kernel offers. What a
row of the mount takes beyond this is pfs; what this takes beyond the disk is FUSE and Python.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields

_FOREVER = 1e9


@dataclass(slots=True)
class _Node:
    entry: EntryAttributes
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)


class Bare(pyfuse3.Operations):
    """Files and directories in dictionaries."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, _Node] = {}
        self._make(stat.S_IFDIR | 0o755)

    def _make(self, mode: int) -> int:
        ino = len(self._nodes) + pyfuse3.ROOT_INODE
        entry = EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = time.time_ns()
        entry.entry_timeout = entry.attr_timeout = _FOREVER
        self._nodes[ino] = _Node(entry)
        return ino

    def _add(self, parent: int, name: bytes, mode: int) -> EntryAttributes:
        ino = self._make(mode)
        self._nodes[parent].names[name] = ino
        return self._nodes[ino].entry

    def load(self, source: Path) -> None:
        """Take over the files below a directory."""
        inodes = {os.fspath(source): int(pyfuse3.ROOT_INODE)}
        for place, directories, files in os.walk(source):
            for name in sorted(directories):
                path = os.path.join(place, name)
                inodes[path] = self._add(inodes[place], os.fsencode(name), stat.S_IFDIR | 0o755).st_ino
            for name in sorted(files):
                entry = self._add(inodes[place], os.fsencode(name), stat.S_IFREG | 0o644)
                data = self._nodes[entry.st_ino].data = bytearray(Path(place, name).read_bytes())
                entry.st_size = len(data)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        ino = self._nodes[parent_inode].names.get(name)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        return self._nodes[ino].entry

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._nodes[inode].entry

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._nodes[inode]
        if fields.update_size:
            del node.data[attr.st_size :]
            node.entry.st_size = attr.st_size
        if fields.update_mtime:
            node.entry.st_mtime_ns = attr.st_mtime_ns
        return node.entry

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """There are none of these. Without this (ENOSYS) the kernel would not ask for security.capability before each write, as it does where files can have some; told that a file
        has none (ENODATA), `ls` would ask for each."""
        raise FUSEError(errno.EOPNOTSUPP)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | mode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = self._add(parent_inode, name, stat.S_IFREG | mode)
        return FileInfo(fh=entry.st_ino, keep_cache=True), entry

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(memoryview(self._nodes[fh].data)[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        node.data[off : off + len(buf)] = buf
        node.entry.st_size = len(node.data)
        return len(buf)

    async def release(self, fh: int) -> None:
        pass

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._nodes[self._nodes[parent_inode].names.pop(name)].data = bytearray()

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        del self._nodes[parent_inode].names[name]

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for i, (name, ino) in enumerate([*self._nodes[fh].names.items()][start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._nodes[ino].entry, i):
                break

    async def releasedir(self, fh: int) -> None:
        pass


def main() -> None:
    """Mount at the directory that is named first on the command line and serve."""
    bare = Bare()
    if len(sys.argv) > 2:
        bare.load(Path(sys.argv[2]))
    pyfuse3.init(bare, sys.argv[1], {"default_permissions", "subtype=bare", "fsname=bare"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
