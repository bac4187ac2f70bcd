"""Members of a tar archive, in the order in which they come, from a stream that is read once.

The formats are those that `tarfile` knows (v7, ustar, pax, GNU with its three ways to write holes). It is stricter than `tarfile`: an
archive that ends before its end marker was cut short, and a header in the middle that is none is damage. Both are errors
here, while `tarfile` takes them for the end. And it decompresses by itself, so that the checksums of gzip and xz count.
"""

from __future__ import annotations

import base64
import enum
import struct
import tarfile
import zlib
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from io import BufferedReader
from typing import Any
from urllib.parse import unquote_to_bytes

from pfsmount.config import MIB
from pfsmount.errors import InvalidInput, PfsError
from pfsmount.ids import RepoPath, display, parse_entry_name
from pfsmount.repo.decompression import compression_of, decompressed
from pfsmount.tree.manifest import HOLE_MIN

_HEADER_MAX = 16 * MIB
"""Bytes of one extended header. GNU tar and bsdtar stop far below."""
_HEADERS_MAX = 16 * MIB
"""Bytes of all that stands before the data of one member, a map of holes included: a compressed archive costs nothing to make, what it says takes memory here."""
_BLOCK_COST = 4
"""What a byte of a map costs, next to one of other headers: 4 MiB of it are twice what `get --tar` writes for the most holes."""
_NESTED_MAX = 16
_GLOBAL_MAX = MIB
_NAME_MAX = 64 * 1024
"""Bytes of a member's name. No tar can take out what has more than 4095; each name on the way takes memory here."""
_SCHILY, _LIBARCHIVE = "SCHILY.xattr.", "LIBARCHIVE.xattr."
_NS_DIGITS, _TIME_DIGITS, _SIZE_DIGITS = 9, 18, 20
_ID_MAX = (1 << 32) - 1


class MemberKind(enum.Enum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    OTHER = "device or FIFO"


_KINDS = {
    tarfile.DIRTYPE: MemberKind.DIRECTORY,
    tarfile.SYMTYPE: MemberKind.SYMLINK,
    tarfile.LNKTYPE: MemberKind.HARD_LINK,
    tarfile.CHRTYPE: MemberKind.OTHER,
    tarfile.BLKTYPE: MemberKind.OTHER,
    tarfile.FIFOTYPE: MemberKind.OTHER,
    b"D": MemberKind.DIRECTORY,  # GNU incremental: a directory and the list of what was in it
}
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s88x155s12x")
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE)
_VOLUME_LABEL, _CONTINUED = b"V", b"M"


class ArchiveError(PfsError):
    """An archive that is none, damaged, cut short, or has a member that no tree can hold."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member. Its data is to be read before the next is asked for."""

    name: bytes
    """As it stands in the archive."""
    path: RepoPath
    """Where it goes, relative to the target; empty for the target itself."""
    kind: MemberKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """Bytes, holes included."""
    target: bytes
    """Of a symlink: what it says. Of a hard link: the name of the member that has the data."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    extents: tuple[tuple[int, int], ...] | None = None
    """Start and end of the ranges that have data; None: all of it."""


def member_path(name: bytes) -> tuple[RepoPath, bool]:
    """The path of a member's name, and whether a leading `/` was taken off. Raises ArchiveError for `..` and bad names."""
    if len(name) > _NAME_MAX:
        raise ArchiveError(
            f"the member '{display(name[:80])}…' has a name of {len(name):,} bytes, at most {_NAME_MAX:,} can be"
        )
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ArchiveError(f"the member '{display(name)}' has a '..' in its name, which could lead out of the target")
    try:
        return tuple(parse_entry_name(part) for part in parts), name.startswith(b"/")
    except InvalidInput as error:
        raise ArchiveError(f"the member '{display(name)}' has a name that no directory can hold: {error}") from None


