"""Every field of Pachyderm's pipeline specs, and what becomes of it here.

These tables decide: `runner.pachyderm` reads the fields that are done, warns of those without effect and refuses the others. The table in
docs/SPECS.md is made from them. A field that is in no table is an error. One that has its default value says nothing, and is passed by.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.spec_fields import Fields, Value


class Handling(enum.StrEnum):
    DONE = "done"
    NO_EFFECT = "no effect, warned"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field."""

    handling: Handling
    note: str
    """What it does; or why not, as the end of a sentence."""
    hint: str | None = None
    """What to do instead."""
    classic: bool = False
    """Only 1.x had it: a spec with it was written for 1.x."""
    silent: tuple[Any, ...] = ()
    """Values that ask for nothing, besides null, false, zero and empty ones."""
    asked_by_presence: bool = False
    """Even an empty mapping asks for it."""


def _done(note: str, *, classic: bool = False) -> Field:
    return Field(Handling.DONE, note, classic=classic)


def _no_effect(note: str, *, classic: bool = False, silent: tuple[Any, ...] = ()) -> Field:
    return Field(Handling.NO_EFFECT, note, classic=classic, silent=silent)


def _refused(note: str, hint: str, *, classic: bool = False, silent: tuple[Any, ...] = ()) -> Field:
    return Field(Handling.REFUSED, note, hint, classic=classic, silent=silent)


def _refused_by_presence(note: str, hint: str) -> Field:
    return Field(Handling.REFUSED, note, hint, asked_by_presence=True)


_NO_PODS = "there are no pods here"
_NO_SIDECAR = "there is no storage sidecar"
_BY_SERVER = "it is what a Pachyderm server says of a pipeline"
_NOT_RESERVED = "nothing is reserved on this machine; resource_limits has what a datum may use"

