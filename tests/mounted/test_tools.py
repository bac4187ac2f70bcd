"""Ordinary programs in a mounted branch, and the same operations on a plain directory beside it."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.conftest import Mount, wait_for
from tests.mounted.showing import Look, run, shown


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a bit of everything."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "file").write_bytes(b"hello\n")
    (root / "deep" / "big").write_bytes(random.Random(1).randbytes(300_000))
    (root / "deep" / "er" / "script").write_text("#!/bin/sh\n")
    (root / "deep" / "er" / "script").chmod(0o755)
    (root / "ünïcode").write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"not utf-8")
    os.symlink("../file", root / "deep" / "link")
    os.link(root / "file", root / "hard")
    os.utime(root / "file", ns=(1_000_000_007, 1_000_000_007))
    os.utime(root / "deep", ns=(2_000_000_009, 2_000_000_009))
    return root


def test_cp_mv_rm(mount: Mount, tree: Path) -> None:
    run("cp", "-a", tree, mount.master / "copy", cwd=tree)
    assert shown(mount.master / "copy") == shown(tree)
    assert (mount.master / "copy" / "file").stat().st_mtime_ns == 1_000_000_007
    assert (mount.master / "copy" / "deep").stat().st_mtime_ns == 2_000_000_009
    run("mv", "copy", "moved", cwd=mount.master)
    assert shown(mount.master / "moved") == shown(tree)
    mount.commit()
    committed = shown(mount.point / "images@master~0" / "moved")
    os.unlink(tree / "hard")
    shutil.copy2(tree / "file", tree / "hard")  # hard links are files of their own in a commit
    assert committed == shown(tree)
    run("rm", "-r", "moved", cwd=mount.master)
    assert os.listdir(mount.master) == []


def test_tar_and_rsync(mount: Mount, tree: Path, tmp_path: Path) -> None:
    run("tar", "cf", tmp_path / "x.tar", "-C", tree, ".", cwd=tree)
    (mount.master / "out").mkdir()
    run("tar", "xf", tmp_path / "x.tar", "-C", mount.master / "out", cwd=tree)
    assert shown(mount.master / "out") == shown(tree)
    run("tar", "cf", tmp_path / "back.tar", "-C", mount.master / "out", ".", cwd=tree)
    if shutil.which("rsync"):
        run("rsync", "-a", f"{tree}/", f"{mount.master}/sync/", cwd=tree)
        assert run("rsync", "-ai", f"{tree}/", f"{mount.master}/sync/", cwd=tree) == ""
        mount.commit()
        assert run("rsync", "-ai", f"{tree}/", f"{mount.master}/sync/", cwd=tree) == ""
        assert run("rsync", "-a", "--delete", f"{tree}/", f"{mount.master}/", cwd=tree) == ""
        assert (mount.master / ".pfs" / "head").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="NO GIT HERE")
def test_git(mount: Mount) -> None:
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@y")
    repo = mount.master / "repo"
    repo.mkdir()
    run("git", "init", "-q", ".", cwd=repo)
    for number in range(30):
        (repo / f"file{number}").write_text(str(number))
    run("git", "add", "-A", cwd=repo)
    run(*git, "commit", "-qm", "one", cwd=repo)
    (repo / "file3").write_text("changed")
    assert run("git", "status", "--short", cwd=repo) == " M file3\n"
    run(*git, "commit", "-qam", "two", cwd=repo)
    run("git", "fsck", "--strict", cwd=repo)
    run("git", "gc", "-q", cwd=repo)
    run("git", "clone", "-q", "repo", "clone", cwd=mount.master)
    mount.commit()
    assert run("git", "-C", str(mount.master / "clone"), "log", "--format=%s", cwd=repo) == "two\none\n"
    assert run("git", "status", "--short", cwd=repo) == ""


def test_editors_save(mount: Mount) -> None:
    """Write a temporary file, fsync, rename over: what editors and `sed -i` do."""
    path = mount.master / "notes"
    path.write_text("one two\n")
    mount.commit()
    with open(mount.master / ".notes.tmp", "w") as file:
        file.write("three\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(mount.master / ".notes.tmp", path)
    directory = os.open(mount.master, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert path.read_text() == "three\n"
    run("sed", "-i", "s/three/four/", "notes", cwd=mount.master)
    assert path.read_text() == "four\n"
    assert (mount.master / ".pfs" / "status").read_text() == "M notes\n"
    mount.commit()
    path.write_text("four\n")
    assert mount.commit() is None  # the same content again is no change


def test_a_thousand_small_files(mount: Mount) -> None:
    (mount.master / "many").mkdir()
    for number in range(1000):
        (mount.master / "many" / f"{number:04}").write_bytes(b"%d" % number)
    mount.commit()
    (mount.master / "many" / "0500").unlink()
    (mount.master / "many" / "new").write_bytes(b"new")
    with os.scandir(mount.master / "many") as entries:
        names = set()
        for at, entry in enumerate(entries):
            names.add(entry.name)
            if at == 10:
                (mount.master / "many" / "0000-made-meanwhile").touch()
                (mount.master / "many" / "0999").unlink()
    assert len(names - {"0000-made-meanwhile", "0999"}) == 999
    mount.commit()
    assert (mount.point / "images@master~0" / "many" / "0777").read_bytes() == b"777"


def test_large_file_in_parts(mount: Mount) -> None:
    """Overwriting parts of a large file, truncating and growing it: only the parts are uncommitted."""
    expected = bytearray(random.Random(2).randbytes(12_000_000))
    path = mount.master / "large"
    path.write_bytes(expected)
    mount.commit()
    with path.open("r+b") as file:
        for offset, size in ((0, 10), (5_000_000, 300_000), (4_194_300, 20), (11_999_990, 100)):
            block = random.Random(offset).randbytes(size)
            file.seek(offset)
            file.write(block)
            expected[offset : offset + size] = block
        file.flush()
        assert path.read_bytes() == expected
        file.truncate(9_000_000)
        file.truncate(9_500_000)
        del expected[9_000_000:]
        expected += bytes(500_000)
    assert path.read_bytes() == expected
    (data,) = (mount.store / "worktrees").glob("*/master/data/*")
    assert data.stat().st_blocks * 512 < 2_000_000
    mount.kill()
    mount.pfs("mount", mount.point)
    assert path.read_bytes() == expected
    mount.commit()
    assert (mount.point / "images@master~0" / "large").read_bytes() == expected
    assert path.read_bytes() == expected


def test_mmap(mount: Mount) -> None:
    """What was written through a shared memory map is in the commit, without msync."""
    path = mount.master / "mapped"
    path.write_bytes(bytes(100_000))
    mount.commit()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5000:5005] = b"hello"
        mount.commit()
        assert (mount.point / "images@master~0" / "mapped").read_bytes()[5000:5005] == b"hello"
        mapped[6000:6005] = b"later"
        mapped.flush()
    assert path.read_bytes()[6000:6005] == b"later"


def test_a_commit_has_every_page_of_every_map(mount: Mount) -> None:
    """A hundred single pages, of more files than one, also of a renamed one: each is a request of its own, and the kernel sends a dozen at a time."""
    size, step = 2_000_000, 16384
    (mount.master / "dir").mkdir()
    paths = [mount.master / "one", mount.master / "dir" / "two", mount.master / "three"]
    for path in paths:
        path.write_bytes(bytes(size))
    mount.commit()
    files = [path.open("r+b") for path in paths]
    maps = [mmap.mmap(file.fileno(), 0) for file in files]
    paths[2] = paths[2].rename(mount.master / "dir" / "renamed")
    for number in range(1, 3):
        for mapped in maps:
            for at in range(0, size, step):
                mapped[at] = number
        (mount.master / ".pfs" / "commit").write_text(f"commit {number}")
        for path in paths:
            data = (mount.point / "images@master~0" / path.relative_to(mount.master)).read_bytes()
            assert set(data[::step]) == {number}, path
    for mapped, file in zip(maps, files, strict=True):
        mapped.close()
        file.close()


def test_open_files_live_through_commits(mount: Mount) -> None:
    path = mount.master / "log"
    with path.open("wb", buffering=0) as writer, path.open("rb") as reader:
        for number in range(5):
            writer.write(b"%d\n" % number)
            assert mount.commit() is not None
            assert os.fstat(writer.fileno()).st_ino == path.stat().st_ino
        assert reader.read() == b"0\n1\n2\n3\n4\n"
    assert (mount.point / "images@master~0" / "log").read_bytes() == b"0\n1\n2\n3\n4\n"
    path.unlink()
    with (mount.master / "gone").open("w+b", buffering=0) as file:
        file.write(b"still here")
        (mount.master / "gone").unlink()
        mount.commit()
        file.seek(0)
        assert file.read() == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_hard_links(mount: Mount) -> None:
    (mount.master / "a").write_text("one")
    os.link(mount.master / "a", mount.master / "b")
    assert (mount.master / "b").stat().st_nlink == 2
    (mount.master / "b").write_text("two")
    assert (mount.master / "a").read_text() == "two"
    assert (mount.master / "a").stat().st_ino == (mount.master / "b").stat().st_ino
    mount.commit()
    wait_for(lambda: (mount.master / "a").stat().st_nlink == 1, "the links to be files of their own")
    (mount.master / "a").write_text("three")
    assert (mount.master / "b").read_text() == "two"


def test_modes_times_and_setid(mount: Mount) -> None:
    path = mount.master / "file"
    path.write_text("x")
    path.chmod(0o4755)
    assert path.stat().st_mode & 0o7777 == 0o4755
    os.utime(path, ns=(5, -1_000_000_001))
    assert path.stat().st_mtime_ns == -1_000_000_001
    before = path.stat().st_ctime_ns
    os.chown(path, 12, 34)
    assert path.stat().st_mode & 0o7777 == 0o755
    assert path.stat().st_ctime_ns >= before
    assert path.stat().st_uid == os.getuid()
    (mount.master / "shared").mkdir()
    (mount.master / "shared").chmod(0o2775)
    (mount.master / "shared" / "below").mkdir()
    assert (mount.master / "shared" / "below").stat().st_mode & 0o2000


def test_eight_threads(mount: Mount) -> None:
    """Writers, readers and commits at once: every commit holds whole files only."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            directory = mount.master / f"t{number}"
            directory.mkdir()
            for round in range(20):
                path = directory / f"f{round % 5}"
                data = bytes([number]) * (1000 + 40_000 * (round % 7))
                temporary = directory / f"tmp{round}"
                temporary.write_bytes(data)
                os.rename(temporary, path)
                assert path.read_bytes() == data
                if round % 3 == 0:
                    shutil.copy(path, directory / "copy")
                    (directory / "copy").unlink()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    commits = [mount.commit(f"during {number}") for number in range(4)]
    for thread in threads:
        thread.join()
    assert failures == []
    mount.commit()
    for name in [*(f"images@{commit}" for commit in commits if commit), "images@master~0"]:
        for number in range(8):
            directory = mount.point / name / f"t{number}"
            for path in directory.glob("f*"):
                data = path.read_bytes()
                assert set(data) == {number}
                assert (len(data) - 1000) % 40_000 == 0


