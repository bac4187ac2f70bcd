"""pfs's own specs: one document is one job. Fields that no flag knows are as in Pachyderm's, where it has them."""

from __future__ import annotations

from pathlib import Path

from pfsmount.revision import Revision, check_repo_name, parse_revision
from pfsmount.tree.globs import Glob
from runner.executors.base import Limits
from runner.input_spec import (
    Combination,
    CombinedInput,
    Input,
    InputSpec,
    check_input,
    check_leaf,
    cross_of,
    parse_input,
)
from runner.spec import JobSpec, Merge, parse_output
from runner.spec_fields import Fields, Value

FIELDS = {
    "input": "which files the job reads; see below",
    "output": "`repo@branch`, or `repo` for its default branch",
    "command": "a list; or a string, which `sh -c` runs",
    "image": "the container's image; without one, the command is a program of this machine",
    "executor": "`process`, `podman` or `docker`; if not given, what fits",
    "env": "environment variables: a mapping, or a list of NAME=VALUE or of {name, value}",
    "stdin": "for the command's standard input: a string, or a list of lines",
    "code": "a file or directory that the program sees, relative to the spec",
    "timeout": "how long a datum may take",
    "job_timeout": "how long the whole job may take",
    "tries": "how often a datum is run until it does not fail; 1 if not given",
    "workers": "how many datums run at the same time",
    "limits": "what a datum may use: `memory`, `cpus`, `pids`, `gpus`",
    "merge": "`append` or `error`, for a path that several datums write",
    "hermetic": "true: no network",
    "isolate": "true: a container of its own for each datum",
    "user": "the container's user",
    "working_dir": "where the command starts",
    "accept_return_code": "exit codes, besides 0, that are no failure: a list, or one",
    "err_command": "run when the command failed for the last time; if it succeeds, the job goes on without the datum",
    "err_stdin": "for the standard input of `err_command`",
    "reprocess": "true: every datum is run in every job",
    "salt": "part of every datum's key: another salt runs all datums again",
    "name": "of the pipeline",
    "description": "kept with the job",
    "metadata": "a mapping, kept with the job",
}

_SYNONYMS = {
    "cmd": "command",
    "inputs": "input",
    "outputs": "output",
    "errcmd": "err_command",
    "datumtimeout": "timeout",
    "datumtries": "tries",
    "retries": "tries",
    "parallelism": "workers",
    "parallelismspec": "workers",
    "resourcelimits": "limits",
    "memory": "limits",
    "environment": "env",
    "cwd": "working_dir",
    "workdir": "working_dir",
    "dir": "working_dir",
    "cpu": "cpus",
    "gpu": "gpus",
}
_LIMITS = ("memory", "cpus", "pids", "gpus")
_KEYS = ("join_on", "outer_join", "group_by", "lazy", "empty_files")
_LEAF = ("input", "name", "repo", "branch", "glob", *_KEYS)
_KINDS = tuple(str(how) for how in Combination)
_EXECUTORS = ("process", "podman", "docker")


def job_of_file(value: Value, directory: Path) -> JobSpec:
    """The job that a document describes; `directory` is the file's. Raises InvalidInput."""
    fields = value.fields(FIELDS, _SYNONYMS)
    source = fields.required("input", "write it as repo@branch:glob, as images@master:/*")
    output = fields.required("output", "write it as repo@branch")
    image, executor = fields.string("image"), fields.get("executor")
    command = fields.get("command")
    if not image:
        command = fields.required("command", "a list, or a string for a shell")
    parsed = _input(source)
    with source.blamed():
        check_input(parsed)
    with output.blamed():
        repo, branch = parse_output(output.string())
    env, code, codes = fields.get("env"), fields.get("code"), fields.get("accept_return_code")
    err_command, metadata, merge = fields.get("err_command"), fields.get("metadata"), fields.get("merge")
    tries, workers = fields.get("tries"), fields.get("workers")
    limits, gpus = _limits(fields)
    return JobSpec(
        input=parsed,
        output_repo=repo,
        output_branch=branch,
        command=_command(command) if command else (),
        env=env.env() if env else {},
        stdin=_text(fields, "stdin"),
        code=directory / code.string() if code and code.string() else None,
        timeout=fields.seconds("timeout"),
        hermetic=fields.boolean("hermetic"),
        name=fields.string("name"),
        description=fields.string("description"),
        metadata=metadata.plain_mapping() if metadata else {},
        executor=executor.choice(_EXECUTORS) if executor else "",
        image=image,
        user=fields.string("user"),
        working_dir=fields.string("working_dir"),
        accept_return_code=codes.integers() if codes else (),
        err_command=_command(err_command) if err_command else (),
        err_stdin=_text(fields, "err_stdin"),
        tries=tries.integer(least=1) if tries else 1,
        job_timeout=fields.seconds("job_timeout"),
        workers=workers.integer(least=1) if workers else None,
        limits=limits,
        gpus=gpus,
        merge=Merge((merge.choice(tuple(Merge)) if merge else "") or Merge.ERROR),
        reprocess=fields.boolean("reprocess"),
        salt=fields.string("salt"),
        isolate=fields.boolean("isolate"),
    )


