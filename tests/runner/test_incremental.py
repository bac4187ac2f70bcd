"""P4: the result equals a from-scratch run, whatever was edited in which order."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pfsmount.errors import InvalidInput
from pfsmount.repo.pointers import create_tag
from runner.executors.memory import View
from runner.input_spec import Combination, CombinedInput, Input, check_input, leaves, parse_input, with_leaves
from runner.jobs import JobStore
from runner.record import Record
from runner.spec import JobSpec, Merge
from runner.state import Phase
from tests.runner.world import Content, World

# hundreds of stores, of which no power cut has to leave anything
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
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


def edits_of(world: World, edits: Sequence[tuple[str, Content]], repo: str = "in") -> dict[str, Content]:
    """Changes that leave a tree: nothing lies below a file."""
    there = {path for path in world.files(f"{repo}@master") if not path.endswith("/")}
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
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
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


FEW_PATHS = st.sampled_from(["a", "b/a", "b/a", "b/b", "c", "b", "a/b"])
LINKS = st.sampled_from(["a", "b/a", "../a", "../b", "nowhere", "c"])
CONTENTS = st.one_of(TEXTS, st.sampled_from([b"bad", b"both"]), LINKS, st.none())
LEAVES = st.builds(
    lambda repo, revision, glob, key, outer, empty: replace(
        parse_input(f"{repo}@{revision}:{glob}"), join_on=key, group_by=key, outer_join=outer, empty_files=empty
    ),
    st.sampled_from(["in", "info"]),
    st.sampled_from(["master", "master", "master", "v1", "master~1"]),
    st.sampled_from(["/(*)", "/(*)", "/(?)/*", "/*/(*)", "/**(?)", "/(a)*", "/({a,b})/**"]),
    st.sampled_from(["$1", "$1", "x$1", "one"]),
    st.booleans(),
    st.booleans(),
)
INPUTS = st.recursive(
    LEAVES,
    lambda parts: st.builds(
        lambda how, inputs: CombinedInput(how, tuple(inputs)),
        st.sampled_from(list(Combination)),
        st.lists(parts, min_size=1, max_size=3),
    ),
    max_leaves=4,
)


def named(source: Input, alike: bool) -> Input:
    """The inputs with names of their own, or alike for one repo where that fits together."""
    if alike:
        same = with_leaves(source, (replace(one, name=one.repo) for one in leaves(source)))
        with suppress(InvalidInput):
            check_input(same)
            return same
    numbers = itertools.count()
    return with_leaves(source, (replace(one, name=f"{one.repo}{next(numbers)}") for one in leaves(source)))


@dataclass(frozen=True, slots=True)
class Step:
    """What happens between two jobs, and how the next one is run."""

    repo: str
    edits: list[tuple[str, Content]]
    other: bool
    """The other one of two inputs."""
    argument: str
    merge: Merge
    broken: bool
    """The program fails over what is bad."""
    runs: bool


MORE_STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["in", "info"]),
        st.lists(st.tuples(FEW_PATHS, CONTENTS), min_size=1, max_size=3),
        st.sampled_from([False] * 7 + [True]),
        st.sampled_from(["1"] * 7 + ["2"]),
        st.sampled_from([Merge.APPEND] * 7 + [Merge.ERROR]),
        st.sampled_from([False, False, True]),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=5,
)


def seen_by(view: View) -> bytes:
    """Names, links and contents of all inputs, and what the environment says of them."""
    lines = [b"%s=%s" % pair for pair in sorted(_telling(view))]
    for bind in sorted(view.task.binds, key=lambda bind: bind.target):
        top = Path(os.fsdecode(bind.source))
        for path in sorted(top.rglob("*")):
            link = os.readlink(path) if path.is_symlink() else ""
            text = path.read_bytes() if path.is_file() else b""
            mode = path.lstat().st_mode
            lines.append(
                b"%s %s %o %s %s" % (bind.target, os.fsencode(path.relative_to(top)), mode, link.encode(), text)
            )
    return b"\n".join(lines) + b"\n"


def _telling(view: View) -> list[tuple[bytes, bytes]]:
    """The variables that follow from a datum's key."""
    told = [name for name in view.task.env if name.startswith(("PACH_DATUM_in", "in")) and not name.endswith("_COMMIT")]
    return [(name.encode(), view.task.env[name].encode()) for name in told]


