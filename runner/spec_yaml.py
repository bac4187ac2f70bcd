"""YAML with positions: the one door to PyYAML, which is loaded only when a spec is YAML.

PyYAML gives events; the tree is built here, so that nothing in a file can make an object, and depth and size have bounds. Of a plain
word, only what YAML 1.2 says is a number, a bool or null: `yes`, `on`, `1:30` and `2019-01-01` are strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from runner.spec_nodes import Bounds, Member, Node, Scalar, list_node, mapping_node, spec_error

_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z")
_BASED = re.compile(r"0[xo][0-9a-fA-F]{1,16}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,5})?\Z")
_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


def yaml_documents(text: str, name: str) -> list[Node]:
    """All documents of a text, without empty ones. Raises InvalidInput."""
    import yaml

    try:
        return _Builder(yaml.parse(text, Loader=yaml.SafeLoader), name).documents()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = display(" ".join(part for part in (error.problem, error.context) if part))
        hint = "indent with spaces; YAML allows no tab there" if "'\\t'" in said else None
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise spec_error(name, line, f"this is not YAML: {said}", hint, column=column) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise spec_error(name, line, f"YAML cannot have the character U+{ord(text[error.position]):04X}") from None
    except (ValueError, OverflowError):
        # an escape for more than Unicode has
        raise spec_error(name, 1, "this is not YAML: a string has an escape for no character") from None


class _Builder:
    """Trees out of events."""

    def __init__(self, events: Iterator[Any], name: str) -> None:
        self._events = events
        self._name = name
        self._bounds = Bounds(name)
        self._anchors: dict[str, Node] = {}

    def documents(self) -> list[Node]:
        found = []
        for event in self._events:
            if type(event).__name__ == "DocumentStartEvent":
                self._anchors = {}
                node = self._node(next(self._events), 0)
                if node.value is not None:
                    found.append(node)
        return found

    def _error(self, event: Any, message: str, hint: str | None = None) -> InvalidInput:
        mark = event.start_mark
        return spec_error(self._name, mark.line + 1, message, hint, column=mark.column + 1)

    def _node(self, event: Any, depth: int) -> Node:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        self._bounds.check(line, depth)
        match type(event).__name__:
            case "AliasEvent":
                return self._alias(event)
            case "ScalarEvent":
                node = self._scalar(event, line, column)
            case "SequenceStartEvent":
                self._check_tag(event, "seq")
                node = list_node(self._name, line, column, self._items(depth))
            case _:
                self._check_tag(event, "map")
                node = mapping_node(self._name, line, column, self._members(depth))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise self._error(
                event, f"no '&{display(event.anchor)}' stands complete before this '*{display(event.anchor)}'"
            )
        return node

    def _items(self, depth: int) -> list[Node]:
        found = []
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            found.append(self._node(event, depth + 1))
        return found

    def _members(self, depth: int) -> list[Member]:
        own: list[Member] = []
        merged: list[Member] = []
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key = self._key(event)
            line = event.start_mark.line + 1
            node = self._node(next(self._events), depth + 1)
            if key == _MERGE and getattr(event, "style", None) is None:
                merged += self._merged(event, node)
            else:
                own.append(Member(key, line, node))
        names = {member.name for member in own}
        for member in merged:
            if member.name not in names:
                names.add(member.name)
                own.append(member)
        return own

    def _key(self, event: Any) -> str:
        key: str | None = None
        if type(event).__name__ == "AliasEvent":
            node = self._alias(event)
            key = node.value if isinstance(node.value, str) else node.text or None
        elif type(event).__name__ == "ScalarEvent":
            key = event.value if event.value or event.style else None
        if key is None:
            raise self._error(event, "the name of a field must be a string")
        return self._checked(event, key)

    def _merged(self, event: Any, node: Node) -> list[Member]:
        """The fields that `<<` brings, the first ones first."""
        sources = node.items if node.items is not None else (node,)
        found: list[Member] = []
        for source in sources:
            if source.members is None:
                raise self._error(event, f"'<<' takes mappings, not {source.kind}", "as in: <<: *defaults")
            found += source.members
        return found

    def _scalar(self, event: Any, line: int, column: int) -> Node:
        self._check_tag(event, "str", "int", "float", "bool", "null")
        text = self._checked(event, event.value)
        tag = (event.tag or "").removeprefix(_TAG)
        value: Scalar = text
        if tag in ("int", "float", "bool", "null") or (event.style is None and tag not in ("str", "!")):
            value = _plain(text)
        return Node(line, column, value, text="" if isinstance(value, str) else text)

    def _checked(self, event: Any, text: str) -> str:
        """The text; two escapes that are a surrogate pair, as JSON has them, are one character."""
        if not re.search("[\ud800-\udfff]", text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._error(event, "a string has half of a surrogate pair, which is no character") from None

    def _check_tag(self, event: Any, *allowed: str) -> None:
        tag = event.tag
        if tag is not None and tag != "!" and tag not in [_TAG + name for name in allowed]:
            shown = tag.replace(_TAG, "!!")
            raise self._error(event, f"a spec cannot have the tag '{display(shown)}'", "take it out")


def _plain(text: str) -> Scalar:
    """What a word without quotes stands for."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.match(text):
        return int(text)
    if _BASED.match(text):
        try:
            return int(text, 0)
        except ValueError:
            return text
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text
