"""`put`: local files, directories and streams become one commit.

Reading and storing (`local_files`, slow) knows nothing of the branch; laying the result over the head (fast, at the cost of what was put) does, and is
done again when the head moved meanwhile. So a put never loses to another writer, and holds no lock while it reads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pfsmount.errors import Conflict, InvalidInput, IsADirectory, NotADirectory, NotPermitted
from pfsmount.ids import RESERVED_ROOT_NAME, EntryName, RepoPath, display, parse_entry_name, path_bytes
from pfsmount.objects.batch import Batch, again_if_collected
from pfsmount.repo.commit import Commit
from pfsmount.repo.local_files import IngestReport, LocalFiles, Progress
from pfsmount.repo.local_steps import Exclude
from pfsmount.repo.reading_process import ReadingProcess
from pfsmount.repo.stat_cache import StatCache
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from pfsmount.tree.diff import directory_pairs
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, directory_entry, entries, find, lookup
from pfsmount.tree.edit import edit_directory, edit_paths, replace_contents
from pfsmount.tree.entry import Entry, Kind, decode_entry

_CHANGES_AT_ONCE = 10_000
_TRIES = 100
_SMALL = 16


def lay_over(batch: Batch, base: Entry | None, over: Entry, path: RepoPath, *, delete: bool, mtime_ns: int) -> Entry:
    """What `cp -rT` makes of `over` onto `base`: files are overwritten, directories joined, nothing deleted.

    With `delete`, a directory becomes exactly `over`. A directory that is there keeps its attributes; those below take the ones of `over`, as with `cp -a`
    and `rsync -a`. Cost: the size of `over`; where there is
    nothing at the target, none. Raises IsADirectory, NotADirectory when kinds clash.
    """
    if base is None or (delete and base.kind is not over.kind):
        return over
    if over.kind is Kind.DIRECTORY and over.id == base.id:
        return base
    if over.kind is not Kind.DIRECTORY:
        if base.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{_where(path)} is a directory; a file cannot replace it")
        return over
    if base.kind is not Kind.DIRECTORY:
        raise NotADirectory(f"{_where(path)} is a file; a directory cannot replace it")
    if delete:
        result = replace_contents(base, _summary_of(over))
    else:
        result = _join(batch, base, over, path, mtime_ns)
    return base if result.id == base.id else result.replace(mtime_ns=mtime_ns)


def _join(batch: Batch, base: Entry, over: Entry, path: RepoPath, mtime_ns: int) -> Entry:
    result = base
    changes: dict[EntryName, Entry | None] = {}
    for name, before, entry in _differences(batch, base, over):
        after = lay_over(batch, before, entry, (*path, name), delete=False, mtime_ns=mtime_ns)
        if after.is_directory:
            after = replace_contents(entry, _summary_of(after))
        if after != before:
            changes[name] = after
        if len(changes) >= _CHANGES_AT_ONCE:
            result = replace_contents(result, edit_directory(batch, result.id, changes))
            changes = {}
    return replace_contents(result, edit_directory(batch, result.id, changes)) if changes else result


def _differences(batch: Batch, base: Entry, over: Entry) -> Iterator[tuple[EntryName, Entry | None, Entry]]:
    """The entries of `over` that `base` does not have just so: name, what `base` has, what `over` has.

    Two directories of about the same size are read side by side, past what they share; a small one is looked up, entry by entry, in a large one.
    """
    if over.files * _SMALL < base.files:
        for name, entry in entries(batch, over.id):
            yield name, lookup(batch, base.id, name), entry
        return
    for name, left, right in directory_pairs(batch, batch, base.id, over.id):
        if right is not None:
            before = None if left is None else decode_entry(left.fixed, left.extra)
            yield name, before, decode_entry(right.fixed, right.extra)


def _summary_of(entry: Entry) -> DirectorySummary:
    assert entry.content_id is not None
    return DirectorySummary(entry.id, entry.content_id, 0, entry.files, entry.size)


def _where(path: RepoPath) -> str:
    return display(path_bytes(path))


@dataclass(frozen=True, slots=True)
class Placement:
    """An entry and where it goes. `name` is used when the place is, or must be, a directory."""

    entry: Entry
    name: EntryName | None
    """None: exactly the given path (a directory's contents, or a stream)."""


def place_all(
    batch: Batch,
    root: Entry,
    target: RepoPath,
    placements: Sequence[Placement],
    *,
    into: bool,
    delete: bool,
) -> Entry:
    """The tree with all placements laid over it; `into`: the target is a directory, made if need be.

    Raises IsADirectory, NotADirectory, NotPermitted (the reserved name).
    """
    now = time.time_ns()
    existing = find(batch, root, target)
    parent = directory_entry(EMPTY_DIRECTORY, uid=os.getuid(), gid=os.getgid(), mtime_ns=now)
    names = [placement.name for placement in placements if placement.name is not None]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"two of the sources are named {display(twice)}; nothing was committed")
    for placement in placements:
        path = target
        is_directory = into or (existing is not None and existing.kind is Kind.DIRECTORY)
        if placement.name is not None and is_directory:
            path = (*target, placement.name)
        _refuse_reserved(batch, path, placement.entry)
        entry = lay_over(batch, find(batch, root, path), placement.entry, path, delete=delete, mtime_ns=now)
        root = entry if not path else edit_paths(batch, root, {path: entry}, parent=parent, mtime_ns=now)
        if not path and entry.kind is not Kind.DIRECTORY:
            raise IsADirectory("the root of a branch is a directory", hint="give the file a name after ':/'")
    return root


