"""The one grammar for naming versions and places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsmount.errors import InvalidInput
from pfsmount.ids import display, parse_path
from pfsmount.revision import Revision, Step, Target, check_ref_name, check_repo_name, parse_revision, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images", Target("images", Revision())),
        ("images@master", Target("images", Revision("master"))),
        ("images@master:", Target("images", Revision("master"), ())),
        ("images@master:/", Target("images", Revision("master"), ())),
        ("images:/a", Target("images", Revision(), (b"a",))),  # type: ignore[arg-type]
        ("images@master:a//b/", Target("images", Revision("master"), (b"a", b"b"))),  # type: ignore[arg-type]
        ("images@master:/a:b@c", Target("images", Revision("master"), (b"a:b@c",))),  # type: ignore[arg-type]
        ("images@master~2", Target("images", Revision("master", (Step("back", 2),)))),
        ("images@master^", Target("images", Revision("master", (Step("back", 1),)))),
        ("images@master^^", Target("images", Revision("master", (Step("back", 1), Step("back", 1))))),
        ("images@master.2", Target("images", Revision("master", (Step("from_start", 2),)))),
        (
            "images@master.2^1",
            Target("images", Revision("master", (Step("from_start", 2), Step("back", 1)))),
        ),
        ("images@v1.x", Target("images", Revision("v1.x"))),
        ("images@3f9c2a7d", Target("images", Revision("3f9c2a7d"))),
        ("images@master@3f9c2a", Target("images", Revision("master", (), "3f9c2a"))),
        ("images@master+mine", Target("images", Revision("master", (), None, "mine"))),
    ],
)
def test_parse(text: str, expected: Target) -> None:
    """Each form has one reading, and is written so that it is read the same again."""
    assert parse_target(text) == expected
    assert parse_target(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@master",
        "a/b",
        "images@",
        "images@mas/ter",
        "images@master.0",
        "images@a@b@c",
        "images@master@xyz",
        "images@master:/../etc",
        "images@master:/a/./b",
        "images@master:/a\0b",
        "images@~1",
        "images@master~99999999999999999999",
        "images@master:/" + "x" * 256,
    ],
)
def test_refused(text: str) -> None:
    """What cannot be understood is refused with a sentence, never misread."""
    with pytest.raises(InvalidInput):
        parse_target(text)


@pytest.mark.parametrize(
    "name", ["a/b", "a@b", "a:b", "a^", "a~1", "a+b", "v1.2", "deadbeef", "", "..", "-x", "a\nb", "é" * 100]
)
def test_ref_names_refused(name: str) -> None:
    """A branch name never looks like anything else in the grammar."""
    with pytest.raises(InvalidInput):
        check_ref_name(name)


@pytest.mark.parametrize("name", ["master", "v1.x", "feature-7", "über", "dead", "1.0-rc"])
def test_ref_names_taken(name: str) -> None:
    """Ordinary names are."""
    assert parse_revision(check_ref_name(name)) == Revision(name)


@pytest.mark.parametrize("name", [".x", "a b", "a/b", "x" * 101, "é", "a@b", ""])
def test_repo_names_refused(name: str) -> None:
    """Repo names are letters, digits, `_`, `-`, `.`."""
    with pytest.raises(InvalidInput):
        check_repo_name(name)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes the parser fail in another way, and what it takes it writes back."""
    try:
        target = parse_target(text)
    except InvalidInput:
        return
    assert parse_target(str(target)) == target


@given(st.binary(max_size=60))
def test_any_bytes_are_a_path_or_refused(raw: bytes) -> None:
    """Paths are bytes; what is shown of them is printable."""
    try:
        path = parse_path(raw)
    except InvalidInput:
        return
    assert parse_path(b"/".join(path)) == path
    assert display(raw).isprintable()