class Combined:
    """Programs for combined inputs, and how they feel today."""

    def __init__(self) -> None:
        self.broken = False

    async def work(self, view: View) -> int:
        """Leaves files of its own, some that others write as well, and at times what clashes."""
        text = seen_by(view)
        if b"bad" in text and self.broken:
            return 1
        name = view.task.env["PFS_DATUM_ID"][:16]
        (view.out / name).write_bytes(view.task.argv[1].encode() + text)  # type: ignore[union-attr]
        if b"both" in text:
            (view.out / "shared").mkdir()
            (view.out / "shared" / "words").write_bytes(text)
        if b"empty" in text:
            (view.out / "left" / "empty").mkdir(parents=True)
        if b"link" in text:
            bind = view.task.binds[0]
            os.symlink(f"/pfs/{bind.target.decode()}/a", view.out / f"{name}.link")
        if b"deep" in text:
            (view.out / "x" / "y").mkdir(parents=True)
            (view.out / "x" / "y" / name).write_bytes(text)
        if b"nothing" in text:
            (view.out / "x").mkdir(exist_ok=True)
            if not (view.out / "x" / "y").exists():
                (view.out / "x" / "y").write_bytes(text)
        return 0

    async def mend(self, view: View) -> int:
        """The job can do without most datums."""
        return int(b"plain" in seen_by(view))


@settings(max_examples=40, deadline=None)
@given(MORE_STEPS, INPUTS, INPUTS, st.booleans())
def test_combined_inputs_give_the_result_from_scratch(
    steps: list[Step], inputs: Input, others: Input, alike: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
        world = World(Path(place))
        try:
            programs = Combined()
            world.program("work", programs.work)
            world.program("mend", programs.mend)
            world.store.create_repo("info")
            for repo in ("in", "info"):
                first = world.commit({"a": b"first", "b/a": b"other", "b/b": b"empty"}, repo=repo)
                create_tag(world.store, repo, "v1", first.id)
                world.commit({"b/b": b"plain", "c": "b/a"}, repo=repo)
            for step in steps:
                if changes := edits_of(world, step.edits, step.repo):
                    world.commit(changes, repo=step.repo)
                programs.broken = step.broken
                spec = replace(
                    world.spec("work", step.argument),
                    input=named(others if step.other else inputs, alike),
                    merge=step.merge,
                    err_command=("mend",),
                    name="one",
                )
                if step.runs:
                    world.run_spec(spec, take_over=True)
            compare_with_scratch(world, spec, programs)
        finally:
            world.close()


def compare_with_scratch(world: World, spec: JobSpec, programs: Combined) -> None:
    """A job on top of what there is, one that plans anew, and one that runs everything have the same results."""
    last = world.run_spec(spec, take_over=True)
    scratch = world.run_spec(replace(spec, output_branch="scratch"), incremental=False)
    assert last.phase is scratch.phase
    assert last.state.recovered == scratch.state.recovered
    assert last.total == last.state.done == scratch.total == scratch.state.done
    if last.phase is not Phase.SUCCESS:
        return
    assert world.head("out@master").tree.id == world.head("out@scratch").tree.id
    one, other = record_of(world, "out@master"), record_of(world, "out@scratch")
    assert one.written_by == other.written_by
    if last.state.recovered:
        return  # what is kept of a datum that failed has times
    assert one.datums_root == other.datums_root
    programs.broken = False
    anew = world.run_spec(replace(spec, output_branch="anew", reprocess=True))
    assert (anew.phase, anew.state.processed) == (Phase.SUCCESS, last.state.done)
    assert world.head("out@master").tree.content == world.head("out@anew").tree.content
    assert one.written_by == record_of(world, "out@anew").written_by
