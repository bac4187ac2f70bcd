"""What is done to a store while its steps are recorded, killed or made to fail.

A workload is a list of actions; each ends with an acknowledgement, the moment from which on what it did must survive.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.fs.mountpoint import mounted_at, run_unmount
from tests.conftest import run_command
from tests.crash.checking import Acknowledged, Content, View, view_at
from tests.crash.replay import MARK, Disk, Step, mark, read_log
from tests.crash.shim import Done, Mode, Zygote

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """Commands: those that make the store as it is in the beginning, and those that are watched."""

    name: str
    prepare: tuple[Command, ...]
    actions: tuple[Command, ...]
    atomic: bool = True
    """Each action is one change of the refs."""
    per_step: int = 3
    """How many states the short tier tries after each step."""
    drive: Callable[[World], None] | None = None
    """Does things between the actions and the end that are no commands."""


WORKTREE = """
import json, os, sys
from pathlib import Path
from pfsmount.ids import EntryName
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from tests.crash.checking import view_of
from tests.crash.replay import mark
from tests.worktrees import at, put

store = Store.open(Path(os.environ["PFS_STORE"]), author="tester@here")
worktree = Worktree.open(store, "images", "master", own=True)
touched = set()

def write(path, data):
    touched.add(f"images@master:{path}")
    put(worktree, path, data)

def over(path, offset, data):
    touched.add(f"images@master:{path}")
    worktree.write(at(worktree, path), offset, data)

def unlink(path):
    touched.add(f"images@master:{path}")
    worktree.unlink(worktree.root, path.encode())

def synced(**files):
    for path, data in files.items():
        worktree.fsync(at(worktree, path) if data is not None else None)
    told({f"images@master:{path}": None if data is None else data.hex() for path, data in files.items()})

def told(files={}):
    text = {"view": view_of(store), "files": files, "touched": sorted(touched)}
    mark(Path(argv[0]), json.dumps(text).encode())
    touched.clear()
"""

WORK = (
    WORKTREE
    + """
write("new", b"n" * 5000)
synced(new=b"n" * 5000)
over("big", 7, b"seven")                   # not synced itself: but the next sync makes the line durable that says so
write("other", b"other")
big = b"b" * 120_000
worktree.fsync(at(worktree, "other"))
files = {"other": b"other".hex(), "big": [big.hex(), (big[:7] + b"seven" + big[12:]).hex()]}
told({f"images@master:{path}": data for path, data in files.items()})
write("old", b"rewritten" * 300)          # 'whole' line over the base's content
write("unsynced", b"u" * 9000)
synced(old=b"rewritten" * 300)
over("big", 100_000, b"x" * 3000)          # small enough to be copied up
synced(big=big[:7] + b"seven" + big[12:100_000] + b"x" * 3000 + big[103_000:])
for i in range(20):                        # more lines than a page, none synced
    write(f"many-{i:02}-" + "y" * 60, b"")
unlink("gone")
write("last", b"l" * 100)
synced(last=b"l" * 100, gone=None)
worktree.commit("first")
told()
write("old", b"once more" * 200)
write("unsynced", b"v" * 4000)
synced(old=b"once more" * 200)
worktree.commit("second")
told()
write("dropped", b"d")
worktree.discard()
told()
"""
)

PRIVATE = (
    "from pfsmount.repo.private_worktrees import begin, end\n"
    + WORKTREE.replace(
        'worktree = Worktree.open(store, "images", "master", own=True)',
        'begin(store, "images", "master", "mine")\nworktree = Worktree.open(store, "images", "master", "mine", own=True)',
    ).replace("images@master:", "images@master+mine:")
    + """
told()
write("new", b"n" * 5000)
write("old", b"rewritten" * 300)
synced(new=b"n" * 5000, old=b"rewritten" * 300)
worktree.commit("mine")
told()
write("dropped", b"d")
synced(dropped=b"d")
touched.add("images@master+mine:dropped")
worktree.discard()
told()
worktree.close()
touched.update(["images@master+mine:new", "images@master+mine:old"])
assert end(store, "images", "master", "mine")
told()
begin(store, "images", "master", "mine")
worktree = Worktree.open(store, "images", "master", "mine", own=True)
assert worktree.find((b"dropped",)) is None
write("again", b"a" * 3000)
synced(again=b"a" * 3000)
worktree.close()
"""
)

DIRT = (
    WORKTREE
    + """
