"""Pachyderm's pipeline specs: what is done, what is warned of, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pfsmount.errors import InvalidInput
from pfsmount.revision import Revision, parse_revision
from runner.executors.base import Limits
from runner.input_spec import Combination, CombinedInput, InputSpec
from runner.pachyderm_fields import TABLES, Field, Handling
from runner.spec import JobSpec, Merge
from runner.spec_fields import squashed
from runner.spec_file import FileSpec, read_specs
from tests.conftest import ROOT


def read(text: str | dict[str, Any], name: str = "x.json") -> list[FileSpec]:
    raw = text if isinstance(text, str) else json.dumps(text, indent=1)
    return read_specs(raw.encode(), name, processors=4, directory=Path("/d"))


def job(text: str | dict[str, Any], name: str = "x.json") -> JobSpec:
    (found,) = read(text, name)
    return found.spec


def warnings(text: str | dict[str, Any], name: str = "x.json") -> list[str]:
    return [warning for found in read(text, name) for warning in found.warnings]


def refusal(text: str | dict[str, Any], name: str = "x.json") -> str:
    with pytest.raises(InvalidInput) as caught:
        read(text, name)
    return str(caught.value)


def pfs(repo: str, glob: str = "/*", branch: str = "", **more: Any) -> InputSpec:
    revision = parse_revision(branch) if branch else Revision()
    return InputSpec(more.pop("name", repo), repo, revision, glob, **more)


EDGES: dict[str, Any] = {
    "pipeline": {"name": "edges"},
    "transform": {"image": "opencv", "cmd": ["python3", "/edges.py"]},
    "input": {"pfs": {"repo": "images", "glob": "/*"}},
}
"""With nothing to warn of."""


def edges(**changes: Any) -> dict[str, Any]:
    """The spec with other top-level fields."""
    return {**EDGES, **changes}


def transform(**changes: Any) -> dict[str, Any]:
    return edges(transform={**EDGES["transform"], **changes})


def source(**changes: Any) -> dict[str, Any]:
    return edges(input={"pfs": {"repo": "images", "glob": "/*", **changes}})


# Whole specs, in the ways that people write them


def test_a_minimal_spec() -> None:
    (found,) = read(EDGES)
    assert found.warnings == ()
    assert found.spec == JobSpec(
        input=pfs("images"),
        output_repo="edges",
        output_branch="master",
        command=("python3", "/edges.py"),
        name="edges",
        image="opencv",
        tries=3,
    )


CLASSIC_WORDS = """\
{
\t"pipeline": { "name": "scraper" },
\t"transform": {
\t\t"cmd": [ "wget", "-P", "/pfs/out", "-i", "/pfs/urls/Wikipedia" ],
\t\t"image": "web/scraper:1.2",
\t\t"acceptReturnCode": [4, 5]
\t},
\t"input": { "atom": { "repo": "urls", "glob": "/*" } }
}
{
\t"pipeline": { "name": "count" },
\t"transform": { "image": "words", "cmd": ["sh"], "stdin": ["for f in /pfs/scraper/*; do", "  /count $f", "done"] },
\t"parallelism_spec": { "coefficient": "0.5" },
\t"input": { "atom": { "repo": "scraper", "branch": "master", "glob": "/*", "lazy": true } },
\t"standby": false, "cache_size": "1G", "enable_stats": true
}{
\t"pipeline": { "name": "total" },
\t"transform": { "image": "words", "cmd": ["/total"] },
\t"parallelism_spec": { "strategy": "CONSTANT", "constant": 1 },
\t"input": { "atom": { "repo": "count", "glob": "/" } }
}
"""


def test_a_classic_map_and_reduce_in_one_file() -> None:
    scraper, count, total = read(CLASSIC_WORDS)
    assert [found.line for found in (scraper, count, total)] == [1, 10, 16]
    assert (scraper.spec.accept_return_code, scraper.spec.merge) == ((4, 5), Merge.APPEND)
    assert count.spec.stdin == "for f in /pfs/scraper/*; do\n  /count $f\ndone\n"
    assert (count.spec.workers, total.spec.workers) == (2, 1)
    assert count.spec.input == pfs("scraper", "/*", "master", lazy=True)
    assert [warning.partition(" (")[0] for warning in count.warnings] == [
        "x.json:15: cache_size has no effect: there is no cache of downloaded files",
        "x.json:15: enable_stats has no effect: logs, times and results of every datum are always kept",
        "x.json:10: this spec is a classic one, as it has 'standby': what several datums write to one path is put together",
    ]


MODERN_MONTAGE = """\
# both of them
pipeline: &p
  name: edges
  project: {name: default}
