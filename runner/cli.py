"""The `pfsjob` command: parse, one call of the library, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pfsmount.cli import output
from pfsmount.cli.commands import CommandGroup
from pfsmount.errors import InvalidInput
from runner.cli_options import takes_spec

if TYPE_CHECKING:
    from runner.cli_spec import SpecFlags

app = typer.Typer(
    cls=CommandGroup,
    help="Jobs: a command, run once per datum over versioned inputs, its results committed with their provenance.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
@takes_spec
def run(
    flags: SpecFlags,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first datum that fails.")] = False,
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
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on: run again whenever a commit is made on an input branch.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print events, each a line of JSON; the last is the result.")
    ] = False,
) -> None:
    """Run a command once per datum, and commit what it writes to /pfs/out.

    pfsjob run --input 'images@master:/*' --output edges@master -- python3 edges.py

    pfsjob run --image opencv --input 'images@master:/*' --output edges@master -- python3 /edges.py

    pfsjob run -f edges.json
    """
    from runner.cli_run import RunRequest, run_and_print

    if staging not in ("auto", "copy", "mount"):
        raise InvalidInput(f"--inputs {staging}: inputs are made visible by copy, mount or auto")
    request = RunRequest(flags, fail_fast, commit, replace, message, staging, follow, json)
    with output.open_store() as opened:
        code_of_exit = run_and_print(opened, request)
    raise typer.Exit(code_of_exit)


@app.command()
@takes_spec
def plan(
    flags: SpecFlags,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many datums are shown; 0 for all.", min=0)] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Show also the datums that would be reused.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="As for 'run'.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what a job would run and why, and what it would reuse. Nothing is run, and nothing changes."""
    from runner.cli_plan import print_plans

    with output.open_store() as opened:
        print_plans(opened, flags, limit=limit, everything=everything, replace=replace, json=json)


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
    job: Annotated[
        str | None, typer.Argument(help="Job id, or the beginning of one; default: the newest.", metavar="JOB")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    datum: Annotated[
        str | None,
        typer.Option("--datum", help="Only of this datum: its key, or the path of an input file.", metavar="DATUM"),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only of datums that failed.")] = False,
    grep: Annotated[
        str | None, typer.Option("--grep", help="Only lines that this regular expression fits.", metavar="REGEX")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; with -f, a line an event.")] = False,
) -> None:
    """Print what the datums of a job printed, or are printing."""
    from runner.cli_logs import Wanted, print_logs

    wanted = Wanted.parse(datum, failed, grep)
    with output.open_store() as opened:
        print_logs(opened, job, wanted, follow=follow, json=json)


@app.command()
def stop(
    job: Annotated[
        str, typer.Argument(help="Job id, or the beginning of one; or REPO@BRANCH that is followed for.", metavar="JOB")
    ],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has ended.")] = True,
) -> None:
    """Stop a job that runs, or one that follows: what has finished is kept, nothing is committed, nothing is left running."""
    from runner.cli_stop import stop_job

    with output.open_store() as opened:
        stop_job(opened, job, wait=wait)


def main() -> None:
    """Entry point of the console script."""
    output.run_app(app, "pfsjob")


if __name__ == "__main__":
    main()
