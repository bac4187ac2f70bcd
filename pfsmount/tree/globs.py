"""Globs: which paths of a tree a pattern names, found without walking more of the tree than the pattern can match.

The rules are those that Pachyderm's users know:

| pattern | matches |
|---|---|
| `*`, `**`, `?` | any run of characters without `/`; any run, `/` included; one character, not `/` |
| `[abc]`, `[a-c]`, `[!a]`, `[^a]`, `[[:alpha:]]` | one character of a list or class, or not of it; never `/` |
| `{a,b}` | one of several patterns, nested as deep as need be; any of them may be empty |
| `@(a|b)`, `?(a|b)`, `*(a|b)`, `+(a|b)` | one; at most one; any number; at least one of them |
| `!(a|b)` | anything without `/` but these; before more text in the same name: anything that does not begin with these |
| `(a|b)` | one of them. Every pair of parentheses captures, numbered by the opening one |
| `\\` | the next character as it is |

`/` and the empty pattern match the root and nothing else; a leading `/` may be left out. A pattern matches files, directories and symlinks
alike, dotted names included, and characters are those of the name read as UTF-8 (a byte that is none counts as one).

A pattern is cut at its slashes, and each part is matched against the names of one directory, so that `/2026/*/a*` reads one name of the
root, lists `2026`, and reads the `a…` of each directory in it. From the first part that can match a slash (`**`, or a slash inside
parentheses) on, everything below is looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pfsmount.errors import InvalidInput
from pfsmount.ids import EntryName, ObjectId, RepoPath, display
from pfsmount.objects.reading import Reader
from pfsmount.tree.diff import diff, directory_pairs, lookup_both
from pfsmount.tree.directory import entries, find, lookup
from pfsmount.tree.entry import Entry, decode_entry

_QUANTIFIED = {"@": "({})", "": "({})", "?": "((?:{})?)", "*": "((?:{})*)", "+": "((?:{})+)"}
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_SPECIAL = frozenset("*?[{(\\")
# Stand in a regular expression under construction for: a negation may have to reach the end of the name; something of the
# pattern's own stands here. No name has these characters: they cannot be written in UTF-8, nor do they stand for a byte.
_END = "\udbfe"
_SOLID = "\udbff"
_AT_END = r"(?=/|\Z)"


class GlobChange(NamedTuple):
    """A matched path whose content differs between two trees; None where it does not exist."""

    path: RepoPath
    old: Entry | None
    new: Entry | None


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of the pattern between two slashes."""

    regex: str
    literal: str | None
    """The name, when it is the only one that matches."""
    prefix: str
    """What every matching name begins with."""
    crosses: bool
    """It can match a slash."""

    @property
    def is_any(self) -> bool:
        """True for `*`."""
        return self.regex == "[^/]*"


