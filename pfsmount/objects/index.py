"""The index: LMDB, and the only module that knows it.

Every table can be rebuilt from segments, `refs.log` and worktrees. Keys and values are bytes; the layer that owns a
table encodes them.

| table | key | value |
|---|---|---|
| objects | id (32) | segment u32, offset u48, record kind u16, length u32 (`objects.segment`) |
| segments | number u32 BE | `objects.segment.SegmentRow` |
| repos | name | JSON (`repo.refs`) |
| refs | repo id (8), kind u8, name | commit id (32), n u64 (`repo.refs`) |
| reflog | n u64 BE | JSON line (`repo.reflog`) |
| commits | repo id (8), commit id (32) | height u64 |
| worktrees | repo id (8), branch, `+`, name | generation u64, base commit id (32) |
| results | datum key (32) | a tree entry, last use |
| descends | input commit id, output commit id | repo id (8) of the output |
| meta | name | u64 counters `segment`, `gc`, `refs`, `roots`; `open`, kind u8, number u32 BE: an unsealed segment |

The table `stats` is in an environment of its own, which is no part of the index (`repo.stat_cache`).

Rules: one environment per process, never used across a fork; a transaction never spans I/O other than its own, hashing or an `await`; a
read transaction lives for one call; a write transaction is short (see `StoreSettings.publish_entries`), because it holds the
store's only writer lock.
"""

from __future__ import annotations

import enum
import fcntl
import os
import resource
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import cast

import lmdb

from pfsmount.errors import Busy, Corrupt, NoSpace, PermissionDenied, PfsError

_COUNTER = struct.Struct("<Q")
_MAX_READERS = 1024
_REBUILDING = b"rebuilding"


class Table(enum.Enum):
    """The named tables."""

    OBJECTS = b"objects"
    SEGMENTS = b"segments"
    REPOS = b"repos"
    REFS = b"refs"
    REFLOG = b"reflog"
    COMMITS = b"commits"
    WORKTREES = b"worktrees"
    RESULTS = b"results"
    DESCENDS = b"descends"
    STATS = b"stats"
    META = b"meta"


INDEX_TABLES = tuple(table for table in Table if table is not Table.STATS)


