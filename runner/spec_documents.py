"""From the bytes of a spec file to its documents: JSON or YAML, one or several."""

from __future__ import annotations

import codecs
import re

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from runner.spec_json import json_documents
from runner.spec_nodes import Node, spec_error
from runner.spec_yaml import yaml_documents

MAX_BYTES = 1 << 19
"""PyYAML takes up to 5 s for so many."""


def documents(raw: bytes, name: str) -> list[Node]:
    """The documents of a file; those in a list at the top count each. `name` is for messages, and its end tells YAML.

    Raises InvalidInput.
    """
    text = _text(raw, name)
    found = []
    for node in _parsed(text, name):
        found += [node] if node.items is None else [item for item in node.items if item.value is not None]
    if not found:
        raise InvalidInput(f"{display(name)} has no spec in it")
    return found


def _text(raw: bytes, name: str) -> str:
    if name.lower().endswith(".jsonnet"):
        raise InvalidInput(
            f"{display(name)} is a program in Jsonnet, which pfs does not run", hint="give what 'jsonnet' makes of it"
        )
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{display(name)} has {len(raw):,} bytes, and a spec at most {MAX_BYTES:,}")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInput(f"{display(name)} is UTF-16", hint="save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the exception counts from behind the mark that utf-8-sig takes away
        line = error.object.count(b"\n", 0, error.start) + 1
        raise spec_error(name, line, "this is not UTF-8", "save the file as UTF-8") from None


def _parsed(text: str, name: str) -> list[Node]:
    """JSON where it looks like it; flow style of YAML looks like it, too."""
    is_yaml = name.lower().endswith((".yaml", ".yml"))
    comments = not is_yaml and re.match(r"\s*(//|/\*)", text)
    if not comments and not re.match(r"\s*[{\[]", text):
        return yaml_documents(text, name)
    try:
        return json_documents(text, name)
    except InvalidInput:
        if not is_yaml:
            raise
    return yaml_documents(text, name)
