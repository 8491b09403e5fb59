"""The trials of a search as Optuna's `FrozenTrial` objects."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.trial_table import ENDED_OUTCOMES, cell_trials, is_integer_range, observed_space, search_design
from ablations.engine.study.design import SearchCell
from ablations.engine.study.factors import format_level

OPTUNA_STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
"""Optuna's state by outcome; other outcomes have the state `FAIL`. A diverged trial is worse than all trials it was compared with,
so it counts as pruned."""


def frozen_trials(evidence: Evidence, cell: SearchCell) -> list[FrozenTrial]:
    """Return the ended trials of a cell, sorted by number. Their timestamps are the time of this call."""
    search = search_design(evidence)
    distributions = {field: _distribution(dimension) for field, dimension in observed_space(evidence).items()}
    trials = cell_trials(evidence, cell)
    curves = _curves_by_number(evidence, cell)
    return [
        _frozen_trial(row, distributions, curves.get(row["number"], {}), search.objective)
        for row in trials[trials["outcome"].isin(ENDED_OUTCOMES)].to_dict("records")
    ]


def _frozen_trial(
    row: Mapping[Any, Any], distributions: Mapping[str, BaseDistribution], curve: dict[int, float], objective: str | None
) -> FrozenTrial:
    state = OPTUNA_STATES.get(row["outcome"], TrialState.FAIL)
    params = {field: _storable_value(row[field]) for field in distributions if row[field] is not None}
    values = [row["value"], row[objective]] if objective else [row["value"]]
    return create_trial(
        state=state,
        values=list(map(float, values)) if state is TrialState.COMPLETE else None,
        params=params,
        distributions={field: distributions[field] for field in params},
        user_attrs={name: row[name] for name in ("number", "run_id", "outcome")},
        intermediate_values=curve,
    )


def _storable_value(value: Any) -> Any:
    """Return a value that Optuna's storage accepts: it holds no lists, so a list becomes text as on the command line."""
    return ",".join(map(format_level, value)) if isinstance(value, list) else value


def _distribution(dimension: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in dimension:
        return CategoricalDistribution([_storable_value(choice) for choice in dimension["choices"]])
    kind = IntDistribution if is_integer_range(dimension) else FloatDistribution
    return kind(dimension["low"], dimension["high"], log=dimension["log"])


def _curves_by_number(evidence: Evidence, cell: SearchCell) -> dict[Any, dict[int, float]]:
    """Return the value of the search's metric by epoch, by the number of the trial."""
    assert evidence.trial_curves is not None, "a search has curves"
    curves = evidence.trial_curves[evidence.trial_curves["cell"] == cell.label].dropna(subset="value")
    return {
        number: dict(zip(curve["epoch"].tolist(), curve["value"].tolist(), strict=True))
        for number, curve in curves.groupby("number")
    }
