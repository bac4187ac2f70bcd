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
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import cast

import lmdb

from pfsmount.errors import Busy, Corrupt, NoSpace, PermissionDenied, PfsError

_COUNTER = struct.Struct("<Q")
_END_S = 5.0
"""For transactions to end before the index is opened anew."""
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

    def pages(self) -> int:
        """Pages that the tables take."""
        stats = [self._txn.stat(db) for db in self._tables.values()]
        return sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)

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
        self._path, self._map_size, self._names, self._durable = path, map_size, tables, durable
        self._env: lmdb.Environment | None = None
        self._users = 0
        """Transactions that are open, or about to be."""
        self._lock = Lock()
        try:
            with _lmdb_errors("opening the index"):
                self._open()
        except BaseException:
            os.close(self._openers)
            raise

    def _open(self) -> None:
        env = lmdb.open(
            os.fsencode(self._path),  # it would encode a str as UTF-8, which not every name is
            map_size=_map_size(self._map_size),
            max_dbs=len(self._names) + 6,
            max_readers=_MAX_READERS,
            mode=0o600,
            meminit=False,
            sync=self._durable,
            metasync=self._durable,
        )
        try:
            # One transaction: when the tables are new, all are there or none. A write transaction, so whoever opens waits for the writer of the moment: py-lmdb opens a table in a
            # read transaction too, but resets such transactions instead of committing them, and LMDB closes the table with that (the next use is EINVAL). Only an environment that is
            # opened read-only commits them, and that cannot write until it is closed, under all readers of this process. It is 24 µs where nobody writes.
            with env.begin(write=True) as txn:
                self._tables = {table: env.open_db(table.value, txn=txn) for table in self._names}
            env.reader_check()
        except BaseException:
            env.close()
            raise
        self._env = env

    @contextmanager
    def _transaction(self, what: str, write: bool) -> Iterator[Transaction]:
        self._check_process()
        with self._lock:
            self._users += 1
        try:
            with self._begin(write) as txn:
                yield Transaction(txn, self._tables)
        except lmdb.Error as error:
            raise _translated(error, what) from error
        finally:
            with self._lock:
                self._users -= 1

    def _begin(self, write: bool) -> lmdb.Transaction:
        """Where the disk failed as LMDB wrote its meta page, it begins no transaction any more (MDB_PANIC) until its environment was closed: it is opened anew
        then, so that a mount goes on when its disk does."""
        env = self._env
        if env is not None:
            try:
                return env.begin(write=write)
            except lmdb.PanicError:
                pass
        self._open_again(env)
        assert self._env is not None
        return self._env.begin(write=write)

    def _open_again(self, failed: lmdb.Environment | None) -> None:
        """Called in place of a transaction that could not begin. Raises lmdb.Error when the disk still fails, or a transaction does not end."""
        with self._lock:
            self._users -= 1  # those that wait here are in no transaction
        try:
            give_up = time.monotonic() + _END_S
            while True:
                with self._lock:
                    if self._env is not failed:
                        return
                    if not self._users:
                        self._env = None
                        if failed is not None:
                            failed.close()
                        self._open()
                        return
                if time.monotonic() > give_up:
                    raise lmdb.PanicError("the disk failed, and somebody is still reading")
                time.sleep(0.001)
        finally:
            with self._lock:
                self._users += 1

    def close(self) -> None:
        """Close; any number of times."""
        if self._openers >= 0:
            if os.getpid() == self._pid and self._env is not None:
                self._env.close()
            os.close(self._openers)
            self._openers = -1

    def _check_process(self) -> None:
        if os.getpid() != self._pid:  # locks and reader slots are the other process's
            raise _forked_error()

    def sync(self) -> None:
        """Make everything durable; only of use where the index was opened as not durable. Raises NoSpace."""
        with _lmdb_errors("writing the index"):
            if self._env is None:
                raise lmdb.PanicError("the disk failed, and the index could not be opened again")
            self._env.sync(True)

    def used_bytes(self) -> int:
        """Bytes of the pages in use; the file also has free ones, which later changes use again."""
        with self.read() as txn:
            assert self._env is not None
            top = self._env.stat()
            return (top["branch_pages"] + top["leaf_pages"] + top["overflow_pages"] + txn.pages()) * top["psize"]

    def read(self) -> AbstractContextManager[Transaction]:
        """A consistent view of all tables."""
        return self._transaction("reading the index", write=False)

    def write(self) -> AbstractContextManager[Transaction]:
        """A durable change of any tables: all of it when the block ends, none when it raises.

        Raises NoSpace when the disk is full.
        """
        return self._transaction("writing the index", write=True)

    def get(self, table: Table, key: bytes) -> bytes | None:
        """One value, in a transaction of its own. As `read`, written out: by its context manager this would take twice the time, for each file that is opened."""
        self._check_process()
        with self._lock:
            self._users += 1
        try:
            with self._begin(write=False) as txn:
                return _bytes(txn.get(key, db=self._tables[table]))
        except lmdb.Error as error:
            raise _translated(error, "reading the index") from error
        finally:
            with self._lock:
                self._users -= 1


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
    except lmdb.Error as error:
        raise _translated(error, what) from error


def _translated(error: lmdb.Error, what: str) -> PfsError:
    if isinstance(error, lmdb.MapFullError):
        return NoSpace(f"the index is full while {what}")
    if isinstance(error, (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)):
        return Corrupt(
            f"the index is damaged ({error})",
            hint="'pfs fsck --rebuild-index' makes it anew from segments and refs.log, which hold all that it did",
        )
    if isinstance(error, lmdb.ReadersFullError):
        return Busy(f"more than {_MAX_READERS} readers use the store at once", hint="try again")
    if isinstance(error, (lmdb.LockError, lmdb.ReadonlyError)):
        return PermissionDenied(f"the index cannot be used: {error}")
    if isinstance(error, lmdb.DiskError):
        return NoSpace(f"no space left while {what}; nothing was changed")
    text = str(error)
    if "No space left" in text or "quota" in text:
        return NoSpace(
            f"no space left while {what}; nothing was changed",
            hint="free some space and run the command again",
        )
    if "Input/output error" in text:  # how LMDB reports a full disk at the end of a transaction, too
        return NoSpace(
            f"the disk is full or failing while {what}; nothing was changed",
            hint="see if there is space ('df'), and in 'dmesg' if the disk is well",
        )
    if "Permission denied" in text:
        return PermissionDenied(f"no permission on the index while {what}")
    if "already open in this process" in text:  # by itself, or, as LMDB cannot tell, by the one that forked it
        return PfsError(
            f"{what} failed: this process, or the one that forked it, has the store open already",
            hint="use what is open; a forked process cannot: start it with 'spawn' or 'forkserver'",
        )
    return PfsError(f"{what} failed: {error}")


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
