"""`pfs find`, `glob`: paths of a version that have some properties, or match a pattern."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.files import entry_at, entry_json, long_row
from pfsmount.cli.repos import JsonFlag
from pfsmount.cli.times import parse_time
from pfsmount.errors import InvalidInput
from pfsmount.ids import RepoPath, display, path_bytes
from pfsmount.revision import Revision, parse_mount_name, parse_target

if TYPE_CHECKING:
    from pfsmount.tree.entry import Entry, Kind

LongFlag = Annotated[bool, typer.Option("--long", "-l", help="Mode, size, time and id.")]
NullFlag = Annotated[
    bool, typer.Option("--print0", "-print0", "-0", help="End each path with NUL and print it as it is: for xargs -0.")
]
_SIZE = re.compile(r"([+-]?)(\d{1,18})(?:([kmgtp])(?:i?b)?|[bc])?\Z", re.IGNORECASE)
_UNITS = {unit: 1024**i for i, unit in enumerate(("", "k", "m", "g", "t", "p"))}

Found = tuple[str, RepoPath, "Entry"]
"""The start of a search as text without its path, the path in the version, the entry."""


def find(
    targets: Annotated[list[str], typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET…")],
    name: Annotated[str | None, typer.Option("--name", "-name", help="Glob for the last name, as '*.jpg'.")] = None,
    iname: Annotated[str | None, typer.Option("--iname", "-iname", help="As --name, in any case.")] = None,
    path: Annotated[str | None, typer.Option("--path", "-path", help="Glob for the path below TARGET.")] = None,
    type: Annotated[str | None, typer.Option("--type", "-type", help="f, d, l, or several: f,l.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", "-size", help="+10M larger, -4k smaller, 0 exactly; in bytes, k, M, G."),
    ] = None,
    newer: Annotated[
        str | None, typer.Option("--newer", "-newermt", help="Modified after: 2026-11-22, '2 days ago'.")
    ] = None,
    older: Annotated[str | None, typer.Option("--older", help="Modified before.")] = None,
    empty: Annotated[bool, typer.Option("--empty", "-empty", help="Empty files and directories.")] = False,
    id: Annotated[str, typer.Option("--id", help="How the id begins: what 'b3sum' prints of a file.")] = "",
    mindepth: Annotated[int, typer.Option("--mindepth", "-mindepth", min=0, help="1 leaves out TARGET itself.")] = 0,
    maxdepth: Annotated[
        int | None, typer.Option("--maxdepth", "-maxdepth", min=0, help="1: what lies directly in it.")
    ] = None,
    long: LongFlag = False,
    null: NullFlag = False,
    json: JsonFlag = False,
) -> None:
    """Find files, directories and symlinks of any version; all tests must hold. As find(1), it prints TARGET with the path below it.

    The size of a directory is that of all files below it.
    """
    from pfsmount.tree.search import Criteria, search

    least, most = _sizes(size or [])
    criteria = Criteria(
        name=_one_name(name, iname),
        path=None if path is None else _glob(path),
        kinds=_kinds(type),
        least_size=least,
        most_size=most,
        newer_ns=None if newer is None else parse_time(newer),
        older_ns=None if older is None else parse_time(older),
        empty=empty,
        id=_hex(id),
        least_depth=mindepth,
        most_depth=maxdepth,
    )
    parsed = [parse_target(text) for text in targets]
    with output.open_store() as store:
        starts = [(target, entry_at(store, target)) for target in parsed]

        def found() -> Iterator[Found]:
            for text, (target, root) in zip(targets, starts, strict=True):
                for below, entry in search(store.objects, root, criteria):
                    yield text.partition(":")[0], (target.path or ()) + below, entry

        _print_found(found(), long, null, json)


def glob(
    target: Annotated[str, typer.Argument(help="REPO[@REVISION]:PATTERN", metavar="TARGET")],
    long: LongFlag = False,
    null: NullFlag = False,
    json: JsonFlag = False,
) -> None:
    """List what a glob pattern matches, as a job's input would: '*' and '?' stay in one name, '**' does not.

    [a-z], {a,b}, @(a|b), !(a|b), *(a), +(a), ?(a) are known; '/' is the root; a backslash takes a character as it is.
    No match prints nothing and is no error.
    """
    head, colon, pattern = target.partition(":")
    repo, revision = parse_mount_name(head)
    if not colon:
        raise InvalidInput(f"'{display(target)}' has no pattern", hint=f"write it as '{display(head)}:/*.jpg'")
    if revision.worktree is not None:
        revision = Revision(revision.base)
    parsed = _glob(pattern)
    with output.open_store() as store:
        root = store.root_of(store.resolve(repo, revision))
        _print_found(((head, path, entry) for path, entry in parsed.find(store.objects, root)), long, null, json)


def _print_found(found: Iterable[Found], long: bool, null: bool, json: bool) -> None:
    """Print what is found, each as soon as it is."""
    if json:
        output.print_json_list(_found_json(*one) for one in found)
        return
    for start, path, entry in found:
        place = os.fsencode(start) + b":" + path_bytes(path)
        if null:
            sys.stdout.buffer.write(place + b"\0")
        elif long:
            mode, size, time, id, _ = long_row(path, entry)
            target = "" if entry.target is None else f" -> {display(entry.target)}"
            output.say(f"{mode}  {size:>12}  {time}  {id}  {display(place)}{target}")
        else:
            output.say(display(place))


def _found_json(start: str, path: RepoPath, entry: Entry) -> dict[str, Any]:
    return {"place": f"{start}:{os.fsdecode(path_bytes(path))}", **entry_json(path, entry)}


def _glob(pattern: str) -> Any:
    from pfsmount.tree.globs import Glob

    return Glob(pattern)


def _one_name(name: str | None, iname: str | None) -> Any:
    from pfsmount.tree.globs import Glob

    if name is not None and iname is not None:
        raise InvalidInput("--name and --iname are for the same name", hint="give one of them")
    option, pattern = ("--name", name) if iname is None else ("--iname", iname)
    if pattern is not None and "/" in pattern:
        raise InvalidInput(f"{option} '{display(pattern)}' has a slash, which no name has", hint="--path matches paths")
    return None if pattern is None else Glob(pattern, ignore_case=iname is not None)


def _kinds(text: str | None) -> tuple[Kind, ...]:
    from pfsmount.tree.entry import Kind

    known = {"f": Kind.FILE, "d": Kind.DIRECTORY, "l": Kind.SYMLINK}
    letters = [] if text is None else text.split(",")
    if any(letter not in known for letter in letters):
        raise InvalidInput(
            f"--type '{display(text or '')}' is unknown", hint="f files, d directories, l symlinks, or f,l"
        )
    return tuple(known[letter] for letter in letters)


def _sizes(texts: Iterable[str]) -> tuple[int | None, int | None]:
    """The least and the most bytes that are asked for."""
    least: int | None = None
    most: int | None = None
    for text in texts:
        match = _SIZE.match(text)
        if not match:
            raise InvalidInput(
                f"--size '{display(text)}' is no size", hint="+10M is more than 10 MiB, -4k less than 4 KiB, 0 exactly"
            )
        sign, digits, unit = match.groups()
        size = int(digits) * _UNITS[(unit or "").lower()]
        if sign != "-":
            least = max(least or 0, size + (sign == "+"))
        if sign != "+":
            limit = size - (sign == "-")
            most = limit if most is None else min(most, limit)
    return least, most


def _hex(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{0,64}", text):
        raise InvalidInput(f"--id '{display(text)}' is not the beginning of an id", hint="up to 64 hex digits")
    return text.lower()
