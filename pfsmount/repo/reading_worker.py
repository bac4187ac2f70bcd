"""The process that reads and hashes small files for `put` while the other one stores them. `repo.reading_process` starts it and asks.

It knows nothing of the store. A request, one packet (slot u32, then the names, with `/` between), comes with an open directory. The answer is
one byte; what was read lies in that slot of the shared memory: a record a name, then the bytes of the files.
A file that is not small and plain, or cannot be read, gets a record that says so, and whoever asked reads it and finds the error.
"""

from __future__ import annotations

import mmap
import os
import socket
import stat
import struct
import time
from errno import ENOTSUP

from pfsmount.objects.hashing import hash_bytes
from pfsmount.tree.entry import encode_file, is_versioned_xattr

SLOT_NUMBER = struct.Struct("<I")
REQUEST_MAX = 150_000
"""Bytes: more than 512 names of 255 have, less than a socket takes in one packet."""
RECORD = struct.Struct("<B3xII4x64sQQqq")
"""1 when it was read, offset of its bytes in the slot, their number, the fixed part of its entry (the id is its last 32 bytes), device, inode, mtime
and ctime in ns."""
RUN_FILES = 512
FILE_MAX = 256 * 1024
RECORDS_BYTES = 64 * 1024
SLOT_BYTES = RECORDS_BYTES + (4 << 20)
SLOTS = 4
OPEN_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_RECENT_NS = 2_000_000_000
_NOT_READ = bytes(RECORD.size)


def kept_xattrs(fd: int) -> list[bytes]:
    """The names of an open file's xattrs that are versioned: those of the user."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == ENOTSUP:
            return []  # a filesystem without xattrs
        raise
    if not names:
        return []
    return [name for name in map(os.fsencode, names) if is_versioned_xattr(name)]


def has_changed(before: os.stat_result, now: os.stat_result) -> bool:
    """True when somebody wrote to a file between two looks at it."""
    states = [(info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in (before, now)]
    return states[0] != states[1]


def is_whole(fd: int, info: os.stat_result, now_ns: int) -> bool:
    """True when nobody was seen to write to a small file that was read at once, after `info` and `now_ns` were taken.

    Another fstat for each would cost 1 µs of its 40: only a file that changed just before may be in the middle of a change. One that was
    left alone for seconds had to be written to in the very microseconds between fstat and read(2), and what is read is then one of its states.
    """
    if max(info.st_mtime_ns, info.st_ctime_ns) < now_ns - _RECENT_NS:
        return True
    return not has_changed(info, os.fstat(fd))


def read_run(directory: int, names: list[bytes], slot: memoryview) -> None:
    """Read files of an open directory into a slot."""
    at = RECORDS_BYTES
    now_ns = time.time_ns()
    records = []
    for name in names:
        record = _NOT_READ
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=directory)
            try:
                info = os.fstat(fd)
                size = info.st_size
                if size <= FILE_MAX and at + size <= SLOT_BYTES and stat.S_ISREG(info.st_mode):
                    data = os.read(fd, size + 1)
                    if len(data) == size and not kept_xattrs(fd) and is_whole(fd, info, now_ns):
                        slot[at : at + size] = data
                        entry = encode_file(info, hash_bytes(data))
                        times = info.st_mtime_ns, info.st_ctime_ns
                        record = RECORD.pack(1, at, size, entry, info.st_dev, info.st_ino, *times)
                        at += size
            finally:
                os.close(fd)
        except (OSError, struct.error):  # the second: a time that no clock shows
            pass
        records.append(record)
    slot[: len(records) * RECORD.size] = b"".join(records)


def serve(socket_fd: int, memory_fd: int) -> None:
    """Answer until the other side is gone."""
    with socket.socket(fileno=socket_fd) as connection, mmap.mmap(memory_fd, SLOTS * SLOT_BYTES) as memory:
        connection.send(b"\1")
        with memoryview(memory) as view:
            while True:
                try:
                    request, directories, _, _ = socket.recv_fds(connection, REQUEST_MAX, 1)
                except ConnectionError:
                    return
                if not request:
                    return
                (slot,) = SLOT_NUMBER.unpack_from(request)
                try:
                    with view[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] as part:
                        read_run(directories[0], request[SLOT_NUMBER.size :].split(b"/"), part)
                finally:
                    os.close(directories[0])
                connection.send(b"\1")
