"""`pfs fsck --rebuild-index`: segments and refs.log alone give the same store back."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from pfsmount.errors import Busy
from pfsmount.objects.index import INDEX_TABLES, Table
from pfsmount.objects.segment import SegmentKind, SegmentRow
from pfsmount.repo.fsck import check_store
from pfsmount.repo.rebuild import rebuild_index
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import open_content
from pfsmount.tree.ingest import ingest_bytes
from tests.conftest import run_command
from tests.repo.damage import SMALL, change, entry_of, flip, make_rich_store, opened, place_of, rich_template
from tests.worktrees import put as put_uncommitted

__all__ = ["rich_template"]


@pytest.fixture
def rich(rich_template: Path, tmp_path: Path) -> Path:
    """A copy of the rich store."""
    return Path(shutil.copytree(rich_template, tmp_path / "store"))


def tables(path: Path) -> dict[Table, dict[bytes, bytes]]:
    """All rows of the index, less what may differ: the nonce of data segments (nothing uses it), counters of gc, and when results were last used."""
    with Store.open(path, SMALL) as store, store.objects.index.read() as txn:
        found: dict[Table, dict[bytes, bytes]] = {table: dict(txn.scan(table)) for table in INDEX_TABLES}
    for key, raw in found[Table.SEGMENTS].items():
        row = SegmentRow.decode(raw)
        if row.kind is SegmentKind.DATA:
            row.nonce = bytes(16)
        found[Table.SEGMENTS][key] = row.encode()
    found[Table.META] = {key: raw for key, raw in found[Table.META].items() if key not in (b"gc", b"roots")}
    found[Table.RESULTS] = {key: raw[:-8] for key, raw in found[Table.RESULTS].items()}
    return found


def lose(path: Path, how: str) -> None:
    """Lose the index."""
    if how == "missing":
        shutil.rmtree(path / "index")
    elif how == "empty":
        (path / "index" / "data.mdb").write_bytes(b"")
    elif how == "garbage":
        (path / "index" / "data.mdb").write_bytes(random.Random(3).randbytes(100_000))


def assert_same(before: dict[Table, dict[bytes, bytes]], after: dict[Table, dict[bytes, bytes]]) -> None:
    for table in INDEX_TABLES:
        assert after[table] == before[table], table


@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "present"])
def test_the_same_store(rich: Path, how: str) -> None:
    """All tables are as they were, and the store works on."""
    before = tables(rich)
    lose(rich, how)
    result = rebuild_index(rich, SMALL)
    assert result.problems == []
    assert_same(before, tables(rich))
    assert check_store(rich, data=True).clean
    with opened(rich) as store:
        change(store, "master", {"after": os.urandom(5000)})
        with Worktree.open(store, "images", "master") as worktree:
            assert {b"/".join(one.path) for one in worktree.changes()} == {b"photos/new.jpg", b"many/0001.txt"}
    assert check_store(rich, data=True).clean


@pytest.mark.parametrize(
    "seed", [11, pytest.param(12, marks=pytest.mark.long), pytest.param(13, marks=pytest.mark.long)]
)
def test_other_histories(tmp_path: Path, seed: int) -> None:
    """The same for other contents, after more batches and an unfinished one."""
    path = tmp_path / "store"
    make_rich_store(path, seed)
    dice = random.Random(seed)
    with opened(path) as store:
        for n in range(20):
            change(
                store,
                dice.choice(["master", "dev"]),
                {f"d{dice.randrange(3)}/{n}": dice.randbytes(dice.randrange(20_000))},
            )
        with Worktree.open(store, "images", "dev") as worktree:
            put_uncommitted(worktree, "uncommitted", b"1")
            worktree.commit("m")
            put_uncommitted(worktree, "again", b"2")
    before = tables(path)
    lose(path, "missing")
    rebuild_index(path, SMALL)
    assert_same(before, tables(path))
    assert check_store(path, data=True).clean


def test_refused_while_open(rich: Path) -> None:
    """Nobody else may use the store, and nothing has changed then."""
    before = sorted(path.name for path in rich.iterdir())
    with opened(rich), pytest.raises(Busy, match="in use"):
        rebuild_index_elsewhere(rich)
    assert sorted(path.name for path in rich.iterdir()) == before
    assert check_store(rich).clean


def rebuild_index_elsewhere(path: Path) -> None:
    """As another process would: this one has the store open, so the old index must not be looked at."""
    from pfsmount.objects.index import exclusive_index

    with exclusive_index(path / "index"):
        pass


def test_left_by_a_kill(rich: Path) -> None:
    """What a killed rebuild leaves is no hindrance, and an index that is gone is rebuilt."""
    (rich / "index.new").mkdir()
    (rich / "index.new" / "data.mdb").write_bytes(b"half")
    before = tables(rich)
    os.rename(rich / "index", rich / "index.lost-1")
    rebuild_index(rich, SMALL)
    assert_same(before, tables(rich))


def test_lost_lines_of_refs_log(rich: Path) -> None:
    """Lines that the old index still has come back; others are said to be lost, and everything after them counts."""
    log = rich / "refs.log"
    lines = log.read_bytes().splitlines(keepends=True)
    damaged = [*lines[:6], b"x" + lines[6][1:], *lines[7:9], *lines[11:]]
    log.write_bytes(b"".join(damaged))
    assert not check_store(rich).clean
    before = tables(rich)
    result = rebuild_index(rich, SMALL)
    assert len(result.problems) == 5, result.problems
    assert_same(before, tables(rich))
    assert log.read_bytes() == b"".join(lines)
    assert check_store(rich).clean
    log.write_bytes(b"".join(damaged))
    lose(rich, "missing")
    result = rebuild_index(rich, SMALL)
    assert sum("is lost" in text for text in result.problems) == 3
    listed = run_command("pfsmount.cli.app", rich, "reflog", "images")
    assert listed.returncode == 0, listed.stderr
    assert check_store(rich, data=True).clean
    with opened(rich) as store:
        assert store.read_commit(store.head("images", "master") or b"").height >= 8  # type: ignore[arg-type]


def test_lost_header(rich: Path) -> None:
    """A segment whose header is damaged is read by the hashes in it, and by the old index where there is one."""
    before = tables(rich)
    for path in (rich / "segments").glob("*.meta"):
        flip(path, 45)
    rebuild_index(rich, SMALL)
    assert_same(before, tables(rich))
    lose(rich, "missing")
    result = rebuild_index(rich, SMALL)
    assert any("header" in text for text in result.problems)
    after = tables(rich)
    assert after[Table.OBJECTS] == before[Table.OBJECTS]
    assert after[Table.REFS] == before[Table.REFS]


def test_of_two_copies_the_right_one(rich: Path) -> None:
    """Where an object lies twice, and the first is damaged, the index gets the second."""
    with opened(rich) as store:
        id = entry_of(store, "photos/2.jpg").id
        path, place = place_of(store, id)
        data = store.objects.get(id)
        with store.objects.index.write() as txn:
            txn.delete(Table.OBJECTS, id)
        change(store, "master", {"again": data})
    flip(path, place.offset)
    rebuild_index(rich, SMALL)
    with opened(rich) as store:
        assert store.objects.get(id) == data
    assert check_store(rich, data=True).clean


def test_after_gc(rich: Path) -> None:
    """What gc has freed stays away, refs and versions are as they were, and a large file of which gc freed a part is not taken for whole."""
    large = os.urandom(9 << 20)
    with opened(rich) as store:
        store.create_branch("images", "passing", store.head("images", "master"))
        for n in range(10):
            change(store, "passing", {f"junk/{n}": os.urandom(30_000)})
        change(store, "passing", {"huge": large})
        store.delete_branch("images", "passing")
    done = run_command("pfsmount.cli.app", rich, "gc", "--keep", "0d")
    assert done.returncode == 0, done.stderr
    before = tables(rich)
    lose(rich, "missing")
    rebuild_index(rich, SMALL)
    after = tables(rich)
    for table in (Table.REPOS, Table.REFS, Table.COMMITS, Table.WORKTREES):
        assert after[table] == before[table], table
    assert before[Table.OBJECTS].items() <= after[Table.OBJECTS].items()
    assert check_store(rich, data=True).clean
    with opened(rich) as store:
        change(store, "master", {"huge": large})
    assert check_store(rich, data=True).clean


def test_of_two_manifests_the_whole_one(rich: Path) -> None:
    """A file that was cut in two ways, of one of which gc has freed the pieces, is found by the other."""
    dice = random.Random(9)
    before, new = dice.randbytes(9 << 20), dice.randbytes(100_000)
    after = before[: 3 << 20] + new + before[3 << 20 :]
    with opened(rich) as store:
        store.create_branch("images", "one", None)
        with store.objects.batch() as batch:  # cut every 4 MiB
            id = ingest_bytes(batch, after)
            batch.flush()
    (rich.parent / "file").write_bytes(before)
    for content in (before, after):  # cut as the version before was
        (rich.parent / "file").write_bytes(content)
        done = run_command(
            "pfsmount.cli.app", rich, "put", "--no-cache", rich.parent / "file", "images@one:/file", "-m", "m"
        )
        assert done.returncode == 0, done.stderr
    assert run_command("pfsmount.cli.app", rich, "gc", "--keep", "0d").returncode == 0
    assert check_store(rich, data=True).clean
    lose(rich, "missing")
    rebuild_index(rich, SMALL)
    assert check_store(rich, data=True).clean
    with opened(rich) as store:
        assert entry_of(store, "file", "one").id == id
        stored = open_content(store.objects, entry_of(store, "file", "one"))
        assert b"".join(data or b"" for _, data in stored.parts(1 << 20)) == after


def _flip_in_index(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    file = path / "index" / "data.mdb"
    size = file.stat().st_size
    for _ in range(dice.choice([1, 3, 30])):
        flip(file, dice.randrange(size), 1 << dice.randrange(8))


def _index_rounds(rich: Path, tmp_path: Path, seeds: range) -> None:
    """LMDB has no checksums: what it makes of flipped bits is anything, but never a crash of ours, and never an unseen wrong row."""
    before = tables(rich)
    for seed in seeds:
        copy = Path(shutil.copytree(rich, tmp_path / f"copy{seed}"))
        _flip_in_index(copy, seed)
        done = run_command("pfsmount.cli.app", copy, "fsck", "--data")
        assert done.returncode in (0, 1)
        assert not done.stderr, done.stderr
        if done.returncode == 1:
            done = run_command("pfsmount.cli.app", copy, "fsck", "--rebuild-index")
            assert done.returncode == 0, done.stdout
        assert_same(before, tables(copy))
        shutil.rmtree(copy)


def test_flipped_bits_in_the_index(rich: Path, tmp_path: Path) -> None:
    """Bits flipped anywhere in the index are found, or nothing needs them; rebuilding gives the same store back."""
    _index_rounds(rich, tmp_path, range(2))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(100, 300, 20))
def test_flipped_bits_in_the_index_long(rich: Path, tmp_path: Path, start: int) -> None:
    """The same, many times."""
    _index_rounds(rich, tmp_path, range(start, start + 20))