class _Header(tarfile.TarInfo):
    """A header whose damage is an error wherever it stands; `tarfile` takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        """The plain cases in a fifth of the time (measured: half of reading an archive of small files was this); others as ever."""
        if len(buf) == tarfile.BLOCKSIZE and buf[156:157] in _PLAIN_TYPES and buf[257:263] == b"ustar\0":
            name, mode, uid, gid, size, mtime, checksum, kind, target, prefix = _FIELDS.unpack(buf)
            try:
                if any(field[-1] not in b"\0 " for field in (mode, uid, gid, size, mtime)):
                    raise ValueError  # a number that fills its field
                info = cls()
                info.mode, info.uid, info.gid = int(mode[:-1], 8), int(uid[:-1], 8), int(gid[:-1], 8)
                info.size, info.mtime, info.chksum = int(size[:-1], 8), int(mtime[:-1], 8), int(checksum[:6], 8)
                if info.chksum == sum(buf) - sum(checksum) + 8 * 0x20 and b"_" not in buf[100:148]:
                    info.type = kind
                    text = name.partition(b"\0")[0].decode(encoding, errors)
                    before = prefix.partition(b"\0")[0].decode(encoding, errors)
                    info.name = f"{before}/{text}" if before else text
                    if kind == tarfile.DIRTYPE:
                        info.name = info.name.rstrip("/")
                    info.linkname = target.partition(b"\0")[0].decode(encoding, errors)
                    return info
            except ValueError:
                pass  # a number in base 256, or in all of its field, or none
        return super().frombuf(buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        stream: _Stream = tarfile_.fileobj
        stream.nested += 1
        try:
            if stream.nested > _NESTED_MAX:
                raise stream.damaged("too many extended headers in a row")
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if stream.at <= tarfile.BLOCKSIZE:
                raise stream.no_archive() from None
            raise stream.damaged(str(error)) from None
        finally:
            stream.nested -= 1


class _Stream:
    """What `tarfile` reads from: forward only; the end of the file inside the archive is an error."""

    def __init__(self, file: BufferedReader, name: str) -> None:
        if not file.peek(1):
            raise ArchiveError(f"{name} is empty, which is not a tar archive")
        self._compression = compression_of(file)
        self._file = decompressed(file, name, self._compression)
        self.name = name
        self.at = 0
        self.nested = 0
        self.header_bytes = 0
        """Read of the header of one member so far."""

    def damaged(self, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self.name} is damaged at byte {self.at:,} of the archive: {what}; nothing was committed",
            hint=None if self._compression is None else self._how_to_test(),
        )

    def no_archive(self) -> ArchiveError:
        """What to say of a file that does not begin as a tar archive does. (bzip2 checks a block after giving it out.)"""
        if self._compression is None:
            return ArchiveError(f"{self.name} is not a tar archive; nothing was committed")
        return ArchiveError(
            f"{self.name} is damaged, or its {self._compression} data is no tar archive; nothing was committed",
            hint=self._how_to_test(),
        )

    def _cut_short(self) -> ArchiveError:
        if self.at < tarfile.BLOCKSIZE:
            return self.no_archive()
        return ArchiveError(
            f"{self.name} is cut short: it ends at byte {self.at:,} of the archive, without an end marker; "
            "nothing was committed",
            hint="copy it again, or look at the program that wrote it",
        )

    # How far a decompressor came says nothing of where the file is cut or damaged: it gives what it has in large blocks, or not at all.

    def _compressed_cut_short(self) -> ArchiveError:
        return ArchiveError(
            f"{self.name} is cut short: its {self._compression} data ends in the middle; nothing was committed",
            hint=self._how_to_test(),
        )

    def _compressed_damaged(self, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self.name} is damaged: its {self._compression} data cannot be unpacked ({what}); nothing was committed",
            hint=self._how_to_test(),
        )

    def _how_to_test(self) -> str:
        return f"'{self._compression} -t ARCHIVE' tests it; copy it again, or look at the program that wrote it"

    def _some(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except EOFError:
            raise self._compressed_cut_short() from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._compressed_damaged(str(error)) from None  # gzip and bz2 say so when data makes no sense
        except (zlib.error, ValueError) as error:
            raise self._compressed_damaged(str(error)) from None
        except MemoryError:
            raise self._compressed_damaged("it asks for more memory than there is") from None
        except Exception as error:
            if type(error).__name__ not in ("LZMAError", "ZstdError"):
                raise
            raise self._compressed_damaged(str(error)) from None

    def tell(self) -> int:
        return self.at

    def seek(self, to: int) -> None:
        if to < self.at:
            raise self.damaged("a member begins before the last one ended")
        while self.at < to:
            self._whole(min(to - self.at, MIB))

    def read(self, count: int) -> bytes:
        """Bytes of a header."""
        if not 0 <= count <= _HEADER_MAX:
            raise self.damaged(f"a header of {count:,} bytes")
        self.header_bytes += (
            count if count > tarfile.BLOCKSIZE else _BLOCK_COST * count
        )  # a map of holes comes by blocks
        if self.header_bytes > _HEADERS_MAX:
            raise self.damaged(f"more than {_HEADERS_MAX:,} bytes of headers for one member")
        return self._whole(count)

    def _whole(self, count: int) -> bytes:
        data = self._some(count)
        while len(data) < count:
            more = self._some(count - len(data))
            if not more:
                self.at += len(data)
                raise self._cut_short()
            data += more
        self.at += count
        return data

    def fill(self, view: memoryview) -> None:
        """Fill `view`."""
        done = 0
        while done < len(view):
            data = self._some(min(len(view) - done, MIB))
            if not data:
                raise self._cut_short()
            view[done : done + len(data)] = data
            done += len(data)
            self.at += len(data)

    def drain(self) -> bool:
        """Read to the end of the file; True when anything but zeros was left."""
        found = False
        while data := self._some(MIB):
            self.at += len(data)
            found = found or data.count(0) < len(data)
        return found


class Archive:
    """An archive that is read from front to back, once."""

    def __init__(self, file: BufferedReader, name: str) -> None:
        """`name` is for messages. Raises ArchiveError, Unavailable."""
        self._stream = _Stream(file, name)
        self.has_more = False
        """After the last member: something stands behind the end marker."""

    @property
    def at(self) -> int:
        """Bytes of the (decompressed) archive that were read."""
        return self._stream.at

    def members(self) -> Iterator[Member]:
        """All members. Raises ArchiveError, OSError."""
        info = self._first()
        while info is not None:
            if info.type == _CONTINUED:
                raise ArchiveError(f"{self._stream.name} is a later volume of an archive in several; join them first")
            if info.type != _VOLUME_LABEL:
                yield self._member(info)
            info = self._next()
        self.has_more = self._stream.drain()

    def _first(self) -> tarfile.TarInfo | None:
        with self._header_errors():
            self._tar = tarfile.TarFile(
                fileobj=self._stream,  # type: ignore[arg-type]
                mode="r",
                tarinfo=_Header,
                encoding="utf-8",
                errors="surrogateescape",
            )
        return self._next()

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.header_bytes = 0
        with self._header_errors():
            info = self._tar.next()
            common = self._tar.pax_headers
            if common and sum(len(key) + len(value) for key, value in common.items()) > _GLOBAL_MAX:
                raise ValueError("more than a MiB of headers for all members")
        self._tar.members.clear()  # type: ignore[attr-defined]  # or it would remember every member
        return info

    def _header_errors(self) -> _HeaderErrors:
        return _HeaderErrors(self._stream)

    def _member(self, info: tarfile.TarInfo) -> Member:
        name = _bytes(info.name)
        path, _ = member_path(name)
        kind = _KINDS.get(info.type, MemberKind.FILE)
        if not (0 <= info.uid <= _ID_MAX and 0 <= info.gid <= _ID_MAX):
            raise ArchiveError(f"the member '{display(name)}' has an owner that Linux cannot have")
        size = info.pax_headers.get("size", "0")
        if (
            info.size < 0 or not size.isdecimal() or len(size) > _SIZE_DIGITS
        ):  # `tarfile` takes 0 for what it cannot read
            raise self._stream.damaged(f"'{display(name)}' has a size that makes no sense")
        extents = None
        sparse: Any = info.sparse  # typeshed has it as bytes; it is the list of offsets and lengths
        if sparse is not None:
            extents = self._extents(name, sparse, info.size)
        return Member(
            name,
            path,
            kind,
            info.mode & 0o7777,
            info.uid,
            info.gid,
            self._mtime_ns(name, info),
            info.size,
            _bytes(info.linkname),
            _xattrs(name, info.pax_headers),
            extents,
        )

    def _mtime_ns(self, name: bytes, info: tarfile.TarInfo) -> int:
        text = info.pax_headers.get("mtime", str(info.mtime))
        try:
            seconds = Decimal(text)
            if not seconds.is_finite() or seconds.adjusted() >= _TIME_DIGITS:
                raise InvalidOperation
        except InvalidOperation:
            raise ArchiveError(
                f"the member '{display(name)}' has a time that makes no sense: {display(text)}"
            ) from None
        return int((seconds * 10**_NS_DIGITS).to_integral_value(ROUND_FLOOR))

    def _extents(self, name: bytes, sparse: list[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        end = 0
        for start, count in sparse:
            if not count:
                continue
            if start < end or count < 0 or start + count > size:
                raise self._stream.damaged(f"the map of the holes of '{display(name)}' makes no sense")
            end = start + count
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        return tuple(found)

    def read(self, member: Member) -> bytes:
        """All bytes of a member that is known to be small. Raises ArchiveError, OSError."""
        data = bytearray(member.size)
        view = memoryview(data)
        for start, end in ((0, member.size),) if member.extents is None else member.extents:
            self._stream.fill(view[start:end])
        return bytes(data)

    def source(self, member: Member) -> MemberSource:
        """A member as a source to store from."""
        return MemberSource(self._stream, member)


class MemberSource:
    """The data of a member, to be read in order; its holes are given back as holes or as zeros."""

    def __init__(self, stream: _Stream, member: Member) -> None:
        self._stream, self._size = stream, member.size
        self._extents = ((0, member.size),) if member.extents is None else member.extents
        self._i = 0

    def _advance(self, offset: int) -> None:
        while self._i < len(self._extents) and self._extents[self._i][1] <= offset:
            self._i += 1

    def read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`, which is where the last read or hole ended. Raises ArchiveError, OSError."""
        count = min(len(view), self._size - offset)
        done = 0
        while done < count:
            at = offset + done
            self._advance(at)
            start, end = self._extents[self._i] if self._i < len(self._extents) else (self._size, self._size)
            stop = min(count, (start if at < start else end) - offset)
            if at < start:
                view[done:stop] = bytes(stop - done)
            else:
                self._stream.fill(view[done:stop])
            done = stop
        return count

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """Start and end of the first hole of at least 64 KiB that ends after `offset`."""
        self._advance(offset)
        for i in range(self._i, len(self._extents) + 1):
            start = self._extents[i - 1][1] if i else 0
            end = self._extents[i][0] if i < len(self._extents) else self._size
            if end - start >= HOLE_MIN and end > offset:
                return max(start, offset), end
        return None


class _HeaderErrors:
    """Whatever `tarfile` raises over bytes that make no sense is damage."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (tarfile.TarError, ValueError, ArithmeticError, LookupError)):
            raise self._stream.damaged(str(error) or type(error).__name__) from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _xattrs(name: bytes, headers: Mapping[str, str]) -> dict[bytes, bytes]:
    encoded = {key[len(_LIBARCHIVE) :]: text for key, text in headers.items() if key.startswith(_LIBARCHIVE)}
    if encoded:  # bsdtar writes both, and the other names with escapes of its own
        return {unquote_to_bytes(_bytes(key)): _from_base64(name, text) for key, text in encoded.items()}
    # GNU tar's escapes: '=' ends a keyword
    return {
        _bytes(key[len(_SCHILY) :]).replace(b"%3D", b"=").replace(b"%25", b"%"): _bytes(text)
        for key, text in headers.items()
        if key.startswith(_SCHILY)
    }


def _from_base64(name: bytes, text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise ArchiveError(f"the member '{display(name)}' has a damaged extended attribute") from None
