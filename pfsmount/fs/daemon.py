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
from typing import TYPE_CHECKING, NoReturn

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import InvalidInput, NotPermitted, PermissionDenied, PfsError, Unavailable
from pfsmount.fs.answers import error_json, error_of
from pfsmount.fs.mountpoint import (
    FS_TYPE,
    JOB,
    check_machine,
    check_mount_point,
    make_mount_point,
    mounted_at,
    other_users_allowed,
    source_of,
)
from pfsmount.fs.records import HeldRecord, MountRecord, new_record
from pfsmount.objects.layout import disk_errors, read_store_info
from pfsmount.revision import Target

if TYPE_CHECKING:
    from pfsmount.fs.operations import Presented
    from pfsmount.repo.store import Store

log = logging.getLogger(__name__)
READAHEAD_KIB = 4096


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What to mount where, and how."""

    store: Path
    mount_point: Path
    target: Target | None = None
    """The version, or directory of one, that is shown; None: all of the store."""
    create: bool = False
    """Make the mount point if it is missing (the default ones), and take it away in the end."""
    allow_other: bool | None = None
    """Let other users see the mount; None: if this is root."""
    read_only: bool = False
    real_owner: bool = False
    """Show files as belonging to whom they are stored with, not to the mounting user."""
    uid: int | None = None
    """Whom files are shown to belong to; None: to the mounting user."""
    gid: int | None = None
    umask: int = 0
    """Permissions that are not shown."""
    fsname: str | None = None
    """The source that the mount is listed with; None: one that names store and version."""
    kernel: tuple[str, ...] = ()
    """Options for the kernel, such as noexec."""
    autocommit: float | None = None
    """Commit what is uncommitted when nothing was changed for so many seconds and nothing is open for writing."""
    log_file: Path | None = None
    log_level: str = "info"
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
    read_only: bool
    note: str | None
    """Something the user should know."""


def check(options: MountOptions) -> tuple[str, str | None]:
    """Look for everything that could be in the way; returns the mount point's real path and, maybe, a note.

    Raises NotAStore, StoreTooNew, NotFound, NotADirectory, DirectoryNotEmpty, Busy, InvalidInput, PermissionDenied, Unavailable,
    NotPermitted.
    """
    read_store_info(options.store)
    check_machine()
    if options.real_owner and (options.uid is not None or options.gid is not None):
        raise InvalidInput("--real-owner shows the stored owners, uid= and gid= show others", hint="give one of them")
    if options.log_file is not None:
        _check_log(options.log_file)
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
    return Started(point, answer["pid"], answer["log"], answer["read_only"], note)


def _check_log(path: Path) -> None:
    """Raises PermissionDenied for a log file that cannot be written to."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise PermissionDenied(f"cannot write to the log file {path}: {error.strerror}") from None


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
        code = _serve_and_tell(options, point, writer)
    finally:
        os._exit(code)


def _serve_and_tell(options: MountOptions, point: str, writer: int) -> int:
    """Serve, with the log in its file, and tell who waits when it is ready or what went wrong; returns the exit code."""
    log_path = options.log_file or options.store / "run" / f"mount-{os.getpid()}.log"

    def ready(record: MountRecord) -> None:
        _tell(writer, {"pid": record.pid, "log": str(log_path), "read_only": record.read_only})

    try:
        with disk_errors("opening the log of the mount"):
            _redirect(log_path, options.log_level)
    except PfsError as error:
        _tell(writer, error_json(error))
        return 1
    try:
        run(options, point, ready, log_path=log_path)
    except PfsError as error:
        log.error("%s", error)
        _tell(writer, error_json(error))
        return 1
    except Exception as error:
        log.exception("the mount failed")
        _tell(writer, error_json(PfsError(f"the mount failed: {error}", hint=f"see {log_path}")))
        return 1
    return 0


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


def _redirect(log_path: Path, level: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    out = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )


def run(
    options: MountOptions, point: str, ready: Callable[[MountRecord], None], *, log_path: Path | None = None
) -> None:
    """Serve the mount in this process until it is unmounted or told to end. Raises what opening the store raises, Unavailable."""
    from pfsmount.fs import operations as fuse
    from pfsmount.fs.filesystem import Filesystem
    from pfsmount.fs.fuse_kernel import FuseKernel
    from pfsmount.fs.service import serve
    from pfsmount.repo.store import Store

    _raise_file_limit()
    allow_other = os.getuid() == 0 if options.allow_other is None else options.allow_other
    with Store.open(options.store, options.settings, author=options.author) as store:
        record = _record(options, store, point, str(log_path or ""), allow_other=allow_other)
        held = None if options.present_job else HeldRecord(options.store / "run", record)
        made_point = False
        try:
            made_point = options.create and make_mount_point(point)
            kernel = FuseKernel(point)
            who = {"mount": point, "socket": record.socket, "uid": record.uid}
            filesystem = Filesystem(
                store,
                kernel,
                who,
                with_branches=not options.present_job,
                read_only=record.read_only,
                only=options.target,
            )
            made = fuse.JobOperations if options.present_job else fuse.Operations
            requests = made(filesystem, _presented(options), lambda: ready(record))
            with _libfuse_errors(point):
                fuse.mount(requests, point, _fuse_options(options, record))
            try:
                log.info("mounted %s at %s", options.store, point)
                serve(filesystem, record, None if held is None else held.socket, lambda: raise_readahead(point))
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


def _record(options: MountOptions, store: Store, point: str, log_path: str, *, allow_other: bool) -> MountRecord:
    """What others see of this mount. Raises NotFound for a version that is not there."""
    revision, commit = "", None
    if options.target is not None:
        revision = str(options.target)
        resolved = store.resolve(options.target.repo, options.target.revision)
        if resolved.branch is None and resolved.commit is not None:
            commit = resolved.commit.id.hex()
    read_only = options.read_only or options.present_job or commit is not None
    if read_only and options.autocommit is not None:
        raise InvalidInput("a read-only mount has nothing to commit by itself", hint="leave out the autocommit")
    return new_record(
        options.store,
        point,
        log_path,
        allow_other=allow_other,
        revision=revision,
        commit=commit,
        read_only=read_only,
        autocommit=options.autocommit,
    )


def _presented(options: MountOptions) -> Presented:
    from pfsmount.fs.operations import Presented

    if options.real_owner:
        return Presented(None, options.umask)
    uid = os.getuid() if options.uid is None else options.uid
    gid = os.getgid() if options.gid is None else options.gid
    return Presented((uid, gid), options.umask)


def _fuse_options(options: MountOptions, record: MountRecord) -> set[str]:
    source = options.fsname
    if source is None:
        source = source_of(options.store, JOB if options.present_job else record.revision)
    given = {"default_permissions", f"subtype={FS_TYPE}", f"fsname={source}", *options.kernel}
    if record.allow_other:
        given.add("allow_other")
    if record.read_only:
        given.add("ro")
    return given


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
