"""Valid encodings, made a little wrong: as disks, and as people who know the format do it."""

from __future__ import annotations

import json
import random
from typing import Any

_NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    0.5,
    1 << 40,
    1 << 63,
    1 << 70,
    -(1 << 64),
    float("inf"),
    float("nan"),
    "",
    "../x",
    "/etc",
    "a\0b",
    ".",
    "..",
    "\ud800",
    "\udcff",
    "x" * 300,
    "\x1b[31m",
    "f" * 63,
    "0" * 64,
    [],
    {},
    [[]],
    {"a": None},
    ["..", "mine", 3],
)
_WORDS = (
    b"..",
    b"/",
    b"\0",
    b"\xff",
    b"*",
    b"**",
    b"{",
    b"[",
    b"(",
    b"!(",
    b"\\",
    b"@",
    b":",
    b"^",
    b"~",
    b"+",
    b".1",
    b"9" * 400,
)


def mutate(dice: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four wrong bytes, numbers, cuts or joints."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(9):
            case 0 if out:
                out[at % len(out)] ^= 1 << dice.randrange(8)
            case 1 if out:
                out[at % len(out)] = dice.randrange(256)
            case 2:
                del out[at:]
            case 3:
                size = dice.choice((1, 2, 4, 8))
                number = dice.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                out[at : at + size] = number.to_bytes(size, "little")
            case 4:
                del out[at : at + dice.randrange(1, 80)]
            case 5:
                out[at:at] = out[at : at + dice.randrange(1, 80)]
            case 6:
                out[at:at] = dice.choice(_WORDS)
            case 7:
                other = dice.choice(others)
                out[at:] = other[dice.randrange(len(other) + 1) :]
            case _:
                out += dice.randbytes(dice.randrange(1, 20))
    return bytes(out)


def mutate_json(dice: random.Random, data: bytes) -> bytes:
    """The same JSON with one to three values of it replaced, dropped or nested."""
    if dice.random() < 0.02:
        return b"[" * 100_000
    value = json.loads(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        value = _replace(dice, value)
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _replace(dice: random.Random, value: Any) -> Any:
    """Go down at random, and change what is there."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.15:
            return {other: of for other, of in value.items() if other != key}
        return {**value, key: _replace(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        rest = [] if dice.random() < 0.15 else [_replace(dice, value[at])]
        return value[:at] + rest + value[at + 1 :]
    if type(value) is int and dice.random() < 0.3:
        return value + dice.choice((1, -1, 1 << 32))
    return dice.choice(_VALUES)
