"""Spec files as trees: what JSON and YAML say, where they say it, and what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pfsmount.errors import InvalidInput, PfsError
from runner.spec_documents import MAX_BYTES, documents
from runner.spec_file import read_specs
from runner.spec_nodes import MAX_DEPTH, Node


def plain(text: str | bytes, name: str = "x.json") -> list[Any]:
    raw = text.encode() if isinstance(text, str) else text
    return [node.plain() for node in documents(raw, name)]


def refusal(text: str | bytes, name: str = "x.json") -> str:
    with pytest.raises(InvalidInput) as caught:
        plain(text, name)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('{"a": 1}', "x.json", [{"a": 1}]),
        ('{"a": 1}{"b": 2}\n\n{"c": [true, null, -1.5e3]}', "-", [{"a": 1}, {"b": 2}, {"c": [True, None, -1500.0]}]),
        ('{"a": 1}\r\n---\r\n{"b": 2}\r\n', "x.json", [{"a": 1}, {"b": 2}]),
        ('[{"a": 1}, {"b": 2}]', "x.json", [{"a": 1}, {"b": 2}]),
        ('\n\t{\n\t\t"a":\t"\\u00e9\\ud83d\\ude00\\n/\t"\n\t}\n', "x.json", [{"a": "é😀\n/\t"}]),
        (b'\xef\xbb\xbf{"a": 1}', "x.json", [{"a": 1}]),
        (b"\xef\xbb\xbfa: 1\r\nb:\r\n- x\r\n", "x.yml", [{"a": 1, "b": ["x"]}]),
        ("a: 1\n---\n---\nb: 2\n...\n", "-", [{"a": 1}, {"b": 2}]),
        ("- a: 1\n- b: 2\n", "x.json", [{"a": 1}, {"b": 2}]),
        ("{a: 1, b: [x, 'y',],}\n", "x.yaml", [{"a": 1, "b": ["x", "y"]}]),
        ('{"a": 1, }', "x.yaml", [{"a": 1}]),
        ("a: &d {x: 1, y: 2}\nb: {<<: *d, y: 3}\nc: *d\n", "-", [{"a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 1}, "c": {"x": 1, "y": 2}}]),
        ("a: {<<: [{x: 1}, {x: 2, y: 2}]}", "-", [{"a": {"x": 1, "y": 2}}]),
        ("1: a\ntrue: b\n", "-", [{"1": "a", "true": "b"}]),
        ("a: !!str 5\nb: !!int '5'\nc: ! 5\nd: |\n  x\n  y\n", "-", [{"a": "5", "b": 5, "c": "5", "d": "x\ny\n"}]),
    ],
)  # fmt: skip
def test_what_a_file_says(text: str | bytes, name: str, expected: list[Any]) -> None:
    assert plain(text, name) == expected


def test_plain_words_are_what_yaml_1_2_says() -> None:
    text = "- - [yes, on, 1:30, 2019-01-01, 0x1F, 0o17, 1_000, .5, +3, ~, '', 12e9999, 1.10]"
    assert plain(text) == [[["yes", "on", "1:30", "2019-01-01", 31, 15, "1_000", 0.5, 3, None, "", "12e9999", 1.1]]]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('{"a": 1,\n "a": 2}', "x.json", "x.json:2: 'a' is here twice (the first one is in line 1)"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml", "x.yaml:3: 'a' is here twice (the first one is in line 1)"),
        ('{"a": [1,\n]}', "x.json", "x.json:1:9: there is a comma before the ']' (take it out)"),
        ('{"a": 1 // why\n}', "x.json", "x.json:1:9: this is a comment, which JSON does not have"),
        ("// why\n{}", "x.json", "x.json:1:1: this is a comment"),
        ('{"a": 1}\n# why\n', "x.json", "x.json:2:1: this is a comment"),
        ('{"a": True}', "x.json", "x.json:1:7: there is 'True' where a value should be (write it as true)"),
        ("{'a': 1}", "x.json", "strings have double quotes"),
        ("{a: 1}", "x.json", "put quotes around it"),
        ('{"a" 1}', "x.json", "x.json:1:6: there is '1' where a ':' after 'a' should be"),
        ('{"a": 1 "b": 2}', "x.json", "x.json:1:9: there is '\"' where a ',' or '}' should be"),
        ('{"a": [1, 2}', "x.json", "there is '}' where a ',' or ']' should be"),
        ('{"a":', "x.json", "x.json:1:6: the file ends where a value should be"),
        ('{\n"a": "b\n"}', "x.json", "x.json:2:6: the string that starts here does not end on its line"),
        ('{"a": "\\d+"}', "x.json", "x.json:1:8: '\\d' stands for nothing in a string"),
        ('{"a": "\x01"}', "x.json", "control character"),
        ('{"a": "\\ud800"}', "x.json", "surrogate"),
        ('{"a": 1e999}', "x.json", "x.json:1:7: this number is too large"),
        ('{"a": ' + "9" * 5000 + "}", "x.json", "too large"),
        ('{"a": 1G}', "x.json", "'1G' is not a number (put quotes around a string)"),
        ('{"a": 01}', "x.json", "'01' is not a number"),
        ('{"a": NaN}', "x.json", "there is 'NaN' where a value should be"),
        ("a:\n\tb: 1\n", "x.yaml", "x.yaml:2:1: this is not YAML: found character '\\t'"),
        ("a: b: c\n", "x.yaml", "x.yaml:1:5: this is not YAML: mapping values are not allowed here"),
        ("a: [1\n", "x.yaml", "this is not YAML"),
        ('a: "\\UFFFFFFFF"\n', "x.yaml", "escape for no character"),
        ('a: "\\ud800"\n', "x.yaml", "surrogate"),
        ("a: \x01\n", "x.yaml", "x.yaml:1: YAML cannot have the character U+0001"),
        ("a: *b\n", "x.yaml", "x.yaml:1:4: no '&b' stands complete before this '*b'"),
        ("a: &a [*a]\n", "x.yaml", "no '&a' stands complete"),
        ("a: !!python/object/apply:os.system [id]\n", "x.yaml", "a spec cannot have the tag '!!python/object/apply:os.system'"),
        ("a: !mine 5\n", "x.yaml", "cannot have the tag '!mine'"),
        ("a: {<<: 5}\n", "x.yaml", "'<<' takes mappings, not a number"),
        ("? [a]\n: b\n", "x.yaml", "the name of a field must be a string"),
        ("{a: 1", "x.yaml", "x.yaml:1:"),
        (b"a: 1\nb: \xff\n", "x.yaml", "x.yaml:2: this is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "x.json", "x.json is UTF-16 (save it as UTF-8)"),
        ("", "x.json", "x.json has no spec in it"),
        ("---\n---\n# nothing\n", "x.yaml", "x.yaml has no spec in it"),
        ("[]", "-", "- has no spec in it"),
        ("function(x) {}", "x.jsonnet", "is a program in Jsonnet"),
        (b" " * (MAX_BYTES + 1), "x.json", "and a spec at most"),
        ("[" * 100_000, "x.json", "nested more than"),
        ("[" * 10_000, "x.yaml", "nested more than"),
        ("- " * 10_000, "x.yaml", "nested more than"),
        ("\x1b[31m: {", "\x1b[31mx", "\\x1b[31mx:1: YAML cannot have the character U+001B"),
    ],
)  # fmt: skip
def test_what_is_refused_with_its_place(text: str | bytes, name: str, expected: str) -> None:
    assert expected in refusal(text, name)


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ('{"a": [\n' + "1,\n" * 500 + "1]}", "x.json", 100),
        ("[\n" + "{},\n" * 500 + "1]", "x.json", 101),
        ("{}\n" * 500, "x.json", 101),
        ("- x\n" * 500, "x.yaml", 100),
        ("--- {}\n" * 500, "x.yaml", 101),
    ],
)
def test_values_are_counted_while_they_are_read(
    text: str, name: str, line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.spec_nodes.MAX_VALUES", 100)
    assert refusal(text, name).startswith(f"{name}:{line}: this is more than 100 values")


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "more than 50,000 values" in refusal("\n".join(lines), "x.yaml")


def test_aliases_count_for_the_depth() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [[*a{n - 1}]]" for n in range(1, MAX_DEPTH))]
    assert "nested more than" in refusal("\n".join(lines), "x.yaml")


def places(node: Node) -> list[tuple[int, int]]:
    found = [(node.line, node.column)]
    for part in [*(node.items or ()), *(member.node for member in node.members or ())]:
        found += places(part)
    return found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"a": 1,\n  "b": [true,\n"x"]\n}', "x.json"),
        ('{"a": 1,\n  "b": [true,\n"x"]\n}', "x.yaml"),
        ('{"a": 1,\r\n  "b": [true,\r\n"x"]\r\n}', "x.json"),
        ('{a: 1,\n  b:   [true,\n"x"]\n}', "x.yaml"),
    ],
)
def test_places(text: str, name: str) -> None:
    (node,) = documents(text.encode(), name)
    assert places(node) == [(1, 1), (1, text.index("1") + 1), (2, 8), (2, 9), (3, 1)]
    assert [member.line for member in node.members or ()] == [1, 2]


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), st.sampled_from([None, 0, 1, "\t"]), st.booleans())
@example({"a": "\u2028\x85\ufeff"}, None, False)
def test_json_says_what_it_said_to_everybody_else(value: dict[str, Any], indent: int | str | None, ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    (node, again) = documents((text + text).encode(), "x.json")
    assert node.plain() == again.plain() == json.loads(text)
    rows = text.split("\n")
    for line, column in places(node):
        assert rows[line - 1][column - 1] in '{["-0123456789tfn'


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_yaml_reads_json_in_ascii_in_the_same_way(value: dict[str, Any]) -> None:
    (node,) = documents(("---\n" + json.dumps(value).replace('"<<"', '"<"')).encode(), "x.yaml")
    assert node.plain() == json.loads(json.dumps(value).replace('"<<"', '"<"'))


SPEC_WORDS = [
    "pipeline", "transform", "input", "pfs", "cmd", "name", "repo", "glob", "cross", "output", "command", "env", "limits",
    ":", ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ",", '"', "'", "&a ", "*a", "<<: ", "!!", "|", "# ", "---\n", "/*",
    "1", "true", "null", "$1", "\\", "\\u", "%", "@", "`", "?", ">", "\t", "\r", "\0", "\ufeff", "\u2028", "é", "😀",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.lists(st.sampled_from(SPEC_WORDS), max_size=25).map(lambda words: "".join(words).encode()),
    st.sampled_from(["-", "x.json", "x.yaml", "\udcff"]),
)  # fmt: skip
def test_no_bytes_give_anything_but_jobs_or_an_error_for_people(raw: bytes, name: str) -> None:
    try:
        found = read_specs(raw, name, processors=2, directory=Path("/d"))
    except PfsError:
        return
    assert found


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans())
def test_no_values_give_anything_but_jobs_or_an_error_for_people(value: Any, pipeline: bool) -> None:
    document = {"pipeline": {"name": "x"}, "transform": {"cmd": ["x"]}} if pipeline else {"command": "x", "output": "x"}
    fields = (
        ("metadata", "input", "description", "env", "datum_tries", "resource_limits") if pipeline else ("input", "env")
    )
    for field in fields:
        raw = json.dumps(document | {field: value}).encode()
        with contextlib.suppress(PfsError):
            read_specs(raw, "x.json", processors=2, directory=Path("/d"))
