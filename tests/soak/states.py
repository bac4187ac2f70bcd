"""What the soak writes: whole states, each told by one number, so that any reader can see half a one.

A state is a directory of files that all follow from the number. Whoever finds a file of another number, or a byte that its number does not give, has seen what
nobody committed.
"""

from __future__ import annotations

import random
from functools import cache

SMALL_SIZES = (0, 9, 300, 1024, 1025, 4096, 9000, 30_000)
LARGE_SIZE = 9 << 20
LARGE_CHANGE = 300 << 10
NUMBER_BYTES = 16


def small_file(number: int, index: int) -> bytes:
    """A file of a small state; all but the empty one begin with the number."""
    size = SMALL_SIZES[index]
    return (_label(number) + random.Random(f"{number}-{index}").randbytes(size))[: size + NUMBER_BYTES if size else 0]


def small_state(number: int) -> dict[bytes, bytes]:
    """All files of a small state."""
    return {b"f%d" % index: small_file(number, index) for index in range(len(SMALL_SIZES))}


def large_state(number: int) -> dict[bytes, bytes]:
    """A small file, and one with a manifest of which each number changes another part."""
    at = NUMBER_BYTES + random.Random(number).randrange(LARGE_SIZE - LARGE_CHANGE)
    base = _large_base()
    changed = random.Random(f"{number}-large").randbytes(LARGE_CHANGE)
    return {
        b"number": _label(number),
        b"large": b"".join((_label(number), base[:at], changed, base[at + LARGE_CHANGE :])),
    }


def number_of(files: dict[bytes, bytes]) -> int:
    """The number of the state that these files are. Raises AssertionError when they are not exactly one state."""
    number = int(files.get(b"number", files.get(b"f1", b""))[:NUMBER_BYTES])
    expected = large_state(number) if b"number" in files else small_state(number)
    assert files.keys() == expected.keys(), f"{sorted(files)} is not a whole state"
    wrong = [name for name, data in files.items() if data != expected[name]]
    assert not wrong, f"{wrong} are not what state {number} has"
    return number


def check_single(name: bytes, data: bytes) -> None:
    """One file of a small state, of any number. Raises AssertionError."""
    index = int(name[1:])
    assert data == (small_file(int(data[:NUMBER_BYTES]), index) if SMALL_SIZES[index] else b""), f"half of {name!r}"


def _label(number: int) -> bytes:
    return b"%0*d\n" % (NUMBER_BYTES - 1, number)


@cache
def _large_base() -> bytes:
    return random.Random("large").randbytes(LARGE_SIZE)
