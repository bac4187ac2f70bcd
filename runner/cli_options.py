"""The flags that say what a job is, as `run` and `plan` share them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Command = Annotated[
    list[str] | None, typer.Argument(help="The command and its arguments, after '--'.", metavar="COMMAND…")
]
File = Annotated[
    str | None,
    typer.Option(
        "--file",
        "-f",
        help="A spec, JSON or YAML: of pfs, or a pipeline of Pachyderm's; '-' is stdin. Flags count more.",
        metavar="FILE",
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Of the jobs in the file, only this one.", metavar="NAME")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="[NAME=]REPO@REVISION:GLOB; several make a cross product.", metavar="INPUT"),
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="REPO@BRANCH for the results.", metavar="OUTPUT")]
Image = Annotated[str | None, typer.Option("--image", help="Run it in containers of this image.", metavar="IMAGE")]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="process, podman or docker; default: process, or with an image the engine that has it.",
        metavar="NAME",
    ),
]
Code = Annotated[
    Path | None, typer.Option(help="Directory of the program's code; default: the source files beside a script.")
]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", help="Environment variable of the program.", metavar="NAME=VALUE")
]
User = Annotated[str | None, typer.Option(help="In a container: instead of the image's user.", metavar="USER")]
Workdir = Annotated[str | None, typer.Option(help="Where the command starts.", metavar="DIR")]
Workers = Annotated[int | None, typer.Option(help="Datums at a time; default: one a processor.", min=1)]
Timeout = Annotated[
    str | None, typer.Option(help="What one datum may take: seconds, or 30s, 5m, 1h30m.", metavar="DURATION")
]
JobTimeout = Annotated[
    str | None, typer.Option("--job-timeout", help="What the whole job may take.", metavar="DURATION")
]
Tries = Annotated[int | None, typer.Option(help="How often a datum that fails is run.", min=1)]
Accept = Annotated[list[int] | None, typer.Option("--accept", help="An exit code that is no failure.", metavar="CODE")]
Memory = Annotated[str | None, typer.Option(help="What all processes of a datum may have: 512M, 2Gi.", metavar="BYTES")]
Cpus = Annotated[float | None, typer.Option(help="Processors that a datum may use: 1.5.", metavar="NUMBER")]
Pids = Annotated[int | None, typer.Option(help="Processes that a datum may have.", min=1)]
Gpus = Annotated[int | None, typer.Option(help="GPUs of a container.", min=0)]
MergeHow = Annotated[
    str | None,
    typer.Option("--merge", help="Of a path that several datums write: error, or append.", metavar="HOW"),
]
Stdin = Annotated[
    str | None, typer.Option("--stdin", help="What the command reads from its standard input.", metavar="TEXT")
]
Reprocess = Annotated[bool, typer.Option("--reprocess", help="Run every datum, also those that have results.")]
Isolate = Annotated[bool, typer.Option("--isolate", help="A container of its own for each datum.")]
Hermetic = Annotated[bool, typer.Option("--hermetic", help="Without a network.")]


def _flags(
    command: Command = None,
    file: File = None,
    only: Only = None,
    inputs: Inputs = None,
    output: Output = None,
    image: Image = None,
    executor: ExecutorName = None,
    code: Code = None,
    env: Env = None,
    stdin: Stdin = None,
    user: User = None,
    workdir: Workdir = None,
    workers: Workers = None,
    timeout: Timeout = None,
    job_timeout: JobTimeout = None,
    tries: Tries = None,
    accept: Accept = None,
    memory: Memory = None,
    cpus: Cpus = None,
    pids: Pids = None,
    gpus: Gpus = None,
    merge: MergeHow = None,
    reprocess: Reprocess = False,
    isolate: Isolate = False,
    hermetic: Hermetic = False,
) -> None:
    """Has the parameters that `takes_spec` adds."""


@functools.cache
def _shared_parameters() -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(_flags, eval_str=True).parameters.values())


def takes_spec(function: Callable[..., None]) -> Callable[..., None]:
    """A command with all flags that say what a job is, in front of its own. It gets them as `flags`, a `runner.cli_spec.SpecFlags`."""
    shared = _shared_parameters()
    # the type of `flags` is imported for the checker only: it brings all that reads a spec
    signature = inspect.signature(function, eval_str=True, locals={"SpecFlags": object})
    own = [one for one in signature.parameters.values() if one.name != "flags"]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        from runner.cli_spec import SpecFlags

        flags = SpecFlags(**{one.name: given.pop(one.name) for one in shared})
        function(flags, **given)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*shared, *own)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command
