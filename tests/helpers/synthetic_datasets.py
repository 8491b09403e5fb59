"""Synthetic studies on several data sets, with known true effects."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy
from ablations.engine.analysis.datasets.summary import analyze_datasets
from ablations.engine.analysis.study_analysis import analyze_study
from tests.helpers import synthetic_study

NAMES = ("digits", "mnist5k", "fashion5k", "cifar10", "cifar100", "svhn", "letters-of-a-long-name")
FACTORS = {"shortcut": ("A", "none", "B"), "depth": ("20", "56")}


def study_on(
    name: str, effects: Mapping[str, float], *, seeds: int = 3, noise: float = 0.3, level: float = 10.0, random: int = 0
) -> DatasetStudy:
    """Return the study on a data set.

    Args:
        name: name of the data set.
        effects: true difference in points to the cell with A at 20 layers, by level: `{"none": 3.0, "56": -0.5}`.
        seeds: number of seeds.
        noise: standard deviation of a run, in points.
        level: test error of the cell with A at 20 layers, in percent.
        random: seed of the noise.
    """
    design = replace(synthetic_study.design(FACTORS, {"shortcut": "A", "depth": "20"}, seeds=seeds), dataset=name, chance=90.0)
    drawn = np.random.default_rng([random, *map(ord, name)])
    values = {
        (cell.label, seed): level + sum(effects.get(each, 0.0) for each in cell.levels.values()) + drawn.normal(0, noise)
        for cell in design.cells
        for seed in range(seeds)
    }
    given = synthetic_study.evidence(
        design,
        truth=lambda levels, seed: float(values[" ".join(f"{key}={value}" for key, value in levels.items()), seed]),
        epochs=1,
    )
    return DatasetStudy(name, given, analyze_study(given))


def studies(
    count: int, effect: float = 3.0, spread: float = 0.0, *, seeds: int = 3, noise: float = 0.3, random: int = 0
) -> list[DatasetStudy]:
    """Return studies on the first data sets of `NAMES`, with an effect of `none` that varies between them by `spread`."""
    drawn = np.random.default_rng([random, 1])
    return [
        study_on(
            name, {"none": effect + spread * drawn.normal(), "56": 0.3}, seeds=seeds, noise=noise, level=2.0 + 5 * i, random=random
        )
        for i, name in enumerate(NAMES[:count])
    ]


def found(given: Sequence[DatasetStudy]) -> DatasetsFindings:
    return analyze_datasets(given)
