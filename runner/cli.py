"""The `pfsjob` command: parse, one call of the library, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfsmount.cli import output
from pfsmount.cli.commands import CommandGroup
from pfsmount.errors import InvalidInput

app = typer.Typer(
    cls=CommandGroup,
    help="Jobs: a command, run once per datum over versioned inputs, its results committed with their provenance.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(context_settings={"ignore_unknown_options": False})
def run(
    command: Annotated[
        list[str], typer.Argument(help="The command and its arguments, after '--'.", metavar="COMMAND…")
    ],
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", help="[NAME=]REPO@REVISION:GLOB; several make a cross product.", metavar="INPUT"),
    ],
    to: Annotated[str, typer.Option("--output", "-o", help="REPO@BRANCH for the results.", metavar="OUTPUT")],
    code: Annotated[
        Path | None, typer.Option(help="Directory of the program's code; default: the source files beside a script.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="Environment variable of the program.", metavar="NAME=VALUE")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Datums at a time; default: one a processor.", min=1)] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first datum that fails.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one datum may take.")] = None,
    hermetic: Annotated[bool, typer.Option("--hermetic", help="Without a network.")] = False,
    commit: Annotated[
        str | None, typer.Option("--commit", help="Commit uncommitted work of the inputs first.", metavar="MESSAGE")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace results that another pipeline or a person committed.")
    ] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Message of the output's commit.")] = None,
    staging: Annotated[
        str, typer.Option("--inputs", help="How inputs are made visible: copy, mount or auto.", metavar="HOW")
    ] = "auto",
    json: JsonFlag = False,
) -> None:
    """Run a command once per datum, and commit what it writes to /pfs/out.

    pfsjob run --input 'images@master:/*' --output edges@master -- python3 edges.py
    """
    from runner.cli_run import RunRequest, run_and_print

    if staging not in ("auto", "copy", "mount"):
        raise InvalidInput(f"--inputs {staging}: inputs are made visible by copy, mount or auto")
    request = RunRequest(
        command=command,
        inputs=inputs,
        output=to,
        code=code,
        env=env or [],
        workers=workers,
        fail_fast=fail_fast,
        timeout=timeout,
        hermetic=hermetic,
        commit=commit,
        replace=replace,
        message=message,
        staging=staging,
        json=json,
    )
    with output.open_store() as opened:
        code_of_exit = run_and_print(opened, request)
    raise typer.Exit(code_of_exit)


@app.command("list")
def list_jobs(
    json: JsonFlag = False,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, newest first; 0 for all.", min=0)] = 20,
) -> None:
    """List jobs, newest first."""
    from runner.cli_show import print_jobs

    with output.open_store() as opened:
        print_jobs(opened, limit, json)


@app.command()
def inspect(
    job: Annotated[str, typer.Argument(help="Job id, or the beginning of one.", metavar="JOB")],
    json: JsonFlag = False,
) -> None:
    """Show what a job did, ran and read."""
    from runner.cli_show import print_job

    with output.open_store() as opened:
        print_job(opened, job, json)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="Job id, or the beginning of one.", metavar="JOB")],
    datum: Annotated[
        str | None,
        typer.Option("--datum", help="Only of this datum: its key, or the path of its input.", metavar="DATUM"),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only of datums that failed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print what the datums of a job printed."""
    from runner.cli_show import print_logs

    with output.open_store() as opened:
        print_logs(opened, job, datum, failed, json)


def main() -> None:
    """Entry point of the console script."""
    output.run_app(app, "pfsjob")


if __name__ == "__main__":
    main()
