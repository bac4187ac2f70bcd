"""Typed reading of a spec's fields: each reader gives what it says, or an error that names file, line and field.

A name matches in every spelling that is in use: `join_on`, `joinOn`, `JoinOn` and `join-on` are one field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from runner.quantities import cpu_share, duration_seconds, memory_bytes
from runner.spec import parse_env
from runner.spec_nodes import Member, Node, spec_error

_YES = ("true", "yes", "on")
_NO = ("false", "no", "off")


def squashed(name: str) -> str:
    """What all spellings of a name have in common."""
    return re.sub(r"[_-]", "", name).lower()


@dataclass(slots=True)
class Reading:
    """One document while it is read."""

    name: str
    """Of the file, for messages."""
    warnings: list[str] = field(default_factory=list)

    def warn(self, line: int, message: str) -> None:
        self.warnings.append(f"{display(self.name)}:{line}: {message}")


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and the name of its field as the file spells it."""

    reading: Reading
    node: Node
    path: str
    line: int
    """Where its name stands."""

    def error(self, message: str, hint: str | None = None) -> InvalidInput:
        """An error about it; the message goes on after the field's name."""
        return spec_error(self.reading.name, self.line, f"{self.path or 'this spec'} {message}", hint)

    def warn(self, message: str) -> None:
        self.reading.warn(self.line, f"{self.path or 'this spec'} {message}")

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Give errors from inside, which know no file, the place of this."""
        try:
            yield
        except InvalidInput as error:
            message = f"{self.path}: {error.message}" if self.path else error.message
            raise spec_error(self.reading.name, self.line, message, error.hint) from None

    def _not(self, expected: str, hint: str | None = None, node: Node | None = None) -> InvalidInput:
        node = node or self.node
        line = self.line if node is self.node else node.line
        return spec_error(
            self.reading.name, line, f"{self.path or 'this spec'} must be {expected}, not {node.kind}", hint
        )

    def _string(self, node: Node, expected: str) -> str:
        """A string, or a number, true or false as it is written."""
        text = node.value if isinstance(node.value, str) else node.text
        if node.value is None or isinstance(node.value, tuple):
            raise self._not(expected, node=node)
        if "\0" in text:
            raise self.error("has a NUL character, which no program can be given")
        return text

    def string(self) -> str:
        return self._string(self.node, "a string")

    def choice(self, allowed: Collection[str]) -> str:
        """One of several words, in any case; empty for an empty string."""
        text = self.string().lower()
        if text and text not in allowed:
            raise self.error(f"must be {_listed(allowed)}, not '{display(text)}'")
        return text

    def number(self, *, least: float = 0) -> float:
        """A number, or a string that says one."""
        text = self._string(self.node, "a number").strip()
        try:
            value = float(text) if re.fullmatch(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]{1,3})?", text) else None
        except ValueError:
            value = None
        if value is None or value > 1e15 or isinstance(self.node.value, bool):
            raise self.error(f"must be a number, not '{display(text)}'")
        if value < least:
            raise self.error(f"must be at least {least:g}, not {display(text)}")
        return value

    def integer(self, *, least: int = 0) -> int:
        """A whole number, or a string that says one."""
        value = self.number(least=least)
        if value != int(value):
            raise self.error(f"must be a whole number, not {value:g}")
        return int(value)

    def boolean(self) -> bool:
        if isinstance(self.node.value, bool):
            return self.node.value
        text = self._string(self.node, "true or false").lower()
        if text in _YES or text in _NO:
            return text in _YES
        raise self._not("true or false")

    def seconds(self) -> float | None:
        """A duration, as 1h30m or a number of seconds; None for an empty or zero one."""
        text = self._string(self.node, "a duration, as 30s or 1h30m").strip()
        with self.blamed():
            return duration_seconds(text) or None

    def memory(self) -> int | None:
        """Bytes, as 64M or 1Gi; None for no limit."""
        text = self._string(self.node, "an amount of memory, as 64M or 1Gi").strip()
        with self.blamed():
            return memory_bytes(text)

    def cpus(self) -> float | None:
        """Processors' worth of time, as 0.5 or 500m; None for no limit."""
        text = self._string(self.node, "a number of processors, as 0.5 or 500m").strip()
        with self.blamed():
            return cpu_share(text)

    def strings(self, hint: str | None = None) -> tuple[str, ...]:
        items = self.node.items
        if items is None:
            raise self._not("a list of strings", hint)
        return tuple(self._string(item, "a list of strings, and each of them one") for item in items)

    def argv(self, hint: str | None = None) -> tuple[str, ...]:
        """A command: a list of strings, of which the first is a program."""
        words = self.strings(hint)
        if words and not words[0]:
            raise self.error("starts with an empty string, which is no program")
        return words

    def lines(self) -> str | None:
        """Text for standard input: a list of lines, or all of them in one string; None for none."""
        if self.node.items is None:
            text = self._string(self.node, "a list of lines")
            return text if not text or text.endswith("\n") else text + "\n"
        lines = self.strings()
        return "\n".join(lines) + "\n" if lines else None

    def integers(self) -> tuple[int, ...]:
        """A list of whole numbers, or a single one."""
        return tuple(value.integer() for value in (self.values() if self.node.items is not None else [self]))

    def env(self) -> dict[str, str]:
        """Variables: a mapping, or a list of NAME=VALUE strings or of mappings with name and value."""
        pairs: list[tuple[Value, str]] = []
        if self.node.members is not None:
            for value in self.mapping():
                pairs.append((value, f"{value.path.removeprefix(self.path + '.')}={value._variable()}"))
        elif self.node.items is not None:
            pairs = [(value, value._pair()) for value in self.values()]
        else:
            raise self._not("a mapping of names to strings")
        found: dict[str, str] = {}
        for value, pair in pairs:
            with value.blamed():
                found |= parse_env([pair])
        return found

    def _variable(self) -> str:
        return "" if self.node.value is None else self._string(self.node, "a string")

    def _pair(self) -> str:
        if self.node.members is None:
            return self._string(self.node, "NAME=VALUE or a mapping with name and value")
        fields = self.fields(("name", "value"))
        value = fields.get("value")
        return f"{fields.required('name').string()}={value._variable() if value else ''}"

    def values(self) -> list[Value]:
        """The values of a list."""
        items = self.node.items
        if items is None:
            raise self._not("a list")
        return [
            Value(self.reading, item, f"{self.path}[{number}]", item.line) for number, item in enumerate(items, start=1)
        ]

    def mapping(self) -> list[Value]:
        """The values of a mapping with any names."""
        members = self.node.members
        if members is None:
            raise self._not("a mapping")
        return [Value(self.reading, member.node, self._below(member.name), member.line) for member in members]

    def plain_mapping(self) -> dict[str, Any]:
        """A mapping that is kept as it is."""
        self.mapping()
        value = self.node.plain()
        assert isinstance(value, dict)
        return value

    def fields(self, known: Collection[str], synonyms: Mapping[str, str] | None = None) -> Fields:
        """The fields of a mapping, all of which have to be known; a synonym is refused with the name to write instead."""
        members = self.node.members
        if members is None:
            raise self._not("a mapping")
        names = {squashed(name): name for name in known}
        found: dict[str, Value] = {}
        for member in members:
            name = names.get(squashed(member.name))
            value = Value(self.reading, member.node, self._below(member.name), member.line)
            if name is None:
                raise self._unknown(member, names, synonyms or {})
            if name in found:
                raise value.error(f"is {found[name].path} of line {found[name].line} again", "take out one of the two")
            found[name] = value
        return Fields(self, found)

    def _unknown(self, member: Member, names: Mapping[str, str], synonyms: Mapping[str, str]) -> InvalidInput:
        short = squashed(member.name)
        near = [names[name] for name in difflib.get_close_matches(short[:100], names, n=1, cutoff=0.7)]
        meant = synonyms.get(short) or (near[0] if near else None)
        hint = f"did you mean '{meant}'?" if meant else None
        where = f"{self.path} has no field" if self.path else "a spec has no field"
        return spec_error(self.reading.name, member.line, f"{where} '{display(member.name)}'", hint)

    def _below(self, name: str) -> str:
        return f"{self.path}.{display(name)}" if self.path else display(name)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a mapping by their names, whatever their spelling."""

    value: Value
    found: Mapping[str, Value]

    def get(self, name: str) -> Value | None:
        """None when it is not there, or null."""
        value = self.found.get(name)
        return None if value is None or value.node.value is None else value

    def required(self, name: str, hint: str | None = None) -> Value:
        """Raises InvalidInput when it is not there, null or empty."""
        value = self.get(name)
        if value is None or value.node.value in ("", ()):
            raise self.value.error(f"has no '{name}'" if value is None else f"has an empty '{name}'", hint)
        return value

    def string(self, name: str) -> str:
        value = self.get(name)
        return value.string() if value else ""

    def boolean(self, name: str) -> bool:
        value = self.get(name)
        return value.boolean() if value else False

    def seconds(self, name: str) -> float | None:
        value = self.get(name)
        return value.seconds() if value else None

    def lines(self, name: str) -> str | None:
        value = self.get(name)
        return value.lines() if value else None


def _listed(words: Collection[str]) -> str:
    *first, last = [f"'{word}'" for word in words]
    return f"{', '.join(first)} or {last}" if first else last