class Glob:
    """A parsed pattern."""

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        """Raises InvalidInput."""
        self.pattern = pattern
        parts = _Parser(pattern).parts()
        if ignore_case:
            parts = [_Part(f"(?i:{part.regex})", None, "", part.crosses) for part in parts]
        deep = next((i for i, part in enumerate(parts) if part.crosses), len(parts))
        self._parts = parts[:deep]
        self._regexes = [_compile(part.regex) for part in self._parts]
        tail = "/".join(part.regex for part in parts[deep:])
        self._tail = _compile(tail) if parts[deep:] else None
        self._whole = _compile("/".join(part.regex for part in parts))

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"

    @property
    def is_root(self) -> bool:
        """True when it matches the root, and so nothing else."""
        return not self._parts and self._tail is None

    @property
    def groups(self) -> int:
        """How many pairs of parentheses capture something."""
        return self._whole.groups

    def match(self, path: RepoPath) -> re.Match[str] | None:
        """The match of one path, with what the parentheses captured; None when the path does not match."""
        if not path:
            return self._whole.fullmatch("") if self.is_root else None
        if self.is_root or (self._tail is None and len(path) != len(self._parts)):
            return None
        return self._whole.fullmatch(os.fsdecode(b"/".join(path)))

    def find(self, objects: Reader, root: Entry) -> Iterator[tuple[RepoPath, Entry]]:
        """All matching paths of a tree and their entries, each directory before its entries, in bytewise order.

        Nodes are read as they are reached. Raises NotFound, Corrupt when the store is damaged.
        """
        if self.is_root:
            yield (), root
        elif root.is_directory:
            yield from self._below(objects, root, (), 0)

    def _below(self, objects: Reader, directory: Entry, path: RepoPath, depth: int) -> Iterator[tuple[RepoPath, Entry]]:
        if depth == len(self._parts):
            yield from self._everything(objects, directory, path, "")
            return
        last = depth + 1 == len(self._parts) and self._tail is None
        for name, entry in self._names(objects, directory, depth):
            if last:
                yield (*path, name), entry
            elif entry.is_directory:
                yield from self._below(objects, entry, (*path, name), depth + 1)

    def _names(self, objects: Reader, directory: Entry, depth: int) -> Iterator[tuple[EntryName, Entry]]:
        """The entries of one directory that match one part."""
        part, regex = self._parts[depth], self._regexes[depth]
        start = os.fsencode(part.prefix if part.literal is None else part.literal)
        if start:
            entry = lookup(objects, directory.id, start)
            if entry is not None and regex.fullmatch(os.fsdecode(start)):
                yield EntryName(start), entry
            if part.literal is not None:
                return
        for name, entry in entries(objects, directory.id, after=start):
            if not name.startswith(start):
                return
            if part.is_any or regex.fullmatch(os.fsdecode(name)):
                yield name, entry

    def _everything(
        self, objects: Reader, directory: Entry, path: RepoPath, text: str
    ) -> Iterator[tuple[RepoPath, Entry]]:
        assert self._tail is not None
        for name, entry in entries(objects, directory.id):
            below = text + os.fsdecode(name)
            if self._tail.fullmatch(below):
                yield (*path, name), entry
            if entry.is_directory:
                yield from self._everything(objects, entry, (*path, name), below + "/")

    def changes(self, objects: Reader, old: Entry, new: Entry) -> Iterator[GlobChange]:
        """The matching paths at which two trees differ in content, at the cost of what differs.

        Times, owners and modes other than the exec bit are no difference.
        """
        if self.is_root:
            if not old.same_content(new):
                yield GlobChange((), old, new)
            return
        least = len(self._parts) + (self._tail is not None)
        seen: dict[int, RepoPath] = {}
        for change in diff(objects, old, new):
            if change.attributes_only:
                continue
            most = len(change.path) if self._tail is not None else min(least, len(change.path))
            for depth in range(least, most + 1):
                path = change.path[:depth]
                if seen.get(depth) == path:  # what differs below one path stands together
                    continue
                seen[depth] = path
                if self.match(path):
                    before, after = find(objects, old, path), find(objects, new, path)
                    if before is None or after is None or not before.same_content(after):
                        yield GlobChange(path, before, after)

    def differs(self, objects: Reader, old: Entry | None, new: Entry | None) -> bool:
        """Whether two trees differ in any way at a path that matches, or below one.

        Looks only where a match can be and both sides differ, and ends at the first. Raises NotFound, Corrupt.
        """
        return old != new if self.is_root else self._differs(objects, old, new, 0)

    def _differs(self, objects: Reader, old: Entry | None, new: Entry | None, depth: int) -> bool:
        if depth == len(self._parts):
            assert self._tail is not None
            return any(self._in_tail(change.path) for change in diff(objects, old, new))
        last = depth + 1 == len(self._parts) and self._tail is None
        return any(
            last or self._differs(objects, before, after, depth + 1)
            for before, after in self._differing(objects, _directory_id(old), _directory_id(new), depth)
        )

    def _in_tail(self, path: RepoPath) -> bool:
        """Whether a path below, or a directory on the way to it, matches from the first `**` on."""
        assert self._tail is not None
        return any(self._tail.fullmatch(os.fsdecode(b"/".join(path[:end]))) for end in range(1, len(path) + 1))

    def _differing(
        self, objects: Reader, old: ObjectId | None, new: ObjectId | None, depth: int
    ) -> Iterator[tuple[Entry | None, Entry | None]]:
        """The entries of two directories that differ and match one part."""
        part, regex = self._parts[depth], self._regexes[depth]
        if part.literal is not None:
            before, after = lookup_both(objects, old, new, os.fsencode(part.literal))
            if before != after:
                yield before, after
            return
        for name, left, right in directory_pairs(objects, objects, old, new) if old != new else ():
            if regex.fullmatch(os.fsdecode(name)):
                yield (
                    None if left is None else decode_entry(left.fixed, left.extra),
                    None if right is None else decode_entry(right.fixed, right.extra),
                )


def _directory_id(entry: Entry | None) -> ObjectId | None:
    return entry.id if entry is not None and entry.is_directory else None


def _compile(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.DOTALL)


