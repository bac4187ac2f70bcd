"""The object store: put bytes in, get them back by id.

Invariants
1. The index names only bytes that were fsynced before.
2. Data is durable before the table of contents that names it, that before the index entry, that before any ref.
3. Nothing that is published moves or changes, except by gc.

What keeps 1 and 2 is the order of a batch (`objects.batch`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import OpenObjects


class ObjectStore(OpenObjects):
    """One process' opening of a store's objects. Thread-safe; not usable after a fork."""

    def batch(self, *, repeatable: bool = True) -> Batch:
        """A new batch of objects (a context manager)."""
        return Batch(self, repeatable=repeatable)


@contextmanager
def open_objects(path: Path, settings: StoreSettings = DEFAULT_SETTINGS) -> Iterator[ObjectStore]:
    """An object store for the length of a block."""
    store = ObjectStore(path, settings)
    try:
        yield store
    finally:
        store.close()
