"""`pfs fsck --repair` and `--repair-from`: what is mended, what is forgotten, and that putting the files again heals."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Severity
from pfsmount.objects.object_look import ProgressBar
from pfsmount.objects.segment import RecordKind, SegmentRow
from pfsmount.repo.fsck import Report, check, check_store, left_of
from pfsmount.repo.fsck_repair import Repair, Repaired
from pfsmount.repo.store import Store
from pfsmount.tree.content import open_content
from pfsmount.tree.manifest import load_manifest, pieces
from tests.conftest import run_command
from tests.repo.damage import any_of, change, entry_of, flip, opened, place_of, rich_template

__all__ = ["rich_template"]


@pytest.fixture
def rich(rich_template: Path, tmp_path: Path) -> Path:
    """A copy of the rich store."""
    return Path(shutil.copytree(rich_template, tmp_path / "store"))


@pytest.fixture
def other(rich_template: Path, tmp_path: Path) -> Path:
    """Another copy of it."""
    return Path(shutil.copytree(rich_template, tmp_path / "other"))


def fsck(path: Path, *options: str | Path) -> tuple[int, dict[str, object]]:
    """Run the command."""
    done = run_command("pfsmount.cli.app", path, "fsck", "--json", *options)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def repaired(path: Path, source: Path | None, *, data: bool = True, forget: bool = False) -> tuple[Repaired, Report]:
    """Check and repair."""
    with opened(path) as store:
        report = check(store, data=data)
        assert not report.clean
        work = Repair(store, report, ProgressBar())
        work.locally()
        if source is not None:
            with Store.open(source) as from_store:
                work.from_store(from_store)
        if forget:
            work.forget()
        return work.finish(), check(store, known=left_of(store, report))


@pytest.mark.parametrize(
    "kind", [RecordKind.PIECE, RecordKind.NODE, RecordKind.MANIFEST, RecordKind.COMMIT, RecordKind.XATTRS]
)
def test_one_object(rich: Path, other: Path, kind: RecordKind) -> None:
    """An object of each kind that is damaged comes back from the other store."""
    with opened(rich) as store:
        path, place = place_of(store, any_of(store, kind, -1))
    flip(path, place.offset + place.length // 2)
    result, report = repaired(rich, other)
    assert report.clean, list(report.findings)
    assert result.healed
    assert not result.remaining
    assert check_store(rich, data=True).clean


@pytest.mark.parametrize("seed", range(3))
def test_lost_segments(rich: Path, other: Path, seed: int) -> None:
    """Any segments lost or cut: everything comes back, and segments that are gone are not missed any more."""
    dice = random.Random(seed)
    for path in dice.sample(sorted((rich / "segments").iterdir()), 2):
        if dice.random() < 0.6:
            path.unlink()
        else:
            os.truncate(path, dice.randrange(path.stat().st_size))
    _, report = repaired(rich, other, data=False)
    bad = [one for one in report.findings if one.severity is Severity.LOST]
    assert not bad, bad
    assert not report.damage
    again = check_store(rich, data=True)
    assert not again.damage, list(again.findings)
    with opened(rich) as store:
        change(store, "master", {"after": b"x" * 5000})
    assert not check_store(rich, data=True).damage


def test_directory_whose_rows_are_gone(rich: Path, other: Path) -> None:
    """What only becomes known to be missing when its directory is back, comes back too."""
    with opened(rich) as store:
        photos = entry_of(store, "photos").id
        ids = [photos, *(entry_of(store, f"photos/{n}.jpg").id for n in range(2, 6))]
        places = [place_of(store, id) for id in ids]
        with store.objects.index.write() as txn:
            for id in ids:
                txn.delete(Table.OBJECTS, id)
    for path, place in places:
        flip(path, place.offset + 3)
    result, report = repaired(rich, other, data=False)
    assert report.clean, list(report.findings)
    assert result.healed == 5


def test_only_part_of_it(rich: Path, tmp_path: Path) -> None:
    """A store that has the same files in another repo helps as far as it goes, and what remains is told."""
    small = tmp_path / "small"
    with opened(rich) as store:
        one, two = entry_of(store, "photos/2.jpg").id, entry_of(store, "photos/3.jpg").id
        data = store.objects.get(one)
        places = [place_of(store, id) for id in (one, two)]
    Store.create(small)
    with Store.open(small) as store:
        store.create_repo("elsewhere")
        change(store, "master", {"another name": data}, repo="elsewhere")
    for path, place in places:
        flip(path, place.offset + 3)
    code, found = fsck(rich, "--data", "--repair-from", small)
    assert code == 1
    assert found["repaired"]["healed"] == 1  # type: ignore[index]
    assert found["repaired"]["remaining"] == 1  # type: ignore[index]
    assert list(found["damaged_objects"]) == [two.hex()]  # type: ignore[call-overload]


def test_putting_the_file_again(rich: Path, tmp_path: Path) -> None:
    """What was forgotten is stored again by whoever puts the same file, and all versions are whole again."""
    with opened(rich) as store:
        entry = entry_of(store, "photos/2.jpg")
        path, place = place_of(store, entry.id)
        (tmp_path / "2.jpg").write_bytes(store.objects.get(entry.id))
        large = entry_of(store, "large")
        (tmp_path / "large").write_bytes(
            b"".join(d or b"" for _, d in open_content(store.objects, large).parts(1 << 20))
        )
        large_path, large_place = place_of(store, any_of(store, RecordKind.MANIFEST))
    flip(path, place.offset)
    flip(large_path, large_place.offset + 60)
    code, found = fsck(rich, "--data", "--repair")
    assert code == 1
    assert found["repaired"]["forgotten"] == 3, "the photo, the manifest by its own id and by that of its file"  # type: ignore[index]
    for name in ("2.jpg", "large"):
        put = run_command("pfsmount.cli.app", rich, "put", tmp_path / name, "labels@other:/copy/", "-m", "again")
        assert put.returncode == 0, put.stderr
    assert fsck(rich, "--data")[0] == 0


def test_putting_a_large_file_again(rich: Path, tmp_path: Path) -> None:
    """Where one piece of a large file is lost the whole file counts as missing, however it is put again and whatever the stat cache knows."""
    with opened(rich) as store:
        large = entry_of(store, "large")
        local = tmp_path / "large"
        local.write_bytes(b"".join(d or b"" for _, d in open_content(store.objects, large).parts(1 << 20)))
        os.utime(local, (1, 1))
        piece = [one.id for one in pieces(store.objects, load_manifest(store.objects, large.id))][1]
        assert piece is not None
        path, place = place_of(store, piece)
    put = ("put", local, "labels@other:/large", "-m", "before")
    assert run_command("pfsmount.cli.app", rich, *put).returncode == 0
    flip(path, place.offset + 5)
    assert fsck(rich, "--data", "--repair")[0] == 1
    with opened(rich) as store:
        assert store.objects.locate(large.id) is None
    assert run_command("pfsmount.cli.app", rich, *put).returncode == 0
    assert fsck(rich, "--data")[0] == 0


def test_forgotten_data_stays_forgotten(rich: Path, tmp_path: Path) -> None:
    """A rebuilt index does not find damaged data again that was forgotten, and the same file put to its own path heals all versions."""
    with opened(rich) as store:
        id = entry_of(store, "photos/5.jpg").id
        path, place = place_of(store, id)
        (tmp_path / "5.jpg").write_bytes(store.objects.get(id))
    flip(path, place.offset + 9)
    done = run_command("pfsmount.cli.app", rich, "fsck", "--repair")
    assert done.returncode == 0
    assert "--data" in done.stdout.splitlines()[-1]
    code, found = fsck(rich, "--data", "--repair")
    assert code == 1
    assert {one["invariant"] for one in found["findings"]} == {"object-present"}  # type: ignore[attr-defined]
    shutil.rmtree(rich / "index")
    code, found = fsck(rich, "--rebuild-index")
    assert code == 1
    assert list(found["damaged_objects"]) == [id.hex()]  # type: ignore[call-overload]
    put = run_command("pfsmount.cli.app", rich, "put", tmp_path / "5.jpg", "images@master:/photos/5.jpg", "-m", "again")
    assert put.returncode == 0, put.stderr
    assert fsck(rich, "--data")[0] == 0
    shutil.rmtree(rich / "index")
    assert fsck(rich, "--rebuild-index", "--data")[0] == 0


def test_what_the_store_itself_can_mend(rich: Path) -> None:
    """Headers of segments and records, rows of the index: nothing is lost, and afterwards nothing is wrong."""
    with opened(rich) as store:
        record, place = place_of(store, entry_of(store, "many").id)
        lost = entry_of(store, "photos/4.jpg").id
        with store.objects.index.write() as txn:
            txn.delete(Table.OBJECTS, lost)
    flip(record, place.offset - 44)
    flip(next((rich / "segments").glob("*.tiny")), 3)
    code, found = fsck(rich, "--repair")
    assert code == 0, found
    assert found["repaired"]["healed"] == 2  # type: ignore[index]
    shutil.rmtree(rich / "index")
    assert fsck(rich, "--rebuild-index", "--data")[0] == 0


def test_a_broken_chain_of_tables(rich: Path) -> None:
    """Pieces whose table of contents is lost are stored again, so that a rebuilt index has them, and the segment can be sealed."""
    with opened(rich) as store:
        _, place = place_of(store, entry_of(store, "photos/3.jpg").id)
        with store.objects.index.read() as txn:
            rows = [SegmentRow.decode(raw) for _, raw in txn.scan(Table.SEGMENTS)]
    (row,) = [row for row in rows if row.kind.name == "DATA" and not row.sealed]
    flip(rich / "segments" / f"{row.contents_segment:08x}.meta", row.contents_offset + 30)
    code, _ = fsck(rich, "--repair")
    assert code == 0
    shutil.rmtree(rich / "index")
    assert fsck(rich, "--rebuild-index", "--data")[0] == 0
    del place


def test_killed_while_repairing(rich: Path, other: Path) -> None:
    """Killed at any point, the same command goes on."""
    with opened(rich) as store:
        for n in range(2, 8):
            path, place = place_of(store, entry_of(store, f"photos/{n}.jpg").id)
            flip(path, place.offset)
    program = """
