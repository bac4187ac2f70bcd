"""docs/SEMANTICS.md is what the tests say."""

from __future__ import annotations

from tests.semantics.document import DOCUMENT, generate, sections


def test_the_document_is_made_from_the_tests() -> None:
    """Change both or neither: `python -m tests.semantics.document --write`."""
    assert DOCUMENT.read_text(encoding="utf-8") == generate()


def test_each_promise_has_its_own_number() -> None:
    numbers = [promise.number for section in sections() for promise in section.promises]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) < 1000
