"""Pachyderm's pipeline specs, classic (1.x) and 2.x, as jobs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pfsmount.revision import DEFAULT_BRANCH, Revision, check_ref_name, check_repo_name, parse_revision
from pfsmount.tree.globs import Glob
from runner.executors.base import Limits
from runner.input_spec import Combination, CombinedInput, Input, InputSpec, check_input, check_leaf, cross_of
from runner.pachyderm_fields import (
    GPU,
    INPUT,
    PARALLELISM_SPEC,
    PFS,
    PIPELINE,
    PIPELINE_SPEC,
    RESOURCE_LIMITS,
    RESOURCE_REQUESTS,
    TRANSFORM,
    Field,
    sorted_out,
)
from runner.spec import JobSpec, Merge
from runner.spec_fields import Fields, Value, squashed
from runner.spec_nodes import Node

DEFAULT_TRIES = 3
_TELLING = ("pipeline", "transform", "createpipelinerequest")
_SHELL = 'a command is a list, as ["sh", "-c", "…"]'
_NO_INPUT = 'a job has an input, as in "input": {"pfs": {"repo": …, "glob": "/*"}}'


def is_pipeline(node: Node) -> bool:
    """Whether a document is for Pachyderm: it has one of the fields that pfs's own specs never have, be it with a typing error."""
    names = [squashed(member.name) for member in node.members or ()]
    return any(difflib.get_close_matches(name[:100], _TELLING, n=1, cutoff=0.8) for name in names)


def pipeline_job(value: Value, processors: int) -> JobSpec:
    """The job that a pipeline's spec describes; warnings go to the reading. Raises InvalidInput."""
    return _Pipeline(value, processors).job()


