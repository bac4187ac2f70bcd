"""`pfs mount`, `umount`, `mounts`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.fs.daemon import MountOptions
    from pfsmount.fs.options import MountFlags

# Text, not Path: click looks at a path that is given, and would wait for ever where a mount hangs.
DirectoryArgument = Annotated[
    str | None, typer.Argument(metavar="DIR", help="The mount point; default: /pfs as root, else ~/pfs.")
]


def _default_mount_point() -> Path:
    return Path("/pfs") if os.getuid() == 0 else Path.home() / "pfs"


def mount(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="Only this, as REPO@REVISION or REPO@REVISION:/DIR; default: all of the store.",
        ),
    ] = None,
    directory: DirectoryArgument = None,
    read_only: Annotated[bool, typer.Option("--read-only", "-r", help="Nothing can be changed.")] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="LIST",
            help="Comma list as for mount(8): ro, allow_other, uid=, gid=, umask=, fsname=, nosuid, nodev, noexec, …",
        ),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", "-f", help="Stay, and log to standard error.")] = False,
    allow_other: Annotated[
        bool | None,
        typer.Option("--allow-other/--no-allow-other", help="Let other users see it; default: as root only."),
    ] = None,
    real_owner: Annotated[
        bool, typer.Option("--real-owner", help="Show files as belonging to whom they are stored with.")
    ] = False,
    autocommit: Annotated[
        float | None,
        typer.Option(
            "--autocommit",
            metavar="SECONDS",
            help="Commit by itself when nothing was changed for so long, and nothing is open for writing.",
        ),
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Default: mount-PID.log in the store's run/.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error; default: info.")
    ] = None,
    present: Annotated[
        str,
        typer.Option(
            "--present", help="user; or job: only commits, by full id, as jobs see them. Read-only.", hidden=True
        ),
    ] = "user",
) -> None:
    """Mount the store: each branch is a directory that can be written to, each commit one that cannot.

    With a target, that version alone, or a directory of it, is at DIR. A branch can be written to, a commit or tag cannot.
    """
    from pfsmount.fs.daemon import MountOptions, start
    from pfsmount.fs.options import check_level, check_seconds, parse_options

    flags = parse_options(options or ())
    target, point = _what_and_where(what, directory)
    named_log = log_file or (Path(flags.log_file) if flags.log_file else None)
    wanted = MountOptions(
        store=output.store_path(Path(flags.store) if flags.store else None),
        mount_point=point or _default_mount_point(),
        target=target,
        create=point is None,
        allow_other=flags.allow_other if allow_other is None else allow_other,
        read_only=read_only or bool(flags.read_only),
        real_owner=real_owner or bool(flags.real_owner),
        present_job=_is_job(present),
        author=output.author(),
        log_file=None if named_log is None else named_log.absolute(),
        autocommit=flags.autocommit if autocommit is None else check_seconds(autocommit),
        log_level=check_level(log_level or flags.log_level or "info"),
        **_shown(flags),
    )
    if foreground:
        _stay(wanted)
        return
    started = start(wanted)
    if started.note:
        output.note(f"pfs: {started.note}")
    output.say(_mounted(wanted, started.mount_point, read_only=started.read_only))


def _shown(flags: MountFlags) -> dict[str, Any]:
    umask = 0 if flags.umask is None else flags.umask
    return {"uid": flags.uid, "gid": flags.gid, "umask": umask, "fsname": flags.fsname, "kernel": flags.kernel}


def _what_and_where(what: str | None, directory: str | None) -> tuple[Target | None, Path | None]:
    """A single argument is the directory. Raises InvalidInput."""
    if what is None:
        return None, None
    if directory is None:
        before, at, _ = what.partition("@")
        if at and "/" not in before and not os.path.lexists(what):
            raise InvalidInput(
                f"where is {display(what)} to be mounted?",
                hint=f"pfs mount {display(what)} DIR, with an empty directory",
            )
        return None, _directory(what)
    try:
        target = parse_target(what)
    except InvalidInput as error:
        if "/" not in what.partition("@")[0]:
            raise
        raise InvalidInput(error.message, hint="pfs mount [REPO@REVISION[:/DIR]] DIR") from None
    return target, _directory(directory)


def _directory(text: str) -> Path:
    if not text:
        raise InvalidInput("the mount point has an empty name", hint="give a directory: pfs mount DIR")
    return Path(text)


def _mounted(options: MountOptions, point: str, *, read_only: bool) -> str:
    what = options.store if options.target is None else display(str(options.target))
    return f"mounted {what} at {point}{', read-only' if read_only else ''}"


def _is_job(present: str) -> bool:
    if present not in ("user", "job"):
        raise InvalidInput(f"a mount cannot present '{display(present)}'", hint="user or job")
    return present == "job"


def _stay(options: MountOptions) -> None:
    import logging

    from pfsmount.fs.daemon import check, run
    from pfsmount.fs.records import MountRecord

    point, note = check(options)
    if note:
        output.note(f"pfs: {note}")
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", filename=options.log_file
    )

    def ready(record: MountRecord) -> None:
        output.note(_mounted(options, record.mount, read_only=record.read_only))

    run(options, point, ready, log_path=options.log_file)


def umount(
    directory: DirectoryArgument = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if it is in use or hangs.")] = False,
) -> None:
    """Unmount. Uncommitted changes stay in the store and are there again after the next mount."""
    from pfsmount.fs.unmounting import unmount

    point = _default_mount_point() if directory is None else _directory(directory)
    done = unmount(point, output.store_path(), force=force)
    what = "took away the dead mount at" if done.was_dead else "unmounted"
    output.say(f"{what} {done.mount_point}")
    if done.ending is not None:
        output.note(
            f"pfs: process {done.ending}, which served it, has not ended yet, and keeps its branches from others until then; nothing is lost if you end it: kill -9 {done.ending}"
        )


def mounts(
    all: Annotated[bool, typer.Option("--all", "-a", help="Those of all stores.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the mounts of the store: what is where, since when, and how much is uncommitted; dead ones too."""
    from pfsmount.fs.control import known_mounts
    from pfsmount.objects.layout import read_store_info

    store = None if all else output.store_path()
    if store is not None:
        read_store_info(store)
    found = known_mounts(store)
    if json:
        output.print_json(found)
        return
    if not found:
        output.say("not mounted anywhere")
        return
    output.table([_row(one, all) for one in found], ("mounted at", "what", "user", "process", "since", "uncommitted"))
    for one in found:
        _advise(one)


