"""Keys of joins and groups: templates over what the parentheses of a glob captured.

| in a template | stands for |
|---|---|
| `$1`, `$12`, `${1}` | what the parentheses of this number captured; nothing, when they took no part in the match |
| `$0` | the whole path, without the leading `/` |
| `$$` | a dollar sign |

`$1x` is `$1` and an `x`: only digits belong to a number (`$10` is the tenth, `${1}0` is the first and a zero).
"""

from __future__ import annotations

import re

from pfsmount.errors import InvalidInput
from pfsmount.ids import RepoPath, display
from pfsmount.tree.globs import Glob

_REFERENCE = re.compile(r"\$(?:(\$)|(\d{1,9})|\{(\d{1,9})\})")


def check_template(what: str, template: str, glob: Glob) -> None:
    """Refuse a template that names parentheses which the glob does not have. Raises InvalidInput."""
    for found in re.finditer(r"\$", _REFERENCE.sub("", template)):
        raise InvalidInput(
            f"{what} '{display(template)}' has a '{found[0]}' that stands for nothing",
            hint="write $1 for what the first parentheses of the glob match, $$ for a dollar sign",
        )
    for number in _numbers(template):
        if number > glob.groups:
            raise InvalidInput(
                f"{what} '{display(template)}' names ${number}, and the glob '{display(glob.pattern)}' has "
                f"{glob.groups or 'no'} pair{'' if glob.groups == 1 else 's'} of parentheses",
                hint="put parentheses around what the key is made of, as in '/(*).bam'",
            )


def _numbers(template: str) -> list[int]:
    return [int(found[2] or found[3]) for found in _REFERENCE.finditer(template) if not found[1]]


def expand(template: str, glob: Glob, path: RepoPath) -> str:
    """The key of a path that the glob matches."""
    match = glob.match(path)
    assert match is not None
    return _REFERENCE.sub(lambda found: "$" if found[1] else match[int(found[2] or found[3])] or "", template)
