"""Mount points and what the machine must have: looked at before anything is done, so that every obstacle is one clear line."""

from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pfsmount.errors import (
    Busy,
    DirectoryNotEmpty,
    InvalidInput,
    NotADirectory,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from pfsmount.fs.records import MountRecord, live_mounts

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
FS_TYPE = "pfs"
_SOURCE = "pfs:"
JOB = "(job)"
"""Stands in the source of a job's private mount, which has no record; no revision is spelled like it."""
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo."""

    point: str
    device: str
    """`major:minor`, as in /sys/class/bdi and /sys/fs/fuse/connections."""
    type: str
    source: str

    @property
    def is_pfs(self) -> bool:
        return self.type == f"fuse.{FS_TYPE}"

    @property
    def is_fuse(self) -> bool:
        return self.type == "fuse" or self.type.startswith("fuse.")

    @property
    def store(self) -> Path | None:
        """The store that a pfs mount shows; None where `-o fsname=` took its place."""
        return Path(os.fsdecode(self._said()[0])) if self._said()[0] else None

    @property
    def revision(self) -> str:
        """What of the store it shows; empty for all of it."""
        return os.fsdecode(self._said()[1])

    @property
    def is_of_job(self) -> bool:
        """The private mount of a job, which no record tells of."""
        return self.revision == JOB

    def _said(self) -> tuple[bytes, bytes]:
        if not self.is_pfs or not self.source.startswith(_SOURCE):
            return b"", b""
        store, _, revision = self.source[len(_SOURCE) :].partition("#")
        return unquote_to_bytes(store), unquote_to_bytes(revision)


def source_of(store: Path, revision: str = "") -> str:
    """The source that a mount of a store is listed with: printable ASCII, whatever the path is."""
    source = _SOURCE + quote_from_bytes(os.fsencode(store), safe="/")
    return source + ("#" + quote_from_bytes(os.fsencode(revision), safe="/@:~^+=") if revision else "")


def mounts() -> list[Mounted]:
    """What is mounted in this mount namespace; later ones cover earlier ones at the same point."""
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            fields, rest = before.split(b" "), after.split(b" ")
            found.append(
                Mounted(_plain(fields[4]), fields[2].decode(), rest[0].decode("ascii", "replace"), _plain(rest[1]))
            )
    return found


def _plain(raw: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), raw))


def mounted_at(point: str) -> Mounted | None:
    """What is mounted at exactly this place."""
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def real_path(path: Path) -> str:
    """The mount point without symlinks; does not touch the last part, which may be a dead mount."""
    absolute = Path(os.path.abspath(path))
    return os.path.join(os.path.realpath(absolute.parent), absolute.name) if absolute.name else str(absolute)


def live_at(mount: Mounted, store: Path) -> MountRecord | None:
    """The live daemon of a pfs mount, without touching the mount, which may hang. `store` is where to look if the mount does not say its own."""
    return next((record for record in live_mounts(mount.store or store) if record.mount == mount.point), None)


def _refuse_below(path: Path, point: str) -> None:
    """Raises InvalidInput for a place inside a pfs mount: what is mounted there would hide files of a version."""
    above = max((one.point for one in mounts() if _is_below(point, one.point)), key=len, default="")
    mount = mounted_at(above)
    if mount is not None and mount.is_pfs:
        raise InvalidInput(
            f"the mount point {path} is inside the pfs mount at {above}", hint="give a directory outside of it"
        )


def _is_below(point: str, top: str) -> bool:
    return point.startswith(top.rstrip("/") + "/") and point != top


def check_mount_point(path: Path, store: Path, *, create: bool = False) -> tuple[str, str | None]:
    """Make sure that something can be mounted at `path`; returns its real path and, maybe, a note for the user.

    A dead FUSE mount there is taken away. With `create` it may be missing. Raises NotFound, NotADirectory, DirectoryNotEmpty, Busy, InvalidInput, PermissionDenied.
    """
    _refuse_below(path, os.path.abspath(path))  # by its text, before anything is looked at: a mount may hang
    point = real_path(path)
    if mounted_at(point) is None and os.path.islink(point):
        point = os.path.realpath(point)
    _refuse_below(path, point)
    note = None
    mount = mounted_at(point)
    if mount is not None and mount.is_fuse:
        note = _replace_dead(mount, path, store)
    inside = os.path.realpath(store)
    if point == inside or point.startswith(inside + "/"):
        raise InvalidInput(f"the mount point {path} is inside the store at {store}", hint="give a directory elsewhere")
    if not create or os.path.lexists(point):
        _check_directory(path, point)
    return point, note


def make_mount_point(point: str) -> bool:
    """Make the directory if it is missing; True when this call made it. Raises PermissionDenied."""
    try:
        os.makedirs(point)
    except FileExistsError:
        return False
    except OSError as error:
        raise PermissionDenied(
            f"cannot make the mount point {point}: {error.strerror}", hint="give a directory: pfs mount DIR"
        ) from None
    return True


def _check_directory(path: Path, point: str) -> None:
    try:
        found = os.stat(point)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectory(f"the mount point {path} is not a directory")
        if os.listdir(point):
            raise DirectoryNotEmpty(
                f"the mount point {path} is not empty", hint="a mount would hide what is in it; give an empty directory"
            )
    except FileNotFoundError:
        raise NotFound(f"the mount point {path} does not exist", hint=f"mkdir {path}") from None
    except PermissionError as error:
        raise PermissionDenied(f"no permission on the mount point {path}: {error.strerror}") from None
    if os.getuid() and not os.access(point, os.W_OK):
        raise PermissionDenied(
            f"you cannot mount at {path}: only its owner may, or somebody who can write to it",
            hint="give a directory of your own",
        )


def _replace_dead(mount: Mounted, path: Path, store: Path) -> str:
    """Take away a FUSE mount that nobody serves; returns a note. Raises Busy for one that is alive."""
    record = live_at(mount, store)
    if record is not None:
        what = f"{record.revision} of the store" if record.revision else "the store"
        raise Busy(
            f"{path} is in use: pfs (process {record.pid}) has {what} {record.store} mounted there",
            hint=f"end it with 'pfs umount {path}', or give another directory",
        )
    try:
        os.statvfs(mount.point)  # stat could be answered from the kernel's cache
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise PermissionDenied(f"cannot look at the mount point {path}: {error.strerror}") from None
        lazy_unmount(mount.point)
        return f"took away the dead mount at {path}"
    raise Busy(f"{path} is in use: a {mount.type} filesystem ({mount.source}) is mounted there")


def lazy_unmount(point: str) -> None:
    """Take a mount out of the tree at once, whoever uses it. Raises PermissionDenied, Unavailable."""
    run_unmount(point, lazy=True)


def run_unmount(point: str, *, lazy: bool, force: bool = False) -> None:
    """Unmount as root or through fusermount3. `force` (root) aborts the FUSE connection: what waits for the daemon fails.

    Raises Busy, PermissionDenied, Unavailable.
    """
    if os.getuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
        number = _umount2(point, flags)
        if number == errno.EBUSY:
            raise Busy(f"{point} is in use")
        if number:
            raise PermissionDenied(f"cannot unmount {point}: {os.strerror(number)}")
        return
    command = [require_fusermount(), "-u", *(["-z"] if lazy else []), "--", point]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        text = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "fusermount3 failed"
        if "busy" in text:
            raise Busy(f"{point} is in use")
        raise PermissionDenied(f"cannot unmount {point}: {text}")


def _umount2(point: str, flags: int) -> int:
    """The errno of umount2(2), or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), flags) == 0:
        return 0
    return ctypes.get_errno()


