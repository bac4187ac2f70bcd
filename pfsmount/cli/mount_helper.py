"""`pfs` called as a mount helper: `mount.fuse.pfs SOURCE DIR [-o LIST]`, which is how mount(8) and /etc/fstab ask for a mount."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pfsmount.errors import InvalidInput

_NAMES = ("mount.pfs", "mount.fuse.pfs")
_ALONE = frozenset("sfnvr")
"""Flags of mount(8) without a value."""


def is_helper(program: str) -> bool:
    """True when the program was called by a name that mount(8) looks for."""
    return os.path.basename(program) in _NAMES


def helper_arguments(given: Sequence[str]) -> list[str]:
    """What `pfs` is to be called with. SOURCE is a store's directory, or a version in the store of `-o store=`. Raises InvalidInput."""
    places, options = [], []
    rest = iter(given)
    for word in rest:
        if word in ("-o", "-t", "-N"):
            value = next(rest, None)
            if word == "-o" and value is not None:
                options.append(value)
        elif not word.startswith("-"):
            places.append(word)
        elif not set(word[1:]) <= _ALONE:
            raise InvalidInput(f"a mount helper does not know the flag '{word}'")
        elif "r" in word:
            options.append("ro")
    if len(places) != 2:
        raise InvalidInput("a mount helper is called with a source and a directory", hint="SOURCE DIR [-o LIST]")
    source, directory = places
    if "/" in source.partition("@")[0]:
        options.append(f"store={source}")
    # as the table of mounts says it, or mount(8) would not know the line of fstab again
    if source.isascii():
        options.insert(0, f"fsname={source}")
    words = [word for option in options for word in ("-o", option)]
    return ["mount", *([] if "/" in source.partition("@")[0] else [source]), directory, *words]
