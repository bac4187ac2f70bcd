"""Puts the scores that one set of parameters has on all folds into /pfs/out/PARAMETERS.json."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

name = os.environ["PACH_DATUM_models_GROUP_BY"]
results = [json.loads(path.read_text()) for path in sorted(Path("/pfs/models", name).iterdir())]
accuracies = [result["right"] / result["of"] for result in results]
score = {
    "model": results[0]["model"],
    "settings": results[0]["settings"],
    "folds": len(results),
    "accuracy": round(statistics.mean(accuracies), 4),
    "worst": round(min(accuracies), 4),
}
Path(f"/pfs/out/{name}.json").write_text(json.dumps(score) + "\n")
