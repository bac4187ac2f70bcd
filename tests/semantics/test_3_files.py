"""Files in and out"""

from __future__ import annotations

import json
import os
import socket
import stat
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
