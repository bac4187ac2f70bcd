"""Makes the golden store of a release: `python -m tests.golden.make_store`, right before the release, and never again for it.

`store-FORMAT-VERSION.tar.xz` is the store, `.json` beside it what must be read from it. A new one is added

* before each release that writes anything differently, whether the format's number changed or not (another order, a new record, a new counter);
* at once when `FORMAT` goes up or a feature word is added.

None is ever changed or deleted: they are the promise that a later pfs opens what this one wrote. (`store-1.tar.xz` is of the day on which format 1 was decided.)
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pfsmount import __version__
from pfsmount.ids import EntryName
from pfsmount.objects.layout import FORMAT
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import Kind
from tests.conftest import run_command
from tests.worktrees import at, put

HERE = Path(__file__).parent
SCRIPT = """\
import pathlib
for path in pathlib.Path("/pfs/images").iterdir():
    (pathlib.Path("/pfs/out") / path.name).write_text(str(path.lstat().st_size))
"""
MIB = 1 << 20
LARGE = b"".join(bytes([65 + i]) * MIB for i in range(9))
LARGE_CHANGED = LARGE[: 5 * MIB + 77] + b"inserted" * 1000 + LARGE[5 * MIB + 77 :]
UNCOMMITTED = {
    "uncommitted": b"not yet",
    "renamed": b"s" * 5000,
    "large": LARGE_CHANGED[:1000] + b"x" * 50 + LARGE_CHANGED[1050:],
}
"""What the worktree of images@master has and no commit."""


def describe(store: Store) -> dict[str, Any]:
    """Everything that can be read from a golden store, as JSON."""
    found: dict[str, Any] = {"refs": []}
    for repo in store.repos():
        for kind in RefKind:
            for ref in store.refs(repo.name, kind):
                found["refs"].append([repo.name, kind.name, ref.name, ref.commit.hex() if ref.commit else None])
        for ref in store.branches(repo.name):
            resolved = store.resolve(repo.name, parse_revision(ref.name))
            for commit in store.history(resolved.commit):
                found[f"{repo.name}@{ref.name} {commit.height}"] = {
                    "commit": commit.id.hex(),
                    "message": commit.message,
                    "entries": [
                        [os.fsdecode(b"/".join(path)), entry.kind.name, entry.mode, entry.mtime_ns, entry.id.hex()]
                        for path, entry in walk(store.objects, commit.tree)
                    ],
                }
    with Worktree.open(store, "images", "master") as worktree:
        found["uncommitted"] = [[os.fsdecode(b"/".join(change.path)), change.what] for change in worktree.changes()]
    return found


def digest_of(entries: list[Any]) -> str:
    """SHA-256 of the entries of a commit, as `describe` gives them."""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def digests(store: Store, revision: str) -> dict[str, str]:
    """Path → SHA-256 of each file of a version of `images`, as it is read."""
    commit = store.resolve("images", parse_revision(revision)).commit
    assert commit is not None
    return {
        os.fsdecode(b"/".join(path)): hashlib.sha256(open_content(store.objects, entry).read(0, entry.size)).hexdigest()
        for path, entry in walk(store.objects, commit.tree)
        if entry.kind is Kind.FILE
    }


def local_digests(directory: Path) -> dict[str, str]:
    """The same of a local directory: what must come out, told without pfs."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def make_photos(photos: Path) -> None:
    """Every kind of entry, and a directory of several nodes."""
    (photos / "empty dir").mkdir(parents=True)
    (photos / "many").mkdir()
    for i in range(150):
        (photos / "many" / f"{i:03}").write_bytes(b"%d" % i * 40)
    (photos / "large").write_bytes(LARGE)
    (photos / "small").write_bytes(b"s" * 5000)
    (photos / "tiny").write_bytes(b"t")
    (photos / "tiny").chmod(0o755)
    os.setxattr(photos / "tiny", "user.short", b"value")
    os.setxattr(photos / "small", "user.long", b"v" * 2000)
    (photos / "link").symlink_to("tiny")
    with open(os.path.join(os.fsencode(photos), b"not utf-8 \xff"), "wb"):
        pass
    for name, size in (("sparse", MIB), ("sparse large", 6 * MIB)):
        with open(photos / name, "wb") as file:
            file.truncate(size)
    with open(photos / "sparse large", "r+b") as file:
        file.write(b"start")
        file.seek(5 * MIB)
        file.write(b"end")


