"""`pfs`, but each request that the kernel sends to a mount is a line in the file `$PFS_TEST_REQUESTS`. Only for `pfs mount -f`."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any

from pfsmount.cli.app import main
from pfsmount.fs.operations import Operations


def _counted(name: str, handler: Callable[..., Awaitable[Any]], fd: int) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handler)
    async def count(self: Operations, *arguments: Any) -> Any:
        os.write(fd, f"{name}\n".encode())
        return await handler(self, *arguments)

    return count


if __name__ == "__main__":
    requests = os.open(os.environ["PFS_TEST_REQUESTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for name in (
        "lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "open", "read", "write",
        "statfs", "release", "fsync", "opendir", "readdir", "releasedir", "fsyncdir", "setxattr", "getxattr", "listxattr", "removexattr", "create",
    ):  # fmt: skip
        setattr(Operations, name, _counted(name, getattr(Operations, name), requests))
    main()