PIPELINE_SPEC = {
    "pipeline": _done("`name` is the pipeline's name, and the repo of its results"),
    "description": _done("kept with the job"),
    "metadata": _done("kept with the job; there are no pods to put it on"),
    "transform": _done("see below"),
    "input": _done("see below"),
    "inputs": _done("before 1.4: a list of inputs, whose cross product it is; each needs a `glob`", classic=True),
    "output_branch": _done("the branch of the results; `master` if not given"),
    "parallelism_spec": _done("see below"),
    "parallelism": _done("before 1.2: the number of workers; 0 leaves it to pfs", classic=True),
    "resource_limits": _done("see below"),
    "resource_requests": _done("see below"),
    "datum_timeout": _done("a datum that takes longer fails"),
    "job_timeout": _done("a job that takes longer is killed"),
    "datum_tries": _done("how often a datum is run until it does not fail; 3 if not given"),
    "salt": _done("part of every datum's key: another salt runs all datums again"),
    "reprocess_spec": _done("`until_success`, or `every_job`, which runs every datum in every job"),
    "reprocess": _done("every datum is run"),
    "merge": _done("pfs's own: `append` or `error`, for a path that several datums write"),
    "update": _no_effect("a job takes the spec that it is given, and nothing stored has to be updated"),
    "cache_size": _no_effect("there is no cache of downloaded files", classic=True),
    "enable_stats": _no_effect("logs, times and results of every datum are always kept", classic=True),
    "hashtree_spec": _no_effect("results are merged in no shards", classic=True),
    "standby": _no_effect("no worker waits between jobs", classic=True),
    "scale_down_threshold": _no_effect("no worker waits between jobs", classic=True),
    "autoscaling": _no_effect("workers live as long as a job has datums for them"),
    "batch": _no_effect("no worker waits between jobs", classic=True),
    "max_queue_size": _no_effect("inputs are on this machine, and nothing is downloaded in advance", classic=True),
    "chunk_spec": _no_effect("workers take one datum at a time", classic=True),
    "datum_set_spec": _no_effect("workers take one datum at a time"),
    "sidecar_resource_limits": _no_effect(_NO_SIDECAR),
    "sidecar_resource_requests": _no_effect(_NO_SIDECAR),
    "scheduling_spec": _no_effect(_NO_PODS),
    "pod_spec": _no_effect(_NO_PODS),
    "pod_patch": _no_effect(_NO_PODS),
    "tolerations": _no_effect(_NO_PODS),
    "maximum_expected_uptime": _no_effect("nobody is alerted; job_timeout ends a job that takes too long"),
    "gc_policy": _no_effect("no worker waits between jobs", classic=True),
    "spec_commit": _no_effect(_BY_SERVER),
    "version": _no_effect(_BY_SERVER),
    "created_at": _no_effect(_BY_SERVER),
    "state": _no_effect(_BY_SERVER),
    "stopped": _no_effect(_BY_SERVER),
    "job_counts": _no_effect(_BY_SERVER),
    "last_job_state": _no_effect(_BY_SERVER),
    "auth_token": _no_effect(_BY_SERVER),
    "details": _refused(
        "this is what 'inspect pipeline' says, and no spec", "take the spec that the pipeline was created from"
    ),
    "create_pipeline_request": _refused(
        "these are a cluster's or project's defaults, and no pipeline", "write what is needed of them into the specs"
    ),
    "tf_job": _refused_by_presence("TensorFlow jobs need Kubernetes", "run the training in transform.cmd"),
    "service": _refused_by_presence(
        "a job ends, and a service does not", "mount the repo and start the service with a tool for services"
    ),
    "spout": _refused_by_presence(
        "a job ends, and a spout does not", "let the program write into a mounted repo, and commit there"
    ),
    "egress": _refused(
        "results are not pushed to another place", "export or copy them from a mount when the job is done"
    ),
    "s3_out": _refused("results cannot be written through S3", "write them to /pfs/out"),
    "determined": _refused("there is no connection to Determined", "start the experiment in transform.cmd"),
    "dry_run": _refused("this spec asks for nothing to be run", "take it out to run the job"),
    "incremental": _refused(
        "a datum does not see its former results", "take it out to process all of a datum", classic=True
    ),
}

PIPELINE = {
    "name": _done("the pipeline's name, and the repo of its results"),
    "project": _no_effect("a store has no projects", silent=("default", {"name": "default"})),
}

TRANSFORM = {
    "image": _done("the container's image; without one, the command is a program of this machine"),
    "cmd": _done("the command, run without a shell"),
    "stdin": _done("lines for its standard input"),
    "err_cmd": _done("run when `cmd` failed for the last time; if it succeeds, the job goes on without the datum"),
    "err_stdin": _done("lines for the standard input of `err_cmd`"),
    "env": _done("environment variables: a mapping, or a list of NAME=VALUE or of {name, value}"),
    "accept_return_code": _done("exit codes, besides 0, that are no failure"),
    "user": _done("the container's user"),
    "working_dir": _done("where the command starts"),
    "debug": _no_effect("pfs logs as much as ever"),
    "dockerfile": _no_effect("images are not built here; build it, and name it in transform.image"),
    "image_pull_secrets": _no_effect("log in to the registry with podman or docker"),
    "memory_volume": _no_effect("inputs and results are on disk"),
    "secrets": _refused("there is no store of secrets", "give the program what it needs as an environment variable"),
    "build": _refused("images are not built here", "build one with podman or docker, and name it in transform.image"),
    "datum_batching": _refused(
        "a program gets one datum at a time", "take it out, and end the program after one datum"
    ),
}

PARALLELISM_SPEC = {
    "constant": _done("the number of workers"),
    "coefficient": _done("as many workers for each of this machine's processors, at least one", classic=True),
    "strategy": _done("`CONSTANT` or `COEFFICIENT`: says again which of the two is there", classic=True),
}

