"""The mount

`pfs mount DIR` shows a store as a directory. It needs /dev/fuse, and no root.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.semantics.scene import Scene, wait_for


def errno_of(act: Callable[[], object]) -> str:
    """The name of the errno with which something fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is what counts
        act()
    return errno.errorcode[caught.value.errno or 0]


def sh(script: str, where: Path) -> str:
    """Run a shell script in a directory."""
    done = subprocess.run(["sh", "-ec", script], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_in_the_root(mounted: Scene) -> None:
    """S60 Every branch is a directory, and every version is there when it is named

    `ls` shows `repo@branch` for each branch. Not listed, but there, are `repo`, a link to its default branch, and all other versions: `images@3f9c2a7d`, `images@master~1`. What
    does not exist is "No such file or directory".
    """
    first = mounted.put({"file": "one"})
    mounted.put({"file": "two"})
    mounted.pfs("branch", "images@old", "master~1")
    root = mounted.mount_point
    assert sorted(os.listdir(root)) == ["images@master", "images@old"]
    assert os.readlink(root / "images") == "images@master"
    for version, content in {
        "images@master": "two",
        "images@old": "one",
        "images@master~1": "one",
        f"images@{first[:9]}": "one",
    }.items():
        assert (root / version / "file").read_text() == content
    for name in ("nothing", "images@nothing", "images@master~2", "images@123456"):
        assert errno_of(lambda name=name: os.stat(root / name)) == "ENOENT"  # type: ignore[misc]
    assert errno_of((root / "new@master").mkdir) == "EPERM"


def test_commits_are_read_only(mounted: Scene) -> None:
    """S61 A commit is read-only for everyone

    Root included: every change of `images@<commit>` or `images@master~1` is "Read-only file system".
    """
    mounted.put({"file": "x", "dir/a": "y"})
    commit = mounted.mount_point / "images@master~0"
    for act in (
        (commit / "new").touch,
        (commit / "file").unlink,
        lambda: (commit / "file").write_text("y"),
        lambda: (commit / "file").chmod(0o600),
        lambda: (commit / "dir").rename(commit / "other"),
        lambda: os.utime(commit / "file", (1, 1)),
    ):
        assert errno_of(act) == "EROFS"


def test_ordinary_tools(mounted: Scene) -> None:
    """S62 A branch is an ordinary directory to write in

    cp, mv, rm, mkdir, ln, editors, sed -i, tar and rsync work in it as on a disk, with names, permissions, times, symlinks and extended attributes.
    """
    mounted.write({"a.txt": "alpha\n", "sub/b.txt": "beta\n"}, "local")
    sh(
        "cp -a ../../local/. . && mkdir made && mv a.txt made/ && ln -s made/a.txt link && chmod 750 made",
        mounted.master,
    )
    sh(
        "sed -i s/alpha/ALPHA/ made/a.txt && echo more >> sub/b.txt && touch -d @1234567890.123456789 made/a.txt",
        mounted.master,
    )
    assert sh("cat link sub/b.txt; find . | sort", mounted.master).split() == [
        "ALPHA", "beta", "more", ".", "./link", "./made", "./made/a.txt", "./sub", "./sub/b.txt",
    ]  # fmt: skip
    sh("tar --format=posix -cf ../../out.tar . && mkdir ../../out && tar xf ../../out.tar -C ../../out", mounted.master)
    sh("rm -r sub && mv made renamed", mounted.master)
    mounted.pfs("commit", "images@master", "-m", "by hand")
    assert mounted.ls("images@master", "-R") == ["link", "renamed/", "renamed/a.txt"]
    assert (mounted.root / "out" / "made" / "a.txt").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (mounted.master / "renamed" / "a.txt").stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_rsync_twice(mounted: Scene) -> None:
    """S63 `rsync -a` into a branch does nothing the second time

    Because the first has kept everything that it compares, before and after a commit.
    """
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    mounted.write({"a": "1", "sub/b": "2"}, "local")
    again = "rsync -ai --delete ../../local/ ./"
    sh(again, mounted.master)
    assert sh(again, mounted.master) == ""
    mounted.pfs("commit", "images@master", "-m", "synchronised")
    assert sh(again, mounted.master) == ""


def test_kill_of_the_daemon(mounted: Scene) -> None:
    """S64 What a program has written survives the death of the daemon

    Everything for which `write()` or another call had returned is there again after `kill -9` and the next `pfs mount`, which recognises the dead mount and replaces it. The
    exception are pages written through mmap and not yet forced out with msync. `pfs umount` works on a dead mount, too.
    """
    mounted.put({"base": "base"})
    (mounted.master / "dir").mkdir()
    (mounted.master / "dir" / "new").write_bytes(b"x" * 300_000)
    (mounted.master / "base").write_text("changed")
    os.symlink("dir/new", mounted.master / "link")
    mounted.kill_daemon()
    assert errno_of(lambda: os.statvfs(mounted.mount_point)) == "ENOTCONN"
    mounted.mount()
    assert (mounted.master / "link").read_bytes() == b"x" * 300_000
    assert (mounted.master / "base").read_text() == "changed"
    assert mounted.cat("images@master:/base") == "base"
    mounted.pfs("commit", "images@master", "-m", "after the kill")
    assert mounted.cat("images@master:/base") == "changed"
    mounted.kill_daemon()
    mounted.pfs("umount", mounted.mount_point)
    assert os.listdir(mounted.mount_point) == []


def test_commits_of_others(mounted: Scene) -> None:
    """S65 A commit is seen at once where it was made, and soon everywhere

    What begins after `pfs commit` or `pfs put` has returned sees the new version: at once in the mount that made the commit, within 200 ms in others. A file that is open keeps the bytes that
    it had.
    """
    (mounted.master / "file").write_text("one")
    mounted.pfs("commit", "images@master", "-m", "one")
    assert (mounted.mount_point / "images@master~0" / "file").read_text() == "one"
    with (mounted.master / "file").open() as held:
        mounted.put({"file": "two", "new": "x"})
        wait_for(lambda: (mounted.master / "file").read_text() == "two", "the commit of another process")
        assert (mounted.master / "new").read_text() == "x"
        assert held.read() == "one"


def test_owners(mounted: Scene) -> None:
    """S66 Files belong to the user who mounts

    So that they can be worked with, whoever put them. Owners are kept all the same; `--real-owner` shows them.
    """
    if os.geteuid():
        pytest.skip("needs root, to make files of another owner")
    top = mounted.write({"file": "x"})
    os.chown(top / "file", 1234, 5678)
    mounted.pfs("put", top, "images@master:/")
    mounted.mount("--real-owner", at="real")
    shown = (mounted.mount_point / "images@master~0" / "file").stat()
    assert (shown.st_uid, shown.st_gid) == (os.getuid(), os.getgid())
    real = (mounted.root / "real" / "images@master~0" / "file").stat()
    assert (real.st_uid, real.st_gid) == (1234, 5678)


def test_control_files(mounted: Scene) -> None:
    """S67 A program needs no `pfs` to commit

    A message written into `.pfs/commit` at the root of a branch makes all of its changes one commit; if that fails, so does this write, and `.pfs/error` says why. `status`, `log` and `head`
    beside it can be read, `log` and `head` at the root of a commit, too. `.pfs` is not listed, so cp, tar and rsync pass it by.
    """
    control = mounted.master / ".pfs"
    (mounted.master / "file").write_text("x")
    assert os.listdir(mounted.master) == ["file"]
    assert "A file" in (control / "status").read_text()
    sh("echo 'from a shell' > .pfs/commit", mounted.master)
    (commit,) = mounted.log()
    assert commit["message"].strip() == "from a shell"
    assert (control / "head").read_text().strip() == commit["commit"]
    assert "from a shell" in (control / "log").read_text()
    assert (control / "status").read_text() == ""
    (mounted.master / "file").write_text("mine")
    mounted.put({"file": "theirs"})
    assert errno_of(lambda: (control / "commit").write_text("in conflict")) == "ESTALE"
    assert "file" in (control / "error").read_text()
    past = mounted.mount_point / "images@master~1" / ".pfs"
    assert sorted(os.listdir(past)) == ["head", "log"]
    assert (past / "head").read_text().strip() == commit["commit"]
    assert len((past / "log").read_text().splitlines()) == 1


def test_what_posix_it_is_not(mounted: Scene) -> None:
    """S68 Where it is not quite a disk

    FIFOs and sockets work, and are not versioned; device nodes are refused (EPERM). Reading does not change the time of last access, and a commit makes it that of the last change. Hard links work until a commit, which makes each a
    file of its own (the content is stored once). A rename from one branch to another is refused as one between disks (EXDEV), so `mv` copies.
    """
    os.mkfifo(mounted.master / "fifo")
    assert errno_of(lambda: os.mknod(mounted.master / "null", 0o020666, os.makedev(1, 3))) == "EPERM"
    (mounted.master / "file").write_text("x")
    os.link(mounted.master / "file", mounted.master / "second")
    assert (mounted.master / "file").stat().st_nlink == 2
    done = mounted.run("pfs", "commit", "images@master", "-m", "x")
    assert "fifo is a FIFO or socket: not versioned" in done.stderr
    assert mounted.ls("images@master") == ["file", "second"]
    assert (mounted.mount_point / "images@master~0" / "file").stat().st_nlink == 1
    info = (mounted.master / "file").stat()
    assert info.st_atime_ns == info.st_mtime_ns
    os.utime(mounted.master / "file", ns=(1, 2))
    (mounted.master / "file").read_bytes()
    assert (mounted.master / "file").stat().st_atime_ns == 1
    mounted.pfs("branch", "images@other", "--empty")
    other = mounted.mount_point / "images@other"
    assert errno_of(lambda: os.rename(mounted.master / "file", other / "file")) == "EXDEV"
    sh("mv file ../images@other/", mounted.master)
    assert (other / "file").read_text() == "x"


def test_mount_points(mounted: Scene) -> None:
    """S69 A mount never hides anything

    A directory that does not exist, is not empty or is mounted already is refused, with the reason. `pfs umount` of a mount that is in use names the processes; `--force` does it all the
    same, and what was uncommitted stays in the store.
    """
    full = mounted.write({"file": "x"})
    assert "not empty" in mounted.pfs("mount", full, code=1)
    assert "does not exist" in mounted.pfs("mount", mounted.root / "nowhere", code=1)
    mounted.pfs("mount", mounted.mount_point, code=1)
    (mounted.master / "kept").write_text("x")
    with (mounted.master / "kept").open():
        assert f"({os.getpid()})" in mounted.pfs("umount", mounted.mount_point, code=1)
        mounted.pfs("umount", "--force", mounted.mount_point)
    assert [change["path"] for change in mounted.json("status", "images@master")["changes"]] == ["kept"]


def test_copies_of_a_mount(mounted: Scene) -> None:
    """S197 What `cp -a`, rsync or tar copies out of a mount is the version

    With bytes, modes, times to the nanosecond, symlinks and `user.` attributes, of a branch as of a commit: the copy, when it is put, changes nothing. For the owners as well the store is
    mounted with `--real-owner`; else they are those of who mounts. Holes come out as zeros, for a program that looks for zeros (`cp --sparse=always`, `rsync -S`) to make again.
    """
    top = mounted.write({"file": "x", "sub/tool": "#!/bin/sh\n"})
    (top / "link").symlink_to("no/where")
    (top / "sub" / "tool").chmod(0o4751)
    (top / "empty").mkdir()
    Path(os.fsdecode(os.fsencode(top) + b"/not utf-8 \xff\n" + b"x" * 200)).touch()
    os.utime(top / "file", ns=(1, -987_654_321))
    mounted.pfs("put", top, "images@master:/t")
    head = mounted.log()[0]["commit"]
    for version in ("images@master", f"images@{head}"):
        sh(f"cp -a {mounted.mount_point}/{version}/t copy", mounted.root)
        assert "nothing changed" in mounted.pfs("put", mounted.root / "copy", "images@master:/t")
        sh("rm -r copy", mounted.root)


def test_one_version_at_a_directory_of_its_own(scene: Scene, need_mounts: None) -> None:
    """S330 One version, or a directory of one, can be mounted alone

    `pfs mount images@master DIR` shows that branch, to be written to; of a tag, a commit or `images@master~1` it shows what that is now, read-only, whatever becomes of the
    branch. `images@master:/2026` is that directory alone.
    """
    scene.put({"2026/a": "old", "other": "x"})
    scene.pfs("tag", "images@v1")
    top = scene.mount("images@master:/2026", at="photos")
    tagged = scene.mount("images@v1", at="tagged")
    (top / "b").write_text("new")
    (top / "a").unlink()
    scene.pfs("commit", "images@master", "-m", "through a mount of a directory")
    assert scene.ls("images@master", "-R") == ["2026/", "2026/b", "other"]
    assert (tagged / "2026" / "a").read_text() == "old"
    assert errno_of(lambda: (tagged / "new").touch()) == "EROFS"


def test_a_read_only_mount(scene: Scene, need_mounts: None) -> None:
    """S331 A read-only mount takes nothing from others

    With `--read-only` it shows uncommitted work, also what a killed mount has left, and leaves it to who can write: a mount that comes later, or `pfs commit`.
    """
    scene.mount()
    (scene.master / "file").write_text("uncommitted")
    scene.kill_daemon()
    scene.pfs("umount", scene.mount_point)
    reader = scene.mount("--read-only", at="reader") / "images@master"
    assert (reader / "file").read_text() == "uncommitted"
    assert errno_of(lambda: (reader / "file").write_text("x")) == "EROFS"
    assert errno_of(lambda: (reader / ".pfs" / "commit").write_text("x")) == "EROFS"
    scene.mount()
    (scene.master / "file").write_text("more")
    wait_for(lambda: (reader / "file").read_text() == "more", "what the owner writes")
    scene.pfs("commit", "images@master", "-m", "by the owner")
    (scene.master / "file").write_text("again")
    wait_for(lambda: (reader / "file").read_text() == "again", "what the owner writes after a commit")
    assert (reader / ".pfs" / "status").read_text().splitlines()[-1] == "M file"


def test_mounts_and_force(scene: Scene, need_mounts: None) -> None:
    """S332 `pfs mounts` knows every mount, and `pfs umount --force` ends it, in whatever state it is

    Listed are what is mounted where, whose it is, since when, and how much is uncommitted in it; also a mount whose process is stopped or does not answer, and one that is dead, each
    with what to do. Neither command hangs with it. What was uncommitted stays in the store.
    """
    scene.mount("images@master")
    (scene.mount_point / "file").write_text("kept")
    (found,) = scene.json("mounts")
    assert (found["revision"], found["state"], found["uid"]) == ("images@master", "mounted", os.getuid())
    assert found["uncommitted"] == {"images@master": {"changes": 1, "bytes": 4}}
    daemon = scene.daemon()
    os.kill(daemon, signal.SIGSTOP)
    with subprocess.Popen(["cat", scene.mount_point / "not looked up yet"], stderr=subprocess.DEVNULL) as reader:
        done = scene.run("pfs", "mounts")
        assert "does not answer" in done.stdout
        assert f"kill -CONT {daemon}" in done.stderr
        assert "in use" in scene.pfs("mount", scene.mount_point, code=1)
        scene.pfs("umount", "--force", scene.mount_point)
        assert reader.wait(20) != 0
    scene.mount("images@master")
    assert (scene.mount_point / "file").read_text() == "kept"
    scene.kill_daemon()
    done = scene.run("pfs", "mounts")
    assert done.stdout.splitlines()[1].split()[:4] == [str(scene.mount_point), "images@master", "-", "dead"]
    assert "takes its place" in done.stderr
    assert "dead mount" in scene.run("pfs", "mount", "images@master", scene.mount_point).stderr
    assert (scene.mount_point / "file").read_text() == "kept"


def test_facts_as_attributes(mounted: Scene) -> None:
    """S333 `getfattr -d` tells what is stored, and copies keep that to themselves

    `user.pfs.id`, `user.pfs.size` and `user.pfs.commit` of a file or directory of a branch or commit: the id (of a file what `b3sum` prints), its bytes, and a commit that
    has it as it is. Of uncommitted content there are none. They are listed beside at most 2 KiB of the file's own attributes, so that a copy on another disk has room for all, and can be
    asked for by name always. They are no attributes of the version: setting or removing one in a branch does nothing, `put` and `commit` leave them out, jobs see none. So
    `cp -a`, `rsync -aX` and `tar --xattrs` work in, out of and within a mount.
    """
    mounted.put({"dir/file": "content"})
    head = mounted.log()[0]["commit"]
    shown = mounted.json("show", "images@master:/dir/file")
    for version in ("images@master", f"images@{head}"):
        path = mounted.mount_point / version / "dir"
        assert sorted(os.listxattr(path)) == ["user.pfs.commit", "user.pfs.id", "user.pfs.size"]
        facts = {name: os.getxattr(path / "file", f"user.pfs.{name}").decode() for name in ("id", "size", "commit")}
        assert facts == {"id": shown["id"], "size": "7", "commit": head}
    os.setxattr(mounted.master / "dir" / "file", "user.mine", b"1")
    os.setxattr(mounted.master / "dir" / "file", "user.pfs.id", b"forged")
    os.removexattr(mounted.master / "dir" / "file", "user.pfs.id")
    assert os.getxattr(mounted.master / "dir" / "file", "user.pfs.id").decode() == shown["id"]
    (mounted.master / "new").write_text("uncommitted")
    assert os.listxattr(mounted.master / "new") == []
    sh("cp -a dir copied && cp -a --preserve=xattr dir/file copied/again", mounted.master)
    sh(f"cp -a {mounted.master}/dir out && cp -a --preserve=xattr out {mounted.master}/back", mounted.root)
    copies = ["dir/file", "copied/file", "copied/again", "back/file"]
    if shutil.which("rsync"):
        sh("rsync -aX dir/ synced/", mounted.master)
        copies.append("synced/file")
    sh("tar --xattrs -cf ../../t.tar dir && mkdir packed && tar --xattrs -C packed -xf ../../t.tar", mounted.master)
    mounted.pfs("commit", "images@master", "-m", "copies")
    for place in [*copies, "packed/dir/file"]:
        names = set(os.listxattr(mounted.master / place))
        assert names == {"user.mine", "user.pfs.commit", "user.pfs.id", "user.pfs.size"}
    assert "nothing changed" in mounted.pfs("put", mounted.root / "out", "images@master:/dir")
    os.setxattr(mounted.master / "new", "user.large", b"l" * 3000)
    mounted.pfs("commit", "images@master", "-m", "a large one")
    assert os.listxattr(mounted.master / "new") == ["user.large"]
    assert os.getxattr(mounted.master / "new", "user.pfs.size") == b"11"
