"""Jobs over combined inputs, and what becomes of datums that fail, are tried again, or write where others did."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from pfsmount.ids import parse_path, path_bytes
from pfsmount.repo.provenance import lineage
from runner.executors.memory import View
from runner.input_spec import Combination, CombinedInput, Input, InputSpec, parse_input
from runner.spec import JobSpec, Merge
from runner.state import Phase
from tests.runner.world import World


def source(text: str, **more: Any) -> InputSpec:
    return replace(parse_input(text), **more)


def all_seen(view: View) -> str:
    """Path and content of all that a datum sees, a line each."""
    lines = []
    for bind in view.task.binds:
        top = Path(os.fsdecode(bind.source))
        for path in sorted(top.rglob("*")):
            name = f"{os.fsdecode(bind.target)}/{path.relative_to(top)}"
            if path.is_symlink():
                lines.append(f"{name} -> {os.readlink(path)}")
            elif path.is_file():
                lines.append(f"{name}={path.read_text()}")
    return "\n".join(lines)


async def look(view: View) -> int:
    """Writes what it sees of its inputs into a file named by its key."""
    env = view.task.env
    name = env.get("PACH_DATUM_in_JOIN_ON") or env.get("PACH_DATUM_in_GROUP_BY") or "all"
    (view.out / name).write_text(all_seen(view))
    return 0


@pytest.fixture
def combined(world: World) -> World:
    world.program("look", look)
    world.store.create_repo("info")
    world.commit({"/1.a": b"one", "/2.a": b"two", "/3.a": b"three"})
    world.commit({"/1.b": b"ONE", "/2.b": b"TWO"}, repo="info")
    return world


def spec_of(world: World, how: Input, **more: Any) -> JobSpec:
    return replace(world.spec("look"), input=how, **more)


def test_a_join_and_what_changes_in_it(combined: World) -> None:
    join = CombinedInput(
        Combination.JOIN, (source("in@master:/(*).a", join_on="$1"), source("info@master:/(*).b", join_on="$1"))
    )
    spec = spec_of(combined, join)
    result = combined.run_spec(spec)
    assert (result.phase, result.state.processed) == (Phase.SUCCESS, 2)
    assert combined.files() == {"1": b"in/1.a=one\ninfo/1.b=ONE", "2": b"in/2.a=two\ninfo/2.b=TWO"}
    combined.commit({"/2.b": None, "/3.b": b"THREE"}, repo="info")
    result = combined.run_spec(spec)
    assert (result.state.processed, result.state.skipped) == (1, 1)
    assert combined.files() == {"1": b"in/1.a=one\ninfo/1.b=ONE", "3": b"in/3.a=three\ninfo/3.b=THREE"}
    assert combined.run_spec(spec).nothing_to_do


def test_a_group_sees_all_its_files(combined: World) -> None:
    combined.commit({"/d/1.x": b"deep"})
    group = CombinedInput(
        Combination.GROUP,
        (source("in@master:/{,d/}(?).*", group_by="$1"), source("info@master:/(?).b", group_by="$1")),
    )
    combined.run_spec(spec_of(combined, group))
    assert combined.files() == {
        "1": b"in/1.a=one\nin/d/1.x=deep\ninfo/1.b=ONE",
        "2": b"in/2.a=two\ninfo/2.b=TWO",
        "3": b"in/3.a=three",
    }


def test_a_group_of_very_many_files(world: World) -> None:
    async def number(view: View) -> int:
        (view.out / "number").write_text(str(len(os.listdir(os.fsdecode(view.task.binds[0].source)))))
        return 0

    world.program("look", number)
    world.commit({f"/a{i:0100}": b"x" for i in range(700)})
    spec = spec_of(world, source("in@master:/(a)*", group_by="$1"))
    spec = replace(spec, input=CombinedInput(Combination.GROUP, (spec.input,)))
    result = world.run_spec(spec)
    assert (result.phase, result.state.processed) == (Phase.SUCCESS, 1)
    assert world.files() == {"number": b"700"}
    (datum,) = world.record(result).datums()
    assert len(datum.meta["inputs"]) == 700
    (datum_info,) = lineage(world.store, "out", world.head(), parse_path("/number")).datums
    assert len(datum_info.inputs) == 700
    world.commit({"/b": b"x"})
    assert world.run_spec(spec).state.skipped == 1


def test_lineage_through_a_union_of_inputs_with_one_name(combined: World) -> None:
    async def copy(view: View) -> int:
        path = view.task.env["x"]
        (view.out / path.rpartition("/")[2]).write_bytes(view.locate(os.fsencode(path[len("/pfs/") :])).read_bytes())
        return 0

    combined.program("copy", copy)
    union = CombinedInput(Combination.UNION, (source("x=in@master:/*"), source("x=info@master:/*")))
    combined.run_spec(replace(spec_of(combined, union), command=("copy",)))
    assert set(combined.files()) == {"1.a", "2.a", "3.a", "1.b", "2.b"}
    for path, repo in (("/1.a", "in"), ("/1.b", "info")):
        (datum,) = lineage(combined.store, "out", combined.head(), parse_path(path)).datums
        assert [(one.repo, os.fsdecode(path_bytes(one.path))) for one in datum.inputs] == [(repo, path)]


def test_empty_files(combined: World) -> None:
    combined.run_spec(spec_of(combined, source("in@master:/", empty_files=True)))
    assert combined.files() == {"all": b"in/1.a=\nin/2.a=\nin/3.a="}


def test_a_symlink_is_followed_by_its_key(combined: World) -> None:
    combined.commit({"/link": "deep/file", "/deep/file": b"first"})
    spec = spec_of(combined, source("in@master:/link"))
    combined.run_spec(spec)
    assert combined.files() == {"all": b"in/deep/file=first\nin/link -> deep/file"}
    combined.commit({"/other": b"x"})
    assert combined.run_spec(spec).state.processed == 0
    combined.commit({"/deep/file": b"second"})
    assert combined.run_spec(spec).state.processed == 1
    assert combined.files() == {"all": b"in/deep/file=second\nin/link -> deep/file"}


async def count(view: View) -> int:
    """Appends to one file."""
    path = view.task.env["in"]
    text = view.locate(os.fsencode(path[len("/pfs/") :])).read_text()
    (view.out / "words").write_text(f"{text}\n")
    return 0


def test_appended_results(combined: World) -> None:
    combined.program("count", count)
    spec = replace(combined.spec("count"), merge=Merge.APPEND)
    combined.run_spec(spec, workers=3)
    assert combined.files() == {"words": b"one\ntwo\nthree\n"}
    combined.commit({"/2.a": b"zwei", "/0.a": b"zero", "/3.a": None})
    result = combined.run_spec(spec)
    assert (result.state.processed, result.state.skipped) == (2, 1)
    assert combined.files() == {"words": b"zero\none\nzwei\n"}
    datums = lineage(combined.store, "out", combined.head(), parse_path("/words")).datums
    assert sorted(os.fsdecode(path_bytes(datum.inputs[0].path)) for datum in datums) == ["/0.a", "/1.a", "/2.a"]
    combined.commit({"/0.a": None, "/1.a": None})
    combined.run_spec(spec)
    assert combined.files() == {"words": b"zwei\n"}
    # without it, the same is a clash that names both
    result = combined.run_spec(replace(spec, merge=Merge.ERROR, output_branch="strict"))
    assert result.phase is Phase.SUCCESS
    combined.commit({"/9.a": b"nine"})
    result = combined.run_spec(replace(spec, merge=Merge.ERROR, output_branch="strict"))
    assert result.phase is Phase.FAILED
    assert "/2.a" in result.reason
    assert "/9.a" in result.reason


def test_appended_results_are_those_of_the_record(world: World) -> None:
    runs = itertools.count()

    async def number(view: View) -> int:
        (view.out / "runs").write_text(f"{next(runs)}\n")
        return 0

    world.program("number", number)
    world.commit({"/1": b"one", "/2": b"two"})
    spec = replace(world.spec("number"), merge=Merge.APPEND)
    world.run_spec(spec, workers=1)
    world.run_spec(replace(spec, output_branch="other", reprocess=True), workers=1)
    world.commit({"/3": b"three"})
    assert world.run_spec(spec).state.processed == 1
    assert world.files() == {"runs": b"0\n1\n4\n"}


def test_appended_results_have_one_order_whoever_ran_the_datums(world: World) -> None:
    async def names(view: View) -> int:
        (view.out / "names").write_text(f"{view.task.env['a'][-1]}{view.task.env['b'][-1]}\n")
        return 0

    world.program("names", names)
    world.store.create_repo("info")
    world.commit({"/1": b"1", "/2": b"2"})
    world.commit({"/x": b"x", "/y": b"y"}, repo="info")
    one, other = ["a=in@master:/*", "b=info@master:/*"], ["b=info@master:/*", "a=in@master:/*"]
    world.run_spec(replace(world.spec("names", inputs=other, output="early@master"), merge=Merge.APPEND))
    spec = replace(world.spec("names", inputs=one), merge=Merge.APPEND)
    world.commit({"/w": b"w", "/y": None}, repo="info")
    result = world.run_spec(spec)
    assert (result.state.processed, result.state.skipped) == (2, 2)
    assert world.files() == {"names": b"1w\n1x\n2w\n2x\n"}


def test_tries(combined: World) -> None:
    failures = {"/pfs/in/1.a": 1, "/pfs/in/2.a": 5}

    async def flaky(view: View) -> int:
        assert not os.listdir(view.out)
        (view.out / "rest").write_text("of a try")
        path = view.task.env["in"]
        failures[path] = failures.get(path, 0) - 1
        if failures[path] >= 0:
            return 7
        (view.out / "rest").rename(view.out / path[-3:])
        return 0

    combined.program("flaky", flaky)
    spec = replace(combined.spec("flaky"), tries=3)
    result = combined.run_spec(spec)
    assert (result.phase, result.state.processed, result.state.failed) == (Phase.FAILED, 2, 1)
    record = combined.record(result)
    (failed,) = [datum for datum in record.datums() if not datum.ok]
    assert failed.meta["tries"] == 3
    assert b"".join(record.read_log(failed)) == (
        b"pfs: try 1 of 3: exit code 7; once more\npfs: try 2 of 3: exit code 7; once more\n"
    )
    assert combined.run_spec(spec).phase is Phase.SUCCESS
    assert set(combined.files()) == {"1.a", "2.a", "3.a"}


def test_codes_that_are_accepted(combined: World) -> None:
    async def three(view: View) -> int:
        (view.out / view.task.env["in"][-3:]).touch()
        return 3

    combined.program("three", three)
    spec = combined.spec("three")
    assert combined.run_spec(spec).phase is Phase.FAILED
    assert combined.run_spec(replace(spec, accept_return_code=(3, 4))).phase is Phase.SUCCESS
    assert set(combined.files()) == {"1.a", "2.a", "3.a"}


def test_a_datum_that_is_recovered(combined: World) -> None:
    broken = {"/pfs/in/2.a"}

    async def work(view: View) -> int:
        path = view.task.env["in"]
        (view.out / path[-3:]).touch()
        return 1 if path in broken else 0

    async def mend(view: View) -> int:
        assert view.stdin == b"help\n"
        (view.out / "mended").touch()
        return 0 if "2" in view.task.env["in"] else 1

    combined.program("work", work)
    combined.program("mend", mend)
    spec = replace(combined.spec("work"), err_command=("mend",), err_stdin="help\n")
    result = combined.run_spec(spec)
    assert (result.phase, result.state.processed, result.state.recovered) == (Phase.SUCCESS, 2, 1)
    assert set(combined.files()) == {"1.a", "3.a"}
    # it is tried again by the next job, on the same inputs and on others
    result = combined.run_spec(spec)
    assert (result.state.skipped, result.state.recovered, result.nothing_to_do) == (2, 1, False)
    broken.clear()
    combined.commit({"/4.a": b"four"})
    result = combined.run_spec(spec)
    assert (result.state.processed, result.state.skipped, result.state.recovered) == (2, 2, 0)
    assert set(combined.files()) == {"1.a", "2.a", "3.a", "4.a"}


def test_reprocess_runs_everything(combined: World) -> None:
    spec = replace(spec_of(combined, source("in@master:/*")), reprocess=True)
    combined.program("look", count)
    spec = replace(spec, merge=Merge.APPEND)
    assert combined.run_spec(spec).state.processed == 3
    assert combined.run_spec(spec).state.processed == 3
    assert combined.run_spec(replace(spec, reprocess=False)).nothing_to_do


def test_a_job_has_its_time(combined: World) -> None:
    async def slow(view: View) -> int:
        if "1" not in view.task.env["in"]:
            await trio.sleep(60)
        return 0

    combined.program("slow", slow)
    result = combined.run_spec(replace(combined.spec("slow"), job_timeout=0.5), workers=1)
    assert (result.phase, result.state.processed) == (Phase.FAILED, 1)
    assert "0.5 s" in result.reason
