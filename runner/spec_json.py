"""JSON with positions: documents that follow each other, with or without something between them.

A literal tab in a string is taken as such; all else is as the standard has it, so there are no comments and no commas at the end.
"""

from __future__ import annotations

import bisect
import json
import math
import re

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from runner.spec_nodes import Bounds, Member, Node, Scalar, list_node, mapping_node, spec_error

_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"(?:[ \t\r\n]+|^---[ \t]*\r?$)*", re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\\x00-\x08\x0a-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[^\s,:\[\]{}\"]{1,40}")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None}
_DIGITS_MAX = 300


def json_documents(text: str, name: str) -> list[Node]:
    """All documents of a text. Raises InvalidInput."""
    return _Parser(text, name).documents()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self._bounds = Bounds(name)
        self._at = 0
        self._breaks = [found.start() for found in re.finditer("\n", text)]

    def documents(self) -> list[Node]:
        found: list[Node] = []
        while True:
            self._skip(_BETWEEN)
            if self._at == len(self._text):
                return found
            found.append(self._value(0))

    def _skip(self, what: re.Pattern[str] = _SPACE) -> None:
        match = what.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1."""
        line = bisect.bisect_left(self._breaks, at)
        return line + 1, at - (self._breaks[line - 1] + 1 if line else 0) + 1

    def _error(self, message: str, hint: str | None = None, *, at: int | None = None) -> InvalidInput:
        line, column = self._place(self._at if at is None else at)
        return spec_error(self._name, line, message, hint, column=column)

    def _value(self, depth: int) -> Node:
        """The value that starts here."""
        line, column = self._place(self._at)
        self._bounds.check(line, depth)
        match self._text[self._at : self._at + 1]:
            case "{":
                return mapping_node(self._name, line, column, self._members(depth))
            case "[":
                return list_node(self._name, line, column, self._items(depth))
            case '"':
                return Node(line, column, self._string())
        if number := _NUMBER.match(self._text, self._at):
            return Node(line, column, self._number(number), text=number[0])
        word = _WORD.match(self._text, self._at)
        if word is None or word[0] not in _WORDS:
            raise self._not_expected("a value")
        self._at = word.end()
        return Node(line, column, _WORDS[word[0]], text=word[0])

    def _number(self, match: re.Match[str]) -> int | float:
        more = _WORD.match(self._text, match.end())
        if more:
            raise self._error(f"'{display(match[0][:40] + more[0])}' is not a number", "put quotes around a string")
        value: int | float = math.inf
        if len(match[0]) <= _DIGITS_MAX:
            value = float(match[0]) if re.search("[.eE]", match[0]) else int(match[0])
        if math.isinf(value):
            raise self._error("this number is too large")
        self._at = match.end()
        return value

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        assert match is not None
        end = match.end()
        if self._text[end : end + 1] == "\\":
            raise self._error(
                f"'{display(self._text[end : end + 2])}' stands for nothing in a string",
                "a backslash is written as two",
                at=end,
            )
        if self._text[end : end + 1] in ("", "\n", "\r"):
            raise self._error(
                "the string that starts here does not end on its line", "a line break in it is written \\n"
            )
        if self._text[end] != '"':
            raise self._error("a string has a control character", "write it as \\u and four hex digits", at=end)
        value = json.loads(self._text[self._at : end + 1], strict=False)
        assert isinstance(value, str)
        if re.search("[\ud800-\udfff]", value):
            raise self._error("a string has half of a surrogate pair, which is no character")
        self._at = end + 1
        return value

    def _items(self, depth: int) -> list[Node]:
        self._at += 1
        found: list[Node] = []
        while not self._ends("]", empty=not found):
            found.append(self._value(depth + 1))
        return found

    def _members(self, depth: int) -> list[Member]:
        self._at += 1
        found: list[Member] = []
        while not self._ends("}", empty=not found):
            if self._text[self._at : self._at + 1] != '"':
                raise self._not_expected("the name of a field")
            line, _ = self._place(self._at)
            key = self._string()
            self._skip()
            if self._text[self._at : self._at + 1] != ":":
                raise self._not_expected(f"a ':' after '{display(key)}'")
            self._at += 1
            self._skip()
            found.append(Member(key, line, self._value(depth + 1)))
        return found

    def _ends(self, close: str, *, empty: bool) -> bool:
        """Pass the comma before the next part, or the end."""
        self._skip()
        if self._text[self._at : self._at + 1] == close:
            self._at += 1
            return True
        if empty:
            return False
        comma = self._at
        if self._text[self._at : self._at + 1] != ",":
            raise self._not_expected(f"a ',' or '{close}'")
        self._at += 1
        self._skip()
        if self._text[self._at : self._at + 1] == close:
            raise self._error(f"there is a comma before the '{close}'", "take it out", at=comma)
        return False

    def _not_expected(self, expected: str) -> InvalidInput:
        """What is here instead."""
        rest = self._text[self._at : self._at + 40]
        if not rest:
            return self._error(f"the file ends where {expected} should be")
        if rest.startswith(("//", "/*", "#")):
            return self._error(
                "this is a comment, which JSON does not have",
                "take it out, or write the spec as YAML: there, # starts one",
            )
        word = _WORD.match(self._text, self._at)
        found = word[0] if word else rest[0]
        hint = None
        if found.startswith("'"):
            hint = 'strings have double quotes, as in "name"'
        elif found.lower() in _WORDS or found == "None":
            hint = f"write it as {'null' if found == 'None' else found.lower()}"
        elif word and not found.startswith("-"):
            hint = f'put quotes around it, as in "{display(found)}"'
        return self._error(f"there is '{display(found)}' where {expected} should be", hint)
