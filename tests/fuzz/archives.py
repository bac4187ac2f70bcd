"""Small archives of every kind that can be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile


def _made(format: int, *, long: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name in ("a", "d/b", "x" * 150 if long else "c"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 5, 1_700_000_000
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}
            tar.addfile(info, io.BytesIO(b"12345"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"kind-{kind.decode()}")
            info.type, info.linkname = kind, "a"
            tar.addfile(info)
    return out.getvalue().rstrip(b"\0") + bytes(1024)


def sparse_old() -> bytes:
    """A file with holes as old GNU tars write it."""
    info = tarfile.TarInfo("sparse")
    info.type, info.size = b"S", 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (1024, 512)
    header[410:434] = b"%011o\0%011o\0" % (4096, 0)
    header[483:495] = b"%011o\0" % 4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"d" * 512 + bytes(1024)


def sparse_pax(table: bytes = b"1\n1024\n512\n", size: int = 4096) -> bytes:
    """A file with holes as GNU tar writes it today."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/sparse")
        data = table + bytes(-len(table) % 512) + b"d" * 512
        info.size = len(data)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "sparse",
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue().rstrip(b"\0") + bytes(1024)


_PLAIN = [_made(tarfile.USTAR_FORMAT), _made(tarfile.GNU_FORMAT, long=True), _made(tarfile.PAX_FORMAT, long=True)]
ARCHIVES = [
    *_PLAIN,
    sparse_old(),
    sparse_pax(),
    gzip.compress(_PLAIN[0], mtime=0),
    bz2.compress(_PLAIN[0]),
    lzma.compress(_PLAIN[0]),
]
