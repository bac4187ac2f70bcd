"""What a `put` leaves out: `--exclude`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pfsmount.ids import EntryName, RepoPath
from pfsmount.tree.globs import Glob


@dataclass(frozen=True, slots=True)
class _Pattern:
    glob: Glob
    whole: bool
    """It is compared with the whole path, not with the last name."""
    directories: bool
    """It ends with a slash: only directories match."""


class Excludes:
    """Patterns by the rules of `tree.globs`: one without a slash fits a name anywhere, one with a slash a path from the source's top.

    A slash at the end makes it fit directories only. What is below a directory that is left out is left out too.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises InvalidInput."""
        self._patterns = [
            _Pattern(Glob(pattern), "/" in pattern.rstrip("/"), pattern.endswith("/")) for pattern in patterns
        ]

    def __call__(self, path: bytes, is_directory: bool) -> bool:
        """True when this path, relative to the source, fits a pattern."""
        return bool(path) and self._fits(tuple(map(EntryName, path.split(b"/"))), is_directory)

    def covers(self, path: RepoPath, is_directory: bool) -> bool:
        """True when the path or a directory above it fits a pattern."""
        last = len(path)
        return any(self._fits(path[:depth], is_directory or depth < last) for depth in range(1, last + 1))

    def _fits(self, path: RepoPath, is_directory: bool) -> bool:
        return any(
            pattern.glob.match(path if pattern.whole else path[-1:]) is not None
            for pattern in self._patterns
            if is_directory or not pattern.directories
        )
