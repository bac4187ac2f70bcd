"""Jobs from a spec to a commit, over the executor `memory`: what runs, what is reused, what is committed, what is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from pfsmount.errors import InvalidInput, NotFound
from pfsmount.repo.collection import Collection, collecting
from pfsmount.repo.refs import RefKind
from runner.executors.base import ExecutorUnavailable, Obstacle
from runner.executors.memory import MemoryExecutor, View
from runner.jobs import JobStore
from runner.state import Phase
from tests.runner.world import World


def test_one_run_for_each_match_and_one_commit(world: World) -> None:
    world.commit({"a": b"x", "b": b"y", "d/c": b"z"})
    result = world.run()
    assert result.phase is Phase.SUCCESS
    assert (result.state.processed, result.state.skipped, result.state.failed) == (3, 0, 0)
    assert sorted(world.ran) == ["/pfs/in/a", "/pfs/in/b", "/pfs/in/d"]
    assert world.files() == {"a": b"X", "b": b"Y", "d/": "", "d/c": b"Z"}
    assert world.head().id == result.commit
    assert world.notes.lines == ["made the repo 'out'"]


def test_the_same_again_is_nothing_to_do(world: World) -> None:
    world.commit({"a": b"x"})
    first = world.run()
    again = world.run()
    assert again.nothing_to_do
    assert (again.id, again.commit) == (first.id, first.commit)
    assert (again.state.processed, again.state.skipped) == (0, 1)
    assert world.ran == []


def test_only_what_is_new_runs(world: World) -> None:
    world.commit({"a": b"x", "b": b"y"})
    world.run()
    world.commit({"c": b"z", "a": b"changed"})
    result = world.run()
    assert sorted(world.ran) == ["/pfs/in/a", "/pfs/in/c"]
    assert (result.state.processed, result.state.skipped) == (2, 1)
    assert world.files() == {"a": b"CHANGED", "b": b"Y", "c": b"Z"}
    assert world.head().parents == (world.head("out@master~1").id,)


def test_the_version_that_the_last_job_read_may_be_gone(world: World) -> None:
    world.commit({"a": b"x", "b": b"y"})
    world.run()
    world.store.delete_repo("in")
    world.store.create_repo("in")
    world.commit({"b": b"y", "c": b"z"})
    with collecting(world.store):
        collection = Collection(world.store, 0)
        collection.plan()
        collection.carry_out()
    assert world.run().phase is Phase.SUCCESS
    assert world.files() == {"b": b"Y", "c": b"Z"}


def test_what_was_made_from_a_deleted_input_goes(world: World) -> None:
    world.commit({"a": b"x", "d/b": b"y"})
    world.run()
    world.commit({"d": None})
    result = world.run()
    assert (result.state.processed, result.state.skipped) == (0, 1)
    assert world.files() == {"a": b"X"}
    assert [datum.meta["inputs"][0]["path"] for datum in world.record(result).datums()] == ["/a"]


def test_a_new_input_commit_always_gives_an_output_commit(world: World) -> None:
    world.commit({"a": b"x"})
    first = world.run()
    world.commit({"a": b""})
    world.commit({"a": b"x"})
    second = world.run()
    assert not second.nothing_to_do
    assert second.commit != first.commit
    assert world.ran == []
    assert world.head().tree.id == world.head("out@master~1").tree.id


def test_a_changed_program_runs_over_everything(world: World) -> None:
    world.commit({"a": b"x", "b": b"y"})
    world.run()

    async def lower(view: View) -> int:
        (view.out / "same").mkdir()
        (view.out / "same" / os.path.basename(view.task.env["in"])).write_bytes(b"new")
        return 0

    world.program("upper", lower, version="2")
    result = world.run()
    assert (result.state.processed, result.state.skipped) == (2, 0)
    assert world.files() == {"same/": "", "same/a": b"new", "same/b": b"new"}
    world.program("upper", lower, version="1")
    result = world.run()
    assert (result.state.processed, result.state.skipped) == (0, 2)
    assert world.files() == {"a": b"X", "b": b"Y"}, "the results of version 1 were kept"


def test_results_are_reused_on_another_branch(world: World) -> None:
    world.commit({"a": b"x"})
    world.run()
    result = world.run(output="other@dev")
    assert (result.state.processed, result.state.skipped) == (0, 1)
    assert world.files("other@dev") == {"a": b"X"}


def test_a_failing_datum_fails_the_job_and_the_others_are_kept(world: World) -> None:
    world.commit({"a": b"x", "b": b"bad", "c": b"z"})
    result = world.run()
    assert result.phase is Phase.FAILED
    assert (result.state.processed, result.state.failed) == (2, 1)
    assert result.commit is None
    assert world.store.head("out", "master") is None
    (failure,) = result.failures
    assert (str(failure), failure.how) == ("/b", "exit code 3")
    assert b"".join(world.record(result).read_log(failure)) == b"read b\n"
    assert failure.out is None

    world.commit({"b": b"good"})
    again = world.run()
    assert (again.state.processed, again.state.skipped) == (1, 2)
    assert world.ran == ["/pfs/in/b"]
    assert world.files() == {"a": b"X", "b": b"GOOD", "c": b"Z"}


def test_fail_fast_starts_no_more(world: World) -> None:
    world.commit({f"{i:03}": b"bad" for i in range(200)})
    result = world.run(workers=1, fail_fast=True)
    assert result.phase is Phase.FAILED
    assert 0 < result.state.failed < 200


def test_fail_fast_ends_when_all_datums_are_on_their_way_already(world: World) -> None:
    async def fail_when_all_are_staged(view: View) -> int:
        scratch = view.out.parent.parent
        while len(list(scratch.iterdir())) < 3:  # noqa: ASYNC110 - stagers are threads
            await trio.sleep(0.01)
        return 1

    async def run_until_the_job_is_to_end(view: View) -> int:
        while not world.notes.events:  # noqa: ASYNC110 - the observer is no task
            await trio.sleep(0.01)
        return 0

    async def work(view: View) -> int:
        first = view.task.env["in"] == "/pfs/in/a"
        return await (fail_when_all_are_staged if first else run_until_the_job_is_to_end)(view)

    world.program("work", work)
    world.commit({"a": b"1", "b": b"2", "c": b"3"})
    result = world.run_spec(replace(world.spec("work"), job_timeout=20.0), workers=1, fail_fast=True)
    assert (result.phase, result.reason) == (Phase.FAILED, "")
    assert (result.state.processed, result.state.failed) == (1, 1)


def test_no_datums_are_a_success_with_nothing_in_it(world: World) -> None:
    world.commit({"a": b"x"})
    result = world.run(inputs=["in@master:/nothing*"])
    assert result.phase is Phase.SUCCESS
    assert world.files() == {}
    assert world.head().id == result.commit


def test_a_cross_product(world: World) -> None:
    world.store.create_repo("parameters")
    world.commit({"1": b"1", "2": b"2"}, repo="parameters")
    world.commit({"a": b"a", "b": b"b"})

    async def pair(view: View) -> int:
        names = "-".join(os.path.basename(view.task.env[name]) for name in ("in", "p"))
        (view.out / names).write_text(view.task.env["PFS_INPUT_P_COMMIT"])
        return 0

    world.program("pair", pair)
    inputs = ["in@master:/*", "p=parameters@master:/*"]
    world.run("pair", inputs=inputs)
    assert sorted(world.files()) == ["a-1", "a-2", "b-1", "b-2"]
    world.commit({"3": b"3", "1": None}, repo="parameters")
    result = world.run("pair", inputs=inputs)
    assert (result.state.processed, result.state.skipped) == (2, 2)
    assert sorted(world.files()) == ["a-2", "a-3", "b-2", "b-3"]


def test_two_datums_that_write_one_path_are_named(world: World) -> None:
    world.commit({"a": b"x", "b": b"y"})

    async def same(view: View) -> int:
        (view.out / "result").write_bytes(b"same")
        return 0

    world.program("same", same)
    result = world.run("same")
    assert result.phase is Phase.FAILED
    assert world.store.head("out", "master") is None
    assert result.reason.startswith("two datums wrote /result: ")
    assert {"/a", "/b"} <= set(result.reason.replace(";", " ").split())
    assert world.record(result).job()["reason"] == result.reason


def test_a_head_that_a_person_made_is_not_replaced_unasked(world: World) -> None:
    world.commit({"a": b"x"})
    world.store.create_repo("out")
    world.commit({"precious": b"!"}, repo="out")
    with pytest.raises(InvalidInput, match="made by tester@here"):
        world.run()
    assert world.ran == []
    result = world.run(take_over=True)
    assert world.files() == {"a": b"X"}
    assert world.files("out@master~1") == {"precious": b"!"}
    assert result.phase is Phase.SUCCESS


def test_a_head_that_another_pipeline_made_is_not_replaced_unasked(world: World) -> None:
    world.commit({"a": b"x"})
    world.run()
    with pytest.raises(InvalidInput, match=r"another job, from in@master:/\*"):
        world.run(inputs=["in@master:/"])
    world.run(inputs=["in@master:/"], take_over=True)
    assert world.files() == {"a": b"X"}


def test_a_head_that_moved_meanwhile_keeps_the_results_aside(world: World) -> None:
    world.commit({"a": b"x"})
    world.run()

    async def meddling(view: View) -> int:
        world.commit({"other": b"!"}, repo="out")
        (view.out / "mine").write_bytes(b"mine")
        return 0

    world.program("upper", meddling, version="2")
    result = world.run()
    assert result.phase is Phase.CONFLICT
    assert result.commit is not None
    assert world.files() == {"a": b"X", "other": b"!"}
    assert world.files(f"out@{result.commit.hex()[:12]}") == {"mine": b"mine"}
    assert JobStore(world.store).find(result.id).commit == result.commit.hex()


def test_odd_names(world: World) -> None:
    names = [b"a b", b"caf\xe9", b"\xff\xfe", b"new\nline", b"-rf", b"*?[x]", b"'\"", "ü".encode(), b"x" * 255, b".hid"]
    world.commit({os.fsdecode(name): b"x%d" % i for i, name in enumerate(names)})
    result = world.run()
    assert result.phase is Phase.SUCCESS
    assert {os.fsencode(name) for name in world.files()} == set(names)
    world.commit({os.fsdecode(names[2]): None})
    world.run()
    assert {os.fsencode(name) for name in world.files()} == {*names} - {names[2]}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["nope@master:/*"], "no repo 'nope'"),
        (["in@nope:/*"], "no branch, tag or commit 'nope'"),
        (["in@master~7:/*"], "so there is no"),
        (["in@empty:/*"], "has no commits yet"),
    ],
)
def test_an_unknown_input_is_refused_before_anything_is_made(world: World, inputs: list[str], said: str) -> None:
    world.commit({"a": b"x"})
    world.store.create_branch("in", "empty", None)
    with pytest.raises((NotFound, InvalidInput), match=said):
        world.run(inputs=inputs)
    assert [repo.name for repo in world.store.repos()] == ["in"]


def test_a_command_that_is_not_there_is_refused_before_anything_is_made(world: World) -> None:
    world.commit({"a": b"x"})
    with pytest.raises(NotFound, match="nope: command not found"):
        world.run("nope")
    assert [repo.name for repo in world.store.repos()] == ["in"]


def test_a_machine_without_the_executor_is_told_so_before_anything_is_made(world: World) -> None:
    world.commit({"a": b"x"})
    with pytest.raises(ExecutorUnavailable, match="no namespaces"):
        world.run(executor=MemoryExecutor({}, obstacles=(Obstacle("no namespaces", "turn them on"),)))
    assert [repo.name for repo in world.store.repos()] == ["in"]
    assert list((world.store.path / "jobs").iterdir()) == []


def test_the_job_cleans_up_after_itself(world: World) -> None:
    world.commit({"a": b"x", "b": b"bad"})
    world.run()
    assert list((world.store.path / "jobs").iterdir()) == []


def test_what_a_datum_is_told(world: World) -> None:
    first = world.commit({"d/a": b"x"})
    seen: dict[str, str] = {}

    async def look(view: View) -> int:
        seen.update(view.task.env)
        return 0

    world.program("look", look)
    result = world.run("look", inputs=["images=in@master:/d/*"], env=["MODE=fast", "TZ=Europe/Berlin"])
    (datum,) = world.record(result).datums()
    assert seen == {
        "PATH": os.fspath(world.bin),
        "HOME": os.fspath(world.root / "home"),
        "LANG": "C.UTF-8",
        "TZ": "Europe/Berlin",
        "MODE": "fast",
        "PFS_JOB_ID": result.id,
        "PFS_DATUM_ID": datum.key.hex(),
        "PACH_JOB_ID": result.id,
        "PACH_OUTPUT_COMMIT_ID": result.id,
        "PACH_DATUM_ID": datum.key.hex(),
        "PPS_PIPELINE_NAME": "out",
        "PPS_PROJECT_NAME": "default",
        "PFS_INPUT_IMAGES_COMMIT": first.id.hex(),
        "images": "/pfs/images/d/a",
        "images_COMMIT": first.id.hex(),
    }


def test_a_link_that_leads_out_is_named_as_names_are_shown(world: World) -> None:
    async def link(view: View) -> int:
        os.symlink("/etc/passwd", os.path.join(os.fsencode(view.out), b"\xff\n\x1b[31m"))
        return 0

    world.program("link", link)
    world.commit({"a": b"x"})
    world.run("link")
    assert world.notes.lines[-1] == r"a symlink leads out of what its datum sees: /\xff\n\x1b[31m"


def test_an_image_changes_nothing_for_a_program_of_this_machine(world: World) -> None:
    given: list[Mapping[str, str]] = []

    async def tell(view: View) -> int:
        given.append(view.task.env)
        return 0

    world.program("tell", tell)
    world.commit({"a": b"x"})
    spec = replace(world.spec("tell"), image="opencv", executor="process")
    world.run_spec(spec)
    assert {name: given[0].get(name) for name in ("PATH", "LANG", "TZ")} == {
        "PATH": str(world.bin),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }
    with pytest.raises(InvalidInput, match="no command"):
        world.run_spec(replace(spec, command=()))


def test_everything_about_a_run_is_in_the_commit(world: World) -> None:
    source = world.commit({"a": b"x"})
    result = world.run("upper", "--fast", env=["MODE=1"])
    made = world.head().provenance
    assert made is not None
    assert made["job"] == result.id
    assert made["command"] == ["upper", "--fast"]
    assert made["inputs"] == [{"name": "in", "repo": "in", "branch": "master", "glob": "/*", "commit": source.id.hex()}]
    assert made["env"]["MODE"] == "1"
    assert made["code"]["executable"]["path"] == os.fspath(world.bin / "upper")
    assert len(made["code"]["executable"]["id"]) == 64
    assert made["counts"] == {"total": 1, "processed": 1, "skipped": 0, "failed": 0}
    assert made["times"]["started_ns"] < made["times"]["ended_ns"]
    assert (made["user"]["uid"], made["network"]) == (os.getuid(), "host")
    assert made["record"]["id"] == world.record(result).root.id.hex()
    assert made["spec"]["output"] == {"repo": "out", "branch": "master"}
    assert world.head().origin == {"how": "job", "job": result.id}


def test_the_job_ref_names_the_record(world: World) -> None:
    world.commit({"a": b"x", "b": b"bad"})
    failed = world.run()
    world.commit({"b": None})
    done = world.run()
    refs = {ref.name for ref in world.store.refs("out", RefKind.JOB)}
    assert refs == {failed.id, done.id}
    listed = {job.id: job for job in JobStore(world.store).jobs()}
    assert listed[failed.id].phase is Phase.FAILED
    assert listed[done.id].phase is Phase.SUCCESS
    assert listed[done.id].commit == world.head().id.hex()
    assert listed[done.id].ref.parents == (world.head().id,)
    assert {(str(datum), datum.ok) for datum in world.record(failed).datums()} == {("/a", True), ("/b", False)}


def test_lineage_leads_from_a_result_to_what_it_was_made_from(world: World) -> None:
    from pfsmount.ids import parse_path
    from pfsmount.repo.provenance import lineage

    source = world.commit({"a": b"x", "b": b"y"})
    world.run()
    found = lineage(world.store, "out", world.head(), parse_path("/a"))
    (datum,) = found.datums
    (used,) = datum.inputs
    assert (used.repo, used.commit, used.path) == ("in", source, (b"a",))
    assert datum.meta["exit"] == 0


def test_the_code_is_kept_with_the_record(world: World) -> None:
    world.commit({"a": b"x"})
    code = world.cwd / "src"
    (code / "lib").mkdir(parents=True)
    (code / "main.py").write_text("1")
    (code / "lib" / "more.py").write_text("2")
    result = world.run("upper", "src/main.py")
    names = {os.fsdecode(b"/".join(path)) for path, _ in _walk(world, result)}
    assert {"main.py", "lib/more.py"} <= names
    (code / "lib" / "more.py").write_text("3")
    assert world.run("upper", "src/main.py").state.processed == 1
    (code / "photo.jpg").write_text("not code")
    assert world.run("upper", "src/main.py").nothing_to_do


def _walk(world: World, result: object) -> list[tuple[tuple[bytes, ...], object]]:
    from pfsmount.tree.directory import walk
    from runner.job import JobResult

    assert isinstance(result, JobResult)
    return list(walk(world.store.objects, world.record(result).code))


def test_progress_ends_at_the_total(world: World) -> None:
    world.commit({f"{i}": b"x%d" % i for i in range(50)})
    world.run()
    state, total = world.notes.states[-1]
    assert (state.done, total) == (50, 50)
    world.commit({"new": b"n", "0": None})
    world.run()
    state, total = world.notes.states[-1]
    assert (state.done, total) == (50, 50)


def test_a_plan_longer_than_what_is_looked_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.job.LOOKAHEAD", 7)
    monkeypatch.setattr("runner.schedule.LOOKAHEAD", 7)
    world.commit({f"{i}": b"x%d" % i for i in range(60)})
    result = world.run()
    assert result.state.processed == 60
    assert len(world.files()) == 60
    world.program("upper", world.programs["upper"], version="1")
    world.commit({f"{i}": b"y%d" % i for i in range(30)})
    assert world.run(incremental=False).state.counts() == {"total": 60, "processed": 30, "skipped": 30, "failed": 0}


def test_a_working_directory_that_is_gone(world: World, tmp_path: Path) -> None:
    world.commit({"a": b"x"})
    world.cwd.rmdir()
    with pytest.raises(InvalidInput, match="does not exist any more"):
        world.run()