def make_store(top: Path) -> dict[str, dict[str, str]]:
    """Make the store in `top/store`; returns version → digests of its files."""
    path, photos = top / "store", top / "photos"
    make_photos(photos)
    known = {"v1": local_digests(photos)}
    (top / "job.py").write_text(SCRIPT)
    for name in ("mine", "theirs", "both"):
        (top / name).write_text(name * 100)

    def pfs(*arguments: str | Path, code: int = 0, module: str = "pfsmount.cli.app") -> None:
        done = run_command(module, path, *arguments, cwd=top)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)

    pfs("init")
    pfs("repo", "create", "images", "-d", "golden")
    pfs("put", photos, "images@master:/", "-m", "first")
    pfs("tag", "images@v1", "images@master")
    pfs("branch", "images@swept", "images@master")
    pfs("put", top / "both", "images@swept:/swept", "-m", "gc takes this")
    pfs("branch", "-d", "images@swept")
    pfs("gc", "--keep", "0d")
    pfs("branch", "images@deleted", "images@master")
    pfs("put", top / "both", "images@deleted:/deleted", "-m", "of a deleted branch")
    pfs("branch", "-d", "images@deleted")
    pfs("branch", "images@dev", "images@master")
    pfs("branch", "images@waits", "images@master")
    pfs("put", top / "theirs", "images@dev:/theirs", "-m", "theirs")
    pfs("put", top / "mine", "images@master:/mine", "-m", "mine")
    pfs("merge", "images@dev", "images@master", "-m", "both")
    (photos / "large").write_bytes(LARGE_CHANGED)
    pfs("put", photos / "large", "images@master:/large", "-m", "inserted")
    for name in ("mine", "theirs"):
        (photos / name).write_bytes((top / name).read_bytes())
    known["v2"] = local_digests(photos)
    pfs("tag", "images@v2", "images@master")
    pfs("put", top / "both", "images@waits:/mine", "-m", "in conflict")
    pfs("merge", "images@waits", "images@master", code=3)
    job = ["run", "--input", "images@v1:/*", "--output", "sizes@master", "--", "python3", "job.py"]
    pfs(*job, module="runner.cli")
    with Store.open(path) as store, Worktree.open(store, "images", "master", own=True) as worktree:
        change_worktree(worktree)
    (path / "tmp" / "left-behind").write_bytes(b"of a process that was killed")
    (directory,) = (path / "worktrees").glob("*/master")
    (directory / "data" / "999999").write_bytes(b"no journal names this")
    with open(path / "refs.log", "ab") as log:
        log.write(b'{"n":9')
    return known


def change_worktree(worktree: Worktree) -> None:
    """Uncommitted work of every kind."""
    put(worktree, "uncommitted", UNCOMMITTED["uncommitted"])
    worktree.unlink(worktree.root, EntryName(b"tiny"))
    worktree.move(worktree.root, EntryName(b"small"), worktree.root, EntryName(b"renamed"))
    worktree.write(at(worktree, "large"), 1000, b"x" * 50)
    worktree.make(worktree.root, EntryName(b"new dir"), NodeKind.DIRECTORY, mode=0o700, uid=0, gid=0)
    worktree.fsync(None)


def main() -> None:
    name = f"store-{FORMAT}-{__version__}"
    archive = HERE / f"{name}.tar.xz"
    if archive.exists():
        sys.exit(f"{archive} exists: what was released stays as it is")
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        known = make_store(top)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            tar.add(top / "store", "store")
        with Store.open(top / "store") as store:
            expected = describe(store)
        for told in expected.values():
            if isinstance(told, dict):
                told["entries"] = digest_of(told["entries"])
        expected["sha256"] = known
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    print(archive, archive.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