RESOURCE_LIMITS = {
    "memory": _done("a datum that needs more is killed and fails"),
    "cpu": _done("processors' worth of time that a datum may use"),
    "gpu": _done("how many GPUs it sees: a number, or {type, number}"),
    "disk": _no_effect("disk space is not limited"),
}

RESOURCE_REQUESTS = {
    "gpu": _done("as in resource_limits, when that has none"),
    "memory": _no_effect(_NOT_RESERVED),
    "cpu": _no_effect(_NOT_RESERVED),
    "disk": _no_effect(_NOT_RESERVED),
}

GPU = {
    "number": _done("how many GPUs"),
    "type": _no_effect("whatever GPUs the machine has are given", silent=("nvidia.com/gpu",)),
}

INPUT = {
    "pfs": _done("see below"),
    "atom": _done("the old name of `pfs`", classic=True),
    "cross": _done("every combination of a datum of each"),
    "union": _done("the datums of each, one after another"),
    "join": _done("combinations of datums that have the same key"),
    "group": _done("one datum for each key"),
    "cron": _refused(
        "there are no triggers yet", "write the time into a repo, take that as the input, and start jobs by cron"
    ),
    "git": _refused(
        "there are no triggers yet", "put the checkout into a repo, and take that as the input", classic=True
    ),
}

PFS = {
    "repo": _done("the repo"),
    "name": _done("of the directory in /pfs; the repo's if not given"),
    "branch": _done("a branch, or any other revision; the repo's default branch if not given"),
    "commit": _done("a commit of the branch, by at least 6 digits of its id in this store"),
    "glob": _done("which files are one datum"),
    "join_on": _done("the key of a join, as `$1`"),
    "outer_join": _done("files without a partner make datums, too"),
    "group_by": _done("the key of a group, as `$1`"),
    "lazy": _done("files are brought when they are read, where that is possible"),
    "empty_files": _done("the program sees names, and no content"),
    "project": _no_effect("a store has no projects", silent=("default",)),
    "trigger": _no_effect("a job runs when somebody starts it"),
    "propagation_spec": _no_effect("a job runs when somebody starts it"),
    "reference": _no_effect("datums are run again when this input changes"),
    "run_empty": _no_effect("a job without datums succeeds, with no results", classic=True),
    "repo_type": _refused("a store has repos of one type", "take a repo of files", silent=("user",)),
    "s3": _refused("inputs are files, and not served through S3", "let the program read /pfs/NAME"),
    "method": _refused(
        "it is from before globs",
        'write "glob": "/*" for a datum of each file, "/" for all of them in one',
        classic=True,
    ),
    "from_commit": _refused(
        "a job reads a whole version", "take it out: datums that were processed are skipped", classic=True
    ),
}

TABLES: Mapping[str, Mapping[str, Field]] = {
    "": PIPELINE_SPEC,
    "pipeline": PIPELINE,
    "transform": TRANSFORM,
    "parallelism_spec": PARALLELISM_SPEC,
    "resource_limits": RESOURCE_LIMITS,
    "resource_requests": RESOURCE_REQUESTS,
    "resource_limits.gpu": GPU,
    "input": INPUT,
    "input.pfs": PFS,
}
"""By where they stand."""


def sorted_out(value: Value, table: Mapping[str, Field]) -> Fields:
    """The fields of a mapping, after warning of those without effect. Raises InvalidInput for those that are refused."""
    fields = value.fields(table)
    for name, found in fields.found.items():
        field = table[name]
        if field.handling is Handling.DONE or not _is_asked(field, found):
            continue
        if field.handling is Handling.REFUSED:
            raise found.error(f"cannot be honoured: {field.note}", field.hint)
        found.warn(f"has no effect: {field.note}")
    return fields


def _is_asked(field: Field, value: Value) -> bool:
    if field.asked_by_presence:
        return value.node.value not in (None, False)
    return not value.node.is_default and value.node.plain() not in field.silent