write("new", b"n" * 5000)
write("old", b"rewritten" * 300)
over("big", 100_000, b"x" * 3000)
unlink("gone")
worktree.close()
"""
)

ADOPTING = WORKTREE.replace('os.environ["PFS_STORE"]),', 'os.environ["PFS_STORE"]), StoreSettings(adopt_bytes=20_000),')

ADOPT = (
    "from pfsmount.config import StoreSettings\nfrom tests.repo.test_store import put as put_beside\n"
    + ADOPTING
    + """
large = bytes(i % 251 for i in range(30_000))
write("large", large)
synced(large=large)
write("small", b"s" * 3000)
worktree.commit("adopted")
told()
over("large", 7, b"seven")                 # a data file anew, and not the segment
synced(large=large[:7] + b"seven" + large[12:])
write("second", large[1:])
ingest = worktree.ingest
def and_meanwhile(*arguments, **more):     # the head moves: what was adopted is a file again, and then once more a segment
    root = ingest(*arguments, **more)
    worktree.ingest = ingest
    put_beside(store, "beside", b"beside" * 100)
    told()
    return root
worktree.ingest = and_meanwhile
worktree.commit("two more")
told()
synced(second=large[1:])
over("second", 0, b"x")
synced(second=b"x" + large[2:])
worktree.close()
"""
)

ADOPT_DIRT = (
    WORKTREE
    + """
write("large", bytes(i % 251 for i in range(30_000)))
write("small", b"s" * 3000)
worktree.close()
"""
)

ADOPT_COMMIT = """
import os, sys
from pathlib import Path
from pfsmount.config import StoreSettings
from pfsmount.errors import PfsError
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
try:
    with Store.open(Path(os.environ["PFS_STORE"]), StoreSettings(adopt_bytes=20_000), author="tester@here") as store:
        with Worktree.open(store, "images", "master", own=True) as worktree:
            worktree.commit("adopted")
except (PfsError, OSError) as error:  # as the command line does
    print(f"pfs: {error}", file=sys.stderr)
    sys.exit(1)
"""

LARGE_WORK = (
    WORKTREE
    + """
base = b"B" * (5 << 20)
over("large", 1_000_000, b"x" * 5000)      # extents in a sparse file
synced(large=base[:1_000_000] + b"x" * 5000 + base[1_005_000:])
over("large", 3_000_000, b"y" * 100)
worktree.truncate(at(worktree, "large"), 4_500_000)
write("other", b"o")
synced(other=b"o")
worktree.commit("large")
told()
"""
)

SEALS = """
import json, os
from pathlib import Path
from pfsmount.config import StoreSettings
from pfsmount.repo.store import Store
from tests.crash.checking import view_of
from tests.crash.replay import mark
from tests.repo.test_store import put

with Store.open(Path(os.environ["PFS_STORE"]), StoreSettings(segment_size=20_000), author="tester@here") as store:
    for i in range(6):
        for name, size in ((f"file-{i}", 9000), (f"tiny-{i}", 900)):
            put(store, name, bytes([i]) * size)
            mark(Path(argv[0]), json.dumps({"view": view_of(store)}).encode())
