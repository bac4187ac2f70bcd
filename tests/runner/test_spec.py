"""Specs: what flags mean, and which are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pfsmount.errors import InvalidInput
from pfsmount.revision import parse_revision
from pfsmount.tree.globs import Glob
from runner.input_spec import Combination, CombinedInput, InputSpec, check_input, cross_of, parse_input
from runner.spec import JobSpec, check_spec, parse_env, parse_output, same_pipeline
from runner.templates import check_template


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images@master:/*", InputSpec("images", "images", parse_revision("master"), "/*")),
        ("images@master~2:/a:b", InputSpec("images", "images", parse_revision("master~2"), "/a:b")),
        ("x=images@master:/a=b", InputSpec("x", "images", parse_revision("master"), "/a=b")),
        ("images@master:", InputSpec("images", "images", parse_revision("master"), "")),
    ],
)
def test_inputs(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    "text",
    ["images", "images@master", "out=images@master:/", "a/b=images@master:/", "=images@m:/", "i@m+w:/", "i@m:/{"],
)
def test_inputs_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_input(text)


def test_outputs() -> None:
    assert parse_output("edges@dev") == ("edges", "dev")
    assert parse_output("edges") == ("edges", "")
    for text in ("edges@dev~1", "edges@dev:/x", "edges@abcdef1", "a/b@c"):
        with pytest.raises(InvalidInput):
            parse_output(text)


def test_environment() -> None:
    assert parse_env(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for text in ("A", "=1", "PFS_JOB_ID=1", "PACH_X=1"):
        with pytest.raises(InvalidInput):
            parse_env([text])


def spec(*inputs: str, command: str = "true", output: str = "out@master") -> JobSpec:
    repo, branch = parse_output(output)
    return JobSpec(cross_of([parse_input(text) for text in inputs]), repo, branch, (command,))


def test_a_pipeline_is_its_inputs_and_its_output() -> None:
    def same(one: JobSpec, other: JobSpec) -> bool:
        return same_pipeline(one.as_json(), other)

    first = spec("a@m:/*", "b@m:/")
    assert same(first, spec("b@m:/", "a@m:/*", command="false"))
    assert not same(first, spec("a@m:/*"))
    assert not same(first, spec("a@m:/", "b@m:/"))
    assert not same(first, spec("a@n:/*", "b@m:/"))
    assert not same(first, spec("x=a@m:/*", "b@m:/"))
    assert not same(first, spec("a@m:/*", "b@m:/", output="out@dev"))


def test_a_name_holds_a_pipeline_together() -> None:
    first, other = spec("a@m:/*"), spec("b@m:/*")
    assert same_pipeline(replace(first, name="edges").as_json(), replace(other, name="edges"))
    assert not same_pipeline(replace(first, name="edges").as_json(), replace(other, name="lines"))
    assert not same_pipeline(first.as_json(), other)


@pytest.mark.parametrize("wrong", [spec("a@m:/", "a@n:/"), spec("x=out@master:/"), spec("a@m:/", command="")])
def test_parts_that_do_not_fit(wrong: JobSpec) -> None:
    with pytest.raises(InvalidInput):
        check_spec(wrong)


@pytest.mark.parametrize("template", ["$" + "1" * 5000, "${" + "1" * 5000 + "}"])
def test_a_template_with_a_very_large_number(template: str) -> None:
    with pytest.raises(InvalidInput):
        check_template("join_on", template, Glob("/(*)"))


def test_a_group_may_not_bring_two_files_to_one_place() -> None:
    leaf = replace(parse_input("x=a@m:/(*)"), group_by="$1")
    other = replace(parse_input("x=b@m:/(*)"), group_by="$1")
    grouped = CombinedInput(Combination.GROUP, (CombinedInput(Combination.UNION, (leaf, other)),))
    with pytest.raises(InvalidInput, match=r"a@m and b@m that both have the name 'x'"):
        check_input(grouped)
    check_input(CombinedInput(Combination.GROUP, (CombinedInput(Combination.UNION, (leaf, leaf)),)))
