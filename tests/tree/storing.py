"""Storing a local file as `pfs put` does."""

from __future__ import annotations

from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.ingest import ingest_fd

MIB = 1 << 20


def store_file(objects: ObjectStore, path: Path, previous: ObjectId | None = None) -> tuple[ObjectId, int, int]:
    """Id, size, and how many bytes the store grew by."""
    with objects.batch() as batch, open(path, "rb") as file:
        id, size = ingest_fd(batch, file.fileno(), previous=previous)
        batch.flush()
        return id, size, batch.bytes_added
