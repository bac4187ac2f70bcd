"""What a directory shows, and running programs in it."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

Look = tuple[str, int, int, str | None]
"""Kind and mode, size, links, and the target of a link or the hash of a file's bytes."""


def run(*command: str | os.PathLike[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown(root: Path) -> dict[str, Look]:
    """All that stat, readlink and read show below a directory, but for what differs by nature."""
    result: dict[str, Look] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            found = path.lstat()
            kind = stat.S_IFMT(found.st_mode)
            content = None
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG:
                content = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
            size = 0 if kind == stat.S_IFDIR else found.st_size
            links = 0 if kind == stat.S_IFDIR else found.st_nlink
            result[str(path.relative_to(root))] = (oct(found.st_mode), size, links, content)
    return result


def versioned(root: Path) -> dict[str, object]:
    """What a commit keeps of what a directory shows: kinds, modes, times to the nanosecond and bytes; not which names are one file, nor owners."""
    result: dict[str, object] = {}
    for path, (mode, size, _, content) in shown(root).items():
        result[path] = (mode, size, Path(root, path).lstat().st_mtime_ns, content)
    return result


def differences(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Where two directories do not show the same."""
    return {
        path: (one.get(path), other.get(path)) for path in one.keys() | other.keys() if one.get(path) != other.get(path)
    }
