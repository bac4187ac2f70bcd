"""The environment that one datum's command is given: all of it, nothing inherited.

| variable | value | in the key |
|---|---|---|
| `PATH`, `HOME` | the caller's | no: what PATH finds is, by content |
| `LANG`, `TZ` | `C.UTF-8`, `UTC` | constant |
| what `--env` gives, also over the four above | as given | yes |
| `PFS_JOB_ID`, `PFS_DATUM_ID`, `PFS_INPUT_<NAME>_COMMIT` | ids | no |
| `<input>`, `<input>_COMMIT`, `PACH_JOB_ID`, `PACH_DATUM_ID` | path of the match, ids: as Pachyderm has them | the path is |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pfsmount.ids import ObjectId, path_bytes
from runner.datum import Datum
from runner.program import Caller
from runner.spec import JobSpec

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]")


def given_environment(spec: JobSpec, caller: Caller) -> dict[str, str]:
    """What all datums of a job are given alike; recorded as it is."""
    return {"PATH": caller.path, "HOME": os.fspath(caller.home), "LANG": "C.UTF-8", "TZ": "UTC", **spec.env}


def datum_environment(
    given: Mapping[str, str], job: str, datum: Datum, commits: Mapping[str, ObjectId]
) -> dict[str, str]:
    """The whole environment of one datum. `commits` are those of the inputs, by name."""
    found = {
        "PFS_JOB_ID": job,
        "PFS_DATUM_ID": datum.key.hex(),
        "PACH_JOB_ID": job,
        "PACH_DATUM_ID": datum.key.hex(),
    }
    for match in datum.matches:
        commit = commits[match.name].hex()
        place = f"/pfs/{match.name}" + (os.fsdecode(path_bytes(match.path)) if match.path else "")
        found[f"PFS_INPUT_{_NOT_IN_NAMES.sub('_', match.name).upper()}_COMMIT"] = commit
        found[match.name] = place
        found[f"{match.name}_COMMIT"] = commit
    # what the user gave wins over an input that happens to have the name of a variable
    return {**found, **given}
