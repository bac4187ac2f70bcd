"""`put --tar`: the members of a tar archive become one commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader

from pfsmount.errors import InvalidInput, NotPermitted
from pfsmount.ids import RESERVED_ROOT_NAME, RepoPath, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import disk_errors
from pfsmount.repo.archive_read import Archive, ArchiveError, Member, MemberKind, member_path
from pfsmount.repo.commit import Commit
from pfsmount.repo.ingest import Placement, commit_edit, entry_before, place_all
from pfsmount.repo.store import Store
from pfsmount.repo.unsorted_tree import UnsortedTree
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find
from pfsmount.tree.entry import Entry, Kind, file_entry, is_versioned_xattr, symlink_entry
from pfsmount.tree.ingest import ingest_source
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.xattrs import with_xattrs

_NAMED_MAX = 100


@dataclass(slots=True)
class ArchiveReport:
    """What was read so far."""

    files: int = 0
    size: int = 0
    """Bytes of the files."""
    read: int = 0
    """Bytes of the archive, decompressed."""
    skipped: list[bytes] = field(default_factory=list)
    """Names of the first 100 devices and FIFOs, which are not versioned."""
    skipped_count: int = 0
    absolute: int = 0
    """Members whose names began with `/`, which was taken off."""
    has_more: bool = False
    """Something stands behind the end marker, and was not read."""


Progress = Callable[[ArchiveReport], None]
Exclude = Callable[[RepoPath, bool], bool]
"""Given a path relative to the target and whether it is a directory: True leaves it out."""


class ArchiveIngest:
    """Reads an archive into a batch."""

    def __init__(
        self,
        batch: Batch,
        target: RepoPath,
        previous: Entry | None,
        *,
        exclude: Exclude | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`previous` is what the target has now: large files are cut as it was."""
        self._batch, self._target, self._previous = batch, target, previous
        self._exclude, self._progress = exclude, progress
        self.report = ArchiveReport()

    def run(self, archive: Archive) -> Entry:
        """The directory that the archive holds. Raises ArchiveError, NotPermitted, NoSpace, OSError …"""
        default = directory_entry(EMPTY_DIRECTORY, uid=os.getuid(), gid=os.getgid(), mtime_ns=time.time_ns())
        with UnsortedTree(self._batch, self._batch.store.path / "tmp") as tree:
            for member in archive.members():
                if self._is_wanted(member):
                    self._add(tree, archive, member)
                self.report.read = archive.at
                if self._progress is not None:
                    self._progress(self.report)
            self.report.has_more = archive.has_more
            return tree.build(default, self._existing)

    def _is_wanted(self, member: Member) -> bool:
        report = self.report
        if member.kind is MemberKind.OTHER:
            report.skipped_count += 1
            if len(report.skipped) < _NAMED_MAX:
                report.skipped.append(member.name)
            return False
        if self._exclude is not None and self._exclude(member.path, member.kind is MemberKind.DIRECTORY):
            return False
        if not member.path and member.kind is not MemberKind.DIRECTORY:
            raise ArchiveError(f"the member '{display(member.name)}' is a file that has no name")
        if (*self._target, *member.path)[:1] == (RESERVED_ROOT_NAME,):
            raise NotPermitted(
                f"'{display(RESERVED_ROOT_NAME)}' at the root of a branch belongs to pfs; nothing was committed",
                hint="put the archive below a directory, or leave that name out with --exclude /.pfs",
            )
        report.absolute += member.name.startswith(b"/")
        return True

    def _add(self, tree: UnsortedTree, archive: Archive, member: Member) -> None:
        if member.kind is MemberKind.HARD_LINK:
            target, _ = member_path(member.target)
            tree.add_link(member.path, target)
            self.report.files += 1
            return
        try:
            entry = self._entry(archive, member)
            if member.xattrs:
                kept = {name: value for name, value in member.xattrs.items() if is_versioned_xattr(name)}
                entry = with_xattrs(self._batch, entry, kept)
            tree.add(member.path, entry)
        except InvalidInput as error:
            raise ArchiveError(f"the member '{display(member.name)}' cannot be stored: {error}") from None

    def _entry(self, archive: Archive, member: Member) -> Entry:
        uid, gid, mtime_ns = member.uid, member.gid, member.mtime_ns
        if member.kind is MemberKind.DIRECTORY:
            return directory_entry(EMPTY_DIRECTORY, mode=member.mode, uid=uid, gid=gid, mtime_ns=mtime_ns)
        self.report.files += 1
        if member.kind is MemberKind.SYMLINK:
            return symlink_entry(member.target, uid=uid, gid=gid, mtime_ns=mtime_ns)
        if member.size <= PIECE_MAX:
            id, size = self._batch.add_piece(archive.read(member)), member.size
        else:
            before = self._existing(member.path)
            previous = before.id if before is not None and before.kind is Kind.FILE else None
            id, size = ingest_source(self._batch, archive.source(member), previous=previous)
        self.report.size += size
        return file_entry(id, size, mode=member.mode, uid=uid, gid=gid, mtime_ns=mtime_ns)

    def _existing(self, path: RepoPath) -> Entry | None:
        return None if self._previous is None else find(self._batch, self._previous, path)


def put_archive(
    store: Store,
    file: BufferedReader,
    name: str,
    repo: str,
    branch: str,
    target: RepoPath,
    *,
    message: str,
    delete: bool = False,
    origin: dict[str, object],
    exclude: Exclude | None = None,
    progress: Progress | None = None,
) -> tuple[Commit | None, ArchiveReport]:
    """Commit the members of the tar archive `file` (compressed or not; `name` is for messages) below `target`.

    They are laid over what is there as by `put`; with `delete` nothing else stays. Returns the commit, or None when nothing changed, and
    what was read. Raises ArchiveError, NotADirectory, IsADirectory, NotPermitted, NoSpace …; then nothing has changed.
    """
    previous = entry_before(store, repo, branch, target)
    with store.objects.batch(repeatable=False) as batch:
        ingest = ArchiveIngest(batch, target, previous, exclude=exclude, progress=progress)
        with disk_errors(f"reading {name}"):
            entry = ingest.run(Archive(file, name))

        def edit(root: Entry) -> Entry:
            return place_all(batch, root, target, [Placement(entry, None)], into=False, delete=delete)

        return commit_edit(store, batch, repo, branch, edit, message=message, origin=origin), ingest.report
