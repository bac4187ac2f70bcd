"""`pfs mount`, `umount`, `mounts`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pfsmount.cli import output
from pfsmount.errors import InvalidInput

DirectoryArgument = Annotated[
    Path | None, typer.Argument(metavar="DIR", help="The mount point; default: /pfs as root, else ~/pfs.")
]


def _default_mount_point() -> Path:
    return Path("/pfs") if os.getuid() == 0 else Path.home() / "pfs"


def mount(
    directory: DirectoryArgument = None,
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Stay, and log to standard error.")] = False,
    allow_other: Annotated[
        bool | None,
        typer.Option("--allow-other/--no-allow-other", help="Let other users see it; default: as root only."),
    ] = None,
    real_owner: Annotated[
        bool, typer.Option("--real-owner", help="Show files as belonging to whom they are stored with.")
    ] = False,
    present: Annotated[
        str,
        typer.Option(
            "--present", help="user; or job: only commits, by full id, as jobs see them. Read-only.", hidden=True
        ),
    ] = "user",
) -> None:
    """Mount the store: each branch is a directory that can be written to, each commit one that cannot."""
    from pfsmount.fs.daemon import MountOptions, start

    options = MountOptions(
        store=output.store_path(),
        mount_point=directory or _default_mount_point(),
        create=directory is None,
        allow_other=allow_other,
        real_owner=real_owner,
        present_job=_is_job(present),
        author=output.author(),
    )
    if foreground:
        _stay(options)
        return
    started = start(options)
    if started.note:
        output.note(f"pfs: {started.note}")
    output.say(f"mounted {options.store} at {started.mount_point}")


def _is_job(present: str) -> bool:
    if present not in ("user", "job"):
        raise InvalidInput(f"a mount cannot present '{present}'", hint="user or job")
    return present == "job"


def _stay(options: object) -> None:
    import logging

    from pfsmount.fs.daemon import MountOptions, check, run
    from pfsmount.fs.records import MountRecord

    assert isinstance(options, MountOptions)
    point, note = check(options)
    if note:
        output.note(f"pfs: {note}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def ready(record: MountRecord) -> None:
        output.note(f"mounted {record.store} at {record.mount}")

    run(options, point, ready)


def umount(
    directory: DirectoryArgument = None,
    force: Annotated[bool, typer.Option("--force", help="Even if it is in use or hangs.")] = False,
) -> None:
    """Unmount. Uncommitted changes stay in the store and are there again after the next mount."""
    from pfsmount.fs.unmounting import unmount

    done = unmount(directory or _default_mount_point(), force=force)
    what = "took away the dead mount at" if done.was_dead else "unmounted"
    output.say(f"{what} {done.mount_point}")


def mounts(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the live mounts of the store."""
    from pfsmount.fs.control import mount_info
    from pfsmount.fs.records import live_mounts
    from pfsmount.objects.layout import read_store_info

    store = output.store_path()
    read_store_info(store)
    found = [mount_info(record) for record in live_mounts(store)]
    if json:
        output.print_json(found)
        return
    if not found:
        output.say("not mounted anywhere")
        return
    rows = []
    for one in found:
        dirty = one["uncommitted"]
        changes = "does not answer" if dirty is None else ", ".join(f"{name}: {n}" for name, n in dirty.items())
        rows.append((one["mount"], str(one["pid"]), output.relative_time(one["since_ns"]), changes or "-"))
    output.table(rows, ("mounted at", "process", "since", "uncommitted"))