class Transaction:
    """A view of all tables at one instant; in a write transaction also the way to change them."""

    __slots__ = ("_tables", "_txn")

    def __init__(self, txn: lmdb.Transaction, tables: dict[Table, lmdb._Database]) -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value at `key`, or None."""
        return _bytes(self._txn.get(key, db=self._tables[table]))

    def put(self, table: Table, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        """Store a value; False when it was there and `overwrite` is off."""
        return bool(self._txn.put(key, value, db=self._tables[table], overwrite=overwrite))

    def put_new(self, table: Table, pairs: Sequence[tuple[bytes, bytes]]) -> bool:
        """Store pairs, in the order of their keys for speed; those whose key is there stay as they are: then False."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            _, added = cursor.putmulti(pairs, dupdata=False, overwrite=False)
            return bool(added == len(pairs))

    def get_many(self, table: Table, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values at those of the keys that the table has."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            return dict(cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys)))

    def known(self, table: Table, keys: Sequence[bytes]) -> set[bytes]:
        """Which of the keys the table has."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            return {key for key, _ in cast("list[tuple[bytes, bytes]]", cursor.getmulti(keys))}

    def delete(self, table: Table, key: bytes) -> bool:
        """Remove a key; False when it was not there."""
        return bool(self._txn.delete(key, db=self._tables[table]))

    def scan(self, table: Table, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key begins with `prefix`, in key order, from the first key >= `start`."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(max(prefix, start)):
                return
            for key, value in cast("Iterator[tuple[bytes, bytes]]", cursor):
                if not key.startswith(prefix):
                    return
                yield key, value

    def some(self, table: Table, start: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Up to `count` pairs in key order, from the first key >= `start`: a third of the time of `scan`."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(start):
                return []
            return list(islice(cast("Iterator[tuple[bytes, bytes]]", cursor), count))

    def last(self, table: Table) -> tuple[bytes, bytes] | None:
        """The pair with the greatest key, or None."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            return cast("tuple[bytes, bytes]", cursor.item()) if cursor.last() else None

    def count(self, table: Table) -> int:
        """How many pairs a table has."""
        return int(self._txn.stat(self._tables[table])["entries"])

    def counter(self, name: bytes) -> int:
        """The value of a counter in the meta table; 0 before its first use."""
        value = self.get(Table.META, name)
        return 0 if value is None else int(_COUNTER.unpack(value)[0])

    def increment(self, name: bytes) -> int:
        """Add one to a counter and return its new value."""
        value = self.counter(name) + 1
        self.put(Table.META, name, _COUNTER.pack(value))
        return value


class Index:
    """One process' opening of a store's LMDB environment. Thread-safe; not usable after a fork."""

    def __init__(
        self, path: Path, map_size: int, tables: Sequence[Table] = INDEX_TABLES, *, durable: bool = True
    ) -> None:
        """Open, creating what is missing but the directory. Not `durable`: only `sync` makes changes so.

        Raises Busy, Corrupt, NoSpace, PermissionDenied.
        """
        self._pid = os.getpid()
        self._openers = _join_openers(path)
        try:
            with _lmdb_errors("opening the index"):
                self._env = lmdb.open(
                    os.fsencode(path),  # it would encode a str as UTF-8, which not every name is
                    map_size=_map_size(map_size),
                    max_dbs=len(tables) + 6,
                    max_readers=_MAX_READERS,
                    mode=0o600,
                    meminit=False,
                    sync=durable,
                    metasync=durable,
                )
                # One transaction: when the tables are new, all are there or none. A write transaction, so whoever opens waits for the writer of the moment: py-lmdb opens a table in a
                # read transaction too, but resets such transactions instead of committing them, and LMDB closes the table with that (the next use is EINVAL). Only an environment that is
                # opened read-only commits them, and that cannot write until it is closed, under all readers of this process. It is 24 µs where nobody writes.
                with self._env.begin(write=True) as txn:
                    self._tables = {table: self._env.open_db(table.value, txn=txn) for table in tables}
                self._env.reader_check()
        except BaseException:
            os.close(self._openers)
            raise

    def close(self) -> None:
        """Close; any number of times."""
        if self._openers >= 0:
            if os.getpid() == self._pid:
                self._env.close()
            os.close(self._openers)
            self._openers = -1

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # locks and reader slots are the other process's
            raise _forked_error()

    def sync(self) -> None:
        """Make everything durable; only of use where the index was opened as not durable. Raises NoSpace."""
        with _lmdb_errors("writing the index"):
            self._env.sync(True)

    def used_bytes(self) -> int:
        """Bytes of the pages in use; the file also has free ones, which later changes use again."""
        with _lmdb_errors("reading the index"), self._env.begin() as txn:
            stats = [self._env.stat(), *(txn.stat(db) for db in self._tables.values())]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return int(pages * stats[0]["psize"])

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view of all tables."""
        self._check_process()
        with _lmdb_errors("reading the index"), self._env.begin() as txn:
            yield Transaction(txn, self._tables)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A durable change of any tables: all of it when the block ends, none when it raises.

        Raises NoSpace when the disk is full.
        """
        self._check_process()
        with _lmdb_errors("writing the index"), self._env.begin(write=True) as txn:
            yield Transaction(txn, self._tables)

    def get(self, table: Table, key: bytes) -> bytes | None:
        """One value, in a transaction of its own."""
        self._check_process()
        with _lmdb_errors("reading the index"), self._env.begin(db=self._tables[table]) as txn:
            return _bytes(txn.get(key))


def _forked_error() -> PfsError:
    return PfsError(
        "this process was forked by one that has the store open, so it cannot use the store",
        hint="fork before the store is opened, or start a new process (multiprocessing: 'spawn' or 'forkserver')",
    )


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return cast("bytes | None", value)  # environments are opened without buffers=True


@contextmanager
def _lmdb_errors(what: str) -> Iterator[None]:
    try:
        yield
    except lmdb.MapFullError as error:
        raise NoSpace(f"the index is full while {what}") from error
    except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError) as error:
        raise Corrupt(
            f"the index is damaged ({error})",
            hint="'pfs fsck --rebuild-index' makes it anew from segments and refs.log, which hold all that it did",
        ) from error
    except lmdb.ReadersFullError as error:
        raise Busy(f"more than {_MAX_READERS} readers use the store at once", hint="try again") from error
    except (lmdb.LockError, lmdb.ReadonlyError) as error:
        raise PermissionDenied(f"the index cannot be used: {error}") from error
    except lmdb.DiskError as error:
        raise NoSpace(f"no space left while {what}; nothing was changed") from error
    except lmdb.Error as error:
        text = str(error)
        if "No space left" in text or "quota" in text:
            raise NoSpace(
                f"no space left while {what}; nothing was changed",
                hint="free some space and run the command again",
            ) from error
        if "Input/output error" in text:  # how LMDB reports a full disk at the end of a transaction, too
            raise NoSpace(
                f"the disk is full or failing while {what}; nothing was changed",
                hint="see if there is space ('df'), and in 'dmesg' if the disk is well",
            ) from error
        if "Permission denied" in text:
            raise PermissionDenied(f"no permission on the index while {what}") from error
        if "already open in this process" in text:  # by itself, or, as LMDB cannot tell, by the one that forked it
            raise PfsError(
                f"{what} failed: this process, or the one that forked it, has the store open already",
                hint="use what is open; a forked process cannot: start it with 'spawn' or 'forkserver'",
            ) from error
        raise PfsError(f"{what} failed: {error}") from error


