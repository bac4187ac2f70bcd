"""The bytes of a file that is one of thousands of nearly equal ones: in blocks that they share, so that a version costs what differs in it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pfsmount.objects.hashing import hash_bytes

BLOCK = 32 * 1024
_AT_ONCE = 1024
"""Most blocks that one `writev` takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """`BLOCK` bytes, and their hash."""

    data: bytes
    id: bytes

    @classmethod
    def of(cls, data: bytes) -> Block:
        return cls(data, hash_bytes(data))


_ZEROS = Block.of(bytes(BLOCK))


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a file holds: its blocks (zeros behind its end), its size, and a hash of both."""

    size: int
    blocks: tuple[Block, ...]
    id: bytes

    @classmethod
    def of(cls, data: bytes) -> Contents:
        """These bytes."""
        edited = Edited(EMPTY)
        edited.write(0, data)
        return edited.done()

    @classmethod
    def made(cls, size: int, blocks: tuple[Block, ...]) -> Contents:
        """Blocks that are hashed already."""
        return cls(size, blocks, hash_bytes(size.to_bytes(8, "little") + b"".join(block.id for block in blocks)))

    def store(self, fd: int) -> None:
        """Write all of it to an empty file."""
        for start in range(0, len(self.blocks), _AT_ONCE):
            os.writev(fd, [block.data for block in self.blocks[start : start + _AT_ONCE]])
        if self.size % BLOCK:
            os.ftruncate(fd, self.size)


EMPTY = Contents.made(0, ())


class Edited:
    """Contents that are being changed."""

    def __init__(self, contents: Contents) -> None:
        self.size = contents.size
        self._blocks = [*contents.blocks]
        self._open: dict[int, bytearray] = {}

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes over what is there, and zeros between its end and them."""
        if not data:
            return
        end = offset + len(data)
        self.resize(max(self.size, end))
        for number in range(offset // BLOCK, (end - 1) // BLOCK + 1):
            start = number * BLOCK
            low, high = max(offset, start), min(end, start + BLOCK)
            if high - low == BLOCK:
                self._open.pop(number, None)
                self._blocks[number] = Block.of(data[low - offset : high - offset])
            else:
                self._opened(number)[low - start : high - start] = data[low - offset : high - offset]

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole into what is there."""
        self.write(offset, bytes(max(0, min(length, self.size - offset))))

    def resize(self, size: int) -> None:
        """Cut off, or add zeros."""
        count = -(-size // BLOCK)
        if size < self.size:
            for number in [number for number in self._open if number >= count]:
                del self._open[number]
            if size % BLOCK:
                self._opened(count - 1)[size % BLOCK :] = bytes(BLOCK - size % BLOCK)
        self._blocks[count:] = [_ZEROS] * (count - len(self._blocks))
        self.size = size

    def _opened(self, number: int) -> bytearray:
        if number not in self._open:
            self._open[number] = bytearray(self._blocks[number].data)
        return self._open[number]

    def done(self) -> Contents:
        """What it has become."""
        for number, data in self._open.items():
            self._blocks[number] = Block.of(bytes(data))
        self._open = {}
        return Contents.made(self.size, tuple(self._blocks))
