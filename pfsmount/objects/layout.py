"""The directory of a store: what lies where, how it is made, and which places are refused.

`store.json` is one line of JSON, written when everything else is durable: a directory without it is not a store, and what a crash left
of one is made again.

| key | |
|---|---|
| `kind` | `"pfs store"` |
| `format` | 1; a reader refuses what is above its own |
| `features` | words that a reader must know, else it refuses |
| `id` | 16 random bytes in hex |
| `created_ns` | Unix time in ns |
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, EFBIG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from itertools import count
from pathlib import Path

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import (
    AlreadyExists,
    Corrupt,
    InvalidInput,
    NoSpace,
    NotAStore,
    NotPermitted,
    PermissionDenied,
    PfsError,
    StoreTooNew,
)
from pfsmount.ids import display
from pfsmount.objects.index import Index
from pfsmount.objects.reserve import RESERVE_FILE, make_reserve

FORMAT = 1
STORE_FILE = "store.json"
_STORE_FILE_MAX = 64 * 1024
_STORE_ID_BYTES = 16
_PLAIN_FILES = (STORE_FILE, "refs.log", "index/data.mdb", "index/lock.mdb", "cache/data.mdb", "cache/lock.mdb")
"""Those that are opened by name without a look whether they are symlinks."""
_NETWORK_KINDS = ("nfs", "cifs", "smb", "lustre", "fuse", "9p", "afs", "ceph", "gpfs", "beegfs")
_DIRECTORIES = ("index", "segments", "worktrees", "jobs", "run", "tmp")


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What `store.json` says."""

    path: Path
    id: bytes
    format: int
    created_ns: int


def fsync_directory(path: Path | str) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def error_for(error: OSError, what: str) -> PfsError:
    """The error that tells a person about an OSError met while doing `what`."""
    if error.errno in (ENOSPC, EDQUOT, EFBIG):
        return NoSpace(
            f"no space left while {what}; the store is as it was before",
            hint="free some space and run the command again",
        )
    if error.errno in (EACCES, EPERM, EROFS):
        where = f" '{error.filename}'" if error.filename else ""
        return PermissionDenied(f"no permission on{where or ' a file'} while {what}: {error.strerror}")
    named = error.filename2 or error.filename
    where = (
        "" if not isinstance(named, str | bytes) or b"/.pfs-" in b"/" + os.fsencode(named) else f": {display(named)}"
    )
    return PfsError(f"{what} failed: {error.strerror or error}{where}")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside into the error for people (see `error_for`)."""
    try:
        yield
    except OSError as error:
        raise error_for(error, what) from error


def _mount_entry(path: Path) -> tuple[str, Path]:
    """Type and mount point of the filesystem that holds `path`."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ("unknown", Path("/"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            fields = before.split(" ")
            if fields[2] == wanted:
                found = (after.split(" ")[0], Path(fields[4]))
    return found


def refuse_bad_place(path: Path) -> None:
    """Refuse a filesystem on which LMDB's shared memory map is not safe. Raises InvalidInput."""
    try:
        kind, where = _mount_entry(path)
    except OSError:
        return
    base = kind.split(".")[0]
    if base in _NETWORK_KINDS or kind.startswith(("fuse", "nfs", "smb")):
        raise InvalidInput(
            f"a store cannot lie at {path}: {where} is a {kind} filesystem",
            hint="its index is a memory map that only a local disk keeps right; use a local directory",
        )


def create_store(path: Path, settings: StoreSettings = DEFAULT_SETTINGS) -> StoreInfo:
    """Make an empty store at `path`, which must not exist or be an empty directory. Durable when this returns.

    Raises AlreadyExists, InvalidInput (a filesystem that cannot hold one), NoSpace, PermissionDenied.
    """
    if path.exists() and not path.is_dir():
        raise AlreadyExists(f"{path} is a file", hint="a store is a directory")
    info = StoreInfo(path, os.urandom(16), FORMAT, time.time_ns())
    with disk_errors(f"making a store at {path}"):
        above = next((parent for parent in path.absolute().parents if parent.exists()), path)  # `/` has none
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # of two at once, the second finds a store
            _check_is_new(path)
            os.fchmod(fd, 0o700)  # it may have been there
            refuse_bad_place(path)
            _fill(path, settings)
            for parent in path.absolute().parents:  # its own name, and what was made above it
                fsync_directory(parent)
                if parent == above:
                    break
            try:
                _write_store_file(info)
            except BaseException:
                (path / STORE_FILE).unlink(missing_ok=True)
                raise
        finally:
            os.close(fd)
    return info


