"""Compressed archives, told by how they begin, whatever they are called."""

from __future__ import annotations

from io import BufferedReader
from typing import IO

from pfsmount.config import MIB
from pfsmount.errors import Unavailable

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How files begin that these programs wrote. Each has an option `-t`, which tests one."""


def compression_of(file: BufferedReader) -> str | None:
    """The program that wrote a file, by its first bytes; None when it is not compressed."""
    start = file.peek(6)[:6]
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


def decompressed(file: BufferedReader, name: str, compression: str | None) -> IO[bytes]:
    """The archive's bytes. `name` is for messages. Raises Unavailable."""
    match compression:
        case "gzip":
            import gzip

            return BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), MIB)
        case "bzip2":
            import bz2

            return bz2.BZ2File(file)
        case "xz":
            import lzma

            return lzma.LZMAFile(file)
        case "zstd":
            return _open_zstd(file, name)
    return file


def _open_zstd(file: BufferedReader, name: str) -> IO[bytes]:
    try:
        from importlib import import_module

        opened: IO[bytes] = import_module("compression.zstd").ZstdFile(file)
    except ImportError:
        raise Unavailable(
            f"{name} is compressed with zstd, which Python knows from 3.14 on",
            hint="zstd -dc ARCHIVE | pfs put --tar - TARGET",
        ) from None
    return opened
