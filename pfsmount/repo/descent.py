"""Local directories from one down to where work is done, of which only the last few are open.

So a tree may be deeper than a process may have open files, and than Python may call itself. A directory that was closed is opened again as the one
above the last (`..`), and must be the one that it was: the descriptors below it keep its inode from being used again.
"""

from __future__ import annotations

import os

from pfsmount.errors import PfsError
from pfsmount.ids import display

OPEN_MAX = 48
"""Directories of one descent that are open at a time. `local_files` plans 32 steps ahead, which must be fewer."""
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Identity = tuple[int, int]
"""Device and inode."""


def identity_of(fd: int) -> Identity:
    """What a directory is known by when it is opened again. Raises OSError."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def open_above(fd: int, identity: Identity) -> int | None:
    """Open the directory above an open one; None when it is not `identity` any more. Raises OSError."""
    above = os.open(b"..", DIRECTORY_FLAGS, dir_fd=fd)
    if identity_of(above) == identity:
        return above
    os.close(above)
    return None


class Descent:
    """A way down from an open directory. A context manager: closes all but that one."""

    def __init__(self, fd: int, path: bytes) -> None:
        """`path` is how errors name the directory `fd`, which its owner closes."""
        self.fd = fd
        """Of the last directory."""
        self._names = [path]
        self._fds = [fd]
        """Of all; -1 for those that are closed meanwhile."""
        self._identities: dict[int, Identity] = {}
        """Of those that are closed, by depth."""

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds[1:]:
            if fd >= 0:
                os.close(fd)
        del self._fds[1:]

    def path(self, name: bytes) -> bytes:
        """How errors name an entry of the last directory."""
        return os.path.join(*self._names, name)

    def enter(self, name: bytes) -> None:
        """Go down to a directory, which is no symlink. Raises OSError; then nothing has changed."""
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=self.fd)
        self._names.append(name)
        self._fds.append(fd)
        self.fd = fd
        far = len(self._fds) - 1 - OPEN_MAX
        if far > 0:
            self._identities[far] = identity_of(self._fds[far])
            os.close(self._fds[far])
            self._fds[far] = -1

    def leave(self) -> int:
        """Go up, and give the caller the descriptor of the directory that was left, to close. Raises OSError, PfsError."""
        depth = len(self._fds) - 2
        if self._fds[depth] < 0:
            above = open_above(self.fd, self._identities.pop(depth))
            if above is None:
                raise PfsError(f"{display(os.path.join(*self._names))} was moved to another directory meanwhile")
            self._fds[depth] = above
        self._names.pop()
        left = self._fds.pop()
        self.fd = self._fds[-1]
        return left


def remove_tree(name: bytes, parent: int) -> None:
    """Remove a directory that this process has made, with all that is in it, of any depth. Raises OSError, PfsError."""
    os.chmod(name, 0o700, dir_fd=parent)
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    try:
        with Descent(fd, name) as descent:
            below = [_unlink_files(fd)]
            while below:
                if below[-1]:
                    os.chmod(below[-1][-1], 0o700, dir_fd=descent.fd)
                    descent.enter(below[-1][-1])
                    below.append(_unlink_files(descent.fd))
                    continue
                below.pop()
                if below:
                    os.close(descent.leave())
                    os.rmdir(below[-1].pop(), dir_fd=descent.fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _unlink_files(fd: int) -> list[bytes]:
    """Remove all but the directories, whose names it returns."""
    directories = []
    with os.scandir(fd) as scan:
        found = [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in scan]
    for name, is_directory in found:
        if is_directory:
            directories.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return directories
