"""The environment that one datum's command is given: all of it, nothing inherited.

| variable | value | in the key |
|---|---|---|
| `PATH`, `HOME` | the caller's | no: what PATH finds is, by content |
| `LANG`, `TZ` | `C.UTF-8`, `UTC` | constant |
| what `--env` gives, also over the four above | as given | yes |
| `PFS_JOB_ID`, `PFS_DATUM_ID`, `PFS_INPUT_<NAME>_COMMIT` | ids | no |
| `<input>`, `<input>_COMMIT`, `PACH_JOB_ID`, `PACH_DATUM_ID` | path of the match (in a group, of the last one), ids: as Pachyderm has them | the path is |
| `PACH_DATUM_<input>_JOIN_ON`, `_GROUP_BY` | the key in a join or group | yes |
| `PACH_OUTPUT_COMMIT_ID` | the job's id, which names the results as well | no |
| `PPS_PIPELINE_NAME`, `PPS_PROJECT_NAME` | the name of the spec, else of the output's repo; `default` | no |

In a container the first two lines are the image's own, and what is given here comes on top of the image's environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pfsmount.ids import ObjectId, path_bytes
from runner.datum import Datum
from runner.program import Caller
from runner.spec import JobSpec

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]")


def given_environment(spec: JobSpec, caller: Caller) -> dict[str, str]:
    """What all datums of a job are given alike; recorded as it is."""
    if spec.contained:
        return dict(spec.env)
    return {"PATH": caller.path, "HOME": os.fspath(caller.home), "LANG": "C.UTF-8", "TZ": "UTC", **spec.env}


def datum_environment(
    given: Mapping[str, str], job: str, pipeline: str, datum: Datum, commits: Sequence[ObjectId]
) -> dict[str, str]:
    """The whole environment of one datum. `commits` are those of the single inputs."""
    key = datum.key.hex()
    found = {
        "PFS_JOB_ID": job,
        "PFS_DATUM_ID": key,
        "PACH_JOB_ID": job,
        "PACH_OUTPUT_COMMIT_ID": job,
        "PACH_DATUM_ID": key,
        "PPS_PIPELINE_NAME": pipeline,
        "PPS_PROJECT_NAME": "default",
    }
    for match in sorted(datum.matches, key=lambda match: match.path):
        name, commit = match.name, commits[match.leaf].hex()
        place = f"/pfs/{name}" + (os.fsdecode(path_bytes(match.path)) if match.path else "")
        found[f"PFS_INPUT_{_NOT_IN_NAMES.sub('_', name).upper()}_COMMIT"] = commit
        found[name] = place
        found[f"{name}_COMMIT"] = commit
        if match.join_on is not None:
            found[f"PACH_DATUM_{name}_JOIN_ON"] = match.join_on
        if match.group_by is not None:
            found[f"PACH_DATUM_{name}_GROUP_BY"] = match.group_by
    # what the user gave wins over an input that happens to have the name of a variable
    return {**found, **given}