class _Parser:
    """Recursive descent over a pattern, to regular expressions."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._text = pattern
        self._at = 0
        self._crosses = False

    def parts(self) -> list[_Part]:
        """The parts between the slashes that stand outside parentheses, braces and lists; none for the root."""
        if "\0" in self._pattern:
            raise self._error("has a NUL, which no path can have")
        found = []
        while self._at < len(self._text):
            if self._text[self._at] == "/":
                self._at += 1
                continue
            found.append(self._part())
        return found

    def _part(self) -> _Part:
        start = self._at
        prefix, is_literal = self._literal()
        self._at = start
        self._crosses = False
        regex = self._sequence("/")
        # As in Pachyderm: a negation reaches to the end of the name, unless the name goes on after the first one.
        first = regex.find(_END)
        goes_on = first >= 0 and _SOLID in regex[first:]
        regex = regex.replace(_END, "" if goes_on else _AT_END).replace(_SOLID, "")
        return _Part(regex, prefix if is_literal else None, prefix, self._crosses)

    def _literal(self) -> tuple[str, bool]:
        """The text with which a part begins, and whether that is all of it."""
        out: list[str] = []
        while (char := self._peek()) not in ("", "/"):
            if char == "\\" and self._at + 1 < len(self._text):
                self._at += 1
                char = self._peek()
            elif char in _SPECIAL or (char in "@+!" and self._text[self._at + 1 : self._at + 2] == "("):
                return "".join(out), False
            out.append(char)
            self._at += 1
        return "".join(out), True

    def _sequence(self, stops: str) -> str:
        """A pattern up to one of `stops`, which is not consumed."""
        out = []
        while (char := self._peek()) and char not in stops:
            out.append(self._item(char))
        regex = "".join(out)
        # of several negations in a row, only the last can be at the end
        return regex.replace(_END, "", max(0, regex.count(_END) - 1))

    def _item(self, char: str) -> str:
        if char in "?*+@!" and self._text[self._at + 1 : self._at + 2] == "(":
            self._at += 2
            return self._group(char)
        if char == "*":
            return self._stars()
        self._at += 1
        match char:
            case "?":
                return "[^/]"
            case "[":
                return self._list()
            case "{":
                return f"(?:{self._alternatives(',', '}', '{')})"
            case "(":
                return self._group("")
            case "/":
                self._crosses = True  # inside parentheses or braces, or it would have ended the part
                return "/" + _SOLID
            case "\\" if self._peek():
                char = self._peek()
                self._at += 1
                if char == "/":
                    self._crosses = True
        return re.escape(char) + _SOLID

    def _stars(self) -> str:
        start = self._at
        while self._peek() == "*":
            self._at += 1
        if self._peek() == "(":
            self._at -= 1  # the last one belongs to the parenthesis
        if self._at - start == 1:
            return "[^/]*" + _SOLID
        self._crosses = True
        return ".*" + _SOLID

    def _group(self, quantifier: str) -> str:
        inner = self._alternatives("|", ")", "(")
        if quantifier == "!":
            return f"((?:(?!(?:{inner}){_END})[^/]*))"
        return _QUANTIFIED[quantifier].format(inner)

    def _alternatives(self, between: str, end: str, opened: str) -> str:
        found = [self._sequence(between + end)]
        while self._peek() == between:
            self._at += 1
            found.append(self._sequence(between + end))
        if self._peek() != end:
            raise self._error(f"has a '{opened}' without its '{end}'")
        self._at += 1
        return "|".join(found)

    def _list(self) -> str:
        """One character of a list. A `]` that stands first is a member."""
        negated = self._peek() in ("!", "^")
        self._at += negated
        members = []
        first = True
        while (char := self._peek()) != "]" or first:
            first = False
            if not char:
                raise self._error("has a '[' without its ']'")
            members.append(self._class() if self._text.startswith("[:", self._at) else self._range())
        self._at += 1
        # never a slash, whatever the list says
        return f"(?!/)[{'^' if negated else ''}{''.join(members)}]"

    def _class(self) -> str:
        end = self._text.find(":]", self._at)
        name = self._text[self._at + 2 : end] if end >= 0 else ""
        negated = name.startswith("^")
        members = _CLASSES.get(name.removeprefix("^"))
        if members is None:
            known = ", ".join(sorted(_CLASSES))
            raise InvalidInput(f"'[:{display(name)}:]' is no class of characters", hint=f"known: {known}")
        self._at = end + 2
        return _complement(members) if negated else members

    def _range(self) -> str:
        low = self._member()
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("", "]"):
            return re.escape(low)
        self._at += 1
        high = self._member()
        if high < low:
            raise self._error(f"has the range '{low}-{high}', whose end comes before its start")
        return f"{re.escape(low)}-{re.escape(high)}"

    def _member(self) -> str:
        if self._peek() == "\\" and self._at + 1 < len(self._text):
            self._at += 1
        char = self._peek()
        if not char:
            raise self._error("has a '[' without its ']'")
        self._at += 1
        return char

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"the pattern '{display(self._pattern)}' {what}", hint="a backslash before a character takes it as it is"
        )


def _complement(members: str) -> str:
    """The members that a class does not have, as members of another."""
    inside = re.compile(f"[{members}]")
    outside = [code for code in range(128) if not inside.match(chr(code))]
    return "".join(f"\\x{code:02x}" for code in outside) + "\\u0080-\\U0010ffff"
