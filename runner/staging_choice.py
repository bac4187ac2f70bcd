"""Which way the inputs of a job take: copies for little data, a mount for much."""

from __future__ import annotations

from collections.abc import Callable

from pfsmount.config import MIB
from pfsmount.errors import Unavailable
from runner.executors.choice import PROCESS
from runner.job import StagingNeeds
from runner.staging import CopyStaging, Staging
from runner.staging_mount import MountStaging, open_mount

COPIED_MAX, COPIED_FILES_MAX = 64 * MIB, 20_000
"""More than this, in all the datums that are known to run, is not copied where it can be mounted."""


def staging_by_name(name: str) -> Callable[[StagingNeeds], Staging]:
    """The choice `copy`, `mount` (or fail) or `auto`."""

    def choose(needs: StagingNeeds) -> Staging:
        little = needs.size <= COPIED_MAX and needs.files <= COPIED_FILES_MAX and not needs.lazy
        if name == "copy" or (name == "auto" and little):
            return CopyStaging(needs.store.objects)
        try:
            if not needs.executor.sees_mounts:
                raise Unavailable(f"{needs.executor.name} does not show mounts of this machine to its containers")
            for_others = needs.executor.name != PROCESS
            place = open_mount(needs.store.path, needs.directory, needs.cleanup, for_others=for_others)
        except Unavailable as error:
            if name == "mount":
                raise Unavailable(
                    f"inputs cannot be mounted: {error.message}", hint="--inputs copy needs no mount"
                ) from None
            needs.note(f"inputs are copied, because they cannot be mounted here ({error.message})")
            return CopyStaging(needs.store.objects)
        return MountStaging(place, needs.commits, CopyStaging(needs.store.objects))

    return choose
