"""`summary.json`: a study on several data sets as JSON for programs, also printed by `--json`.

`docs/datasets.schema.json` is its schema. `SCHEMA` changes if a key disappears or changes its meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy, EffectOverDatasets, Ranks
from ablations.engine.analysis.statistics.estimate import Estimate

SCHEMA = "ablations-datasets/1"
"""Name and version of the format."""
FILE_NAME = "summary.json"
ALL = "all"
"""Name of the mean over data sets in the column `dataset` of `effect_frame`."""


def datasets_document(
    found: DatasetsFindings, studies: Sequence[DatasetStudy], documents: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a study on several data sets as JSON values.

    Args:
        found: findings over the data sets.
        studies: the study on each data set.
        documents: their findings as JSON values.
    """
    return {
        "schema": SCHEMA,
        "study": {"name": found.study, "question": found.question},
        "complete": found.complete,
        "datasets": [
            {
                "name": each.name,
                "dataset": each.evidence.design.dataset,
                "preset": each.evidence.design.preset,
                "findings": document,
            }
            for each, document in zip(studies, documents, strict=True)
        ],
        "summary": {
            "effects": [_effect(each) for each in found.effects],
            "ranks": _ranks(found.ranks) if found.ranks else None,
            "scores": [asdict(each) for each in found.scores],
            "no_scores": found.no_scores,
            "tests": found.tests,
            "flags": list(found.flags),
        },
    }


def effect_frame(found: DatasetsFindings) -> pd.DataFrame:
    """Return a row per effect and data set, and one with the mean over data sets, whose `dataset` is `all`."""
    rows = []
    for each in found.effects:
        named = {"factor": each.factor, "level": each.level, "reference": each.reference}
        of_datasets = {name: effect.difference for name, effect in each.by_dataset.items()}
        rows += [{**named, "dataset": name, **_difference(estimate)} for name, estimate in (*of_datasets.items(), (ALL, each.mean))]
    columns = ["factor", "level", "reference", "dataset", "difference", "low", "high", "p", "p_adjusted", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(columns[4:9], float))


def _effect(effect: EffectOverDatasets) -> dict[str, Any]:
    spread, weighted = effect.heterogeneity, effect.weighted
    return {
        "factor": effect.factor,
        "level": effect.level,
        "reference": effect.reference,
        "verdict": effect.verdict,
        "text": effect.text,
        "by_dataset": [{"dataset": name, **_difference(each.difference)} for name, each in effect.by_dataset.items()],
        "mean": _difference(effect.mean),
        "prediction": effect.prediction and dict(zip(("low", "high"), effect.prediction, strict=True)),
        "heterogeneity": spread and {**asdict(spread), "pair": list(spread.pair)},
        "weighted": weighted and {"difference": weighted.mean, "low": weighted.low, "high": weighted.high},
    }


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {
        "difference": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "p": estimate.p,
        "p_adjusted": estimate.p_adjusted,
        "n": estimate.n,
    }


def _ranks(ranks: Ranks) -> dict[str, Any]:
    return {
        "mean_ranks": [{"cell": cell, "rank": rank} for cell, rank in ranks.mean_ranks.items()],
        "statistic": ranks.statistic,
        "p": ranks.p,
        "p_adjusted": ranks.p_adjusted,
        "critical_difference": ranks.critical_difference,
        "groups": [list(group) for group in ranks.groups],
        "left_out": list(ranks.left_out),
        "text": ranks.text,
    }
