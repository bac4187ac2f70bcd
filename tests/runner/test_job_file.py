"""pfs's own specs: what each field gives, and how errors are said."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pfsmount.errors import InvalidInput
from pfsmount.revision import Revision, parse_revision
from runner.executors.base import Limits
from runner.input_spec import Combination, CombinedInput, Input, InputSpec, parse_input
from runner.job_file import FIELDS
from runner.quantities import cpu_share, duration_seconds, memory_bytes, quantity
from runner.spec import JobSpec, Merge
from runner.spec_file import read_specs
from tests.conftest import ROOT

DIRECTORY = Path("/home/me/jobs")


def job(text: str, name: str = "x.yaml") -> JobSpec:
    (found,) = read_specs(text.encode(), name, processors=4, directory=DIRECTORY)
    assert found.warnings == ()
    return found.spec


def refusal(text: str, name: str = "x.yaml") -> str:
    with pytest.raises(InvalidInput) as caught:
        read_specs(text.encode(), name, processors=4, directory=DIRECTORY)
    return str(caught.value)


SHORT = "input: images@master:/*\noutput: edges@dev\ncommand: [python3, edges.py]\n"


def test_a_short_spec() -> None:
    assert job(SHORT) == JobSpec(parse_input("images@master:/*"), "edges", "dev", ("python3", "edges.py"))


ALL = """\
# everything
input: images@master:/*
output: edges
command: |
  python3 /edges.py < /pfs/images/*
image: opencv
executor: Podman
env: {SIGMA: "2"}
stdin: "as it is"
code: ./src
timeout: 30s
job_timeout: 2h
tries: 3
workers: 4
limits: {memory: 2G, cpus: 1.5, pids: 200, gpus: 1}
merge: append
hermetic: true
isolate: yes
user: nobody
working_dir: /w
accept_return_code: [1, "2"]
err_command: [sh]
err_stdin: [a, b]
reprocess: true
salt: 7
name: finder
description: Finds edges.
metadata: {team: [a, 1, null]}
"""


def test_every_field() -> None:
    expected = JobSpec(
        input=parse_input("images@master:/*"),
        output_repo="edges",
        output_branch="",
        command=("/bin/sh", "-c", "python3 /edges.py < /pfs/images/*\n"),
        env={"SIGMA": "2"},
        stdin="as it is",
        code=DIRECTORY / "src",
        timeout=30,
        hermetic=True,
        name="finder",
        description="Finds edges.",
        metadata={"team": ["a", 1, None]},
        executor="podman",
        image="opencv",
        user="nobody",
        working_dir="/w",
        accept_return_code=(1, 2),
        err_command=("sh",),
        err_stdin="a\nb\n",
        tries=3,
        job_timeout=7200,
        workers=4,
        limits=Limits(2 * 10**9, 1.5, 200),
        gpus=1,
        merge=Merge.APPEND,
        reprocess=True,
        salt="7",
        isolate=True,
    )
    assert job(ALL) == expected
    named = {line.partition(":")[0] for line in ALL.splitlines() if line[0].isalpha()}
    assert named == FIELDS.keys()
    bare = JobSpec(expected.input, "", "x", ())
    same = {field.name for field in fields(JobSpec) if getattr(expected, field.name) == getattr(bare, field.name)}
    assert same == {"input"}, "a field that a spec cannot set, or that this one sets to what it is anyway"


def test_json_and_camel_case_give_the_same() -> None:
    document = {
        "input": "images@master:/*",
        "output": "edges@dev",
        "command": ["python3", "edges.py"],
        "workingDir": "/w",
        "acceptReturnCode": 3,
        "jobTimeout": 1.5,
        "code": "/abs",
        "limits": {"cpus": "500m"},
        "image": None,
    }
    spec = job(json.dumps(document), "x.json")
    assert (spec.working_dir, spec.accept_return_code, spec.job_timeout) == ("/w", (3,), 1.5)
    assert (spec.code, spec.limits) == (Path("/abs"), Limits(cpus=0.5))


def test_several_jobs_and_a_pipeline_in_one_file() -> None:
    pipeline = "pipeline: {name: p}\ntransform: {image: i}\ninput: {pfs: {repo: a, glob: /}}\n"
    found = read_specs(f"{SHORT}---\n{pipeline}".encode(), "x.yaml", processors=1, directory=DIRECTORY)
    assert [(one.spec.output, one.line) for one in found] == [("edges@dev", 1), ("p@master", 5)]


def leaf(repo: str, glob: str, branch: str = "", **more: Any) -> InputSpec:
    return InputSpec(more.pop("name", repo), repo, parse_revision(branch) if branch else Revision(), glob, **more)


A, B = leaf("a", "/*"), leaf("b", "/", "dev~1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:/*", A),
        ("[a:/*]", A),
        ("[a:/*, 'b@dev~1:/']", CombinedInput(Combination.CROSS, (A, B))),
        ("{repo: a, glob: /*}", A),
        ("{repo: b, branch: dev~1, glob: /}", B),
        ("{name: x, repo: a, branch: '', glob: '/(*)', joinOn: $1, outerJoin: true}", leaf("a", "/(*)", name="x", join_on="$1", outer_join=True)),
        ("{input: 'x=a:/(*)', group_by: $1, lazy: true, empty_files: true}", leaf("a", "/(*)", name="x", group_by="$1", lazy=True, empty_files=True)),
        ("{cross: [a:/*, {union: ['b@dev~1:/', b@dev~1:/]}]}", CombinedInput(Combination.CROSS, (A, CombinedInput(Combination.UNION, (B, B))))),
        ("{join: [{input: a:/(*), join_on: $1}]}", CombinedInput(Combination.JOIN, (leaf("a", "/(*)", join_on="$1"),))),
        ("[{group: [{input: a:/(*), group_by: $1}]}]", CombinedInput(Combination.GROUP, (leaf("a", "/(*)", group_by="$1"),))),
        ("{union: [[a:/*, b@dev~1:/], a:/*]}", CombinedInput(Combination.UNION, (CombinedInput(Combination.CROSS, (A, B)), A))),
    ],
)  # fmt: skip
def test_inputs(text: str, expected: Input) -> None:
    assert job(f"input: {text}\noutput: o\ncommand: c\n").input == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output: o\ncommand: c\n", "x.yaml:1: this spec has no 'input' (write it as repo@branch:glob"),
        ("input: a:/*\ncommand: c\n", "this spec has no 'output'"),
        ("input: a:/*\noutput: o\n", "this spec has no 'command'"),
        ("input: a:/*\noutput: o\ncommand: ''\n", "this spec has an empty 'command'"),
        ("input: a:/*\noutput: o\ncommand: []\n", "this spec has an empty 'command'"),
        ("input: a:/*\noutput: o\ncommand: 5\n", "x.yaml:3: command must be a list of strings, not a number (or a string, which sh -c runs)"),
        ("input: a:/*\noutput: o\ncmd: c\n", "x.yaml:3: a spec has no field 'cmd' (did you mean 'command'?)"),
        ("inputs: a:/*\n", "did you mean 'input'?"),
        (f"{SHORT}datum_tries: 3\n", "did you mean 'tries'?"),
        (f"{SHORT}wrokers: 3\n", "x.yaml:4: a spec has no field 'wrokers' (did you mean 'workers'?)"),
        (f"{SHORT}limits: {{gpu: 1}}\n", "limits has no field 'gpu' (did you mean 'gpus'?)"),
        (f"{SHORT}limits: 4G\n", "limits must be a mapping, not a string"),
        (f"{SHORT}limits: {{pids: 0}}\n", "limits.pids must be at least 1, not 0"),
        (f"{SHORT}tries: 0\n", "tries must be at least 1, not 0"),
        (f"{SHORT}workers: 0\n", "workers must be at least 1, not 0"),
        (f"{SHORT}executor: kubernetes\n", "executor must be 'process', 'podman' or 'docker', not 'kubernetes'"),
        (f"{SHORT}merge: first\n", "merge must be 'error' or 'append', not 'first'"),
        (f"{SHORT}env: {{PFS_X: 1}}\n", "x.yaml:4: env.PFS_X: PFS_X is given to the program by pfs"),
        (f"{SHORT}timeout: 1 hour\n", "timeout: '1 hour' is not a duration"),
        (f"{SHORT}hermetic: 1\n", "hermetic must be true or false, not a number"),
        (f"{SHORT}code: [a]\n", "code must be a string, not a list"),
        ("input: a\noutput: o\ncommand: c\n", "x.yaml:1: input: the input 'a' does not say which files are one datum"),
        ("input: a:/*\noutput: o:/x\ncommand: c\n", "x.yaml:2: output: the output 'o:/x' is a whole branch"),
        ("input: a@m:/*\noutput: a@m\ncommand: c\n", "x.yaml:1: a@m is both input and output"),
        ("input:\n- a:/*\n- a:/\noutput: o\ncommand: c\n", "x.yaml:1: input: two inputs have the name 'a'"),
        ("input:\n- a:/*\n- b:/{\noutput: o\ncommand: c\n", "x.yaml:3: input[2]: the pattern '/{'"),
        ("input: []\noutput: o\ncommand: c\n", "this spec has an empty 'input'"),
        ("input: [[]]\noutput: o\ncommand: c\n", "input[1] has no input in it"),
        ("input: {repo: a}\noutput: o\ncommand: c\n", "input has no 'glob'"),
        ("input: {glob: /}\noutput: o\ncommand: c\n", "input has no 'repo'"),
        ("input: {repo: a, glob: /, commit: x}\noutput: o\ncommand: c\n", "did you mean 'branch'?"),
        ("input: {input: a:/*, glob: /}\noutput: o\ncommand: c\n", "input.input cannot stand beside 'glob'"),
        ("input: {cross: [a:/*], repo: b}\noutput: o\ncommand: c\n", "input has 'cross' and 'repo'"),
        ("input: {cross: a:/*}\noutput: o\ncommand: c\n", "input.cross must be a list, not a string"),
        ("input: {union: []}\noutput: o\ncommand: c\n", "input: a union of no inputs has no datums"),
        ("input: {repo: a, glob: /*, join_on: $1}\noutput: o\ncommand: c\n", "input: join_on '$1' names $1"),
        ("input: {pfs: {repo: a, glob: /}}\noutput: o\ncommand: c\n", "input has no field 'pfs' (did you mean 'repo'?)"),
        ("just words\n", "x.yaml:1: this spec must be a mapping, not a string"),
        ("5\n", "this spec must be a mapping, not a number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_an_image_needs_no_command() -> None:
    assert job("input: a:/*\noutput: o\nimage: i\n").command == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("30", 30), ("0.5", 0.5), ("30s", 30), ("1h30m", 5400), ("500ms", 0.5), ("1d", 86400), ("1.5h", 5400), ("7µs", 7e-6)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["1 h", "h", "1x", "-1s", "1h30", "1e3", "٣s", "1..5s", "1h 30m", "NaN", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidInput):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("1", 1), ("1.5", 1.5), (".5", 0.5), ("2k", 2000), ("2K", 2000), ("2Ki", 2048), ("3M", 3e6), ("1Gi", 1 << 30), ("100m", 0.1), ("1e3", 1000)],
)  # fmt: skip
def test_quantities(text: str, amount: float) -> None:
    assert quantity(text) == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "hint"),
    [("64MB", "64M"), ("64mb", "64M"), ("64mib", "64Mi"), ("2 GiB", "2Gi"), ("5kB", "5k"), ("5kib", "5Ki"), ("-1", "0.5"), ("x", "64M"), ("64g", "64G")],
)  # fmt: skip
def test_what_is_no_quantity_has_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        quantity(text)
    assert caught.value.hint is not None
    assert hint in caught.value.hint.split("write it as ")[1]


def test_amounts_of_memory() -> None:
    assert (memory_bytes(""), memory_bytes("0"), memory_bytes("64M")) == (None, None, 64 * 10**6)
    for text in ("64", "64m", "1e19", "99E"):
        with pytest.raises(InvalidInput):
            memory_bytes(text)


def test_shares_of_processors() -> None:
    assert (cpu_share(""), cpu_share("0"), cpu_share("500m"), cpu_share("2")) == (None, None, 0.5, 2)
    for text in ("1m", "1e30", "9E"):
        with pytest.raises(InvalidInput):
            cpu_share(text)


def table_of_fields() -> str:
    """The table of docs/SPECS.md."""
    return "\n".join(["| field | meaning |", "|---|---|", *(f"| `{name}` | {note} |" for name, note in FIELDS.items())])


def test_the_table_in_the_manual_is_the_one_of_the_code() -> None:
    manual = (ROOT / "docs" / "SPECS.md").read_text(encoding="utf-8")
    assert table_of_fields() in manual, f"put this into docs/SPECS.md:\n{table_of_fields()}"


def test_the_examples_of_the_manual_are_specs() -> None:
    manual = (ROOT / "docs" / "SPECS.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0].partition("\n") for block in manual.split("\n```")[1::2]]
    assert {language for language, _, _ in blocks} == {"yaml", "json"}
    for language, _, text in blocks:
        assert read_specs(text.encode(), f"SPECS.{language}", processors=1, directory=DIRECTORY)
