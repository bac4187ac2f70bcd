"""The words of `pfs mount -o`."""

from __future__ import annotations

import pytest

from pfsmount.cli.mount_helper import helper_arguments, is_helper
from pfsmount.errors import InvalidInput
from pfsmount.fs.options import MountFlags, parse_options


def test_words() -> None:
    flags = parse_options(["ro,nosuid,,uid=0", "umask=022,gid=4294967294,log_file=/a=b,fsname=x y,x-systemd.automount"])
    assert flags == MountFlags(
        read_only=True, uid=0, gid=4294967294, umask=0o22, fsname="x y", log_file="/a=b", kernel=("nosuid",)
    )
    assert parse_options(["ro", "rw,default_permissions,defaults,_netdev,nofail,noauto,user"]) == MountFlags(
        read_only=False
    )
    assert parse_options([]) == parse_options([""]) == MountFlags()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ro,big_writes", "'big_writes'"),
        ("allow_othr", "did you mean 'allow_other'"),
        ("uid", "needs a value"),
        ("uid=", "not a number"),
        ("uid=-1", "not a number"),
        ("gid=4294967295", "not a number"),
        ("uid=٣", "not a number"),
        ("umask=9", "octal"),
        ("umask=7777", "octal"),
        ("fsname=", "ASCII"),
        ("fsname=a\nb", "ASCII"),
        ("fsname=ü", "ASCII"),
        ("ro=1", "'ro='"),
        ("log_level=loud", "log level"),
        ("\udcff", "'"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_options([text])
    assert said in str(caught.value)


def test_as_a_mount_helper() -> None:
    """What mount(8) calls `/sbin/mount.fuse.pfs` with."""
    given = ["images@master", "/data", "-n", "-o", "rw,store=/srv/s,uid=5", "-t", "fuse.pfs"]
    assert helper_arguments(given) == [
        "mount", "images@master", "/data", "-o", "fsname=images@master", "-o", "rw,store=/srv/s,uid=5"
    ]  # fmt: skip
    whole = ["mount", "/pfs", "-o", "fsname=/srv/s", "-o", "ro", "-o", "store=/srv/s"]
    assert helper_arguments(["/srv/s", "/pfs", "-rn"]) == whole
    for wrong in ([], ["a"], ["a", "b", "c"], ["a", "b", "-x"]):
        with pytest.raises(InvalidInput):
            helper_arguments(wrong)
    assert is_helper("/sbin/mount.fuse.pfs")
    assert not is_helper("/usr/bin/pfs")
