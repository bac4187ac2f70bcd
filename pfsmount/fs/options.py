"""What `pfs mount -o` understands: the words of mount(8), of libfuse, and of sshfs that make sense here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display

LOG_LEVELS = ("debug", "info", "warning", "error")
_KERNEL = frozenset({"dev", "nodev", "suid", "nosuid", "exec", "noexec", "noatime", "sync", "dirsync"})
"""Passed on as they are."""
_FLAGS = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "real_owner": ("real_owner", True),
    "default_permissions": None,  # always on
}
_IGNORED = frozenset(
    {"defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev", "atime", "async"}
    | {"relatime", "norelatime", "nodiratime", "diratime", "strictatime", "nostrictatime", "lazytime", "nolazytime"}
)
"""What stands in /etc/fstab for others than us, and what is always so: the time of last access is that of the last change."""
_ID = re.compile(r"[0-9]{1,10}\Z")
_OCTAL = re.compile(r"0?[0-7]{1,4}\Z")
_ID_MAX = 2**32 - 2
_YEAR = 365 * 86_400


@dataclass(frozen=True, slots=True)
class MountFlags:
    """Options of a mount; None: not given."""

    read_only: bool | None = None
    allow_other: bool | None = None
    real_owner: bool | None = None
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    fsname: str | None = None
    autocommit: float | None = None
    log_file: str | None = None
    log_level: str | None = None
    store: str | None = None
    kernel: tuple[str, ...] = ()
    """Words for the kernel."""


def parse_options(texts: Iterable[str]) -> MountFlags:
    """The flags in comma lists such as `ro,uid=1000`; a later one counts more. Raises InvalidInput for what is not known, by name."""
    found: dict[str, Any] = {}
    kernel: list[str] = []
    for word in (word.strip() for text in texts for word in text.split(",")):
        name, equals, value = word.partition("=")
        if not word or word in _IGNORED or name.startswith("x-") or (equals and name == "comment"):
            continue
        if equals and name in _VALUES:
            found[name] = _VALUES[name](name, value)
        elif not equals and word in _FLAGS:
            flag = _FLAGS[word]
            if flag is not None:
                found[flag[0]] = flag[1]
        elif word in _KERNEL:
            kernel.append(word)
        else:
            raise _unknown(name, equals)
    return MountFlags(**found, kernel=tuple(kernel))


def _unknown(name: str, equals: str) -> InvalidInput:
    if name in _VALUES and not equals:
        return InvalidInput(f"the mount option '{display(name)}' needs a value", hint=f"{name}=…")
    known = sorted({*_FLAGS, *_KERNEL, *(f"{one}=" for one in _VALUES)})
    near = difflib.get_close_matches(name + equals, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return InvalidInput(f"pfs does not know the mount option '{display(name + equals)}'", hint=hint)


def _number(name: str, value: str) -> int:
    if not _ID.match(value) or int(value) > _ID_MAX:
        raise InvalidInput(f"'{display(value)}' is not a number for the mount option {name}=")
    return int(value)


def _permissions(name: str, value: str) -> int:
    if not _OCTAL.match(value) or int(value, 8) > 0o777:
        raise InvalidInput(
            f"'{display(value)}' is not octal permissions for the mount option {name}=", hint="as in 022"
        )
    return int(value, 8)


def _text(name: str, value: str) -> str:
    if not value or not value.isascii() or not value.isprintable():
        raise InvalidInput(f"the mount option {name}= needs a value of printable ASCII characters")
    return value


def _path(name: str, value: str) -> str:
    if not value:
        raise InvalidInput(f"the mount option {name}= needs a path")
    return value


def _seconds(name: str, value: str) -> float:
    try:
        return check_seconds(float(value))
    except ValueError:
        raise InvalidInput(f"'{display(value)}' is not a number of seconds for the mount option {name}=") from None


def check_seconds(seconds: float) -> float:
    """A quiet time for autocommit. Raises InvalidInput."""
    if not 0 < seconds <= _YEAR:  # NaN is neither
        raise InvalidInput("the quiet time before an autocommit is more than 0 seconds, and at most a year")
    return seconds


def _level(name: str, value: str) -> str:
    return check_level(value)


def check_level(value: str) -> str:
    """The name of a log level. Raises InvalidInput."""
    if value not in LOG_LEVELS:
        raise InvalidInput(f"there is no log level '{display(value)}'", hint=", ".join(LOG_LEVELS))
    return value


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "uid": _number,
    "gid": _number,
    "umask": _permissions,
    "fsname": _text,
    "autocommit": _seconds,
    "log_file": _path,
    "log_level": _level,
    "store": _path,
}
