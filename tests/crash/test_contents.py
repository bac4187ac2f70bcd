"""Contents in shared blocks hold what plain bytes would."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.crash.contents import BLOCK, EMPTY, Contents, Edited


def test_as_plain_bytes(tmp_path: Path) -> None:
    """Writes, holes, cuts and growth at random places, several versions beside each other."""
    rng = random.Random(5)
    versions = [(EMPTY, b"")]
    for turn in range(300):
        contents, plain = rng.choice(versions[-5:])
        edited, expected = Edited(contents), bytearray(plain)
        for _ in range(rng.randrange(1, 4)):
            offset, length = rng.randrange(3 * BLOCK), rng.choice([1, 700, BLOCK, 2 * BLOCK + 5])
            match rng.randrange(4):
                case 0:
                    edited.resize(offset)
                    expected = expected[:offset] + bytes(max(0, offset - len(expected)))
                case 1:
                    edited.zero(offset, length)
                    length = max(0, min(length, len(expected) - offset))
                    expected[offset : offset + length] = bytes(length)
                case _:
                    data = rng.randbytes(length)
                    edited.write(offset, data)
                    expected += bytes(max(0, offset + length - len(expected)))
                    expected[offset : offset + length] = data
        made = edited.done()
        versions.append((made, bytes(expected)))
        assert made.size == len(expected)
        assert made.id == Contents.of(bytes(expected)).id
        if turn % 20 == 0:
            fd = os.open(tmp_path / str(turn), os.O_WRONLY | os.O_CREAT)
            made.store(fd)
            os.close(fd)
            assert (tmp_path / str(turn)).read_bytes() == expected
    assert len({made.id for made, _ in versions}) == len({plain for _, plain in versions})
