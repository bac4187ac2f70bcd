"""Where a worker process and its datums live: namespaces that leave the host's as they are.

* The *host* place has the host's files. Sources of binds, logs and the like are opened there, by the host's own paths. A
  privileged worker stays in the host's mount namespace, so that it sees what is mounted later; it mounts nothing there.
  An ordinary user's worker has a copy, owned by a user namespace in which the user's ids are mapped to themselves.
* The *view* has a tmpfs as its root, with the host's top-level directories bound and an empty /pfs: also where the host has
  no /pfs, or a live mount there. It is built once per worker; each datum gets a copy of it.

Mounts of the view are slaves of the host's: a volume that the host unmounts is not kept busy by us.
"""

from __future__ import annotations

import os

from runner.executors import syscalls

# In the numbering of linux/capability.h
_CAP_SYS_CHROOT = 18
_CAP_SYS_ADMIN = 21
_EINVAL = 22


class Place:
    """A mount namespace, and the root directory in it (not always the namespace's own: the host's may be a chroot)."""

    def __init__(self, namespace: int, root: int) -> None:
        self._namespace = namespace
        self._root = root

    @classmethod
    def current(cls) -> Place:
        namespace = os.open(b"/proc/self/ns/mnt", os.O_RDONLY)
        return cls(namespace, os.open(b"/", os.O_PATH | os.O_DIRECTORY))

    def enter(self) -> None:
        """Moves the calling process there; its working directory is then `/`."""
        syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)
        os.fchdir(self._root)
        os.chroot(b".")


def capabilities(kind: str) -> int:
    """One of the calling process's sets (`CapEff`, `CapPrm`, `CapBnd`…) as a bit mask."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(f"{kind}:"):
                return int(line.split()[1], 16)
    return 0


def may_mount() -> bool:
    needed = 1 << _CAP_SYS_ADMIN | 1 << _CAP_SYS_CHROOT
    return capabilities("CapEff") & needed == needed


def enter_user_namespace() -> None:
    """Gains all capabilities, over namespaces of our own only; user and group ids stay what they are.

    The kernel lets an ordinary user map nothing but the own ids, and only after giving up setgroups.
    """
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def limit_capabilities(allowed: int) -> None:
    """A command started from here gains, by exec, no capability outside `allowed`; the caller keeps what it has.

    In a user namespace a root user's exec would otherwise give all of them, more than the caller had.
    """
    for number in range(64):
        if allowed >> number & 1:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == _EINVAL:  # beyond the last one that this kernel knows
                return
            raise


def build_view() -> Place:
    """The view, in a mount namespace of its own; the caller stays where it is."""
    host = Place.current()
    syscalls.unshare(syscalls.CLONE_NEWNS)
    chrooted = not _stop_telling_the_host()
    with os.scandir(b"/") as entries:
        copies = [(entry, _copy(entry)) for entry in entries if entry.name != b"pfs"]
    # Any directory serves as the mount point of the new root until it is the root; there is always a /proc.
    syscalls.mount(b"tmpfs", b"/proc", b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, b"mode=755")
    os.chdir(b"/proc")
    os.mkdir(b"pfs", 0o755)
    for entry, tree in copies:
        _place(entry, tree)
    # What a command wrote in `/` itself would be seen by the next datum.
    syscalls.set_mounts(b".", read_only=True)
    _become_root(chrooted)
    view = Place.current()
    host.enter()
    return view


def _stop_telling_the_host() -> bool:
    """Makes all mounts of this namespace slaves, so that neither mounts nor unmounts here reach the host.

    In a chroot its root need not be a mount, and the mounts above are out of reach: then only the one place that is mounted
    on here is cut off, and False is returned.
    """
    try:
        syscalls.set_mounts(b"/", propagation=syscalls.MS_SLAVE, recursive=True)
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        syscalls.set_mounts(b"/proc", propagation=syscalls.MS_PRIVATE)
        return False
    return True


def _copy(entry: os.DirEntry[bytes]) -> int | None:
    if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
        return None
    try:
        tree = syscalls.clone_tree(entry.path, follow=False)
    except OSError:
        return None  # unbindable, or a mount whose server died: an empty directory stands for it
    syscalls.set_mounts(tree, propagation=syscalls.MS_SLAVE, recursive=True)
    return tree


def _place(entry: os.DirEntry[bytes], tree: int | None) -> None:
    """Puts one entry of the host's root into the current directory."""
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), entry.name)
    elif entry.is_dir(follow_symlinks=False):
        os.mkdir(entry.name, 0o755)
    elif entry.is_file(follow_symlinks=False):
        os.mknod(entry.name, 0o644)
    if tree is not None:
        syscalls.attach_tree(tree, entry.name)
        os.close(tree)


def _become_root(chrooted: bool) -> None:
    """Makes the tmpfs in the current directory the root of this namespace, and lets go of the old one."""
    try:
        if not chrooted:
            syscalls.pivot_root(b".", b".")  # the old root now lies on top of the new one, at the same place
    except OSError as error:
        if error.errno != _EINVAL:  # the kernel's first root, an initramfs, cannot be left
            raise
        chrooted = True
    if chrooted:
        # Moving it to `/` instead, as switch_root does, could put it there for the host as well.
        os.chroot(b".")
    else:
        syscalls.detach(b".")
    os.chdir(b"/")
