"""Which errno a program sees for which error. The only place that decides it."""

from __future__ import annotations

import errno

from pfsmount.errors import (
    AlreadyExists,
    AmbiguousRevision,
    Busy,
    Conflict,
    Corrupt,
    DirectoryNotEmpty,
    InvalidInput,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    NotPermitted,
    PermissionDenied,
    PfsError,
    Unavailable,
)
from pfsmount.repo.overlay_nodes import NameTooLong, NoAttribute, NotSupported, ReadOnly, Stale

ERRNOS: dict[type[Exception], int] = {
    AlreadyExists: errno.EEXIST,
    AmbiguousRevision: errno.ENOENT,
    Busy: errno.EBUSY,
    Conflict: errno.ESTALE,
    Corrupt: errno.EIO,
    DirectoryNotEmpty: errno.ENOTEMPTY,
    InvalidInput: errno.EINVAL,
    IsADirectory: errno.EISDIR,
    NameTooLong: errno.ENAMETOOLONG,
    NoAttribute: errno.ENODATA,
    NoSpace: errno.ENOSPC,
    NotADirectory: errno.ENOTDIR,
    NotFound: errno.ENOENT,
    NotPermitted: errno.EPERM,
    NotSupported: errno.EOPNOTSUPP,
    PermissionDenied: errno.EACCES,
    PfsError: errno.EIO,
    ReadOnly: errno.EROFS,
    Stale: errno.ESTALE,
    Unavailable: errno.EOPNOTSUPP,
}


def errno_of(error: BaseException) -> int:
    """The errno for an error: of an OSError its own, of one that nobody foresaw EIO."""
    for kind in type(error).__mro__:
        found = ERRNOS.get(kind)
        if found is not None:
            return found
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO


def is_expected(error: BaseException) -> bool:
    """True for what a program can cause by itself; anything else belongs into the log."""
    return isinstance(error, (PfsError, OSError)) and errno_of(error) != errno.EIO
