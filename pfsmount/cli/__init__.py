"""The `pfs` command line: parse, one library call, print."""

from __future__ import annotations

import sys
from types import TracebackType


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        # Ctrl-C in the first tenth of a second, while modules are imported and nothing answers signals yet
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _on_uncaught