def _check_is_new(path: Path) -> None:
    if (path / STORE_FILE).exists():
        raise AlreadyExists(f"there is a store at {path} already")
    if any(name not in (*_DIRECTORIES, RESERVE_FILE) for name in os.listdir(path)) or _names(path / "segments"):
        raise AlreadyExists(f"{path} is not empty", hint="give a new or empty directory")


def _names(path: Path) -> list[str]:
    return os.listdir(path) if path.exists() else []


def _fill(path: Path, settings: StoreSettings) -> None:
    """Everything but `store.json`, durable. An index that is there was left by a crash in here, which may have torn it."""
    for name in _DIRECTORIES:
        (path / name).mkdir(mode=0o700, exist_ok=True)
    for name in _names(path / "index"):
        (path / "index" / name).unlink()
    Index(path / "index", settings.map_size).close()
    fsync_directory(path / "index")
    make_reserve(path)
    fsync_directory(path)


def _write_store_file(info: StoreInfo) -> None:
    line = {
        "created_ns": info.created_ns,
        "features": [],
        "format": FORMAT,
        "id": info.id.hex(),
        "kind": "pfs store",
    }
    temporary = info.path / "tmp" / STORE_FILE
    with open(temporary, "w", encoding="ascii", opener=private) as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, info.path / STORE_FILE)
    fsync_directory(info.path)


def _check_owner(path: Path) -> None:
    """Refuse what somebody else can put files and links into, or symlinks where files must be. Raises NotPermitted, Corrupt, OSError.

    Whoever can change a store decides what is written where by those who use it (docs/decisions/010-whose-store-it-is.md).
    """
    info, user = os.stat(path), os.geteuid()
    if info.st_uid not in (user, 0):
        raise NotPermitted(
            f"the store at {path} belongs to user {info.st_uid}, not to {user}: using it would let them decide what is written in your name",
            hint=f"use it as that user (sudo -u '#{info.st_uid}' …), or, if you know all that is in it, make it yours: chown -R",
        )
    if info.st_mode & stat.S_IWOTH:
        raise NotPermitted(
            f"everybody can write to the directory of the store at {path}",
            hint=f"'chmod go-rwx {path}', and 'pfs fsck' if somebody may have done so",
        )
    for name in _PLAIN_FILES:
        if os.path.islink(path / name):
            raise Corrupt(
                f"'{path / name}' is a symlink, which no store has", hint="look where it leads before anything else"
            )


def free_name(directory: Path, prefix: str) -> Path:
    """A name with the time in it that nothing has."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    names = (f"{prefix}-{stamp}" + (f".{n}" if n else "") for n in count())
    return next(path for name in names if not (path := directory / name).exists())


def private(path: str, flags: int) -> int:
    """An opener for `open`: what it makes is its owner's only, whatever the umask."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def read_store_info(path: Path) -> StoreInfo:
    """Read and check `store.json`, and to whom the store belongs. Raises NotAStore, StoreTooNew, Corrupt, PermissionDenied, NotPermitted."""
    try:
        with open(path / STORE_FILE, encoding="ascii") as file:
            text = file.read(_STORE_FILE_MAX)
        _check_owner(path)
    except OSError as error:
        if error.errno in (ENOENT, ENOTDIR):
            raise NotAStore(f"there is no store at {path}", hint="make one with 'pfs init'") from None
        raise error_for(error, f"opening the store at {path}") from None
    except UnicodeDecodeError:
        raise Corrupt(f"{path / STORE_FILE} is damaged") from None
    try:
        data = json.loads(text)
        number, features = int(data["format"]), [str(feature) for feature in data["features"]]
        if data["kind"] != "pfs store":
            raise NotAStore(f"{path / STORE_FILE} is something else's")
        if number > FORMAT or features:
            needs = f"format {number}" if number > FORMAT else f"the feature '{display(features[0])}'"
            raise StoreTooNew(
                f"the store at {path} has {needs}, this pfs knows formats up to {FORMAT}",
                hint="use a newer pfs",
            )
        id = bytes.fromhex(data["id"])
        if len(id) != _STORE_ID_BYTES or number < 1:
            raise ValueError
        return StoreInfo(path, id, number, int(data["created_ns"]))
    except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError):
        raise Corrupt(f"{path / STORE_FILE} is damaged", hint="it is one line of JSON; see docs/FORMAT.md") from None
