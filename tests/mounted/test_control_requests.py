"""Requests to the daemon: what cannot be understood is told from what went wrong inside."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pfsmount.errors import InvalidInput
from pfsmount.fs.server import request_of

PLACE = {"repo": "images", "branch": "master"}


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "info"},
        {"op": "status", **PLACE},
        {"op": "commit", **PLACE, "message": "", "paths": None, "author": None},
        {"op": "discard", **PLACE, "paths": ["a", ""]},
        {"op": "resolve", **PLACE, "paths": None, "how": "both"},
        {"op": "of a later version"},
    ],
    ids=lambda value: value["op"],
)
def test_requests_are_understood(request_: dict[str, Any]) -> None:
    assert request_of(json.dumps(request_).encode()) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"op": 3}',
        b'{"op": "status", "repo": "images"}',
        b'{"op": "status", "repo": "images", "branch": null}',
        b'{"op": "commit", "repo": "images", "branch": "master", "message": 1}',
        b'{"op": "commit", "repo": "images", "branch": "master", "message": "", "author": 1}',
        b'{"op": "discard", "repo": "images", "branch": "master", "paths": "a"}',
        b'{"op": "discard", "repo": "images", "branch": "master", "paths": [null]}',
        b'{"op": "resolve", "repo": "images", "branch": "master", "how": "ours"}',
        b'{"op": "resolve", "repo": "images", "branch": "master", "how": []}',
    ],
)
def test_others_are_refused(line: bytes) -> None:
    with pytest.raises(InvalidInput, match="does not understand the request"):
        request_of(line)