def _row(one: dict[str, Any], with_store: bool) -> tuple[str, ...]:
    what = one["revision"] or (one["store"] if with_store else "all of the store")
    if one["revision"] and with_store:
        what += f" of {one['store']}"
    if one["state"] == "dead":
        return display(one["mount"]), display(what), "-", "dead", "-", "-"
    if one["read_only"]:
        what += ", read-only"
    dirty = one["uncommitted"]
    changes = "does not answer" if dirty is None else "; ".join(_uncommitted(*item) for item in dirty.items()) or "-"
    since = output.relative_time(one["since_ns"])
    return display(one["mount"]), display(what), _user(one["uid"]), str(one["pid"]), since, changes


def _uncommitted(title: str, found: dict[str, int]) -> str:
    return f"{title}: {output.plural(found['changes'], 'change')}, {output.human_size(found['bytes'])}"


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _advise(one: dict[str, Any]) -> None:
    """What to do about a mount that does not work."""
    where = display(one["mount"])
    if one["state"] == "dead":
        output.note(f"pfs: nobody serves {where} any more; what was uncommitted is kept in the store")
        output.note(f"  hint: 'pfs mount' there again takes its place, 'pfs umount {where}' takes it away")
    elif one["state"] == "silent":
        output.note(f"pfs: the mount at {where} (process {one['pid']}) does not answer: it is stopped, or very busy")
        output.note(
            f"  hint: 'kill -CONT {one['pid']}' if it was stopped; 'pfs umount --force {where}' ends it, and loses nothing"
        )
