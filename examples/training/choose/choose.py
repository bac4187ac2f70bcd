"""Draws a table of all scores, /pfs/out/table.md, and links the models of the best parameters to /pfs/out/best."""

from __future__ import annotations

import json
from pathlib import Path

OUT = Path("/pfs/out")

scores = {path.stem: json.loads(path.read_text()) for path in sorted(Path("/pfs/scores").iterdir())}
ranking = sorted(scores, key=lambda name: -scores[name]["accuracy"])
lines = ["| parameters | accuracy | worst fold | model |", "|---|---|---|---|"]
for name in ranking:
    score = scores[name]
    settings = ", ".join(f"{key}={value}" for key, value in score["settings"].items())
    bar = "█" * round((score["accuracy"] - 0.9) * 200)
    lines.append(f"| {name} | {score['accuracy']:.4f} {bar} | {score['worst']:.4f} | {score['model']}({settings}) |")
(OUT / "table.md").write_text("\n".join(lines) + "\n")
# a link to an input becomes what it leads to, without a copy of its bytes
for path in sorted(Path("/pfs/models", ranking[0]).glob("*.joblib")):
    (OUT / "best").mkdir(exist_ok=True)
    (OUT / "best" / path.name).symlink_to(path)
