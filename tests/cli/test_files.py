"""`pfs put`, `get`, `ls`, `cat`, `cp`, `rm` as a user types them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from pfsmount.objects.index import Table
from pfsmount.repo.refs import RefKind, ref_key
from pfsmount.repo.store import Store
from tests.conftest import Run, run_command
from tests.repo.damage import flip, place_of


@pytest.fixture
def images(pfs: Run) -> Run:
    """A store with an empty repo."""
    assert pfs("repo", "create", "images").returncode == 0
    return pfs


def tree(path: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below a directory that a version keeps."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(path)
    for directory, names, files in os.walk(top):
        for name in names + files:
            at = os.path.join(directory, name)
            info = os.lstat(at)
            content: object = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(at)
            elif stat.S_ISREG(info.st_mode):
                with open(at, "rb") as file:
                    content = file.read()
            mode = 0 if stat.S_ISLNK(info.st_mode) else stat.S_IMODE(info.st_mode)
            found[os.path.relpath(at, top)] = (stat.S_IFMT(info.st_mode), mode, info.st_mtime_ns, content)
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A directory with everything that is hard to keep."""
    top = tmp_path / "photos"
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "empty dir").mkdir()
    (top / "cat.jpg").write_bytes(os.urandom(70_000))
    (top / "empty").touch()
    (top / "sub" / "script.sh").write_text("#!/bin/sh\n")
    (top / "sub" / "script.sh").chmod(0o755)
    (top / "sub" / "secret").write_text("x")
    (top / "sub" / "secret").chmod(0o600)
    (top / "link").symlink_to("cat.jpg")
    (top / "dangling").symlink_to("/no/where")
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"*?[]{}!()@+^", b"-rf", b"x" * 255, "größe".encode()):
        with open(os.path.join(os.fsencode(top), name), "wb") as file:
            file.write(name)
    os.utime(top / "cat.jpg", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top / "link", ns=(1, 987_654_321_000_000_001), follow_symlinks=False)
    os.utime(top / "sub", ns=(1, 1_000_000_000_000_000_007))
    return top