description: Edges of images.
metadata:
  annotations: {owner: me}
  labels: {tier: "2"}
transform: &t
  image: pachyderm/opencv:1.0
  cmd: [python3, /edges.py]
  env: {VERSION: 1.10, DEBUG: true, EMPTY: }
input:
  pfs: {repo: images, branch: master, glob: /*.png}
parallelismSpec: {constant: "8"}
resourceLimits: {memory: 1.5Gi, cpu: 500m}
datumTries: "2"
datumTimeout: 1h30m
jobTimeout: 7200s
autoscaling: true
---
pipeline: {name: montage}
transform:
  <<: *x
---
"""


def test_modern_yaml_with_camel_case_and_an_anchor() -> None:
    first, second = MODERN_MONTAGE.split("---\n")[:2]
    (found,) = read(first, "montage.yaml")
    spec = found.spec
    assert spec.env == {"VERSION": "1.10", "DEBUG": "true", "EMPTY": ""}
    assert spec.limits == Limits(memory=1610612736, cpus=0.5)
    assert (spec.workers, spec.tries, spec.timeout, spec.job_timeout) == (8, 2, 5400, 7200)
    assert (spec.description, spec.merge) == ("Edges of images.", Merge.ERROR)
    assert spec.metadata == {"annotations": {"owner": "me"}, "labels": {"tier": "2"}}
    assert found.warnings == (
        "montage.yaml:20: autoscaling has no effect: workers live as long as a job has datums for them",
    )
    assert "no '&x' stands complete" in refusal(f"{first}---\n{second}", "montage.yaml")


def test_a_join_a_group_a_union_and_a_cross_in_each_other() -> None:
    spec = job(
        edges(
            input={
                "cross": [
                    {"pfs": {"repo": "model", "glob": "/", "emptyFiles": True}},
                    {
                        "join": [
                            {"pfs": {"repo": "bam", "glob": "/(*).bam", "joinOn": "$1", "outerJoin": True}},
                            {"pfs": {"repo": "vcf", "name": "calls", "glob": "/(*)-(*).vcf", "join_on": "$2"}},
                        ]
                    },
                    {
                        "union": [
                            {"pfs": {"repo": "a", "name": "x", "glob": "/*"}},
                            {"group": [{"pfs": {"repo": "b", "name": "x", "glob": "/(?)*", "groupBy": "$1"}}]},
                        ]
                    },
                ]
            }
        )
    )
    assert spec.input == CombinedInput(
        Combination.CROSS,
        (
            pfs("model", "/", empty_files=True),
            CombinedInput(
                Combination.JOIN,
                (
                    pfs("bam", "/(*).bam", join_on="$1", outer_join=True),
                    pfs("vcf", "/(*)-(*).vcf", name="calls", join_on="$2"),
                ),
            ),
            CombinedInput(
                Combination.UNION,
                (
                    pfs("a", name="x"),
                    CombinedInput(Combination.GROUP, (pfs("b", "/(?)*", name="x", group_by="$1"),)),
                ),
            ),
        ),
    )


def test_training_on_a_gpu() -> None:
    gpu = {"type": "nvidia.com/gpu", "number": 2}
    spec = edges(resource_limits={"memory": "8G", "gpu": gpu}, resource_requests={"memory": "4G", "cpu": 1, "gpu": gpu})
    assert (job(spec).gpus, job(spec).limits) == (2, Limits(memory=8 * 10**9))
    assert [line.partition(" has")[0] for line in warnings(spec)] == [
        "x.json:26: resource_requests.memory",
        "x.json:27: resource_requests.cpu",
    ]
    assert job(edges(resource_limits={"gpu": 1})).gpus == 1
    assert job(edges(resource_limits={"gpu": "1"})).gpus == 1
    assert job(edges(resource_requests={"gpu": 1})).gpus == 1
    assert warnings(edges(resource_limits={"gpu": {"type": "amd.com/gpu", "number": 1}})) == [
        "x.json:20: resource_limits.gpu.type has no effect: whatever GPUs the machine has are given"
    ]


def test_the_inputs_of_before_1_4() -> None:
    old = {"pipeline": {"name": "p"}, "transform": {"image": "i", "cmd": ["c"]}, "parallelism": 3}
    one = {"repo": {"name": "a"}, "glob": "/*"}
    spec = job({**old, "inputs": [one, {"repo": {"name": "b"}, "branch": "dev", "glob": "/"}]})
    assert spec.input == CombinedInput(Combination.CROSS, (pfs("a"), pfs("b", "/", "dev")))
    assert (spec.workers, spec.merge) == (3, Merge.APPEND)
    assert "inputs[1].method cannot be honoured: it is from before globs" in refusal(
        {**old, "inputs": [{"repo": {"name": "a"}, "method": "map"}]}
    )
    assert "inputs[1] has no 'glob'" in refusal({**old, "inputs": [{"repo": {"name": "a"}}]})
    assert "cannot stand beside 'input'" in refusal({**old, "inputs": [one], "input": EDGES["input"]})


def test_several_pipelines_in_an_array_and_a_byte_order_mark() -> None:
    text = "\ufeff" + json.dumps([EDGES, edges(pipeline={"name": "again"})], indent="\t").replace("\n", "\r\n")
    assert [found.spec.name for found in read(text)] == ["edges", "again"]


# Single fields


@pytest.mark.parametrize(
    ("spec", "field", "expected"),
    [
        (edges(output_branch="dev"), "output_branch", "dev"),
        (edges(outputBranch=""), "output_branch", "master"),
        (edges(datum_tries=1), "tries", 1),
        (edges(datum_tries="5"), "tries", 5),
        (edges(datum_tries=0), "tries", 3),
        (edges(datum_timeout="500ms"), "timeout", 0.5),
        (edges(datum_timeout=30), "timeout", 30),
        (edges(datum_timeout="1.5"), "timeout", 1.5),
        (edges(datum_timeout=""), "timeout", None),
        (edges(datum_timeout="0s"), "timeout", None),
        (edges(datum_timeout="2h3m4.5s"), "timeout", 7384.5),
        (edges(job_timeout="2m"), "job_timeout", 120),
        (edges(job_timeout=None), "job_timeout", None),
        (edges(parallelism_spec={"constant": 4}), "workers", 4),
        (edges(parallelism_spec={"constant": "4", "coefficient": 0}), "workers", 4),
        (edges(parallelism_spec={"coefficient": 1}), "workers", 4),
        (edges(parallelism_spec={"coefficient": "2.0"}), "workers", 8),
        (edges(parallelism_spec={"coefficient": 0.1}), "workers", 1),
        (edges(parallelism_spec={}), "workers", None),
        (edges(parallelism_spec=None), "workers", None),
        (edges(ParallelismSpec={"Constant": 2}), "workers", 2),
        (edges(resource_limits={"memory": "64M"}), "limits", Limits(memory=64 * 10**6)),
        (edges(resource_limits={"memory": "1Gi"}), "limits", Limits(memory=1 << 30)),
        (edges(resource_limits={"memory": "1.5G"}), "limits", Limits(memory=1_500_000_000)),
        (edges(resource_limits={"memory": 128974848}), "limits", Limits(memory=128974848)),
        (edges(resource_limits={"memory": "129e6"}), "limits", Limits(memory=129_000_000)),
        (edges(resource_limits={"memory": "128974848000m"}), "limits", Limits(memory=128974848)),
        (edges(resource_limits={"cpu": 0.5}), "limits", Limits(cpus=0.5)),
        (edges(resource_limits={"cpu": "500m"}), "limits", Limits(cpus=0.5)),
        (edges(resource_limits={"cpu": "2", "memory": ""}), "limits", Limits(cpus=2)),
        (edges(resource_limits={"cpu": 0}), "limits", Limits()),
        (edges(reprocess_spec="every_job"), "reprocess", True),
        (edges(reprocessSpec="UNTIL_SUCCESS"), "reprocess", False),
        (edges(reprocess_spec=""), "reprocess", False),
        (edges(reprocess=True), "reprocess", True),
        (edges(salt="pepper"), "salt", "pepper"),
        (edges(description="d"), "description", "d"),
        (edges(merge="append"), "merge", Merge.APPEND),
        (edges(cache_size="1G", merge="error"), "merge", Merge.ERROR),
        (edges(cacheSize="1G"), "merge", Merge.APPEND),
        (edges(pipeline="other"), "output_repo", "other"),
        (transform(stdin=["a", "b"]), "stdin", "a\nb\n"),
        (transform(stdin=[]), "stdin", None),
        (transform(stdin="a\nb"), "stdin", "a\nb\n"),
        (transform(env=["A=1", {"name": "B", "value": "x=y"}, {"name": "C"}]), "env", {"A": "1", "B": "x=y", "C": ""}),
        (transform(env={"A": 1, "B": None}), "env", {"A": "1", "B": ""}),
        (transform(cmd=["sleep", 5]), "command", ("sleep", "5")),
        (transform(cmd=[]), "command", ()),
        (transform(err_cmd=["sh"], err_stdin=["true"]), "err_command", ("sh",)),
        (transform(errCmd=["sh"], errStdin=["true"]), "err_stdin", "true\n"),
        (transform(accept_return_code=["3", 4]), "accept_return_code", (3, 4)),
        (transform(user=1000), "user", "1000"),
        (transform(workingDir="/w"), "working_dir", "/w"),
        (source(branch="master"), "input", pfs("images", branch="master")),
        (source(branch="master~2"), "input", pfs("images", branch="master~2")),
        (source(branch=""), "input", pfs("images")),
        (source(commit="abcdef12"), "input", pfs("images", branch="abcdef12")),
        (source(branch="dev", commit="abcdef12"), "input", pfs("images", branch="dev@abcdef12")),
        (source(name="i", lazy="true", empty_files=True), "input", pfs("images", name="i", lazy=True, empty_files=True)),
        (source(repo_type="user", project="default", s3=False, trigger=None), "input", pfs("images")),
        (edges(input={"pfs": None, "cross": [], "atom": {"repo": "a", "glob": "/"}}), "input", pfs("a", "/")),
        (edges(input={"cross": [{"pfs": {"repo": "a", "glob": "/"}}]}), "input", CombinedInput(Combination.CROSS, (pfs("a", "/"),))),
    ],
)  # fmt: skip
def test_fields(spec: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(job(spec), field) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (transform(cmd=5), "x.json:7: transform.cmd must be a list of strings, not a number"),
        (transform(cmd="python3 edges.py"), 'transform.cmd must be a list of strings, not a string (a command is a list, as ["sh", "-c", "…"])'),
        (transform(cmd=["a", None]), "transform.cmd must be a list of strings, and each of them one, not null"),
        (transform(cmd=["", "a"]), "transform.cmd starts with an empty string"),
        (transform(cmd=["a\0"]), "transform.cmd has a NUL character"),
        (edges(transform={"image": ""}), "transform has no 'cmd'"),
        (edges(transform=None), "x.json:1: this spec has no 'transform'"),
        (edges(pipeline={}), "this spec has an empty 'pipeline'"),
        (edges(pipeline={"name": ""}), "pipeline has an empty 'name'"),
        (edges(pipeline={"name": "a b"}), "x.json:3: pipeline.name: 'a b' cannot be the name of a repo"),
        ({"pipeline": {"name": "x"}, "transform": {"cmd": ["x"]}}, "x.json:1: this spec has no 'input'"),
        ({"transform": {"cmd": ["x"]}}, "this spec has no 'pipeline'"),
        (edges(output_branch="a/b"), "output_branch: 'a/b' cannot be the name of a branch"),
        (edges(paralelism_spec={}), "a spec has no field 'paralelism_spec' (did you mean 'parallelism_spec'?)"),
        (edges(datumTrys=3), "did you mean 'datum_tries'?"),
        (transform(image_pull_secret=[]), "x.json:11: transform has no field 'image_pull_secret' (did you mean 'image_pull_secrets'?)"),
        (source(join=1), "input.pfs has no field 'join' (did you mean 'join_on'?)"),
        ({"pipelin": {"name": "x"}, "transfrom": {}, "input": {}}, "x.json:2: a spec has no field 'pipelin' (did you mean 'pipeline'?)"),
        ({"createPipelineRequest": {"datumTries": 1}}, "createPipelineRequest cannot be honoured: these are a cluster's"),
        (edges(xyzzy=1), "a spec has no field 'xyzzy'"),
        (edges(datum_tries=1, datumTries=2), "datumTries is datum_tries of line 18 again"),
        (edges(datum_tries=1.5), "datum_tries must be a whole number, not 1.5"),
        (edges(datum_tries="many"), "datum_tries must be a number, not 'many'"),
        (edges(datum_tries=-1), "datum_tries must be at least 0, not -1"),
        (edges(datum_tries=True), "datum_tries must be a number, not 'true'"),
        (edges(datum_tries=[]), "datum_tries must be a number, not a list"),
        (edges(datum_timeout="soon"), "datum_timeout: 'soon' is not a duration (write it as 30s, 2m, 1h30m or 500ms)"),
        (edges(datum_timeout="-3s"), "is not a duration"),
        (edges(parallelism_spec={"constant": 1, "coefficient": 1}), "parallelism_spec has both"),
        (edges(parallelism_spec={"strategy": "MOST"}), "parallelism_spec.strategy must be 'constant' or 'coefficient', not 'most'"),
        (edges(parallelism_spec="4"), "parallelism_spec must be a mapping, not a string"),
        (edges(resource_limits={"memory": "64m"}), "resource_limits.memory: 64m is 0.064 bytes, in which nothing can run (an 'm' is a thousandth; write it as 64M)"),
        (edges(resource_limits={"memory": 64}), "64 is 64 bytes"),
        (edges(resource_limits={"memory": "64MB"}), "'64MB' is not a quantity (write it as 64M)"),
        (edges(resource_limits={"memory": "2 gib"}), "(write it as 2Gi)"),
        (edges(resource_limits={"memory": "much"}), "'much' is not a quantity (write it as 64M, 1.5G, 512Mi or 0.5)"),
        (edges(resource_limits={"memory": "9000P"}), "more memory than any machine has"),
        (edges(reprocess_spec="never"), "reprocess_spec must be 'until_success' or 'every_job', not 'never'"),
        (edges(reprocess="maybe"), "reprocess must be true or false, not a string"),
        (edges(merge="sum"), "merge must be 'error' or 'append', not 'sum'"),
        (edges(metadata=5), "metadata must be a mapping, not a number"),
        (transform(env={"PACH_JOB_ID": "1"}), "x.json:12: transform.env.PACH_JOB_ID: PACH_JOB_ID is given to the program by pfs"),
        (transform(env=["A"]), "transform.env[1]: 'A' is not an environment variable"),
        (transform(env={"A": ["x"]}), "transform.env.A must be a string, not a list"),
        (transform(env="A=1"), "transform.env must be a mapping of names to strings"),
        (source(glob=""), "input.pfs has an empty 'glob'"),
        (source(glob=None), "input.pfs has no 'glob'"),
        (source(glob="/{a"), "x.json:15: input.pfs.glob: the pattern"),
        (source(name="out"), "input.pfs: 'out' cannot be the name of an input"),
        (source(branch="a..b/"), "input.pfs.branch: "),
        (source(branch="master+w"), "is a worktree; a job reads commits"),
        (source(join_on="$1"), "names $1, and the glob '/*' has no pairs of parentheses"),
        (source(repo="a/b"), "input.pfs.repo: 'a/b' cannot be the name of a repo"),
        (edges(input={"pfs": {}}), "input has nothing in it, and needs one of pfs, atom, cross"),
        (edges(input=[EDGES["input"]]), "input must be a mapping, not a list"),
        (edges(input={"pfs": {"repo": "a", "glob": "/"}, "atom": {"repo": "a", "glob": "/"}}), "input has pfs and atom"),
        (edges(input={"pf": {}}), "input has no field 'pf' (did you mean 'pfs'?)"),
        (edges(input={"cross": [{"pfs": {"repo": "a", "glob": "/"}}] * 2}), "x.json:12: input: two inputs have the name 'a'"),
        (edges(input={"cross": {"pfs": {"repo": "a"}}}), "input.cross must be a list, not a mapping"),
        (edges(input={"cross": [{"pfs": {"repo": "a", "glob": "/"}}, {"pfs": {"repo": "b"}}]}), "x.json:21: input.cross[2].pfs has no 'glob'"),
        (edges(input={"join": [{"pfs": {"repo": "a", "glob": "/"}}]}), "is in a join and has no join_on"),
        (edges(input={"pfs": {"repo": "edges", "glob": "/", "branch": "master"}}), "edges@master is both input and output"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(spec: dict[str, Any], expected: str) -> None:
    assert expected in refusal(spec)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (edges(spout={}), "spout cannot be honoured: a job ends, and a spout does not"),
        (edges(spout={"service": {"internal_port": 8200}}), "spout"),
        (edges(service={"internal_port": 8888, "external_port": 30888}), "service cannot be honoured"),
        (edges(egress={"URL": "s3://bucket/dir"}), "egress cannot be honoured"),
        (edges(egress={"sql_database": {"url": "x"}}), "egress cannot be honoured"),
        (edges(s3_out=True), "s3_out cannot be honoured"),
        (edges(S3Out=True), "S3Out cannot be honoured"),
        (edges(tfJob={"tfJob": "{}"}), "tfJob cannot be honoured"),
        (transform(build={"language": "python"}), "transform.build cannot be honoured"),
        (transform(datumBatching=True), "transform.datumBatching cannot be honoured"),
        (transform(secrets=[{"name": "s", "envVar": "S", "key": "k"}]), "transform.secrets cannot be honoured"),
        (source(s3=True), "input.pfs.s3 cannot be honoured"),
        (source(repo_type="meta"), "input.pfs.repo_type cannot be honoured"),
        (edges(input={"cron": {"name": "tick", "spec": "@every 60s"}}), "input.cron cannot be honoured: there are no triggers yet (write the time into a repo"),
        (edges(input={"cross": [EDGES["input"], {"git": {"URL": "https://x/y.git"}}]}), "x.json:21: input.cross[2].git cannot be honoured"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(spec: dict[str, Any], expected: str) -> None:
    assert expected in refusal(spec)


# Every field


REFERENCE = """
pipeline.name pipeline.project description metadata tf_job transform.image transform.cmd transform.stdin transform.err_cmd
transform.err_stdin transform.env transform.secrets transform.image_pull_secrets transform.accept_return_code transform.debug
transform.user transform.working_dir transform.dockerfile transform.build transform.memory_volume transform.datum_batching
parallelism_spec.constant parallelism_spec.coefficient hashtree_spec egress update reprocess output_branch s3_out
resource_requests.cpu resource_requests.memory resource_requests.disk resource_requests.gpu resource_limits.cpu
resource_limits.memory resource_limits.disk resource_limits.gpu resource_limits.gpu.type resource_limits.gpu.number
sidecar_resource_requests sidecar_resource_limits input cache_size enable_stats standby scale_down_threshold autoscaling batch
max_queue_size chunk_spec datum_set_spec datum_timeout job_timeout datum_tries salt scheduling_spec pod_spec pod_patch
tolerations service spout spec_commit reprocess_spec determined maximum_expected_uptime dry_run input.pfs input.atom input.cross
input.union input.join input.group input.cron input.git input.pfs.project input.pfs.name input.pfs.repo input.pfs.repo_type
input.pfs.branch input.pfs.commit input.pfs.glob input.pfs.join_on input.pfs.outer_join input.pfs.group_by input.pfs.lazy
input.pfs.empty_files input.pfs.s3 input.pfs.trigger input.pfs.propagation_spec input.pfs.reference
"""
"""All fields of the specs of 1.8 to 2.11."""

ROWS = [(f"{section}.{name}".strip("."), field) for section, table in TABLES.items() for name, field in table.items()]
ASKING: dict[str, Any] = {
    "tolerations": [{"key": "x"}],
    "transform.secrets": [{"name": "x"}],
    "transform.image_pull_secrets": ["x"],
    "pipeline.project": {"name": "x"},
    "resource_limits.gpu.type": "x",
}


@pytest.mark.parametrize("name", REFERENCE.split())
def test_every_field_of_pachyderm_has_its_row(name: str) -> None:
    section, _, field = name.rpartition(".")
    assert field in TABLES[section]


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The spec with one more field."""
    spec = json.loads(json.dumps(EDGES))
    *parents, name = path.split(".")
    place = spec
    for parent in parents:
        place = place.setdefault(parent, {})
    if path in ("input.cron", "input.git"):
        place.clear()
    place[name] = value
    return spec  # type: ignore[no-any-return]


def camel(name: str) -> str:
    return re.sub("_([a-z0-9])", lambda found: found[1].upper(), name)


@pytest.mark.parametrize(("path", "field"), ROWS, ids=[path for path, _ in ROWS])
def test_a_field_that_is_not_done_is_named_and_its_default_says_nothing(path: str, field: Field) -> None:
    assert field.note
    if field.handling is Handling.DONE:
        return
    asked = with_field(path, ASKING.get(path, {"x": 1}))
    parent, _, name = path.rpartition(".")
    spelled = json.loads(json.dumps(asked).replace(f'"{name}"', f'"{camel(name)}"'))
    if field.handling is Handling.REFUSED:
        assert field.hint
        for spec in (asked, spelled):
            assert f"{name if spec is asked else camel(name)} cannot be honoured: {field.note}" in refusal(spec)
    else:
        for spec in (asked, spelled):
            assert any(f"{path if spec is asked else f'{parent}.{camel(name)}'.strip('.')} has no effect: {field.note}" in said for said in warnings(spec))  # fmt: skip
    if path not in ("input.cron", "input.git"):
        for nothing in (None, False, "", 0, [], {}, {"x": 0}, *field.silent):
            if not (field.asked_by_presence and nothing is not None and nothing is not False):
                said = warnings(with_field(path, nothing))
                assert not any("no effect" in line for line in said)


def test_no_two_fields_have_one_spelling() -> None:
    for table in TABLES.values():
        assert len({squashed(name) for name in table}) == len(table)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, {"transform": {}}.get(path, "1")) for path, field in ROWS
        if field.classic and field.handling is Handling.NO_EFFECT
    ],
)  # fmt: skip
def test_a_classic_spec_says_so(path: str, value: Any) -> None:
    spec = with_field(path, value)
    assert job(spec).merge is Merge.APPEND
    assert f"x.json:1: this spec is a classic one, as it has '{path}'" in warnings(spec)[-1]


def test_without_an_image_the_machine_is_named() -> None:
    assert warnings(edges(transform={"cmd": ["true"]})) == [
        "x.json:5: transform has no image, so its command is a program of this machine"
    ]


def table_of_fields() -> str:
    """The table of docs/SPECS.md."""
    lines = ["| field | what pfs does with it |", "|---|---|"]
    for path, field in ROWS:
        hint = f"; {field.hint}" if field.hint else ""
        how = "" if field.handling is Handling.DONE else f"**{field.handling}**: "
        lines.append(f"| `{path}`{' (1.x)' if field.classic else ''} | {how}{field.note}{hint} |")
    return "\n".join(lines)


def test_the_table_in_the_manual_is_the_one_of_the_code() -> None:
    manual = (ROOT / "docs" / "SPECS.md").read_text(encoding="utf-8")
    assert table_of_fields() in manual, f"put this into docs/SPECS.md:\n{table_of_fields()}"
