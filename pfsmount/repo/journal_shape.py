"""What each line of a journal must have, whatever its checksum says: the journal of a store that somebody else made may hold anything.

The checks are of each line by itself; whether it fits to those before is `worktree_replay`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import parse_entry_name
from pfsmount.repo.journal import Record, name_bytes
from pfsmount.repo.overlay_nodes import KINDS_BY_WORD
from pfsmount.tree.entry import SIZE_MAX
from pfsmount.tree.xattrs import is_name

_NUMBER_MAX = 1 << 53
_ID_MAX = (1 << 32) - 1
_TIME_MAX = 1 << 93
"""More ns than the i64 seconds of an entry have."""
_Check = Callable[[Any], bool]


def _whole(least: int, most: int) -> _Check:
    return lambda value: type(value) is int and least <= value <= most


def _name(value: Any) -> bool:
    try:
        parse_entry_name(name_bytes(value))
    except InvalidInput:
        return False
    return True


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _attributes(value: Any) -> bool:
    return isinstance(value, dict) and all(key in _ATTRIBUTES and _ATTRIBUTES[key](of) for key, of in value.items())


_number, _new_number = _whole(1, _NUMBER_MAX), _whole(2, _NUMBER_MAX)
_mode, _id, _size = _whole(0, 0o7777), _whole(0, _ID_MAX), _whole(0, SIZE_MAX)
_time = _whole(-_TIME_MAX, _TIME_MAX)
_ATTRIBUTES: dict[str, _Check] = {"mode": _mode, "uid": _id, "gid": _id, "mtime_ns": _time}
_SHAPES: dict[str, tuple[_Check, ...]] = {
    "base": (_new_number, _number, _name),
    "new": (
        _new_number,
        _number,
        _name,
        KINDS_BY_WORD.__contains__,
        _mode,
        _id,
        _id,
        _time,
        _or_null(_text),
        _or_null(_time),
    ),
    "link": (_new_number, _number, _name, _time),
    "unlink": (_number, _name, _time),
    "rename": (_number, _name, _number, _name, _whole(0, 3), _time),
    "attr": (_number, _attributes),
    "xattr": (_number, _or_null(lambda value: is_name(name_bytes(value))), _or_null(_text)),
    "whole": (_new_number,),
    "size": (_new_number, _size),
    "extent": (_new_number, _size, _size),
    "resolve": (_text, _text, _text),
    "entry": (_new_number, _text, _text),
}
_OPTIONAL = {"new": 1}
"""How many at the end may be left out."""


def has_shape(record: Record) -> bool:
    """Whether a line is of a kind that there is, with what belongs to it. Raises TypeError, ValueError, AttributeError for some that are not."""
    shape = _SHAPES.get(record[0])
    if shape is None:
        return False
    values = record[1:]
    if not len(shape) - _OPTIONAL.get(record[0], 0) <= len(values) <= len(shape):
        return False
    return all(check(value) for check, value in zip(shape, values, strict=False))