"""


class CommandFailed(AssertionError):
    """A command that should have done what it was told has not."""


class World:
    """A place where workloads run: the zygote, a store, some files."""

    def __init__(self, zygote: Zygote, root: Path) -> None:
        self.zygote, self.root = zygote, root
        self.store = root / "store"
        self.log = root / "log"
        self.files = root / "files"
        self.point = root / "mnt"
        self.mode = Mode.COUNT
        root.mkdir(exist_ok=True)
        if not self.files.exists():
            self._make_files()

    def _make_files(self) -> None:
        for path, data in {
            "old": b"old" * 500,
            "gone": b"gone",
            "big": b"b" * 120_000,
            "photos/a": b"a" * 5000,
            "photos/b": b"b" * 900,
            "photos/empty": b"",
            "photos/below/c": b"c" * 70_000,
            "tiny/t": b"t",
            "other": b"other" * 1000,
            "mine": b"mine" * 400,
            "fails": b"fail",
            "large": b"B" * (5 << 20),
            "larger": b"B" * (5 << 20) + b"C" * 300_000,
        }.items():
            (self.files / path).parent.mkdir(parents=True, exist_ok=True)
            (self.files / path).write_bytes(data)

    def copy_from(self, store: Path) -> None:
        """Begin with a copy of a store that nobody has open."""
        shutil.rmtree(self.store, ignore_errors=True)
        if store.exists():
            shutil.copytree(store, self.store, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))

    def run(self, command: Command, **options: Any) -> Done:
        """Run one command; `{files}`, `{mnt}` and `{log}` in it are places here."""
        places = {"files": str(self.files), "mnt": str(self.point), "log": str(self.log)}
        program, *arguments = command
        if program == "python":
            arguments = [arguments[0], *(part.format(**places) for part in arguments[1:])]
        else:
            arguments = [part.format(**places) for part in arguments]
        return self.zygote.run(program, *arguments, store=self.store, log=self.log, **options)

    def good(self, command: Command, **options: Any) -> Done:
        """Run one command, which must do what it is told."""
        done = self.run(command, **options)
        if done.code:
            raise CommandFailed(f"{command}: {done.code}\n{done.out}{done.errors}")
        return done

    def commit_beside(self) -> subprocess.CompletedProcess[str]:
        """`pfs commit` by a process that the shim leaves alone."""
        return run_command("pfsmount.cli.app", self.store, "commit", "images@master", "-m", "beside")

    def clean_up(self) -> None:
        """Take the mount away, if there is one."""
        if mounted_at(str(self.point)) is not None:
            with suppress(Exception):
                run_unmount(str(self.point), lazy=True, force=True)


INIT: Command = ("pfs", "init")
IMAGES: tuple[Command, ...] = (INIT, ("pfs", "repo", "create", "images"))
FILLED: tuple[Command, ...] = (*IMAGES, ("pfs", "put", "{files}/old", "{files}/gone", "{files}/big", "images@master:/"))
BRANCHED: tuple[Command, ...] = (
    *FILLED,
    ("pfs", "branch", "images@dev", "images@master"),
    ("pfs", "put", "{files}/mine", "images@master:/mine"),
    ("pfs", "put", "{files}/other", "images@master:/both"),
    ("pfs", "put", "{files}/other", "images@dev:/other"),
    ("pfs", "put", "{files}/mine", "images@dev:/both"),
)


def write_through_mount(world: World, **stop: Any) -> None:
    """A mount, files written and fsynced through it, commits by the command, all recorded, unless `stop` says how the daemon is to be stopped.

    Raises OSError or CommandFailed when the daemon is no more.
    """
    world.point.mkdir(exist_ok=True)
    world.good(("pfs", "mount", "{mnt}"), **(stop or {"mode": Mode.RECORD}))
    top = world.point / "images@master"

    def told(touched: Sequence[str] = (), **files: bytes | None) -> None:
        text = {
            "view": view_at(world.store),
            "files": {f"images@master:{path}": None if data is None else data.hex() for path, data in files.items()},
            "touched": [f"images@master:{path}" for path in (*touched, *files)],
        }
        mark(world.log, json.dumps(text).encode())

    def write(path: str, data: bytes, flags: int = os.O_TRUNC, at: int = 0, *, sync: bool = True) -> None:
        fd = os.open(top / path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            os.pwrite(fd, data, at)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def sync_directory() -> None:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    told()
    write("new", b"n" * 5000)
    told(new=b"n" * 5000)
    write("unsynced", b"u" * 5000, sync=False)
    write("old", b"rewritten" * 1000)
    told(["unsynced"], old=b"rewritten" * 1000)
    write("big", b"x" * 3000, 0, 50_000)
    told(big=b"b" * 50_000 + b"x" * 3000 + b"b" * 67_000)
    write("old.tmp", b"saved" * 900)  # as editors save
    os.rename(top / "old.tmp", top / "old")
    os.unlink(top / "gone")
    sync_directory()
    told(["old.tmp"], old=b"saved" * 900, gone=None)
    world.good(("pfs", "commit", "images@master", "-m", "through the mount"))
    told()
    os.mkdir(top / "directory")
    write("directory/file", b"d" * 100)
    told((), **{"directory/file": b"d" * 100})
    world.good(("pfs", "umount", "{mnt}"))


MOUNTED = Workload("mount", FILLED, (), drive=write_through_mount, per_step=1)
DIRTY: Command = ("python", DIRT, "{log}")

WORKLOADS = (
    Workload(
        "init",
        (),
        (INIT, ("pfs", "repo", "create", "images"), ("pfs", "put", "{files}/old", "images@master:/old")),
    ),
    Workload(
        "put",
        IMAGES,
        (
            ("pfs", "put", "{files}/photos", "images@master:/", "-m", "small"),
            ("pfs", "put", "{files}/tiny", "images@master:/t", "-m", "tiny"),
            ("pfs", "put", "{files}/photos", "images@master:/again", "-m", "nothing new"),
            ("pfs", "rm", "-r", "images@master:/t"),
            ("pfs", "cp", "images@master:/again", "images@master:/copy"),
        ),
    ),
    Workload(
        "refs",
        FILLED,
        (
            ("pfs", "branch", "images@dev", "images@master"),
            ("pfs", "put", "{files}/mine", "images@dev:/mine"),
            ("pfs", "tag", "images@v1", "images@dev"),
            ("pfs", "reset", "images@dev", "images@master"),
            ("pfs", "branch", "--move", "images@dev", "side"),
            ("pfs", "branch", "-d", "-f", "images@side"),
            ("pfs", "tag", "-d", "-f", "images@v1"),
            ("pfs", "repo", "create", "other"),
            ("pfs", "cp", "images@master", "other@master"),
            ("pfs", "repo", "delete", "-f", "images"),
        ),
        per_step=2,
    ),
    Workload(
        "merge",
        BRANCHED,
        (
            ("pfs", "merge", "--mine", "images@dev", "images@master", "-m", "merged"),
            ("pfs", "revert", "images@master", "master"),
        ),
    ),
    Workload("worktree", FILLED, (("python", WORK, "{log}"),), per_step=1),
    Workload("private", FILLED, (("python", PRIVATE, "{log}"),), per_step=1),
    Workload("adopt", FILLED, (("python", ADOPT, "{log}"),), per_step=1),
    Workload("seals", IMAGES, (("python", SEALS, "{log}"),), per_step=1),
)
GC: Command = ("pfs", "gc", "--keep", "0d")
GARBAGE: tuple[Command, ...] = (
    *FILLED,
    ("pfs", "branch", "images@dev", "images@master"),
    ("pfs", "put", "{files}/photos", "images@dev:/photos"),
    ("pfs", "put", "{files}/mine", "images@master:/mine"),
    ("pfs", "put", "{files}/other", "images@dev:/other"),
    ("pfs", "branch", "-d", "-f", "images@dev"),
)
COLLECTING = Workload(
    "gc",
    GARBAGE,
    (GC, ("pfs", "put", "{files}/photos", "images@master:/again"), ("pfs", "rm", "images@master:/mine"), GC),
    per_step=2,
)
LARGE = Workload(
    "large",
    (*IMAGES, ("pfs", "put", "{files}/large", "images@master:/large")),
    (("python", LARGE_WORK, "{log}"), ("pfs", "put", "{files}/larger", "images@master:/large")),
    per_step=1,
)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a workload did, and what it acknowledged."""

    disk: Disk
    steps: list[Step]
    acknowledged: list[Acknowledged]

    @property
    def count(self) -> int:
        """How many steps: the places where a crash can come."""
        return sum(step.type != MARK for step in self.steps)