def outcome(act: Callable[[], object]) -> str:
    try:
        found = act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return repr(sorted(found)) if isinstance(found, list) else "done"


def operations(root: Path, one: str, two: str, mode: int, offset: int, data: bytes) -> dict[str, Callable[[], object]]:
    """What the test below chooses from."""
    return {
        "mkdir": lambda: (root / one).mkdir(),
        "write": lambda: patch(root / one, 0, data, os.O_CREAT | os.O_TRUNC),
        "append": lambda: patch(root / one, offset, data, os.O_CREAT | os.O_APPEND),
        "patch": lambda: patch(root / one, offset, data),
        "truncate": lambda: os.truncate(root / one, offset),
        "rename": lambda: os.rename(root / one, root / two),
        "unlink": lambda: os.unlink(root / one),
        "rmdir": lambda: os.rmdir(root / one),
        "symlink": lambda: os.symlink(two, root / one),
        "link": lambda: os.link(root / one, root / two, follow_symlinks=False),
        "chmod": lambda: os.chmod(root / one, mode),
        "listdir": lambda: os.listdir(root / one),
        "mkfifo": lambda: os.mkfifo(root / one),
    }


def test_same_operations_as_on_a_plain_directory(mount: Mount, tmp_path: Path) -> None:
    """Random operations on a branch and on a plain directory show the same, across commits and remounts."""
    plain = tmp_path / "plain"
    plain.mkdir()
    chance = random.Random(3)
    names = ["a", "b", "c", "a/x", "a/y", "b/x", "b/y", "c/x", "a/x/z", "nowhere/x"]
    common = ["mkdir", "write", "patch", "rename", "symlink", "append"]
    for step in range(600):
        chosen = chance.choice([*operations(plain, "", "", 0, 0, b""), *common, *common])
        args = (chance.choice(names), chance.choice(names), chance.choice([0o644, 0o700]), chance.randrange(6000))
        data = chance.randbytes(chance.randrange(5000))
        results = [outcome(operations(root, *args, data)[chosen]) for root in (mount.master, plain)]
        assert results[0] == results[1], (step, chosen, args)
        if step % 40 == 39:
            assert shown_without_fifos(mount.master) == shown_without_fifos(plain)
        if step % 100 == 99:
            separate_links(plain)
            mount.commit()
        if step in (150, 350):
            mount.kill()
            mount.pfs("mount", mount.point)


def patch(path: Path, offset: int, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def shown_without_fifos(root: Path) -> dict[str, Look]:
    return {path: what for path, what in shown(root).items() if not Path(root, path).is_fifo()}


def separate_links(root: Path) -> None:
    """What a commit does to hard links, done to a plain directory."""
    for directory, _, files in os.walk(root):
        for name in files:
            path = Path(directory, name)
            if path.lstat().st_nlink > 1:
                temporary = path.with_name(name + ".tmp")
                if path.is_symlink():
                    temporary.symlink_to(os.readlink(path))
                elif path.is_fifo():
                    continue
                else:
                    shutil.copy2(path, temporary)
                temporary.rename(path)


def test_programs_started_from_the_mount(mount: Mount) -> None:
    script = mount.master / "script.py"
    script.write_text("#!" + sys.executable + "\nprint('from the mount')\n")
    script.chmod(0o755)
    assert run(script, cwd=mount.master) == "from the mount\n"
    mount.commit()
    assert run(mount.point / "images@master~0" / "script.py", cwd=mount.master) == "from the mount\n"
