"""What is no longer as it was: the program of one job against that of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pfsmount.ids import display


def program_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two programs two, for people. Both are provenance as commits have it (docs/FORMAT.md)."""
    return list(_differences(then, now)) or ["something that the record does not name"]


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then["command"] != now["command"]:
        yield "the command"
    if then.get("stdin") != now.get("stdin"):
        yield "stdin"
    yield from _environment(then["spec"]["env"], now["spec"]["env"])
    yield from _code(then["code"], now["code"])
    for field, what in (("cwd", "the working directory"), ("network", "the network"), ("user", "the user")):
        if then.get(field) != now.get(field):
            yield what
    more = ("user", "working_dir", "err_command", "err_stdin", "accept_return_code", "salt")
    yield from (field for field in more if then["spec"].get(field) != now["spec"].get(field))


def _environment(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"the variable {display(name)}"


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then.get("image") != now.get("image"):
        yield "the image"
    for part in ("executable", "interpreter"):
        if place := _changed(then.get(part), now.get(part)):
            yield f"the {part} {place}"
    packages = set(then.get("packages", ())) ^ set(now.get("packages", ()))
    if packages:
        yield f"packages of the virtual environment ({', '.join(map(display, sorted(packages)[:4]))}{', …' if len(packages) > 4 else ''})"
    files = {file["path"]: file["id"] for file in then["files"]}
    for file in now["files"]:
        if files.get(file["path"]) not in (None, file["id"]):
            yield display(file["path"])
    if place := _changed(then.get("directory"), now.get("directory")):
        yield f"the code in {place}"


def _changed(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Where something is whose content is not the same; nothing when it is."""
    if (one and one["id"]) == (other and other["id"]):
        return ""
    return display(str((other or one or {}).get("path", "")))