def _refuse_reserved(batch: Batch, path: RepoPath, entry: Entry) -> None:
    name = RESERVED_ROOT_NAME
    if (path and path[0] == name) or (
        not path and entry.kind is Kind.DIRECTORY and lookup(batch, entry.id, name) is not None
    ):
        raise NotPermitted(
            f"'{display(name)}' at the root of a branch belongs to pfs; nothing was committed",
            hint="put it below a directory, or leave it out",
        )


def commit_edit(
    store: Store,
    batch: Batch,
    repo: str,
    branch: str,
    edit: Callable[[Entry], Entry],
    *,
    message: str,
    origin: dict[str, object],
) -> Commit | None:
    """Commit what `edit` makes of the head's tree, again on the new head when it moved; None when nothing changed.

    Raises what `edit` raises, NoSpace.
    """
    with Turn(store.path, store.repo(repo), branch) as turn:
        for attempt in range(_TRIES):
            turn.wait()
            head = store.head(repo, branch)
            base = store.empty_root() if head is None else store.read_commit(head).tree
            tree = edit(base)
            if tree == base:
                if batch.objects_added:  # what was lost, or found damaged and forgotten, is stored again
                    batch.flush()
                return None
            try:
                return store.commit(batch, repo, branch, tree=tree, expected=head, message=message, origin=origin)
            except Conflict:
                if attempt + 1 == _TRIES:
                    raise
                turn.lost()
    raise AssertionError("unreachable")


def put(
    store: Store,
    sources: Iterable[bytes | int],
    repo: str,
    branch: str,
    target: RepoPath,
    *,
    into: bool,
    message: str,
    delete: bool = False,
    origin: dict[str, object],
    progress: Progress | None = None,
    exclude: Exclude | None = None,
    cache: bool = True,
) -> tuple[Commit | None, IngestReport]:
    """Commit local paths (or an open descriptor: a stream) at `target` of a branch, all in one commit.

    One directory becomes the target itself, as `cp -rT`; several sources go into it. With `cache`, a file that has not changed since it was
    last put is not read again. Returns the commit, or None when nothing changed, and what was read. Raises NotFound, InvalidInput, NotPermitted, NoSpace …; then nothing has changed.
    """
    sources = list(sources)

    def work() -> tuple[Commit | None, IngestReport]:
        return _put(store, sources, repo, branch, target, into, message, delete, origin, progress, exclude, cache)

    # a stream can be read only once
    return work() if any(isinstance(source, int) for source in sources) else again_if_collected(work)


def _put(
    store: Store,
    sources: Sequence[bytes | int],
    repo: str,
    branch: str,
    target: RepoPath,
    into: bool,
    message: str,
    delete: bool,
    origin: dict[str, object],
    progress: Progress | None,
    exclude: Exclude | None,
    cache: bool,
) -> tuple[Commit | None, IngestReport]:
    previous = entry_before(store, repo, branch, target)
    repeatable = not any(isinstance(source, int) for source in sources)
    with (
        store.objects.batch(repeatable=repeatable) as batch,
        StatCache(store.objects) as stats,
        ReadingProcess() as process,
    ):
        files = LocalFiles(batch, progress, cache=stats if cache else None, process=process, exclude=exclude)
        placements = [_ingest_one(files, source, previous, several=len(sources) > 1) for source in sources]

        def edit(root: Entry) -> Entry:
            return place_all(batch, root, target, placements, into=into or len(sources) > 1, delete=delete)

        commit = commit_edit(store, batch, repo, branch, edit, message=message, origin=origin)
    return commit, files.report


def entry_before(store: Store, repo: str, branch: str, target: RepoPath) -> Entry | None:
    """What the branch has at the target now. Raises NotFound for the branch."""
    head = store.head(repo, branch)
    return None if head is None else find(store.objects, store.read_commit(head).tree, target)


def _ingest_one(files: LocalFiles, source: bytes | int, previous: Entry | None, *, several: bool) -> Placement:
    if isinstance(source, int):
        return Placement(files.stream(source), None)
    name = os.path.basename(os.path.abspath(source))
    if previous is not None and previous.kind is Kind.DIRECTORY and (several or not os.path.isdir(source)):
        previous = lookup(files.batch, previous.id, name)
    entry = files.path(source, previous)
    if entry.kind is Kind.DIRECTORY and not several:
        return Placement(entry, None)
    return Placement(entry, parse_entry_name(name))
