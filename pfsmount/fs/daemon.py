"""The process that serves a mount: started, ready, ended.

`start` looks for obstacles, forks, and returns when the mount can be used; what goes wrong in the daemon until then comes out of it as
the same error that it would be in the foreground. The daemon opens the store and starts trio after the fork: neither survives one.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import NotPermitted, PfsError, Unavailable
from pfsmount.fs.answers import error_json, error_of
from pfsmount.fs.mountpoint import (
    FS_TYPE,
    check_machine,
    check_mount_point,
    make_mount_point,
    mounted_at,
    other_users_allowed,
    source_of,
)
from pfsmount.fs.records import HeldRecord, MountRecord, new_record
from pfsmount.objects.layout import read_store_info

log = logging.getLogger(__name__)
READAHEAD_KIB = 4096


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What to mount where, and how."""

    store: Path
    mount_point: Path
    create: bool = False
    """Make the mount point if it is missing (the default ones), and take it away in the end."""
    allow_other: bool | None = None
    """Let other users see the mount; None: if this is root."""
    real_owner: bool = False
    """Show files as belonging to whom they are stored with, not to the mounting user."""
    present_job: bool = False
    """A private mount for the inputs of one job: commits by their full ids only, read-only, with the attributes that jobs see."""
    settings: StoreSettings = DEFAULT_SETTINGS
    author: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A mount that can be used."""

    mount_point: str
    pid: int
    log: str
    note: str | None
    """Something the user should know."""


def check(options: MountOptions) -> tuple[str, str | None]:
    """Look for everything that could be in the way; returns the mount point's real path and, maybe, a note.

    Raises NotAStore, StoreTooNew, NotFound, NotADirectory, DirectoryNotEmpty, Busy, InvalidInput, PermissionDenied, Unavailable,
    NotPermitted.
    """
    read_store_info(options.store)
    check_machine()
    if options.allow_other and not other_users_allowed():
        raise NotPermitted(
            "other users cannot be let in: /etc/fuse.conf does not allow it",
            hint="as root, put the line 'user_allow_other' into /etc/fuse.conf, or mount without --allow-other",
        )
    return check_mount_point(options.mount_point, options.store, create=options.create)


def start(options: MountOptions) -> Started:
    """Mount in a daemon and return when it is ready. Raises as `check`, and what opening the store raises."""
    point, note = check(options)
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(reader)
        _become_daemon(options, point, writer)
    os.close(writer)
    os.waitpid(middle, 0)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise PfsError("the mount ended before it was ready", hint=f"see the logs in {options.store / 'run'}")
    answer = json.loads(line)
    if "error" in answer:
        raise error_of(answer)
    return Started(point, answer["pid"], answer["log"], note)


def _become_daemon(options: MountOptions, point: str, writer: int) -> NoReturn:
    """The rest of the life of the first child: fork once more, serve, exit. Never returns into the caller's code."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        _close_all_but(writer)
        log_path = options.store / "run" / f"mount-{os.getpid()}.log"
        _redirect(log_path)

        def ready(record: MountRecord) -> None:
            _tell(writer, {"pid": record.pid, "log": str(log_path)})

        try:
            run(options, point, ready, log_path=log_path)
            code = 0
        except PfsError as error:
            log.error("%s", error)
            _tell(writer, error_json(error))
        except Exception as error:
            log.exception("the mount failed")
            _tell(writer, error_json(PfsError(f"the mount failed: {error}", hint=f"see {log_path}")))
    finally:
        os._exit(code)


def _tell(writer: int, answer: dict[str, object]) -> None:
    with suppress(OSError):  # a second message, or nobody listens any more
        os.write(writer, json.dumps(answer).encode("ascii") + b"\n")
        os.close(writer)


def _close_all_but(keep: int) -> None:
    """A daemon must not hold open what it inherited: somebody may wait for the end of a pipe."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with suppress(OSError):
                os.close(int(name))


def _redirect(log_path: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    out = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )


def run(
    options: MountOptions, point: str, ready: Callable[[MountRecord], None], *, log_path: Path | None = None
) -> None:
    """Serve the mount in this process until it is unmounted or told to end. Raises what opening the store raises, Unavailable."""
    from pfsmount.fs import operations as fuse
    from pfsmount.fs.filesystem import Filesystem
    from pfsmount.fs.service import serve
    from pfsmount.repo.store import Store

    _raise_file_limit()
    allow_other = os.getuid() == 0 if options.allow_other is None else options.allow_other
    with Store.open(options.store, options.settings, author=options.author) as store:
        record = new_record(options.store, point, str(log_path or ""), allow_other=allow_other)
        held = None if options.present_job else HeldRecord(options.store / "run", record)
        made_point = False
        try:
            made_point = options.create and make_mount_point(point)
            kernel = fuse.FuseKernel(point)
            who = {"mount": point, "socket": record.socket, "uid": record.uid}
            filesystem = Filesystem(store, kernel, who, with_branches=not options.present_job)
            owner = None if options.real_owner else (os.getuid(), os.getgid())
            made = fuse.JobOperations if options.present_job else fuse.Operations
            requests = made(filesystem, owner, lambda: ready(record))
            fuse_options = _fuse_options(options.store, allow_other=allow_other) | (
                {"ro"} if options.present_job else set()
            )
            with _libfuse_errors(point):
                fuse.mount(requests, point, fuse_options)
            try:
                raise_readahead(point)
                log.info("mounted %s at %s", options.store, point)
                serve(filesystem, record, None if held is None else held.socket)
            finally:
                fuse.unmount()
                filesystem.close()
                log.info("unmounted %s", point)
        finally:
            if made_point:
                with suppress(OSError):  # unmounted lazily, or mounted over
                    os.rmdir(point)
            if held is not None:
                held.remove()  # last: whoever waits for the end of this mount finds all of it gone


def _fuse_options(store: Path, *, allow_other: bool) -> set[str]:
    options = {"default_permissions", f"subtype={FS_TYPE}", f"fsname={source_of(store)}"}
    if allow_other:
        options.add("allow_other")
    return options


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.debug("file descriptors: %d of at most %d", soft, hard)


def raise_readahead(point: str) -> None:
    """Let the kernel read ahead in larger steps: root only, and only a matter of speed."""
    mount = mounted_at(point)
    if mount is None or os.getuid():
        return
    try:
        Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").write_text(str(READAHEAD_KIB), encoding="ascii")
    except OSError as error:
        log.info("read-ahead stays as it is: %s", error)


@contextmanager
def _libfuse_errors(point: str) -> Iterator[None]:
    """libfuse and fusermount3 say on stderr why they refuse: catch it and put it into the error."""
    with tempfile.TemporaryFile() as said:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except RuntimeError as error:
            said.seek(0)
            text = said.read().decode(errors="replace").strip().splitlines()
            reason = text[-1] if text else str(error)
            raise Unavailable(f"cannot mount at {point}: {reason}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
