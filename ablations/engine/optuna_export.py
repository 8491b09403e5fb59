"""A search as Optuna's own studies, in a file that `optuna-dashboard FILE` opens.

It is a copy to look at. What a search goes on from is in MLflow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna import logging
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.engine.evidence import Evidence, SearchCell
from ablations.engine.factors import shown
from ablations.engine.search_trials import ENDED, fields_of, search_of, trials_of, whole

logging.set_verbosity(logging.WARNING)  # else it tells of every study that is made

FILE = "optuna.journal"
STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED}
"""What Optuna calls an outcome: one that diverged is worse than all that were compared with it, others that ended have failed."""


def export(evidence: Evidence, path: Path) -> None:
    """Writes the trials that have ended, a study for each cell of the search: `<study> <label>`."""
    search = search_of(evidence)
    logs = _Lines()
    storage = JournalStorage(logs)
    for cell in search.cells:
        directions = [StudyDirection.MINIMIZE] * (2 if search.against else 1)
        study = storage.create_new_study(directions, f"{evidence.design.study} {cell.label}".strip())
        for trial in frozen_trials(evidence, cell):
            storage.create_new_trial(study, trial)
    JournalFileBackend(str(path)).append_logs(logs.written)


class _Lines(BaseJournalBackend):
    """A journal in memory: written line by line, a file is locked and synced a thousand times."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.written[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.written += logs


def frozen_trials(evidence: Evidence, cell: SearchCell) -> list[FrozenTrial]:
    """A cell's trials that have ended, by number, as Optuna has them. Their times are when this was called."""
    search = search_of(evidence)
    distributions = {field: _distribution(dimension) for field, dimension in fields_of(evidence).items()}
    trials = trials_of(evidence, cell)
    curves = _curves(evidence, cell)
    return [
        _frozen(row, distributions, curves.get(row["number"], {}), search.against)
        for row in trials[trials["outcome"].isin(ENDED)].to_dict("records")
    ]


def _frozen(
    row: Mapping[Any, Any], distributions: Mapping[str, BaseDistribution], curve: dict[int, float], against: str | None
) -> FrozenTrial:
    state = STATES.get(row["outcome"], TrialState.FAIL)
    params = {field: _value(row[field]) for field in distributions if row[field] is not None}
    values = [row["error"], row[against]] if against else [row["error"]]
    return create_trial(
        state=state,
        values=list(map(float, values)) if state is TrialState.COMPLETE else None,
        params=params,
        distributions={field: distributions[field] for field in params},
        user_attrs={name: row[name] for name in ("number", "run_id", "outcome")},
        intermediate_values=curve,
    )


def _value(value: Any) -> Any:
    """Storage of Optuna holds no lists: they are texts, as on the command line."""
    return ",".join(map(shown, value)) if isinstance(value, list) else value


def _distribution(dimension: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in dimension:
        return CategoricalDistribution([_value(choice) for choice in dimension["choices"]])
    kind = IntDistribution if whole(dimension) else FloatDistribution
    return kind(dimension["low"], dimension["high"], log=dimension["log"])


def _curves(evidence: Evidence, cell: SearchCell) -> dict[Any, dict[int, float]]:
    """By number of the trial, validation error by epoch."""
    assert evidence.trial_curves is not None, "a search has curves"
    curves = evidence.trial_curves[evidence.trial_curves["cell"] == cell.label].dropna(subset="error")
    return {
        number: dict(zip(curve["epoch"].tolist(), curve["error"].tolist(), strict=True))
        for number, curve in curves.groupby("number")
    }