def prepare(world: World, workload: Workload) -> None:
    """Make the store in which a workload begins."""
    for command in workload.prepare:
        world.good(command)


def record(world: World, workload: Workload) -> Recording:
    """Run a workload once, whole."""
    prepare(world, workload)
    world.log.unlink(missing_ok=True)
    start = Acknowledged(view_at(world.store))
    disk = Disk(world.store)
    try:
        for command in workload.actions:
            world.good(command, mode=Mode.RECORD)
            if command[0] != "python":
                mark(world.log, json.dumps({"view": view_at(world.store)}).encode())
        if workload.drive is not None:
            workload.drive(world)
    finally:
        world.clean_up()
    steps = [*read_log(world.log)]
    return Recording(disk, steps, [start, *acknowledgements(steps)])


def _content(told: str | list[str] | None) -> Content:
    return tuple(map(bytes.fromhex, told)) if isinstance(told, list) else None if told is None else bytes.fromhex(told)


def acknowledgements(steps: list[Step]) -> Iterator[Acknowledged]:
    """What the marks of a log say."""
    files: dict[str, Content] = {}
    saved: frozenset[str] = frozenset()
    for step in steps:
        if step.type == MARK:
            told: Mapping[str, Any] = json.loads(step.data)
            touched = frozenset(told.get("touched", ()))
            new = {name: _content(data) for name, data in told.get("files", {}).items()}
            files = {name: data for name, data in files.items() if name not in touched} | new
            view: View = told["view"]
            saved |= frozenset(told.get("saved", ()))
            yield Acknowledged(view, files, touched, frozenset(told.get("gone", ())), saved)
