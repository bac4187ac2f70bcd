"""A spec file as jobs: pfs's own format and Pachyderm's, JSON or YAML, one job or several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.job_file import job_of_file
from runner.pachyderm import is_pipeline, pipeline_job
from runner.spec import JobSpec, check_spec
from runner.spec_documents import documents
from runner.spec_fields import Reading, Value


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One job of a file."""

    spec: JobSpec
    warnings: tuple[str, ...]
    """What the file asks for and does not get, each with its place."""
    line: int
    """Where its document starts."""


def read_specs(raw: bytes, name: str, *, processors: int, directory: Path) -> list[FileSpec]:
    """The jobs of a file, in its order; at least one.

    `name` is for messages, and its end tells YAML from JSON where they look alike. `processors` is what a classic spec's `coefficient`
    counts, and paths are relative to `directory`. Raises InvalidInput.
    """
    found = []
    for node in documents(raw, name):
        reading = Reading(name)
        value = Value(reading, node, "", node.line)
        spec = pipeline_job(value, processors) if is_pipeline(node) else job_of_file(value, directory)
        with value.blamed():
            check_spec(spec)
        found.append(FileSpec(spec, tuple(reading.warnings), node.line))
    return found
