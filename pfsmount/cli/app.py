"""The `pfs` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import pfsmount
from pfsmount.cli import (
    files,
    history,
    interruption,
    log,
    merge,
    mount,
    output,
    refs,
    repos,
    rollback,
    search,
    transfer,
    usage,
    work,
)

app = typer.Typer(
    help="A versioned filesystem: repos of files with atomic commits, mounted as directories.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"pfs {pfsmount.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option("--store", help="The store; default: $PFS_STORE, else the user's data directory.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set what all commands share."""
    output.use_store(store)
    if context.invoked_subcommand != "mount":  # its event loop has its own way with signals
        interruption.install()


app.command()(repos.init)
app.add_typer(repos.repo_app, name="repo")
app.command()(refs.branch)
app.command()(refs.tag)
app.command()(transfer.put)
app.command()(transfer.get)
app.command()(files.ls)
app.command()(files.cat)
app.command()(files.cp)
app.command()(files.rm)
app.command()(search.find)
app.command()(search.glob)
app.command(context_settings={"help_option_names": ["--help"]})(usage.du)  # its -h is that of du
app.command()(usage.stats)
app.command()(log.log)
app.command()(history.diff)
app.command()(history.show)
app.command()(refs.reflog)
app.command()(rollback.reset)
app.command()(rollback.revert)
app.command()(history.lineage)
app.command()(work.status)
app.command()(work.commit)
app.command()(work.discard)
app.command()(merge.merge)
app.command()(merge.resolve)
app.command()(mount.mount)
app.command()(mount.umount)
app.command()(mount.mounts)


def main() -> None:
    """Entry point of the console script."""
    output.run_app(app, "pfs")


if __name__ == "__main__":
    main()
