"""The host's side of one container's `/pfs`: `pfs/`, which is all that it sees there, and `out/`, which it sees at `/pfs/out`.

A datum's inputs are renamed into `pfs/` and back, which takes microseconds and needs no privilege. Where that cannot be (they lie in a mount), root
mounts them there, if what is mounted here shows in the container.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runner.executors import mounts, syscalls
from runner.executors.base import MADE_MTIME_NS, RESERVED_TARGET, Bind, ExecutorError, TaskRefused
from runner.scratch import remove_tree

INIT = ".init"
SOCKET = ".sock"
# Another filesystem, or not ours to move.
_IMMOVABLE = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS, errno.EBUSY)
# What a security module gives every directory.
_ATTRIBUTES = {"security.selinux"}


class Slot:
    """`propagates`: what is mounted in `pfs/` shows in the container."""

    def __init__(self, path: Path, *, propagates: bool) -> None:
        self.path = path
        self.pfs = path / "pfs"
        self.out = path / "out"
        self.propagates = propagates

    def make(self) -> None:
        """Only the runner's user gets through `path`; a container gets what is in it without. Raises ExecutorError."""
        try:
            self.path.mkdir(mode=0o700)
            for directory in (self.pfs, self.pfs / os.fsdecode(RESERVED_TARGET), self.out):
                self._make_point(directory)
        except OSError as error:
            raise ExecutorError(f"cannot make a directory for a container: {error}") from error

    def remake_out(self) -> None:
        """A new output directory, for a new container: the old one may have attributes, or another owner."""
        remove_tree(self.out)
        self._make_point(self.out)

    def remove(self) -> None:
        remove_tree(self.path)

    def place_init(self, program: Path) -> None:
        """A link where that can be: all containers then share the program's pages."""
        try:
            os.link(program, self.pfs / INIT)
        except OSError:
            shutil.copyfile(program, self.pfs / INIT)
            (self.pfs / INIT).chmod(0o755)

    def clear_init(self) -> None:
        """Leaves nothing but inputs and `out` to be seen."""
        for name in (INIT, SOCKET):
            (self.pfs / name).unlink(missing_ok=True)
        self._set_times(self.pfs)

    @contextmanager
    def showing(self, binds: Sequence[Bind], pid: int) -> Iterator[None]:
        """Shows the inputs of a datum; `pid` is a process of the container. Raises TaskRefused; then nothing has moved."""
        with ExitStack() as undo:
            undo.callback(self._set_times, self.pfs)
            made: set[bytes] = set()
            for bind in binds:
                self._lead_to(bind.target, made, undo)
                self._show(bind, pid, undo)
            for directory in made:
                os.utime(directory, ns=(MADE_MTIME_NS, MADE_MTIME_NS))
            self._set_times(self.pfs)
            yield

    def _place(self, target: bytes) -> bytes:
        return os.fsencode(self.pfs) + b"/" + target

    def _lead_to(self, target: bytes, made: set[bytes], undo: ExitStack) -> None:
        at = target.find(b"/")
        while at >= 0:
            if (directory := self._place(target[:at])) not in made:
                self._make_point(Path(os.fsdecode(directory)))
                undo.callback(os.rmdir, directory)
                made.add(directory)
            at = target.find(b"/", at + 1)

    def _show(self, bind: Bind, pid: int, undo: ExitStack) -> None:
        shown = self._place(bind.target)
        try:
            os.rename(bind.source, shown)
        except OSError as error:
            number = error.errno or 0
            if number not in _IMMOVABLE:
                raise _refusal(bind, error.strerror or "") from error
        else:
            undo.callback(os.rename, shown, bind.source)
            return
        why = f"it cannot be moved ({os.strerror(number)}), and here no mount reaches a running container: copy it"
        if os.path.islink(bind.source):
            os.symlink(os.readlink(bind.source), shown)
            undo.callback(os.unlink, shown)
        elif not self.propagates or os.geteuid():
            raise _refusal(bind, why)
        else:
            self._mount(bind, shown, undo)
            if not is_same(bind.source, f"/proc/{pid}/root/pfs/{os.fsdecode(bind.target)}"):
                raise _refusal(bind, why)

    def _mount(self, bind: Bind, shown: bytes, undo: ExitStack) -> None:
        try:
            tree = syscalls.clone_tree(bind.source, follow=False)
            undo.callback(os.close, tree)
            syscalls.set_mounts(tree, read_only=True, recursive=True)
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(shown)
                undo.callback(os.rmdir, shown)
            else:
                os.mknod(shown)
                undo.callback(os.unlink, shown)
            syscalls.attach_tree(tree, shown)
            undo.callback(syscalls.detach, shown)
        except OSError as error:
            raise _refusal(bind, error.strerror or "") from error

    def collect(self, out: Path) -> bool:
        """Moves what the command has written to `out`. False when the directory itself cannot be used again."""
        source, target = os.fsencode(self.out), os.fsencode(out)
        if stat.S_IMODE(os.stat(source).st_mode) != 0o755:
            os.chmod(source, 0o755)
        try:
            for name in os.listdir(source):
                os.rename(source + b"/" + name, target + b"/" + name)
        except OSError as error:
            raise ExecutorError(f"cannot move the output of a datum to {str(out)!r}: {error.strerror}") from error
        return set(os.listxattr(source)) <= _ATTRIBUTES

    @staticmethod
    def _make_point(path: Path) -> None:
        path.mkdir()
        path.chmod(0o755)

    @staticmethod
    def _set_times(path: Path) -> None:
        os.utime(path, ns=(MADE_MTIME_NS, MADE_MTIME_NS))


def _refusal(bind: Bind, why: str) -> TaskRefused:
    shown = mounts.quoted(b"/pfs/" + bind.target)
    return TaskRefused(f"cannot show {mounts.quoted(bind.source)} at {shown}: {why}")


def is_same(one: bytes, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def is_shared(path: Path, mountinfo: str) -> bool:
    """Whether mounts made below `path` reach those who have it from here (its mount is `shared`)."""
    found = ("", False)
    for line in mountinfo.splitlines():
        fields = line.partition(" - ")[0].split()
        point = fields[4].encode().decode("unicode_escape")  # blanks are \040
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, any(option.startswith("shared:") for option in fields[6:]))
    return found[1]
