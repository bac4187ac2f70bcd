"""What a spec file says, as a tree that knows its lines; the same for JSON and YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display

MAX_DEPTH = 64
MAX_VALUES = 50_000
"""In one file, and in one document with all that its aliases stand for: a few lines of YAML can stand for billions of values."""

Scalar = str | int | float | bool | None


def spec_error(name: str, line: int, message: str, hint: str | None = None, *, column: int = 0) -> InvalidInput:
    """An error at a place of a spec file. `name` is the file's, as its user wrote it."""
    place = f"{display(name)}:{line}:{column}" if column else f"{display(name)}:{line}"
    return InvalidInput(f"{place}: {message}", hint=hint)


@dataclass(frozen=True, slots=True)
class Member:
    """One field of a mapping; the line is the name's."""

    name: str
    line: int
    node: Node


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document."""

    line: int
    column: int
    value: Scalar | tuple[Node, ...] | tuple[Member, ...]
    is_mapping: bool = False
    text: str = ""
    """Of a number, true, false or null: as it is written."""
    size: int = field(default=1, compare=False)
    """How many values it is made of."""
    height: int = field(default=0, compare=False)

    @property
    def items(self) -> tuple[Node, ...] | None:
        """The values of a list; None for all else."""
        return self.value if isinstance(self.value, tuple) and not self.is_mapping else None  # type: ignore[return-value]

    @property
    def members(self) -> tuple[Member, ...] | None:
        """The fields of a mapping; None for all else."""
        return self.value if self.is_mapping else None  # type: ignore[return-value]

    @property
    def kind(self) -> str:
        """What it is, in an error's words."""
        if self.is_mapping:
            return "a mapping"
        match self.value:
            case None:
                return "null"
            case bool():
                return f"{self.value}".lower()
            case int() | float():
                return "a number"
            case str():
                return "a string"
        return "a list"

    @property
    def is_default(self) -> bool:
        """Whether a field with this value says as much as one that is not there: nothing, no, none, or only such values."""
        if self.members is not None:
            return all(member.node.is_default for member in self.members)
        if self.items is not None:
            return not self.items
        return self.value in (None, False, "", 0, "0", "0s", "false")

    def plain(self) -> Any:
        """As `json.loads` would give it."""
        if self.members is not None:
            return {member.name: member.node.plain() for member in self.members}
        if self.items is not None:
            return [item.plain() for item in self.items]
        return self.value


def list_node(name: str, line: int, column: int, items: Sequence[Node]) -> Node:
    """A list. Raises InvalidInput."""
    size, height = _measured(name, line, items)
    return Node(line, column, tuple(items), size=size, height=height)


def mapping_node(name: str, line: int, column: int, members: Sequence[Member]) -> Node:
    """A mapping. Raises InvalidInput when it has a field twice."""
    seen: dict[str, Member] = {}
    for member in members:
        if first := seen.get(member.name):
            raise spec_error(
                name, member.line, f"'{display(member.name)}' is here twice", f"the first one is in line {first.line}"
            )
        seen[member.name] = member
    size, height = _measured(name, line, [member.node for member in members])
    return Node(line, column, tuple(members), is_mapping=True, size=size, height=height)


@dataclass(slots=True)
class Bounds:
    """How much a file may have, checked before it is made."""

    name: str
    """Of the file."""
    values: int = 0

    def check(self, line: int, depth: int) -> None:
        """Raises InvalidInput when a value, of which this is one more, is one too many or nested too deeply."""
        self.values += 1
        _check(self.name, line, self.values, depth)


def _measured(name: str, line: int, parts: Sequence[Node]) -> tuple[int, int]:
    """Size and height of what has these parts."""
    size = 1 + sum(part.size for part in parts)
    height = 1 + max((part.height for part in parts), default=0)
    _check(name, line, size, height)
    return size, height


def _check(name: str, line: int, size: int, depth: int) -> None:
    if size > MAX_VALUES:
        raise spec_error(name, line, f"this is more than {MAX_VALUES:,} values, which no spec needs")
    if depth > MAX_DEPTH:
        raise spec_error(name, line, f"values are nested more than {MAX_DEPTH} deep, which no spec needs")