def test_round_trip(images: Run, photos: Path, tmp_path: Path) -> None:
    """What put reads, get writes: every name, mode, time to the nanosecond, symlink, empty directory."""
    done = images("put", f"{photos}/", "images@master:/2026", "-m", "photos")
    assert done.returncode == 0, done.stderr
    assert "images@master is now" in done.stdout
    done = images("get", "images@master:/2026", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == tree(photos)
    again = images("put", f"{photos}/", "images@master:/2026")
    assert (again.returncode, "nothing changed" in again.stdout) == (0, True)


def test_put_in_the_order_of_cp(images: Run, photos: Path, tmp_path: Path) -> None:
    """A file to an exact name, into a directory, several sources into a directory, a directory as the target itself."""
    cat = photos / "cat.jpg"
    assert images("put", cat, "images@master:/exact.jpg").returncode == 0
    assert images("put", cat, "images@master:/into/").returncode == 0
    assert images("put", cat, "images@master").returncode == 0
    assert images("put", cat, photos / "sub", "images@master:/both").returncode == 0
    assert images("put", photos / "sub", "images@master:/into").returncode == 0
    listed = images("ls", "-R", "images@master").stdout.split("\n")
    for name in ("exact.jpg", "into/cat.jpg", "cat.jpg", "both/cat.jpg", "both/sub/script.sh", "into/script.sh"):
        assert name in listed
    assert "into/" in listed


def test_put_of_two_files_of_one_name(images: Run, tmp_path: Path) -> None:
    """One would be lost."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    said = images("put", tmp_path / "one" / "f", tmp_path / "two" / "f", "images@master:/")
    assert said.returncode == 2
    assert "two of the sources are named f; nothing was committed" in said.stderr


def test_put_of_a_stream_is_one_commit(images: Run) -> None:
    """`put -` reads standard input to its end."""
    done = images("put", "-", "images@master:/notes.txt", "-m", "notes", input="hello\n")
    assert done.returncode == 0, done.stderr
    assert images("cat", "images@master:/notes.txt").stdout == "hello\n"
    assert images("put", "-", "images@master", input="x").returncode == 2
    assert len(json.loads(images("log", "images", "--json").stdout)) == 1


def test_put_replaces_files_and_deletes_nothing(images: Run, tmp_path: Path) -> None:
    """Files are overwritten, others stay; `--delete` mirrors."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "two").write_text("2")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_text("zwei")
    images("put", tmp_path / "a", "images@master:/d")
    images("put", tmp_path / "b", "images@master:/d")
    assert images("ls", "images@master:/d").stdout == "one\ntwo\n"
    assert images("cat", "images@master:/d/two").stdout == "zwei"
    images("put", "--delete", tmp_path / "b", "images@master:/d")
    assert images("ls", "images@master:/d").stdout == "two\n"


def test_put_again_brings_the_attributes_of_directories(images: Run, photos: Path, tmp_path: Path) -> None:
    """Those below the target, as cp -a and rsync -a do; and what is the same already is no commit."""
    assert images("put", photos, "images@master:/").returncode == 0
    (photos / "sub").chmod(0o700)
    (photos / "sub" / "new").touch()
    os.utime(photos / "sub", ns=(1, 5))
    assert images("put", photos, "images@master:/").returncode == 0
    assert images("get", "images@master:/", tmp_path / "out").returncode == 0
    assert tree(tmp_path / "out") == tree(photos)
    assert "nothing changed" in images("put", photos, "images@master:/").stdout


def test_show_prints_the_id_that_b3sum_prints(images: Run, photos: Path) -> None:
    """The id of a file is its plain BLAKE3, at any size."""
    from blake3 import blake3

    big = photos / "big"
    big.write_bytes(os.urandom(9 << 20))
    images("put", photos, "images@master")
    for name in ("cat.jpg", "empty", "big"):
        shown = json.loads(images("show", f"images@master:/{name}", "--json").stdout)
        assert shown["id"] == blake3((photos / name).read_bytes()).hexdigest()


def test_cp_is_by_reference(images: Run, photos: Path) -> None:
    """Copying a large tree to another repo adds no data."""
    (photos / "big").write_bytes(os.urandom(6 << 20))
    images("put", photos, "images@master:/x")
    images("repo", "create", "other")
    store: Path = images.store  # type: ignore[attr-defined]
    before = sum(file.stat().st_size for file in (store / "segments").iterdir())
    done = images("cp", "images@master:/x", "other@master:/copy")
    assert done.returncode == 0, done.stderr
    after = sum(file.stat().st_size for file in (store / "segments").iterdir())
    assert after - before < 10_000
    one, two = (json.loads(images("show", place, "--json").stdout) for place in ("images:/x", "other:/copy"))
    assert one["id"] == two["id"]


def test_rm(images: Run, photos: Path) -> None:
    """Removes from the branch, not from history; a directory only with -r; a missing path changes nothing."""
    images("put", photos, "images@master")
    assert images("rm", "images@master:/nothing").returncode == 1
    assert images("rm", "images@master:/sub").returncode == 1
    assert images("rm", "images@master:/cat.jpg", "images@master:/nothing").returncode == 1
    assert images("show", "images@master:/cat.jpg").returncode == 0
    assert images("rm", "-r", "images@master:/cat.jpg", "images@master:/sub").returncode == 0
    assert images("show", "images@master:/cat.jpg").returncode == 1
    assert images("show", "images@master~1:/cat.jpg").returncode == 0
    assert images("rm", "-f", "images@master:/nothing").returncode == 0


def test_diff_and_log(images: Run, photos: Path, tmp_path: Path) -> None:
    """What changed, by letter; the history newest first."""
    images("put", photos, "images@master", "-m", "first")
    (photos / "cat.jpg").write_bytes(b"smaller")
    (photos / "sub" / "script.sh").chmod(0o644)
    (photos / "empty").unlink()
    (photos / "new").write_text("new")
    images("put", "--delete", photos, "images@master", "-m", "second")
    changes = {
        change["path"]: change["change"]
        for change in json.loads(images("diff", "images@master~1", "images@master", "--json").stdout)
    }
    assert changes["cat.jpg"] == "M"
    assert changes["empty"] == "D"
    assert changes["new"] == "A"
    # the executable bit is content, other attributes are not
    assert changes["sub/script.sh"] == "M"
    assert [commit["message"] for commit in json.loads(images("log", "images", "--json").stdout)] == [
        "second",
        "first",
    ]
    assert json.loads(images("log", "images@master", "-n", "1", "--json").stdout)[0]["files"] == 12


def test_get_does_not_follow_links_out(images: Run, photos: Path, tmp_path: Path) -> None:
    """A link in the destination cannot redirect what get writes."""
    images("put", photos, "images@master")
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (out / "sub").symlink_to(outside)
    (out / "cat.jpg").symlink_to(outside / "victim")
    done = images("get", "images@master", out)
    assert done.returncode == 1
    assert "sub is not a directory" in done.stderr
    (out / "sub").unlink()
    assert images("get", "images@master", out).returncode == 0
    assert not list(outside.iterdir())
    assert (out / "cat.jpg").read_bytes() == (photos / "cat.jpg").read_bytes()


BAD = [
    (["ls", "nothing"], 1, "no repo 'nothing'"),
    (["ls", "images@nothing"], 1, "no branch, tag or commit 'nothing'"),
    (["ls", "images@master~5"], 1, "no commits yet"),
    (["ls", "images@"], 2, "not a revision"),
    (["ls", "images@master:/../x"], 2, "'..'"),
    (["cat", "images@master:/nothing"], 1, "there is no images@master:/nothing"),
    (["put", "/no/such/file", "images@master"], 1, "nothing was committed"),
    (["put", "/etc/passwd", "images@master~0"], 1, "no commits yet"),
    (["put", "/etc/passwd", "images@master:/.pfs"], 1, "belongs to pfs"),
    (["put", "/etc/passwd"], 2, "put needs what to put, and where"),
    (["put", "images@master:/a", "out"], 2, "last"),
    (["repo", "create", "a/b"], 2, "cannot be the name"),
    (["repo", "create", "images"], 1, "already"),
    (["branch", "images@deadbeef"], 2, "cannot be the name"),
    (["show", "images@master"], 1, "no commits yet"),
    (["frobnicate"], 2, "no such command"),
]


@pytest.mark.parametrize(("args", "code", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input(images: Run, args: list[str], code: int, says: str) -> None:
    """One clear line, exit code not 0, no traceback, nothing changed."""
    done = images(*args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert images("log", "images", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize("damage", ["head", "row", "ref"])
def test_a_damaged_repo_hides_no_other(images: Run, damage: str) -> None:
    """`repo list` shows the others, and says of that one what is wrong and what to do."""
    for name in ("empty", "zoo"):
        assert images("repo", "create", name).returncode == 0
        assert images("put", "-", f"{name}@master:/file", input=name).returncode == 0
    with Store.open(images.store) as store:  # type: ignore[attr-defined]
        repo = store.repo("empty")
        head = store.head("empty", "master")
        assert head is not None
        path, place = place_of(store, head)
        with store.objects.index.write() as txn:
            if damage == "row":
                txn.put(Table.REPOS, b"empty", b"{}")
            elif damage == "ref":
                txn.put(Table.REFS, ref_key(repo, RefKind.BRANCH, "master"), b"short")
    if damage == "head":
        flip(path, place.offset + 5)
    done = images("repo", "list")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["repo", "images", "zoo"]
    assert "the repo empty cannot be shown" in done.stderr
    assert "'pfs fsck'" in done.stderr
    shown = images("repo", "list", "--json")
    assert shown.returncode == 1
    assert [(one["name"], "problem" in one) for one in json.loads(shown.stdout)] == [
        ("empty", True),
        ("images", False),
        ("zoo", False),
    ]
    listed = images("ls")
    assert listed.stdout.split()[-2:] == ["images@master", "zoo@master"]
    assert listed.returncode == (0 if damage == "head" else 1)
    assert ("empty" in listed.stderr) == (damage != "head")
    status = images("status")
    assert status.returncode == 1
    assert "empty" in status.stderr
    assert "cannot be shown" in status.stderr


def test_no_store(tmp_path: Path) -> None:
    """Without a store every command says how to make one."""
    done = run_command("pfsmount.cli.app", tmp_path / "none", "repo", "list")
    assert done.returncode == 1
    assert "pfs init" in done.stderr


def test_full_disk(images: Run, tmp_path: Path) -> None:
    """A put that does not fit says so, leaves the store as it was, and works once there is room."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", small], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        store = small / "store"
        (tmp_path / "big").write_bytes(os.urandom(12 << 20))
        (tmp_path / "little").write_bytes(b"x" * 10_000)
        for command in (["init"], ["repo", "create", "images"], ["put", tmp_path / "little", "images@master"]):
            done = run_command("pfsmount.cli.app", store, *command)
            assert done.returncode == 0, done.stderr
        before = run_command("pfsmount.cli.app", store, "log", "images", "--json").stdout
        done = run_command("pfsmount.cli.app", store, "put", tmp_path / "big", "images@master")
        assert (done.returncode, "no space left" in done.stderr) == (1, True)
        assert "Traceback" not in done.stderr
        assert run_command("pfsmount.cli.app", store, "log", "images", "--json").stdout == before
        # the space is given back, so that small things still fit
        done = run_command("pfsmount.cli.app", store, "put", tmp_path / "little", "images@master:/again")
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", small], check=True)
