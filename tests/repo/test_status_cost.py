"""`status` and `diff` of uncommitted work cost what was changed, whatever the size of the tree."""

from __future__ import annotations

import pytest

from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.reading import DecodedCache
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, file_entry
from tests.worktrees import put

_CHANGES = 10


class Counting(DecodedCache):
    """Knows how many objects were decoded."""

    count = 0

    def put(self, id: ObjectId, item: object) -> None:
        self.count += 1
        super().put(id, item)


def nodes_read(store: Store, files: int) -> int:
    """How many nodes of trees a status of ten changes among so many files looks at."""
    repo = f"of-{files}"
    store.create_repo(repo)
    entry = file_entry(EMPTY_FILE_ID, 0, mode=0o644, uid=0, gid=0, mtime_ns=1)
    changes: dict[RepoPath, Entry | None] = {
        (EntryName(b"%03d" % (n // 1000)), EntryName(b"%03d" % (n % 1000))): entry for n in range(files)
    }

    def edit(root: Entry) -> Entry:
        return edit_paths(batch, root, changes, mtime_ns=1)

    with store.objects.batch() as batch:
        commit_edit(store, batch, repo, "master", edit, message="m", origin={"how": "test"})
    with Worktree.open(store, repo, "master") as worktree:
        for n in range(_CHANGES):
            put(worktree, f"{n % (files // 1000):03d}/{n:03d}", b"changed")
    store.objects.decoded = decoded = Counting()
    with Worktree.open(store, repo, "master") as worktree:
        assert len(worktree.status().changes) == _CHANGES
        return decoded.count


@pytest.mark.parametrize("large", [30_000, pytest.param(300_000, marks=pytest.mark.long)])
def test_status_reads_what_is_changed(store: Store, large: int) -> None:
    few, many = nodes_read(store, 1000), nodes_read(store, large)
    assert 0 < many <= few + 4 * _CHANGES
