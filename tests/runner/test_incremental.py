"""P4: the result equals a from-scratch run, whatever was edited in which order."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.executors.memory import View
from runner.jobs import JobStore
from runner.record import Record
from runner.state import Phase
from tests.runner.world import Content, World

PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
TEXTS = st.sampled_from([b"", b"plain", b"other", b"empty", b"link", b"deep", b"nothing"])
EDITS = st.lists(st.tuples(PATHS, st.one_of(TEXTS, st.none())), min_size=1, max_size=4)
STEPS = st.lists(st.tuples(EDITS, st.sampled_from(["1", "2"]), st.booleans()), min_size=1, max_size=5)
GLOBS = st.sampled_from(["/", "/*", "/*/*", "/**", "/a*/*", "/{a,b}"])


async def various(view: View) -> int:
    """Leaves a bit of everything, under names that no other datum can have, and directories that others have, too."""
    place = view.task.env["in"].removeprefix("/pfs/in").strip("/") or "root"
    name = place.replace("/", "-")
    text = b"".join(_texts(view))
    (view.out / "shared").mkdir()
    (view.out / "shared" / name).write_bytes(view.task.argv[1].encode() + text)  # type: ignore[union-attr]
    if b"empty" in text:
        (view.out / "left" / "empty").mkdir(parents=True)
    if b"link" in text:
        os.symlink(view.task.env["in"], view.out / f"{name}.link")
        os.symlink(f"shared/{name}", view.out / f"{name}.near")
    if b"deep" in text:
        (view.out / "x" / name / "y").mkdir(parents=True)
        (view.out / "x" / name / "y" / "z").write_bytes(text)
    return 0


def _texts(view: View) -> list[bytes]:
    found = []
    for bind in view.task.binds:
        for directory, _, names in sorted(os.walk(os.fsdecode(bind.source))):
            found += [Path(directory, name).read_bytes() for name in sorted(names)]
    return found


def edits_of(world: World, edits: list[tuple[str, bytes | None]]) -> dict[str, Content]:
    """Changes that leave a tree: nothing lies below a file."""
    there = {path for path in world.files("in@master") if not path.endswith("/")}
    changes: dict[str, Content] = {}
    for path, text in edits:
        above = {other for other in there if path.startswith(f"{other}/")}
        below = {other for other in there if other.startswith(f"{path}/")}
        if text is not None and (above or below):
            continue
        if text is None and path not in there:
            continue
        for gone in [other for other in changes if text is not None and other.startswith(f"{path}/")]:
            del changes[gone]  # removed before in the same commit: the file in its place says that, too
        changes[path] = text
        there = there | {path} if text is not None else there - {path}
    return changes


@settings(max_examples=40, deadline=None)
@given(STEPS, GLOBS)
def test_an_incremental_result_is_the_one_from_scratch(
    steps: list[tuple[list[tuple[str, bytes | None]], str, bool]], glob: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        try:
            world.program("various", various)
            world.commit({"first": b"first"})
            for edits, argument, skip_a_run in steps:
                if changes := edits_of(world, edits):
                    world.commit(changes)
                if not skip_a_run:
                    world.run("various", argument, inputs=[f"in@master:{glob}"])
            argument = steps[-1][1]
            last = world.run("various", argument, inputs=[f"in@master:{glob}"])
            scratch = world.run(
                "various", argument, inputs=[f"in@master:{glob}"], output="scratch@master", incremental=False
            )
            assert last.phase is scratch.phase is Phase.SUCCESS
            assert last.state.done == scratch.state.done
            assert world.head("out@master").tree.id == world.head("scratch@master").tree.id
            one, other = (record_of(world, name) for name in ("out@master", "scratch@master"))
            assert one.datums_root == other.datums_root
            assert one.written_by == other.written_by
            assert one.code == other.code
        finally:
            world.close()


def record_of(world: World, target: str) -> Record:
    """The record of the job that made a head."""
    made = world.head(target).provenance
    assert made is not None
    jobs = JobStore(world.store)
    return jobs.record(jobs.find(made["job"]))


def test_work_follows_change(world: World) -> None:
    """One new file among two thousand: one datum runs."""
    world.commit({f"{i:04}": b"%d" % i for i in range(2000)})
    world.run()
    world.commit({"new": b"new"})
    result = world.run()
    assert (result.state.processed, result.state.skipped) == (1, 2000)
    assert world.ran == ["/pfs/in/new"]