def _command(value: Value) -> tuple[str, ...]:
    if isinstance(value.node.value, str):
        return ("/bin/sh", "-c", value.string()) if value.string() else ()
    return value.argv("or a string, which sh -c runs")


def _text(fields: Fields, name: str) -> str | None:
    """A string as it is, or lines."""
    value = fields.get(name)
    if value is None:
        return None
    return value.lines() if value.node.items is not None else value.string()


def _limits(fields: Fields) -> tuple[Limits, int]:
    value = fields.get("limits")
    if value is None:
        return Limits(), 0
    limits = value.fields(_LIMITS, _SYNONYMS)
    memory, cpus, pids, gpus = (limits.get(name) for name in _LIMITS)
    return Limits(
        memory.memory() if memory else None,
        cpus.cpus() if cpus else None,
        pids.integer(least=1) if pids else None,
    ), gpus.integer() if gpus else 0


def _input(value: Value) -> Input:
    """An input: a string as after --input, a mapping, or a list, which is a cross product."""
    if value.node.items is not None:
        if not value.node.items:
            raise value.error("has no input in it", "write it as repo@branch:glob")
        return cross_of([_input(part) for part in value.values()])
    if value.node.members is None:
        with value.blamed():
            return parse_input(value.string())
    fields = value.fields((*_LEAF, *_KINDS), {"commit": "branch", "revision": "branch", "pfs": "repo", "atom": "repo"})
    given = [name for name in _KINDS if name in fields.found]
    if not given:
        return _leaf(value, fields)
    if len(fields.found) > 1:
        others = [name for name in fields.found if name != given[0]]
        raise value.error(
            f"has '{given[0]}' and '{others[0]}'", "an input is one of its kinds; nest them to have several"
        )
    return CombinedInput(Combination(given[0]), tuple(_input(part) for part in fields.found[given[0]].values()))


def _leaf(value: Value, fields: Fields) -> InputSpec:
    flags = {
        "join_on": fields.string("join_on"),
        "outer_join": fields.boolean("outer_join"),
        "group_by": fields.string("group_by"),
        "lazy": fields.boolean("lazy"),
        "empty_files": fields.boolean("empty_files"),
    }
    name, repo, revision, glob = _files(value, fields)
    with value.blamed():
        return check_leaf(InputSpec(name, repo, revision, glob, **flags))  # type: ignore[arg-type]


def _files(value: Value, fields: Fields) -> tuple[str, str, Revision, str]:
    """Name, repo, revision and glob of a single input."""
    text = fields.get("input")
    if text is not None:
        for name in ("repo", "branch", "glob", "name"):
            if fields.get(name):
                raise text.error(
                    f"cannot stand beside '{name}'", "write it as name=repo@branch:glob, without the others"
                )
        with text.blamed():
            leaf = parse_input(text.string())
        return leaf.name, leaf.repo, leaf.revision, leaf.glob
    repo, branch = fields.required("repo"), fields.get("branch")
    glob = fields.required("glob", "'/*' makes each top-level file or directory a datum, '/' all of them one")
    revision = Revision()
    with repo.blamed():
        check_repo_name(repo.string())
    with glob.blamed():
        Glob(glob.string())
    if branch is not None and branch.string():
        with branch.blamed():
            revision = parse_revision(branch.string())
    return fields.string("name") or repo.string(), repo.string(), revision, glob.string()