@dataclass(slots=True)
class _Pipeline:
    value: Value
    processors: int
    classic: str = ""
    """The field that only a classic spec has, if there is one."""

    def job(self) -> JobSpec:
        top = self._sorted_out(self.value, PIPELINE_SPEC)
        name = self._name(top)
        source = self._source(top)
        spec = JobSpec(source, name, self._branch(top), (), name=name)
        spec = self._with_transform(spec, top)
        limits, gpus = self._limits(top)
        metadata = top.get("metadata")
        tries = top.get("datum_tries")
        return replace(
            spec,
            limits=limits,
            gpus=gpus,
            workers=self._workers(top),
            timeout=top.seconds("datum_timeout"),
            job_timeout=top.seconds("job_timeout"),
            tries=(tries.integer() if tries else 0) or DEFAULT_TRIES,
            reprocess=self._reprocess(top),
            salt=top.string("salt"),
            description=top.string("description"),
            metadata=metadata.plain_mapping() if metadata else {},
            merge=self._merge(top),
        )

    def _sorted_out(self, value: Value, table: Mapping[str, Field]) -> Fields:
        fields = sorted_out(value, table)
        for name, found in fields.found.items():
            if table[name].classic and found.node.value is not None:
                self.classic = self.classic or found.path
        return fields

    def _name(self, top: Fields) -> str:
        value = top.required("pipeline", 'it has the name, as in "pipeline": {"name": "edges"}')
        if value.node.members is not None:
            value = self._sorted_out(value, PIPELINE).required("name", "the results go to the repo of this name")
        name = value.string()
        with value.blamed():
            return check_repo_name(name)

    def _branch(self, top: Fields) -> str:
        value = top.get("output_branch")
        if value is None or not value.string():
            return DEFAULT_BRANCH
        with value.blamed():
            return check_ref_name(value.string())

    # Input

    def _source(self, top: Fields) -> Input:
        old = top.get("inputs")
        if old is not None and not old.node.is_default:
            if top.get("input"):
                raise old.error("cannot stand beside 'input'", "put all inputs into a cross")
            value, source = old, cross_of([self._leaf(item) for item in old.values()])
        else:
            value = top.required("input", _NO_INPUT)
            source = self._input(value)
        with value.blamed():
            check_input(source)
        return source

    def _input(self, value: Value) -> Input:
        if value.node.items is not None:
            raise value.error(
                "must be a mapping, not a list",
                'several inputs are a cross, a union, a join or a group, as {"cross": […]}',
            )
        kinds = self._sorted_out(value, INPUT)
        given = {name: found for name, found in kinds.found.items() if not found.node.is_default}
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has nothing in it"
            raise value.error(f"{what}, and needs one of {', '.join(INPUT)}")
        ((name, found),) = given.items()
        if name in ("pfs", "atom"):
            return self._leaf(found)
        return CombinedInput(Combination(name), tuple(self._input(part) for part in found.values()))

    def _leaf(self, value: Value) -> InputSpec:
        fields = self._sorted_out(value, PFS)
        repo = fields.required("repo")
        if repo.node.members is not None:
            repo = repo.fields(("name",)).required("name")
        glob = fields.required("glob", 'it says which files are one datum, as "/*" for each, "/" for all of them')
        with repo.blamed():
            check_repo_name(repo.string())
        with glob.blamed():
            Glob(glob.string())
        leaf = InputSpec(
            name=fields.string("name") or repo.string(),
            repo=repo.string(),
            revision=self._revision(fields),
            glob=glob.string(),
            join_on=fields.string("join_on"),
            outer_join=fields.boolean("outer_join"),
            group_by=fields.string("group_by"),
            lazy=fields.boolean("lazy"),
            empty_files=fields.boolean("empty_files"),
        )
        with value.blamed():
            return check_leaf(leaf)

    def _revision(self, fields: Fields) -> Revision:
        branch, commit = fields.string("branch"), fields.string("commit")
        value = fields.get("commit") if commit else fields.get("branch")
        if value is None or not (branch or commit):
            return Revision()
        with value.blamed():
            return parse_revision(f"{branch}@{commit}" if branch and commit else branch or commit)

    # The program

    def _with_transform(self, spec: JobSpec, top: Fields) -> JobSpec:
        value = top.required("transform", "it has the image and the command")
        fields = self._sorted_out(value, TRANSFORM)
        image = fields.string("image")
        cmd, err_cmd = fields.get("cmd"), fields.get("err_cmd")
        command = cmd.argv(_SHELL) if cmd else ()
        if not image:
            if not command:
                raise value.error("has no 'cmd'", _SHELL)
            value.warn("has no image, so its command is a program of this machine")
        env, codes = fields.get("env"), fields.get("accept_return_code")
        return replace(
            spec,
            command=command,
            image=image,
            env=env.env() if env else {},
            stdin=fields.lines("stdin"),
            err_command=err_cmd.argv(_SHELL) if err_cmd else (),
            err_stdin=fields.lines("err_stdin"),
            accept_return_code=codes.integers() if codes else (),
            user=fields.string("user"),
            working_dir=fields.string("working_dir"),
        )

    # How it is run

    def _workers(self, top: Fields) -> int | None:
        if (old := top.get("parallelism")) and old.integer():
            return old.integer()
        value = top.get("parallelism_spec")
        if value is None:
            return None
        fields = self._sorted_out(value, PARALLELISM_SPEC)
        if strategy := fields.get("strategy"):
            strategy.choice(("constant", "coefficient"))
        constant, coefficient = fields.get("constant"), fields.get("coefficient")
        workers = constant.integer() if constant else 0
        factor = coefficient.number() if coefficient else 0.0
        if workers and factor:
            raise value.error("has both 'constant' and 'coefficient'", "take out one of the two")
        if factor:
            return max(1, int(min(factor * self.processors, 1e6)))
        return workers or None

    def _limits(self, top: Fields) -> tuple[Limits, int]:
        limits, gpus = Limits(), 0
        if value := top.get("resource_limits"):
            fields = self._sorted_out(value, RESOURCE_LIMITS)
            memory, cpu = fields.get("memory"), fields.get("cpu")
            limits = Limits(memory.memory() if memory else None, cpu.cpus() if cpu else None)
            gpus = self._gpus(fields)
        if value := top.get("resource_requests"):
            requested = self._gpus(self._sorted_out(value, RESOURCE_REQUESTS))
            gpus = gpus or requested
        return limits, gpus

    def _gpus(self, fields: Fields) -> int:
        value = fields.get("gpu")
        if value is None:
            return 0
        if value.node.members is None:
            return value.integer()
        number = self._sorted_out(value, GPU).get("number")
        return number.integer() if number else 0

    def _reprocess(self, top: Fields) -> bool:
        value = top.get("reprocess_spec")
        every_job = value is not None and value.choice(("until_success", "every_job")) == "every_job"
        return every_job or top.boolean("reprocess")

    def _merge(self, top: Fields) -> Merge:
        """What 1.x and 2.x do with a path that several datums write, unless the spec says it."""
        if (value := top.get("merge")) and (word := value.choice(tuple(Merge))):
            return Merge(word)
        if not self.classic:
            return Merge.ERROR
        self.value.warn(
            f"is a classic one, as it has '{self.classic}': what several datums write to one path is put together "
            f"(merge: append; 'merge: error' makes it an error, as from 2.0 on)"
        )
        return Merge.APPEND
