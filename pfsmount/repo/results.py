"""Results of datums that ran: datum key → what they left behind, for whoever asks the same again.

| table | key | value |
|---|---|---|
| results | datum key (32) | fixed part (64) and tail of a leaf entry: the datum's directory, named by the key in hex; then last use, u64 BE seconds |

A result is a weak root: gc may drop it by age, and then the datum runs again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pfsmount.errors import Corrupt
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.index import Table
from pfsmount.repo.store import Store
from pfsmount.tree.entry import FIXED, Entry, decode_leaf, encode_leaf

_TIME_BYTES = 8
_TOUCHED_AT_ONCE = 5000
_TOUCH_AFTER_S = 86400


class ResultRow(NamedTuple):
    """A row of the table."""

    key: ObjectId
    entry: Entry
    used_s: int
    """When it was last used, in seconds of Unix time."""

    @classmethod
    def decode(cls, key: ObjectId, raw: bytes) -> ResultRow:
        """Raises Corrupt."""
        name, entry = decode_leaf(raw[: FIXED.size], raw[FIXED.size : -_TIME_BYTES])
        if name != key.hex().encode("ascii"):
            raise Corrupt(f"the result of datum {key.hex()[:12]} has the name of another")
        return cls(key, entry, int.from_bytes(raw[-_TIME_BYTES:], "big"))


def find_result(store: Store, key: ObjectId) -> Entry | None:
    """The directory that a datum with this key left behind, or None. Raises Corrupt."""
    raw = store.objects.index.get(Table.RESULTS, key)
    return None if raw is None else ResultRow.decode(key, raw).entry


def find_results(store: Store, keys: Sequence[ObjectId]) -> dict[ObjectId, Entry]:
    """The same for many keys, with one look into the index; those that are not there are not in it. Raises Corrupt."""
    with store.objects.index.read() as txn:
        rows = txn.get_many(Table.RESULTS, keys)
    return {ObjectId(key): ResultRow.decode(ObjectId(key), raw).entry for key, raw in rows.items()}


def rely_on_results(batch: Batch, keys: bytes) -> None:
    """Let the batch's `publish` raise Collected when gc has dropped one of these results (32 bytes each)."""
    batch.rely_on(Table.RESULTS, keys)


def touch_results(store: Store, keys: bytes) -> None:
    """Note that results were used again, unless they were used today. Raises NoSpace."""
    now = int(time.time())
    for start in range(0, len(keys), 32 * _TOUCHED_AT_ONCE):
        part = [keys[at : at + 32] for at in range(start, min(len(keys), start + 32 * _TOUCHED_AT_ONCE), 32)]
        with store.objects.index.read() as txn:
            rows = txn.get_many(Table.RESULTS, part)
        old = {key for key, raw in rows.items() if int.from_bytes(raw[-_TIME_BYTES:], "big") < now - _TOUCH_AFTER_S}
        if old:
            with store.objects.index.write() as txn:
                for key, raw in txn.get_many(Table.RESULTS, sorted(old)).items():
                    txn.put(Table.RESULTS, key, raw[:-_TIME_BYTES] + now.to_bytes(_TIME_BYTES, "big"))


def save_results(store: Store, batch: Batch, results: Mapping[ObjectId, Entry]) -> None:
    """Make results durable, together with the objects of the batch that they need. Raises NoSpace."""
    batch.prepare()
    now = int(time.time())
    with store.objects.index.write() as txn:
        batch.publish(txn)
        for key, entry in results.items():
            txn.put(Table.RESULTS, key, encode_result(key, entry, now))
    batch.published()


def encode_result(key: ObjectId, entry: Entry, used_s: int) -> bytes:
    """The row of a result that was last used at this time (seconds)."""
    return b"".join(encode_leaf(key.hex().encode("ascii"), entry)) + used_s.to_bytes(_TIME_BYTES, "big")
