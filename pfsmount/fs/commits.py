"""Places that never change: the directories of one commit, and the files and symlinks of all commits.

Each name under which a commit is reached has directories of its own, because the kernel takes one directory inode under two names for a mistake.
Files are shared: the same content with the same attributes is one inode, whichever commits it is in, and so it is in the page cache
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pfsmount.fs.listings import Listings, Told
from pfsmount.fs.places import FOREVER, INO_MASK, ROOT_INO, Encoder, Found, OpenFile, Place, entry_facts
from pfsmount.ids import RESERVED_ROOT_NAME, ObjectId
from pfsmount.objects.reading import Reader
from pfsmount.repo.overlay_nodes import STAT_BLOCK, Attributes, NodeKind, Stale, node_kind
from pfsmount.tree.content import Content, PieceCheck, open_content
from pfsmount.tree.directory import Lookups, rows
from pfsmount.tree.entry import Entry, Kind, decode_entry, is_directory, plain_file
from pfsmount.tree.xattrs import load_xattrs

_DIRECTORY_SIZE = 4096
_WRITE_FLAGS = 3  # O_WRONLY | O_RDWR


def entry_attributes(ino: int, entry: Entry) -> Attributes:
    """What stat shows of an entry that cannot change."""
    if entry.kind is Kind.DIRECTORY:
        return Attributes(
            ino,
            NodeKind.DIRECTORY,
            entry.mode,
            1,
            entry.uid,
            entry.gid,
            _DIRECTORY_SIZE,
            entry.mtime_ns,
            entry.mtime_ns,
            0,
        )
    size = entry.size
    return Attributes(
        ino,
        node_kind(entry),
        entry.mode,
        1,
        entry.uid,
        entry.gid,
        size,
        entry.mtime_ns,
        entry.mtime_ns,
        -(-size // STAT_BLOCK),
    )


class _File:
    """A file or symlink: its entry as it is stored, which takes a third of the memory of a decoded one."""

    __slots__ = ("commit", "content", "extra", "fixed", "ino", "lookups", "opens")

    def __init__(self, ino: int, fixed: bytes, extra: bytes, commit: ObjectId) -> None:
        self.ino = ino
        self.fixed = fixed
        self.extra = extra
        self.commit = commit
        """The first in which the kernel met it. Others may have the same file, which is this inode there too."""
        self.lookups = 0
        self.opens = 0
        self.content: Content | None = None

    @property
    def entry(self) -> Entry:
        return decode_entry(self.fixed, self.extra)

    def attributes(self) -> Attributes:
        """What stat shows."""
        plain = plain_file(self.fixed, self.extra)
        if plain is None:
            return entry_attributes(self.ino, self.entry)
        mode, uid, gid, time_ns, size = plain
        return Attributes(self.ino, NodeKind.FILE, mode, 1, uid, gid, size, time_ns, time_ns, -(-size // STAT_BLOCK))


class FilesPlace(Place):
    """Files and symlinks of all commits."""

    def __init__(self, number: int, reader: Reader) -> None:
        super().__init__(number)
        self.reader = reader
        self._files: dict[int, _File] = {}

    @property
    def title(self) -> str:
        return "a file of a commit"

    def find(self, fixed: bytes, extra: bytes, commit: ObjectId) -> _File:
        """The file of an entry in a commit, known or new; a new one is entered by `tell`."""
        number = hash((fixed, extra) if extra else fixed) & INO_MASK
        while True:
            known = self._files.get(number)
            if number > ROOT_INO:
                if known is None:
                    return _File(number, fixed, extra, commit)
                if known.fixed == fixed and known.extra == extra:
                    return known
            number = (number + 1) & INO_MASK

    def tell(self, file: _File) -> None:
        """Count a lookup of a file."""
        if not file.lookups:
            # in one listing two names may be the same new file
            file = self._files.setdefault(file.ino, file)
        file.lookups += 1

    def is_free(self, file: _File) -> bool:
        """Whether the number of a file that was told of before is still, or again, its own."""
        return self._files.get(file.ino, file) is file

    def _file(self, ino: int) -> _File:
        known = self._files.get(ino)
        if known is None:
            raise Stale("the file is not known any more")
        return known

    def describe(self, ino: int) -> str:
        known = self._files.get(ino)
        return f"a file of a commit, {known.entry.id.hex()}" if known is not None else super().describe(ino)

    def found(self, ino: int) -> Found:
        return Found(self.prefix | ino, self._file(ino).attributes(), FOREVER)

    def forget(self, ino: int, count: int) -> None:
        known = self._files.get(ino)
        if known is not None:
            known.lookups -= count
            self._drop(ino, known)

    def _drop(self, ino: int, known: _File) -> None:
        if known.lookups <= 0 and not known.opens:
            del self._files[ino]

    def readlink(self, ino: int) -> bytes:
        return self._file(ino).entry.target or b""

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return load_xattrs(self.reader, self._file(ino).entry)

    def facts(self, ino: int) -> dict[bytes, bytes]:
        known = self._file(ino)
        return entry_facts(known.entry, known.commit)

    def open(self, ino: int, flags: int, uid: int) -> OpenFile:
        if flags & _WRITE_FLAGS:
            raise self.refuse()
        known = self._file(ino)
        if known.content is None:
            known.content = open_content(self.reader, known.entry)
        known.opens += 1
        return CommitFile(self, ino, known.content)

    def closed(self, ino: int) -> None:
        """End one `open`."""
        known = self._files[ino]
        known.opens -= 1
        if not known.opens:
            known.content = None
            self._drop(ino, known)


class CommitFile(OpenFile):
    """An open file of a commit."""

    __slots__ = ("_content", "_ino", "read_nowait")

    def __init__(self, place: FilesPlace, ino: int, content: Content) -> None:
        super().__init__(place)
        self._ino = ino
        self._content = content
        self.read_nowait = content.read_nowait  # type: ignore[method-assign]

    def unchecked(self, offset: int, size: int) -> PieceCheck | None:
        return self._content.unchecked(offset, size)

    def pieces_of(self, offset: int, size: int) -> list[PieceCheck]:
        return self._content.pieces_of(offset, size)

    def reading(self, offset: int, size: int) -> ContentReading:
        return ContentReading(self._content, offset, size)

    def close(self) -> None:
        assert isinstance(self.place, FilesPlace)
        self.place.closed(self._ino)


class ContentReading:
    """A read of something immutable."""

    __slots__ = ("_content", "_offset", "_size")

    def __init__(self, content: Content, offset: int, size: int) -> None:
        self._content, self._offset, self._size = content, offset, size

    def __enter__(self) -> ContentReading:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self) -> bytes:
        """Raises OSError, Corrupt."""
        return self._content.read(self._offset, self._size)


class _Directory:
    __slots__ = ("entry", "ino", "lookups", "name", "parent")

    def __init__(self, ino: int, entry: Entry, parent: _Directory | None, name: bytes) -> None:
        self.ino = ino
        self.entry = entry
        self.parent = parent
        self.name = name
        self.lookups = 0


class CommitPlace(Place):
    """The directories of one commit under one name."""

    def __init__(
        self,
        number: int,
        name: str,
        commit: ObjectId,
        root: Entry,
        files: FilesPlace,
        listings: Listings,
        unused: Callable[[CommitPlace], None],
        controls: Place | None = None,
    ) -> None:
        """`unused` is called when the kernel has forgotten all of it. `controls`: the place whose root is `.pfs`."""
        super().__init__(number)
        self.name = name
        self.commit = commit
        self.controls = controls
        self._files = files
        self._reader = files.reader
        self._listings = listings
        self._lookups = Lookups()
        self._unused = unused
        self._root = _Directory(ROOT_INO, root, None, b"")
        self._directories: dict[int, _Directory] = {ROOT_INO: self._root}

    @property
    def title(self) -> str:
        return self.name

    def describe(self, ino: int) -> str:
        names = []
        at = self._directories.get(ino)
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return "/".join([self.name, *(repr(name)[2:-1] for name in reversed(names))])

    def parent(self, ino: int) -> int:
        above = self._directory(ino).parent
        return ROOT_INO if above is None or above.ino not in self._directories else above.ino

    def tell_root(self) -> Found:
        """The root directory, with a lookup counted."""
        self._root.lookups += 1
        return self.found(ROOT_INO)

    def _directory(self, ino: int) -> _Directory:
        directory = self._directories.get(ino)
        if directory is None:
            raise Stale("the directory is not known any more")
        return directory

    def _child(self, parent: _Directory, name: bytes, entry: Entry) -> _Directory:
        ino = hash((parent.ino, name)) & INO_MASK
        while True:
            known = self._directories.get(ino)
            if known is None and ino > ROOT_INO:
                return _Directory(ino, entry, parent, name)
            if known is not None and known.name == name and known.parent is not None and known.parent.ino == parent.ino:
                return known
            ino = (ino + 1) & INO_MASK

    def lookup(self, parent: int, name: bytes) -> Found | None:
        directory = self._directory(parent)
        if name == RESERVED_ROOT_NAME and directory is self._root and self.controls is not None:
            return self.controls.lookup(ROOT_INO, b".")
        item = self._lookups.item(self._reader, directory.entry.id, name)
        if item is None:
            return None
        key = self._key(directory, *item)
        self._told(key)
        return self._show(key)

    negative_timeout = FOREVER

    def _key(self, parent: _Directory, name: bytes, fixed: bytes, extra: bytes) -> _File | _Directory:
        """What an entry of a directory is here."""
        if is_directory(fixed):
            return self._child(parent, name, decode_entry(fixed, extra))
        return self._files.find(fixed, extra, self.commit)

    def _show(self, key: _File | _Directory) -> Found:
        if isinstance(key, _File):
            return Found(self._files.prefix | key.ino, key.attributes(), FOREVER)
        return Found(self.prefix | key.ino, entry_attributes(key.ino, key.entry), FOREVER)

    def _is_free(self, key: object) -> bool:
        """Whether what was told of before has its number still, or can have it again."""
        if isinstance(key, _File):
            return self._files.is_free(key)
        assert isinstance(key, _Directory)
        return self._directories.get(key.ino, key) is key

    def _told(self, key: _File | _Directory) -> None:
        """Count a lookup."""
        if key.lookups:
            key.lookups += 1
        elif isinstance(key, _File):
            self._files.tell(key)
        else:
            self._directories[key.ino] = key
            key.lookups = 1

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        directory = self._directory(ino)
        id = directory.entry.id
        listing = self._listings.begin(self.prefix | ino, id, after)
        for item in listing.read(partial(rows, self._reader, id), after):
            key: _File | _Directory
            if isinstance(item, Told):
                if self._is_free(item.key):
                    yield item
                    self._told(item.key)
                    continue
                key = self._again(directory, item)
                shown = encoder.encode(self._show(key))
            else:
                name, fixed, extra, plain = item
                if plain is None:
                    key = self._key(directory, name, fixed, extra)
                    shown = encoder.encode(self._show(key))
                else:
                    key = self._files.find(fixed, extra, self.commit)
                    shown = encoder.encode_file(self._files.prefix | key.ino, *plain)
            told = Told(item[0], shown, key)
            yield told
            self._told(key)
            listing.told(told)
            listing.passed(told.name)

    def _again(self, parent: _Directory, told: Told) -> _File | _Directory:
        """An entry that was told of before, when another has its number."""
        key = told.key
        if isinstance(key, _File):
            return self._files.find(key.fixed, key.extra, self.commit)
        assert isinstance(key, _Directory)
        return self._child(parent, told.name, key.entry)

    def found(self, ino: int) -> Found:
        return Found(self.prefix | ino, entry_attributes(ino, self._directory(ino).entry), FOREVER)

    def forget(self, ino: int, count: int) -> None:
        directory = self._directories.get(ino)
        if directory is None:
            return
        directory.lookups -= count
        if directory.lookups <= 0:
            if directory is not self._root:
                del self._directories[ino]
            if len(self._directories) == 1 and self._root.lookups <= 0:
                self._unused(self)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return load_xattrs(self._reader, self._directory(ino).entry)

    def facts(self, ino: int) -> dict[bytes, bytes]:
        return entry_facts(self._directory(ino).entry, self.commit)
