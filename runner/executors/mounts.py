"""What the command of one datum sees: mounts in a copy of the worker's view, which end with the datum's last process.

The order matters. Before there is a datum (`prepare`):

1. the view is entered and copied; /tmp, /var/tmp and /dev/shm are covered with empty ones, /pfs with a tmpfs.

For the datum (`show`):

2. kept paths and the output are opened in the host place, and the kept paths put back into the fresh directories;
3. read-only binds are put into /pfs, mount points for the writable ones made, and everything that is there by then made
   read-only in one call;
4. the writable ones are mounted, so that they alone can be written to.

What is copied from the host is made private: nothing that a datum mounts reaches the host, nor the reverse.
"""

from __future__ import annotations

import os
import stat

from runner.executors import namespaces, syscalls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PFS = b"/pfs"
OUT = PFS + b"/out"
FRESH = (b"/tmp", b"/var/tmp", b"/dev/shm")
# Trees held open at once: an ordinary process may have 1024 files open.
BATCH = 256
_ENOSPC = 28
_EMPTY = syscalls.MS_NOSUID | syscalls.MS_NODEV


class Unmountable(Exception):
    """The datum cannot be shown as the order asks."""


def prepare(view: namespaces.Place) -> namespaces.Place:
    """A copy of the view that the calling process alone is in, with nothing in /pfs. Raises OSError."""
    view.enter()
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)
    own = namespaces.Place.current()
    try:
        syscalls.mount(b"proc", b"/proc", b"proc", _EMPTY | syscalls.MS_NOEXEC)
    except PermissionError:
        # An ordinary user may not, where parts of /proc are covered (in most containers). The old one shows the worker's
        # and the host's processes too; /proc/self is right in both.
        pass
    for path in FRESH:
        try:
            syscalls.mount(b"tmpfs", path, b"tmpfs", _EMPTY, b"mode=1777")
        except (FileNotFoundError, NotADirectoryError):
            pass  # not on this host
    syscalls.mount(b"tmpfs", PFS, b"tmpfs", _EMPTY, b"mode=755")
    return own


def show(order: wire.Order, host: namespaces.Place, own: namespaces.Place) -> None:
    """Called in the host place, by a process that is alone in `own`; ends there. Raises Unmountable and OSError."""
    kept = [(path, open_tree(path, path)) for path in hidden_paths(order["keep_visible"])]
    writable = [(OUT, open_tree(order["out"], OUT, follow=True))]
    readable = []
    for source, target, read_only in order["binds"]:
        if read_only:
            readable.append((source, PFS + b"/" + target))
        else:
            writable.append((PFS + b"/" + target, open_tree(source, PFS + b"/" + target)))
    points = MountPoints(PFS)
    for start in range(0, len(readable), BATCH):
        batch = readable[start : start + BATCH]
        host.enter()
        trees = [open_tree(source, target) for source, target in batch]
        own.enter()
        for (_, target), tree in zip(batch, trees, strict=True):
            if points.make(target, tree):
                attach(tree, target)
    own.enter()
    later = [(target, tree) for target, tree in writable if points.make(target, tree)]
    points.set_times(order["made_mtime_ns"])
    syscalls.set_mounts(PFS, read_only=True, propagation=syscalls.MS_PRIVATE, recursive=True)
    for target, tree in later:
        attach_private(tree, target)
    put_back(kept)


def hidden_paths(kept: Sequence[bytes]) -> list[bytes]:
    """Those of `kept` that fresh directories would hide, under each name that may be used for them; outermost ones only."""
    names = {name for path in kept if os.path.exists(path) for name in (os.path.normpath(path), os.path.realpath(path))}
    found: list[bytes] = []
    for name in sorted(names, key=lambda name: name.split(b"/")):
        beneath_known = bool(found) and name.startswith(found[-1] + b"/")
        if is_hidden(name) and not beneath_known:
            found.append(name)
    return found


def is_hidden(path: bytes) -> bool:
    return path.startswith(tuple(fresh + b"/" for fresh in FRESH))


def open_tree(source: bytes, target: bytes, *, follow: bool = False) -> int:
    """A copy of the mounts at `source`, of the caller's place."""
    try:
        return syscalls.clone_tree(source, follow=follow)
    except OSError as error:
        raise Unmountable(f"cannot show {quoted(source)} at {quoted(target)}: {error.strerror}") from error


def put_back(kept: Iterable[tuple[bytes, int]]) -> None:
    points = MountPoints(*FRESH)
    for path, tree in kept:
        if points.make(path, tree):
            attach_private(tree, path)


class MountPoints:
    """Makes what is mounted on, and the directories that lead there from those that are given; they are 0755."""

    def __init__(self, *given: bytes) -> None:
        self._directories = set(given)
        self._symlinks: list[bytes] = []

    def make(self, path: bytes, tree: int) -> bool:
        """A file or directory at `path`, as `tree` is one. A symlink is copied and `tree` closed: False, do not mount."""
        self._lead_to(path)
        kind = os.fstat(tree).st_mode
        if stat.S_ISLNK(kind):
            os.symlink(os.readlink(b"", dir_fd=tree), path)
            os.close(tree)
            self._symlinks.append(path)
            return False
        if stat.S_ISDIR(kind):
            os.mkdir(path, 0o755)
        else:
            os.mknod(path, 0o644)
        return True

    def _lead_to(self, path: bytes) -> None:
        parent = path[: path.rindex(b"/")]
        if parent not in self._directories:
            self._lead_to(parent)
            os.mkdir(parent, 0o755)
            self._directories.add(parent)

    def set_times(self, mtime_ns: int) -> None:
        """Of what was made here: symlinks, and the directories that lead to the points. Called when all points are made."""
        for path in (*self._symlinks, *self._directories):
            os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def attach(tree: int, target: bytes) -> None:
    """Mounts `tree` and closes it."""
    try:
        syscalls.attach_tree(tree, target)
    except OSError as error:
        why = "too many mounts (fs.mount-max)" if error.errno == _ENOSPC else error.strerror
        raise Unmountable(f"cannot mount at {quoted(target)}: {why}") from error
    os.close(tree)


def attach_private(tree: int, target: bytes) -> None:
    syscalls.set_mounts(tree, propagation=syscalls.MS_PRIVATE, recursive=True)
    attach(tree, target)


def quoted(path: bytes) -> str:
    """On one line, whatever the name."""
    return repr(path.decode("utf-8", "backslashreplace"))