def _map_size(wanted: int) -> int:
    """`wanted`, or what `ulimit -v` leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(soft // 4, 1 << 24))


def _join_openers(path: Path) -> int:
    """Take a shared lock that lives as long as this opening, and check that all openers share one PID namespace.

    LMDB's lock file names readers by pid: a process from another PID namespace would reap readers that live. Whoever is
    alone writes its namespace down; everybody else compares. Returns the descriptor that holds the lock. Raises Busy.
    """
    while True:
        fd = _open_openers(path)
        try:
            mine = _pid_namespace()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(fd, mine, 0)
                os.ftruncate(fd, len(mine))
            except BlockingIOError:
                if os.pread(fd, 256, 0).startswith(_REBUILDING):
                    raise Busy("the index of the store is being rebuilt", hint="wait for 'pfs fsck'") from None
            fcntl.flock(fd, fcntl.LOCK_SH)  # not atomic from exclusive: hence the comparison for everybody
            if not _is_current(path, fd):  # the index was replaced while we waited
                os.close(fd)
                continue
            if os.pread(fd, 256, 0) != mine:
                raise Busy(
                    "the store is open in another PID namespace (a container or sandbox)",
                    hint="use it from one side at a time, or share the PID namespace (podman run --pid=host)",
                )
            return fd
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise


def _open_openers(path: Path) -> int:
    try:
        return os.open(path / "openers", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise Corrupt(
            f"the index '{path}' is missing",
            hint="'pfs fsck --rebuild-index' makes it anew from segments and refs.log, which hold all that it did",
        ) from None
    except OSError as error:
        raise PermissionDenied(f"the index cannot be opened: {error.strerror}") from error


def _is_current(path: Path, fd: int) -> bool:
    try:
        return os.stat(path / "openers").st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


@contextmanager
def exclusive_index(path: Path) -> Iterator[None]:
    """Keep everybody from opening the index in this directory, which may be renamed meanwhile. Raises Busy, PermissionDenied."""
    fd = _open_openers(path)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                "the store is in use",
                hint="unmount it ('pfs mounts' lists where), wait for what else uses it, and run the command again",
            ) from None
        os.pwrite(fd, _REBUILDING, 0)
        os.ftruncate(fd, len(_REBUILDING))
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _pid_namespace() -> bytes:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}".encode("ascii")
    except OSError:
        return b"unknown"