def require_fusermount() -> str:
    """The helper by which ordinary users mount. Raises Unavailable."""
    found = shutil.which("fusermount3")
    if found is None:
        raise Unavailable(
            "fusermount3 is not installed, without which only root can mount", hint="install the package fuse3"
        )
    return found


def check_machine() -> None:
    """Make sure that this machine and user can mount. Raises Unavailable."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise Unavailable(
            "there is no /dev/fuse here",
            hint="load the kernel module: modprobe fuse; in a container: --device /dev/fuse",
        ) from None
    except PermissionError:
        mode = stat.S_IMODE(os.stat(FUSE_DEVICE).st_mode)
        if os.getuid() == 0:
            raise Unavailable("/dev/fuse is closed to this container", hint="run it with --device /dev/fuse") from None
        raise Unavailable(
            f"you have no permission on /dev/fuse: its mode is {mode:04o}", hint="as root: chmod 666 /dev/fuse"
        ) from None
    except OSError as error:
        raise Unavailable(
            f"/dev/fuse does not work: {error.strerror}", hint="load the kernel module: modprobe fuse"
        ) from None
    if os.getuid():
        require_fusermount()
    if importlib.util.find_spec("pyfuse3") is None:
        raise Unavailable(
            "the Python package pyfuse3 is not installed",
            hint="install libfuse3-dev and pkg-config, then: pip install pyfuse3",
        )
    try:
        importlib.import_module("pyfuse3")
    except ImportError as error:
        raise Unavailable(f"pyfuse3 does not load: {error}", hint="install the package libfuse3-3") from None


def other_users_allowed() -> bool:
    """True when this user may let other users see a mount."""
    if os.getuid() == 0:
        return True
    try:
        lines = FUSE_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
