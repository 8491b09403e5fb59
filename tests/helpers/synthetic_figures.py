"""Input of figures: synthetic findings that agree with synthetic evidence, and synthetic probes."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Comparison, Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from tests.helpers import synthetic_study

COSTS = ("parameters", "flops", "images_per_second", "peak_memory_mb", "seconds", "gpu_hours")
FEW = {"shortcut": ("none", "A"), "depth": ("8", "14")}
HALF = 0.5
"""Half width of every confidence interval, in percentage points."""


def found(evidence: Evidence) -> Findings:
    """Return findings with means over completed seeds and intervals of a known width. Differences above 1 point are significant."""
    runs = dict(list(evidence.runs.groupby("cell")))
    cells, comparisons = [], []
    for cell in evidence.design.cells:
        mine, planned = runs[cell.label], len(cell.fingerprints)
        estimates = {name: estimate(mine[name]) for name in ("value", "train_value")}
        costs = {name: known(mine[name].mean()) for name in COSTS}
        parts: dict[str, Any] = {"problems": {}, "reasons": (), **estimates, **costs}
        made = CellFinding(label=cell.label, levels=cell.levels, planned=planned, **parts)
        cells.append(made)
        if baseline := evidence.design.baseline_label(cell):
            difference = estimate(mine.set_index("seed")["value"] - runs[baseline].set_index("seed")["value"])
            comparisons.append(Comparison(cell=cell.label, baseline=baseline, difference=difference, planned=planned))
    return Findings(
        metric=synthetic_study.TEST_ERROR,
        cells=tuple(cells),
        comparisons=tuple(comparisons),
        effects=(),
        interactions=(),
        anova=None,
        no_anova="",
        answers=(),
        flags=(),
    )


def estimate(values: Iterable[float]) -> Estimate:
    given = [value for value in values if np.isfinite(value)]
    if len(given) < 2:
        return Estimate(n=len(given), mean=given[0] if given else None)
    mean = float(np.mean(given))
    corrected = 0.01 if abs(mean) > 1 else 0.5
    return Estimate(n=len(given), mean=mean, std=0.1, low=mean - HALF, high=mean + HALF, p=corrected, p_adjusted=corrected)


def known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def probed(evidence: Evidence, epochs: tuple[int, ...] = (1, 10)) -> Evidence:
    """Return the evidence with probes of responses and gradients that vary over layers, and of a quantity that no figure shows."""
    rows = [
        {"cell": cell.label, "seed": seed, "probe": probe, "epoch": epoch, "layer": layer, "quantity": name, "value": value}
        for i, cell in enumerate(evidence.design.cells)
        for seed in range(len(cell.fingerprints))
        for epoch in epochs
        for layer in range(int(cell.levels.get("depth", 8)))
        for probe, quantity in (("responses", "std"), ("gradients", "gradient_norm"))
        for name, value in ((quantity, (1 + i + seed + layer * 7 % 5) / epoch), ("other", 1e6))
    ]
    return Evidence(evidence.design, evidence.runs, evidence.curves, pd.DataFrame(rows))


def few(seeds: int = 3, epochs: tuple[int, ...] = (1, 10)) -> Evidence:
    return probed(synthetic_study.evidence(synthetic_study.design(FEW, seeds=seeds)), epochs)


def drawn(draw: Callable[[Evidence], Figure | None], given: Evidence) -> Figure:
    figure = draw(given)
    assert figure
    return figure


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for made in figure.legends for text in made.get_texts()]
