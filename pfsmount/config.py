"""Settings that callers pass in. The library reads no environment and no home directory."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to open a store. Sizes are bytes. The format does not depend on any of them."""

    map_size: int = 1024 * GIB
    """Address space that LMDB reserves. All openers must agree, and it cannot grow under them: hence so large."""
    segment_size: int = GIB
    """A segment is sealed once it is at least this large."""
    publish_entries: int = 20_000
    """Most locations published in one index transaction (they hold the only writer lock)."""
    batch_bytes: int = 256 * MIB
    """Most bytes appended before they are made durable and published."""
    adopt_bytes: int = 64 * MIB
    """A file of a worktree that is at least this large becomes a segment instead of being copied into one."""


DEFAULT_SETTINGS = StoreSettings()
