"""Learns from one fold with one set of parameters: /pfs/out/PARAMETERS/FOLD.joblib is the model, and FOLD.json how well it does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import joblib
import numpy as np

# of each model only its module: all of scikit-learn takes much longer to load than this takes to learn
MODULES = {
    "KNeighborsClassifier": "sklearn.neighbors",
    "LogisticRegression": "sklearn.linear_model",
    "RandomForestClassifier": "sklearn.ensemble",
    "SVC": "sklearn.svm",
}

# the paths of this datum's two files
params, fold = Path(os.environ["params"]), Path(os.environ["folds"])
settings = json.loads(params.read_text())
name = settings.pop("model")
model = getattr(__import__(MODULES[name], fromlist=[name]), name)(**settings)
data = np.load(fold)
model.fit(data["x"], data["y"])
guesses = model.predict(data["x_test"])

out = Path("/pfs/out") / params.stem
out.mkdir()
joblib.dump(model, out / f"{fold.stem}.joblib")
right = int((guesses == data["y_test"]).sum())
result = {"model": name, "settings": settings, "right": right, "of": len(guesses)}
(out / f"{fold.stem}.json").write_text(json.dumps(result) + "\n")
