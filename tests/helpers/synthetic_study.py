"""Synthetic evidence of a study, with known true effects."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.analysis.evidence import CONDITION_COLUMNS, COST_METRICS, Evidence
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.study.design import Design, DesignCell
from ablations.engine.study.designs import FACTORIAL, combinations
from ablations.engine.task.metric import error_metric
from resnet_core import preset

TEST_ERROR = error_metric("test")
FORMATS = ValueFormat(TEST_ERROR)
"""Formats of errors in percent."""
FACTORS = {"shortcut": ("none", "A", "B"), "depth": ("20", "56")}
Truth = Callable[[Mapping[str, str], int], float]


def design(
    factors: Mapping[str, Sequence[str]] = FACTORS,
    baseline: Mapping[str, str] | None = None,
    seeds: int = 3,
    name: str = "shortcuts",
    question: str = "Which shortcut helps, and by how much?",
    spec: Mapping[str, Any] | None = None,
    kind: str = FACTORIAL,
) -> Design:
    """Return the design of a study on digits. The levels of `depth` and `shortcut` are also set in the specs of the cells."""
    cells = []
    if kind != FACTORIAL:
        baseline = {name: levels[0] for name, levels in factors.items()} | dict(baseline or {})
    for levels in combinations(kind, factors, baseline or {}):
        named = dict(zip(factors, map(str, levels), strict=True))
        label = " ".join(f"{factor}={level}" for factor, level in named.items())
        flat = {key: value for key, value in preset("digits").flat().items() if key != "seed"} | dict(spec or {})
        flat = json.loads(json.dumps(flat))
        flat |= {"model.depth": int(named.get("depth", 20)), "model.shortcut": named.get("shortcut", "A")}
        fingerprints = tuple(f"{label}/{seed}" for seed in range(seeds))
        of_data: dict[str, Any] = {"data_version": "d" * 20, "train_examples": 1437}
        cells.append(DesignCell(label=label, levels=named, spec=flat, fingerprints=fingerprints, **of_data))
    return Design(
        study=name,
        question=question,
        preset="digits",
        dataset="digits",
        code_version="c" * 20,
        training_version="1",
        metric=TEST_ERROR,
        factors={factor: tuple(levels) for factor, levels in factors.items()},
        baseline={"shortcut": "A"} if baseline is None and "shortcut" in factors else dict(baseline or {}),
        cells=tuple(cells),
        skipped=(),
        kind=kind,
        origin={"command": "python ablations/shortcuts.py", "git.commit": "a" * 40, "torch": "2.14.1"},
    )


def rising(levels: Mapping[str, str], seed: int) -> float:
    """Return a test error in percent: it rises with depth in plain networks, and falls slightly in residual ones."""
    depth = int(levels.get("depth", 20))
    plain = levels.get("shortcut") == "none"
    noise = np.random.default_rng([seed, depth, sum(map(ord, str(levels.get("shortcut"))))]).normal(0, 0.3)
    return float(8 + (depth - 20) / (4 if plain else -40) + noise + 0.2 * seed)


def evidence(made: Design | None = None, truth: Truth = rising, epochs: int = 10) -> Evidence:
    """Return evidence in which every run has completed. `truth` returns the final error of a run, in percent."""
    made = made or design()
    runs, curves = [], []
    for cell in made.cells:
        depth = int(cell.levels.get("depth", 20))
        for seed, fingerprint in enumerate(cell.fingerprints):
            error = truth(cell.levels, seed)
            row: dict[str, Any] = {"cell": cell.label, "seed": seed, "fingerprint": fingerprint, "run_id": f"run-{fingerprint}"}
            row |= {"outcome": "completed", "message": "", "attempts": 1, "value": error, "train_value": error / 2}
            row |= {"parameters": 14_000 * depth, "flops": 130_000 * depth, "images_per_second": 40_000 / depth}
            row |= {"peak_memory_mb": 100.0 + depth, "seconds": 0.4 * depth + 0.01 * seed, "gpu_hours": 0.0}
            row |= dict.fromkeys(CONDITION_COLUMNS, "") | {"code_version": made.code_version, "data_version": cell.data_version}
            row |= {"world_size": "1", "precision": "fp32", "device": "AMD EPYC", "torch": "2.14.1", "python": "3.11.7"}
            row |= {"git.commit": "a" * 40, "git.dirty": "false"}
            runs.append(row)
            for epoch in range(1, epochs + 1):
                still = (90 - error) * (epochs - epoch) / epochs
                values = {"train_value": error / 2 + still, "value": error + still, "epoch_seconds": row["seconds"] / epochs}
                curves.append({"cell": cell.label, "seed": seed, "epoch": epoch, **values})
    assert set(COST_METRICS) < set(runs[0])
    return Evidence(made, pd.DataFrame(runs), pd.DataFrame(curves), pd.DataFrame(columns=["probe"]))


def without(given: Evidence, fingerprint: str, outcome: str = "missing", message: str = "") -> Evidence:
    """Return a copy of the evidence in which one run has no result."""
    runs = given.runs.copy()
    numbers = [*COST_METRICS, "value", "train_value"]
    runs[numbers] = runs[numbers].astype(float)
    runs.loc[runs["fingerprint"] == fingerprint, numbers] = np.nan
    runs.loc[runs["fingerprint"] == fingerprint, ["outcome", "message"]] = outcome, message
    row = given.runs[given.runs["fingerprint"] == fingerprint].iloc[0]
    gone = (given.curves["cell"] == row["cell"]) & (given.curves["seed"] == row["seed"])
    return Evidence(given.design, runs, given.curves[~gone], given.probes)