import os, sys
from pathlib import Path
from pfsmount.objects import index
stop, calls = int(sys.argv[1]), 0
real = index.Index.write
def write(self):
    global calls
    calls += 1
    if calls == stop:
        os.kill(os.getpid(), 9)
    return real(self)
index.Index.write = write
import pfsmount.repo.fsck_repair as repair
repair._ROWS_AT_ONCE = 2
from pfsmount.cli import app
sys.argv = ["pfs", "--store", sys.argv[2], "fsck", "--data", "--repair-from", sys.argv[3]]
app.main()
"""
    root = Path(__file__).parents[2]
    killed = 0
    for stop in range(1, 20):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [os.sys.executable, "-c", program, str(stop), str(rich), str(other)]  # type: ignore[attr-defined]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        killed += 1
    assert killed >= 2
    assert check_store(rich, data=True).clean


def test_refusals(rich: Path, tmp_path: Path) -> None:
    """The store itself is no source, and neither is a place without a store."""
    with opened(rich) as store:
        path, place = place_of(store, any_of(store, RecordKind.NODE))
    flip(path, place.offset)
    done = run_command("pfsmount.cli.app", rich, "fsck", "--repair-from", rich)
    assert done.returncode == 2
    assert "to be repaired" in done.stderr
    done = run_command("pfsmount.cli.app", rich, "fsck", "--repair-from", tmp_path / "nothing")
    assert done.returncode == 1
    assert "no store" in done.stderr
