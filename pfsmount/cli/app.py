"""The `pfs` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import pfsmount
from pfsmount.cli import interruption, output
from pfsmount.cli.commands import Command, CommandGroup


class PfsCommands(CommandGroup):
    """The commands of `pfs`, in the order of its help page."""

    places = {  # noqa: RUF012
        "init": Command("pfsmount.cli.repos:init"),
        "repo": Command("pfsmount.cli.repos:repo_app"),
        "branch": Command("pfsmount.cli.refs:branch"),
        "tag": Command("pfsmount.cli.refs:tag"),
        "put": Command("pfsmount.cli.transfer:put"),
        "get": Command("pfsmount.cli.transfer:get"),
        "ls": Command("pfsmount.cli.files:ls"),
        "cat": Command("pfsmount.cli.files:cat"),
        "cp": Command("pfsmount.cli.files:cp"),
        "rm": Command("pfsmount.cli.files:rm"),
        "find": Command("pfsmount.cli.search:find"),
        "glob": Command("pfsmount.cli.search:glob"),
        "du": Command("pfsmount.cli.usage:du", {"help_option_names": ["--help"]}),  # its -h is that of du
        "stats": Command("pfsmount.cli.usage:stats"),
        "log": Command("pfsmount.cli.log:log"),
        "diff": Command("pfsmount.cli.history:diff"),
        "show": Command("pfsmount.cli.history:show"),
        "reflog": Command("pfsmount.cli.refs:reflog"),
        "reset": Command("pfsmount.cli.rollback:reset"),
        "revert": Command("pfsmount.cli.rollback:revert"),
        "lineage": Command("pfsmount.cli.history:lineage"),
        "begin": Command("pfsmount.cli.work:begin"),
        "status": Command("pfsmount.cli.work:status"),
        "commit": Command("pfsmount.cli.work:commit"),
        "discard": Command("pfsmount.cli.work:discard"),
        "merge": Command("pfsmount.cli.merge:merge"),
        "resolve": Command("pfsmount.cli.merge:resolve"),
        "fsck": Command("pfsmount.cli.fsck:fsck"),
        "gc": Command("pfsmount.cli.collect:gc"),
        "mount": Command("pfsmount.cli.mount:mount"),
        "umount": Command("pfsmount.cli.mount:umount"),
        "mounts": Command("pfsmount.cli.mount:mounts"),
    }

    def answer(self, name: str) -> str | None:
        """What git, restic and Pachyderm call otherwise."""
        from pfsmount.cli.other_names import ANSWERS

        return ANSWERS.get(name)


app = typer.Typer(
    cls=PfsCommands,
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set what all commands share."""
    if context.invoked_subcommand != "mount":  # its event loop has its own way with signals
        interruption.install()


def main() -> None:
    """Entry point of the console script."""
    if os.path.basename(sys.argv[0]).startswith("mount."):
        from pfsmount.cli.mount_helper import helper_arguments, is_helper

        if is_helper(sys.argv[0]):
            with output.errors_told("pfs"):
                sys.argv[1:] = helper_arguments(sys.argv[1:])
    output.run_app(app, "pfs")


if __name__ == "__main__":
    main()
