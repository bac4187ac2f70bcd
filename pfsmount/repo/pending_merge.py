"""A merge that waits for its conflicts to be settled: what is merged, and what was decided so far.

It is the file `merge` in the worktree directory of the branch (docs/FORMAT.md), one line as in a journal:

    ["merge", 1, source as named, commit of the source, message or null, who, time in ns, [[path, mine|theirs|both, fingerprint], …]]

It is replaced as a whole (written beside, fsynced, renamed), so a crash leaves the old or the new one. Nothing of the branch depends on it: conflicts are
found anew each time, and a decision counts for the conflict that has its fingerprint.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pfsmount.errors import Corrupt, InvalidInput
from pfsmount.ids import ObjectId, RepoPath, parse_object_id, parse_path, path_bytes
from pfsmount.objects.layout import disk_errors, fsync_directory, private
from pfsmount.repo.conflicts import fingerprint
from pfsmount.repo.journal import decode_line, encode_line, name_bytes, name_text
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.tree.merge import Resolution, TreeConflict

_FILE = "merge"
_VERSION = 1


@dataclass(slots=True)
class PendingMerge:
    """What is kept between `pfs merge` and the next one."""

    source: str
    """As the user named it."""
    theirs: ObjectId
    message: str | None
    who: str
    time_ns: int
    decisions: dict[RepoPath, tuple[Resolution, str]] = field(default_factory=dict)
    """Path → how it is settled, fingerprint of the conflict."""

    def decide(self, conflict: TreeConflict) -> Resolution | None:
        """What was decided about a conflict, if it still is the same."""
        how, fits = self.decisions.get(conflict.path, (None, ""))
        return how if fits == print_of(conflict) else None


def print_of(conflict: TreeConflict) -> str:
    """The fingerprint of a conflict of two trees."""
    return fingerprint(conflict.path, conflict.reason, conflict.mine, conflict.theirs)


def _directory(store: Store, repo: str, branch: str) -> Path:
    return worktree_path(store.path, store.repo(repo), branch)


def read_pending(store: Store, repo: str, branch: str) -> PendingMerge | None:
    """The merge that waits on a branch, or None. Raises NotFound (repo), Corrupt, OSError."""
    path = _directory(store, repo, branch) / _FILE
    try:
        return _read(path)
    except Corrupt:
        raise Corrupt(
            f"the record of the merge into {repo}@{branch} is damaged: '{path}'; no commit is affected",
            hint=f"'pfs merge --abort {repo}@{branch}' drops it, then merge again",
        ) from None


def pending_source(directory: Path) -> ObjectId | None:
    """The commit that a merge names which waits in a worktree's directory, for gc; None when none waits. Raises Corrupt, OSError."""
    pending = _read(directory / _FILE)
    return None if pending is None else pending.theirs


def _read(path: Path) -> PendingMerge | None:
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return parse_pending(raw)
    except Corrupt:
        raise Corrupt(f"the record of a merge is damaged: '{path}'") from None


def parse_pending(raw: bytes) -> PendingMerge:
    """The merge in the line of such a file. Raises Corrupt."""
    decoded = decode_line(raw[:-1], b"")
    try:
        if decoded is None:
            raise ValueError
        word, version, source, theirs, message, who, time_ns, decisions = decoded[0]
        if (word, version) != (_FILE, _VERSION) or not isinstance(message, str | None):
            raise ValueError
        if not isinstance(source, str) or not isinstance(who, str) or type(time_ns) is not int:
            raise ValueError
        return PendingMerge(
            source,
            parse_object_id(theirs),
            message,
            who,
            time_ns,
            {parse_path(name_bytes(path)): (Resolution(how), fits) for path, how, fits in decisions},
        )
    except (ValueError, TypeError, AttributeError, InvalidInput):
        raise Corrupt("the record of a merge is damaged") from None


def write_pending(store: Store, repo: str, branch: str, pending: PendingMerge) -> None:
    """Replace the merge that waits on a branch; durable when this returns. Raises NoSpace, PermissionDenied."""
    decisions = [[name_text(path_bytes(path)), how.value, fits] for path, (how, fits) in pending.decisions.items()]
    record = [_FILE, _VERSION, pending.source, pending.theirs.hex(), pending.message, pending.who, pending.time_ns]
    line, _ = encode_line([*record, decisions], b"")
    directory = _directory(store, repo, branch)
    with disk_errors("recording a merge"):
        _make(directory)
        beside = directory / f"{_FILE}.new"
        with open(beside, "wb", opener=private) as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(directory / _FILE)
        for changed in (directory, directory.parent, directory.parent.parent):  # whoever made them may have died before
            fsync_directory(changed)


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def drop_pending(store: Store, repo: str, branch: str) -> bool:
    """Forget the merge that waits on a branch; False when none does. Waits for who holds its lock, or they would write it again.

    Raises NotFound (repo), NoSpace, PermissionDenied.
    """
    directory = _directory(store, repo, branch)
    if not os.path.lexists(directory / _FILE):  # nor is there one that is being replaced: its name is never gone
        return False
    with pending_lock(store, repo, branch), disk_errors("dropping a merge"):
        try:
            (directory / _FILE).unlink()
        except FileNotFoundError:
            return False
        fsync_directory(directory)
    return True


@contextmanager
def pending_lock(store: Store, repo: str, branch: str) -> Iterator[None]:
    """Hold off other processes that read, change and write the merge that waits on a branch (flock on the directory)."""
    directory = _directory(store, repo, branch)
    with disk_errors("recording a merge"):
        _make(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
