"""The error tree of the library.

Every error that a person can cause or meet is a `PfsError`. It is a noun with context: the message says what
happened, to what, and what was kept; `hint` says what to do. `retry` tells a caller whether trying again can help.
Exit codes are decided in `pfsmount.cli.output`, errno values in `pfsmount.fs.errnos`, nowhere else.
"""

from __future__ import annotations

import enum


class Retry(enum.Enum):
    """Whether the same call can succeed later."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    CONFLICT = "conflict"
    CORRUPT = "corrupt"


class PfsError(Exception):
    """Base of all errors meant for people.

    `message` is one sentence without a trailing newline; `hint`, when given, is what to do about it.
    """

    retry = Retry.PERMANENT

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(PfsError):
    """An argument cannot be understood: a bad revision, name, path or option."""


class NotFound(PfsError):
    """A store, repo, revision, path or job does not exist."""


class AmbiguousRevision(InvalidInput):
    """A commit prefix fits more than one commit."""


class AlreadyExists(PfsError):
    """The thing to be created is there already."""


class NotADirectory(PfsError):
    """A path runs through, or names, something that is not a directory."""


class IsADirectory(PfsError):
    """A file was expected at a path that is a directory."""


class DirectoryNotEmpty(PfsError):
    """A directory that must be empty is not."""


class NotPermitted(PfsError):
    """The operation is not allowed here, whoever asks (a read-only place, a reserved name)."""


class PermissionDenied(PfsError):
    """The operating system refused access."""


class Unavailable(PfsError):
    """Something that the machine lacks: /dev/fuse, libfuse3, user namespaces, a program."""


class NoSpace(PfsError):
    """The disk is full, or a quota or file size limit was hit."""

    retry = Retry.TRANSIENT


class Busy(PfsError):
    """Somebody else holds what is needed: a worktree, a mount point, a lock."""

    retry = Retry.TRANSIENT


class Collected(Busy):
    """A garbage collection removed data that was about to be used again. Nothing was changed: doing the work once more succeeds."""


class Conflict(PfsError):
    """A branch head moved, or two changes touch one path. `paths` lists them, relative to the branch root."""

    retry = Retry.CONFLICT

    def __init__(self, message: str, *, hint: str | None = None, paths: tuple[bytes, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.paths = paths


class Corrupt(PfsError):
    """Stored bytes are not what their name says, or a structure breaks its format."""

    retry = Retry.CORRUPT


class StoreTooNew(PfsError):
    """The store was written by a newer version of pfs."""


class NotAStore(NotFound):
    """There is no store at the given place."""
