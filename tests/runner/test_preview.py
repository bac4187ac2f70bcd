"""What would run, and why."""

from __future__ import annotations

from dataclasses import replace

from runner.executors.memory import View
from runner.finish import draft_of
from runner.input_spec import Combination, CombinedInput, parse_input
from runner.prepare import prepare
from runner.preview import Preview
from runner.spec import JobSpec
from tests.runner.world import World


def preview(world: World, spec: JobSpec) -> Preview:
    ready = prepare(world.store, spec, world.caller(), None)
    return Preview(world.store, ready, draft_of(ready))


def reasons(world: World, spec: JobSpec) -> dict[str, str]:
    return {str(choice.datum): choice.why for choice in preview(world, spec).to_run()}


def test_why_datums_run(world: World) -> None:
    world.commit({"/a": b"1", "/b": b"2"})
    spec = world.spec()
    assert reasons(world, spec) == dict.fromkeys(("/a", "/b"), "new: no job has made this output yet")
    first = world.run_spec(spec)
    assert reasons(world, spec) == {}
    assert [choice.reused for choice in preview(world, spec).all()] == [first.id, first.id]
    world.commit({"/b": b"3", "/c": b"4"})
    assert reasons(world, spec) == {"/b": "its input changed", "/c": "its input is new"}
    second = world.run_spec(spec)
    reused = {str(choice.datum): choice.reused for choice in preview(world, spec).all()}
    assert reused == {"/a": first.id, "/b": second.id, "/c": second.id}
    everything = reasons(world, replace(spec, reprocess=True))
    assert everything == dict.fromkeys(("/a", "/b", "/c"), "every job runs every datum (reprocess)")


def test_what_changed_in_the_program(world: World) -> None:
    world.commit({"/a": b"1"})
    spec = world.spec()
    world.run_spec(spec)

    def why(**changes: object) -> str:
        (found,) = reasons(world, replace(spec, **changes)).values()  # type: ignore[arg-type]
        return found

    assert why(env={"SIGMA": "2"}) == "changed: the variable SIGMA"
    assert why(command=("upper", "more")) == "changed: the command"
    assert why(stdin="x", salt="y") == "changed: stdin, salt"
    world.program("upper", world.programs["upper"], version="2")
    assert why() == f"changed: the executable {world.bin / 'upper'}"


def test_a_datum_that_failed_and_inputs_that_changed(world: World) -> None:
    async def fail(view: View) -> int:
        return 4

    world.commit({"/a": b"1"})
    world.program("fail", fail)
    result = world.run("fail")
    assert reasons(world, world.spec("fail")) == {"/a": f"failed (exit code 4) in {result.id}"}
    world.run("upper")
    two = CombinedInput(Combination.CROSS, (parse_input("in@master:/*"), parse_input("x=in@master:/*")))
    spec = replace(world.spec(), input=two, name="p")
    world.run_spec(replace(world.spec(), name="p", output_branch="named"))
    assert reasons(world, replace(spec, output_branch="named")) == {
        "in:/a × x:/a": "changed: the inputs, or how they are combined"
    }


def test_a_preview_leaves_nothing_that_can_be_seen(world: World) -> None:
    world.commit({"/a": b"1"})
    list(preview(world, world.spec()).all())
    assert [repo.name for repo in world.store.repos()] == ["in"]
    assert list((world.root / "store" / "jobs").iterdir()) == []
