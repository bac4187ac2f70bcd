"""Files in and out"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from tests.semantics.scene import Scene


def test_put_is_like_cp(scene: Scene) -> None:
    """S20 `put` and `get` take their arguments in cp's order

    A directory becomes the target itself, as with `cp -rT`: its files are added or overwrite, nothing is deleted. Several sources, or a target that ends with
    `/`, go into the target. `--delete` mirrors: what the source does not have is deleted.
    """
    photos = scene.write({"cat.jpg": "cat", "sub/dog.jpg": "dog"})
    scene.pfs("put", photos, "images@master:/2026")
    scene.pfs("put", photos / "cat.jpg", "images@master:/exact")
    scene.pfs("put", photos / "cat.jpg", "images@master:/into/")
    scene.pfs("put", photos / "cat.jpg", photos / "sub", "images@master:/both")
    assert scene.ls("images@master", "-R") == [
        "2026/", "2026/cat.jpg", "2026/sub/", "2026/sub/dog.jpg",
        "both/", "both/cat.jpg", "both/sub/", "both/sub/dog.jpg",
        "exact", "into/", "into/cat.jpg",
    ]  # fmt: skip
    (photos / "cat.jpg").write_text("another cat")
    (photos / "sub" / "dog.jpg").unlink()
    scene.pfs("put", photos, "images@master:/2026")
    assert scene.cat("images@master:/2026/cat.jpg") == "another cat"
    assert scene.ls("images@master:/2026/sub") == ["dog.jpg"]
    scene.pfs("put", "--delete", photos, "images@master:/2026")
    assert scene.ls("images@master:/2026/sub") == []
    scene.pfs("get", "images@master:/2026", scene.root / "out")
    assert sorted(os.listdir(scene.root / "out")) == ["cat.jpg", "sub"]


def test_a_put_is_one_commit(scene: Scene) -> None:
    """S21 A put is one commit, all of it or nothing

    Whatever it is given: a tree, many files, standard input (`-`). Readers see the branch as it was before or as it is after. When one source
    cannot be read, nothing is committed.
    """
    photos = scene.write({"a": "1", "b/c": "2", "b/d": "3"})
    scene.pfs("put", photos, "images@master:/", "-m", "a tree")
    scene.pfs("put", photos / "a", photos / "b", "images@master:/x", "-m", "many")
    scene.pfs("put", "-", "images@master:/notes.txt", "-m", "standard input", stdin="hello\n")
    assert [commit["message"] for commit in scene.log()] == ["standard input", "many", "a tree"]
    assert scene.cat("images@master:/notes.txt") == "hello\n"
    scene.pfs("put", photos, scene.root / "missing", "images@master:/y", code=1)
    assert len(scene.log()) == 3


def test_round_trip(scene: Scene) -> None:
    """S22 What `put` reads, `get` writes

    Contents, names (any that Linux allows, in any encoding), empty files and directories, symlinks as they are, permissions, times to the nanosecond, `user.`
    extended attributes; for root also owners.
    """
    top = scene.write({"file": b"\0\xff" * 5000, "empty": "", "sub/tool": "#!/bin/sh\n"})
    (top / "empty directory").mkdir()
    (top / "link").symlink_to("no/where")
    (top / "sub" / "tool").chmod(0o4751)
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"*?[]{}!()@+^~", b"-rf", b"x" * 255):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).touch()
    os.utime(top / "file", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top / "link", ns=(1, -987_654_321), follow_symlinks=False)
    os.utime(top / "sub", ns=(1, 1_000_000_007))
    try:
        os.setxattr(top / "file", "user.kept", b"\0value")
    except OSError:
        pytest.skip("this filesystem has no extended attributes")
    if os.geteuid() == 0:
        os.chown(top / "empty", 1234, 5678)
    scene.pfs("put", top, "images@master:/")
    scene.pfs("get", "images@master:/", scene.root / "out")
    assert _everything(scene.root / "out") == _everything(top)
    assert "nothing changed" in scene.pfs("put", scene.root / "out", "images@master:/")


def _everything(top: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in names + files:
            place = os.path.join(directory, name)
            info = os.lstat(place)
            is_link = stat.S_ISLNK(info.st_mode)
            content: object = os.readlink(place) if is_link else None
            if stat.S_ISREG(info.st_mode):
                with open(place, "rb") as file:
                    content = file.read()
            xattrs = [(key, os.getxattr(place, key)) for key in os.listxattr(place, follow_symlinks=False)]
            key = os.path.relpath(place, os.fsencode(top))
            found[key] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, content, xattrs)
    return found


def test_ids(scene: Scene) -> None:
    """S23 The id of a file is what `b3sum` prints

    Whatever its size, and however it came in.
    """
    contents = {"empty": b"", "small": b"x", "page": os.urandom(5000), "large": os.urandom(9 << 20)}
    scene.put(contents)
    for name, content in contents.items():
        assert scene.json("show", f"images@master:/{name}")["id"] == blake3(content).hexdigest()


def test_content_is_stored_once(scene: Scene) -> None:
    """S24 The same content is stored once

    Under any name, in any repo, in any number of commits. `pfs cp` copies files and directories of any size without copying data.
    """
    scene.put({"dir/large": os.urandom(9 << 20), "dir/small": os.urandom(50_000)})
    before = scene.stored_bytes()
    scene.pfs("repo", "create", "other")
    scene.pfs("cp", "images@master:/dir", "other@master:/copied")
    scene.pfs("get", "images@master:/", scene.root / "out")
    scene.pfs("put", scene.root / "out", "other@master:/put-again")
    assert scene.stored_bytes() - before < 10_000
    listed = [scene.json("show", place)["id"] for place in ("images:/dir", "other:/copied", "other:/put-again/dir")]
    assert len(set(listed)) == 1


def test_large_files_share(scene: Scene) -> None:
    """S25 A new version of a large file costs what changed

    Appending to it or overwriting a part of it stores the touched pieces (of at most 4 MiB), not the file.
    """
    data = bytearray(os.urandom(24 << 20))
    scene.put({"large": bytes(data)})
    before = scene.stored_bytes()
    data[10 << 20 : (10 << 20) + 100] = os.urandom(100)
    data += os.urandom(1000)
    scene.put({"large": bytes(data)})
    assert scene.stored_bytes() - before < (4 << 20) + 50_000
    assert scene.json("show", "images@master:/large")["id"] == blake3(data).hexdigest()


def test_holes_stay_holes(scene: Scene) -> None:
    """S26 Holes stay holes

    In files of more than 4 MiB, holes of at least 64 KiB take no space: not in the store, and not where the file is taken out.
    """
    place = scene.write({"sparse": "start"}) / "sparse"
    os.truncate(place, 1 << 30)
    with open(place, "ab") as file:
        file.write(b"end")
    if place.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this filesystem has no holes")
    before = scene.stored_bytes()
    scene.pfs("put", place, "images@master:/")
    assert scene.stored_bytes() - before < 200_000
    scene.pfs("get", "images@master:/sparse", scene.root / "out")
    info = (scene.root / "out").stat()
    assert (info.st_size, info.st_blocks * 512 < 1 << 20) == ((1 << 30) + 3, True)
    with open(scene.root / "out", "rb") as file:
        assert file.read(5) == b"start"
        file.seek(1 << 30)
        assert file.read() == b"end"


def test_rm(scene: Scene) -> None:
    """S27 `rm` removes from a branch, not from history

    A directory only with `-r`; when one of the paths does not exist, nothing is removed.
    """
    scene.put({"file": "x", "dir/a": "y"})
    scene.pfs("rm", "images@master:/dir", code=1)
    scene.pfs("rm", "images@master:/file", "images@master:/missing", code=1)
    assert len(scene.log()) == 1
    scene.pfs("rm", "-r", "images@master:/file", "images@master:/dir")
    assert scene.ls("images@master") == []
    assert scene.cat("images@master~1:/dir/a") == "y"


def test_what_is_not_versioned(scene: Scene) -> None:
    """S28 Sockets, FIFOs and devices are left out and named

    They have no content to keep. The name `.pfs` at the root of a branch belongs to pfs, and a put of it is refused.
    """
    top = scene.write({"file": "x"})
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(top)  # the path of a socket has at most 107 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        done = scene.run("pfs", "put", top, "images@master:/")
    assert "fifo is a socket, FIFO or device and was left out" in done.stderr
    assert "socket is a socket" in done.stderr
    assert scene.ls("images@master") == ["file"]
    (top / ".pfs").mkdir()
    assert "belongs to pfs" in scene.pfs("put", top, "images@master:/", code=1)
    assert len(json.loads(scene.pfs("log", "images", "--json"))) == 1


def test_get_stays_inside(scene: Scene) -> None:
    """S29 `get` writes nothing outside of its destination

    No symlink, neither in the version nor in the destination, leads it out; each file appears whole or not at all.
    """
    scene.put({"sub/file": "new", "file": "new"})
    out, outside = scene.root / "out", scene.root / "outside"
    out.mkdir()
    outside.mkdir()
    (out / "sub").symlink_to(outside)
    (out / "file").symlink_to(outside / "victim")
    assert "sub is not a directory" in scene.pfs("get", "images@master:/", out, code=1)
    (out / "sub").unlink()
    scene.pfs("get", "images@master:/", out)
    assert (out / "file").read_text() == "new"
    assert os.listdir(outside) == []


def test_tar(scene: Scene) -> None:
    """S190 `put --tar` and `get --tar` keep what `put` and `get` keep

    Archives of GNU tar, bsdtar and Python, plain or compressed with gzip, bzip2 or xz, also from standard input, become one commit: names of any bytes,
    modes, owners by number, times to the nanosecond, symlinks, `user.` attributes, holes. Hard links become files of the same content. Of two members with one
    name the last counts; a leading `/` is taken off. What `get --tar` writes is in pax format, and the same bytes for the same version every time.
    """
    top = scene.write({"file": "x", "sub/tool": "#!/bin/sh\n", "empty": ""})
    (top / "link").symlink_to("no/where")
    (top / "sub" / "tool").chmod(0o4751)
    os.link(top / "file", top / "hard")
    Path(os.fsdecode(os.fsencode(top) + b"/not utf-8 \xff\n" + b"x" * 200)).touch()
    os.utime(top / "file", ns=(1, -987_654_321))
    archive = scene.root / "in.tar.gz"
    subprocess.run(["tar", "-C", top, "--format=posix", "-czf", archive, "."], check=True, stderr=subprocess.DEVNULL)
    scene.pfs("put", "--tar", archive, "images@master:/t")
    scene.pfs("get", "images@master:/t", scene.root / "got")
    assert _everything(scene.root / "got") == _everything(top)
    scene.pfs("get", "images@master:/t", "--tar", scene.root / "one.tar")
    scene.pfs("get", "images@master:/t", "--tar", scene.root / "two.tar")
    assert (scene.root / "one.tar").read_bytes() == (scene.root / "two.tar").read_bytes()
    (scene.root / "extracted").mkdir()
    subprocess.run(
        ["tar", "-C", scene.root / "extracted", "--warning=no-timestamp", "-xpf", scene.root / "one.tar"], check=True
    )
    assert _everything(scene.root / "extracted") == _everything(top)
    assert "nothing changed" in scene.pfs("put", "--tar", scene.root / "one.tar", "images@master:/t")


def test_bad_archives(scene: Scene) -> None:
    """S191 An archive that is damaged, cut short or none commits nothing

    Also one that ends without its end marker, which tar takes for whole; one with `..` in a name; one with a member below a file or a symlink. Devices and
    FIFOs are left out and named.
    """
    top = scene.write({"a": "1" * 5000, "b": "2"})
    whole = subprocess.run(["tar", "-C", top, "-c", "a", "b"], capture_output=True, check=True).stdout
    second = 512 + 5120  # where the header of b begins
    damaged = whole[:second] + b"?" + whole[second + 1 :]
    for bad in (whole[:4000], whole[: second + 1024], damaged, b"no archive" * 100):
        (scene.root / "bad.tar").write_bytes(bad)
        scene.pfs("put", "--tar", scene.root / "bad.tar", "images@master:/", code=1)
    assert scene.log() == []


def test_get_restores(scene: Scene) -> None:
    """S192 `get` restores what `cp -a` would

    Modes, times, `user.` attributes and holes always; owners when root runs it, unless `--no-owners`. Where the owner is not restored, setuid and setgid are not
    either. A directory that is there already keeps its own attributes.
    """
    top = scene.write({"tool": "x"})
    (top / "tool").chmod(0o4755)
    scene.pfs("put", top, "images@master:/t")
    scene.pfs("get", "images@master:/t", scene.root / "got")
    assert stat.S_IMODE((scene.root / "got" / "tool").stat().st_mode) == 0o4755
    if os.geteuid() == 0:
        os.chown(top / "tool", 1234, 1234)
        (top / "tool").chmod(0o4755)
        scene.pfs("put", top, "images@master:/t")
        scene.pfs("get", "images@master:/t", scene.root / "with")
        scene.pfs("get", "--no-owners", "images@master:/t", scene.root / "without")
        with_owner, without = ((scene.root / name / "tool").stat() for name in ("with", "without"))
        assert (with_owner.st_uid, stat.S_IMODE(with_owner.st_mode)) == (1234, 0o4755)
        assert (without.st_uid, stat.S_IMODE(without.st_mode)) == (0, 0o755)


def test_interruption(scene: Scene) -> None:
    """S193 Ctrl-C and SIGTERM leave nothing half-done

    The command ends with one line that says whether a commit was made, and with exit code 130 or 143. What it had begun to write is taken back: a store is as it
    was, a directory or archive that `get` was to make is not there, a file that it was to replace is the old one.
    """
    with scene.start("pfs", "put", "-", "images@master:/x", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("x" * (3 << 20))  # more than a pipe holds: it has begun to read
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "pfs: interrupted; nothing was committed\n")
    assert scene.log() == []
    assert scene.stored_bytes() < 1 << 20


def test_exclude(scene: Scene) -> None:
    """S194 `put --exclude GLOB` leaves out what matches

    A pattern without a slash fits a name anywhere, one with a slash a path from the top of the source; one that ends with a slash fits directories only. A directory goes
    with all that is below it.
    """
    top = scene.write({"a.tmp": "1", "sub/b.tmp": "2", "sub/keep": "3", "top/x": "4", "sub/top/x": "5"})
    scene.pfs("put", top, "images@master:/", "--exclude", "*.tmp", "--exclude", "/top")
    assert scene.ls("images@master", "-R") == ["sub/", "sub/keep", "sub/top/", "sub/top/x"]


def test_files_in_use(scene: Scene) -> None:
    """S196 A file that is written to during `put` is one of its states, or none

    What is appended to a file (a log) while `put` reads it is in the next commit, and what was there before in this one. A file that is overwritten or cut meanwhile
    is read again, three times at most; then the command ends, names it and commits nothing.
    """
    log = scene.root / "log"
    log.write_bytes(b"0123456789abcdef" * (1 << 20))
    stop = threading.Event()

    def grow() -> None:
        with log.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 26:
                file.write(b"more" * (1 << 14))

    def overwrite() -> None:
        with log.open("r+b", buffering=0) as file:
            while not stop.is_set():
                os.pwrite(file.fileno(), b"other", 12345)

    for write in (grow, overwrite):
        stop.clear()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            if write is grow:
                scene.pfs("put", log, "images@master:/log")
            else:
                assert f"{log} is being written to" in scene.pfs("put", log, "images@master:/log", code=2)
        finally:
            stop.set()
            writer.join()
    size = scene.json("show", "images@master:/log")["size"]
    assert 16 << 20 <= size <= log.stat().st_size
    assert len(scene.log()) == 1
