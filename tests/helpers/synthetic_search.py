"""Synthetic evidence of a search, with known true effects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.study.design import SearchCell, SearchDesign
from ablations.engine.task.metric import error_metric
from tests.helpers import synthetic_study

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "optim.lr": {"low": 0.001, "high": 1.0, "log": True},
    "optim.schedule": {"choices": ["step", "cosine"]},
    "optim.momentum": {"low": 0.0, "high": 0.98, "log": False},
    "model.width": {"low": 8, "high": 24, "log": False},
}
"""Fields to search. Only configurations with the schedule `cosine` have `optim.momentum`."""
FACTORS = {"shortcut": ("none", "A", "B")}
EPOCHS = 9
"""Epochs of a whole training."""
BEST_LR = 0.1
"""Learning rate with the lowest error."""
DIVERGES = 0.7
"""Learning rate above which every trial diverges."""
OFFSETS = {"none": 4.0, "A": 0.0, "B": -1.0}
"""Error of a variant relative to variant A, in percentage points."""
TUNED = {"none": -2.0, "A": -0.5, "B": -0.5}
"""Change of a variant's test error by tuning, in percentage points."""


def error_of(values: Mapping[str, Any], cell: str) -> float:
    """Return a trial's error in percent: a parabola in log learning rate, 1 point for the schedule `step`, and noise."""
    noise = np.random.default_rng([int(1e6 * values["optim.lr"]), sum(map(ord, cell))]).normal(0, 0.2)
    off = 3 * math.log10(values["optim.lr"] / BEST_LR) ** 2 + (values.get("optim.schedule") == "step")
    return float(max(0.5, 6 + off + noise + OFFSETS.get(cell.rpartition("=")[2], 0)))


def draw(fields: Mapping[str, Mapping[str, Any]], random: np.random.Generator) -> dict[str, Any]:
    """Return a random configuration of the space."""
    values: dict[str, Any] = {}
    for field, dimension in fields.items():
        if "choices" in dimension:
            values[field] = dimension["choices"][random.integers(len(dimension["choices"]))]
        elif dimension["log"]:
            values[field] = float(np.exp(random.uniform(np.log(dimension["low"]), np.log(dimension["high"]))))
        elif isinstance(dimension["low"], int):
            values[field] = int(random.integers(dimension["low"], dimension["high"] + 1))
        else:
            values[field] = float(random.uniform(dimension["low"], dimension["high"]))
    if values.get("optim.schedule") == "step":
        values.pop("optim.momentum", None)
    return values


def truth(levels: Mapping[str, str], seed: int) -> float:
    """Return a test error in percent: the offset of a variant, the effect of tuning it, and noise."""
    variant, configuration = levels.get("shortcut", "A"), levels["configuration"]
    noise = np.random.default_rng([seed, sum(map(ord, variant + configuration))]).normal(0, 0.1)
    return float(8 + OFFSETS[variant] + (configuration != "default") * TUNED[variant] + noise + 0.2 * seed)


def search_evidence(
    factors: Mapping[str, Sequence[str]] = FACTORS,
    fields: Mapping[str, Mapping[str, Any]] = FIELDS,
    trials: int = 30,
    seeds: int = 5,
    *,
    over: bool = True,
    prunes: bool = True,
    objective: str | None = None,
    truth: synthetic_study.Truth = truth,
) -> Evidence:
    """Return evidence of a search: trials with high learning rates diverged, one failed, a third of the others completed.

    Args:
        factors: factors of the search. Each combination of levels is a search cell.
        fields: fields to search.
        trials: number of trials in each cell.
        seeds: number of replicates of each chosen configuration.
        over: whether the search has ended and chosen configurations. If not, the last trial of each cell is running.
        prunes: whether poor trials were pruned.
        objective: second objective, `flops` or `seconds`, for which two configurations of the Pareto front are chosen.
        truth: returns the test error of a run, in percent.
    """
    levels = ("default", *(() if not over else ("front-1", "front-2") if objective else ("tuned",)))
    baseline = {"shortcut": "A"} if "shortcut" in factors else {} if factors else {"configuration": "default"}
    made = synthetic_study.design(
        {**factors, "configuration": levels}, baseline, seeds, name="tuning", question="Does tuning change it?"
    )
    cells = [
        SearchCell(
            label=" ".join(f"{name}={level}" for name, level in cell.levels.items() if name != "configuration"),
            levels={name: level for name, level in cell.levels.items() if name != "configuration"},
            spec=cell.spec,
        )
        for cell in made.cells
        if cell.levels["configuration"] == "default"
    ]
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, int]] = {}
    for place, cell in enumerate(cells):
        random = np.random.default_rng(place)
        ended = [_trial(cell, number, draw(fields, random), prunes) for number in range(trials)]
        ended[1] |= {"outcome": "failed", "epochs": 2}
        if not over:
            ended[-1] |= {"outcome": "running", "epochs": 3}
        for row in ended:
            row["seconds"] = 2.0 * row["epochs"] * (1 + place)
            errors = [row["value"] + 8 / epoch - 8 / row["epochs"] for epoch in range(1, row["epochs"] + 1)]
            curves += [
                {"cell": cell.label, "number": row["number"], "epoch": epoch, "value": error}
                for epoch, error in enumerate(errors, 1)
            ]
        rows += ended
        completed = sorted((row for row in ended if row["outcome"] == "completed"), key=lambda row: row["value"])
        cheaper = [row for row in completed if objective and row[objective] < completed[0][objective]]
        chosen[cell.label] = dict(zip(levels[1:], (row["number"] for row in (*cheaper[:1], *completed)), strict=False))
    search = SearchDesign(
        cells=tuple(cells),
        fields=fields,
        sampler="tpe",
        scheduler="asha" if prunes else "none",
        trials=trials,
        seconds=None,
        objective=objective,
        epochs=EPOCHS,
        seed=1000,
        metric=error_metric("validation"),
        train_examples=1294,
        validation_examples=143,
        data_version="v" * 20,
        base="b" * 20,
        chosen=chosen if over else {},
    )
    found = {
        f"{label} configuration={level}".strip(): {name: value for name, value in row.items() if name in fields}
        for label, of_cell in chosen.items()
        for level, number in of_cell.items()
        for row in rows
        if (row["cell"], row["number"]) == (label, number)
    }
    tuned = tuple(replace(cell, spec={**cell.spec, **found.get(cell.label, {})}) for cell in made.cells)
    design = replace(made, search=search, cells=tuned)
    tried = pd.DataFrame(rows, columns=list(dict.fromkeys([*rows[0], *fields])))
    return replace(synthetic_study.evidence(design, truth), trials=tried, trial_curves=pd.DataFrame(curves))


def _trial(cell: SearchCell, number: int, values: Mapping[str, Any], prunes: bool) -> dict[str, Any]:
    error = error_of(values, cell.label)
    row = {"cell": cell.label, "number": number, "run_id": f"trial-{cell.label}/{number}", "outcome": "completed", "epochs": EPOCHS}
    if values["optim.lr"] > DIVERGES:
        row |= {"outcome": "diverged", "epochs": 1}
    elif prunes and error > 7 + OFFSETS.get(cell.label.rpartition("=")[2], 0):
        row |= {"outcome": "pruned", "epochs": 3}
    row |= {"value": error, "gpu_hours": 0.001 * number, "changes": "", "attempts": 1}
    return row | {"flops": 1e4 * values.get("model.width", 16) ** 2} | dict(values)
