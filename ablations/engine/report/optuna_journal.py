"""Export a search as Optuna studies, in a file that `optuna-dashboard FILE` opens.

The file is a copy for viewing: a resumed search reads its trials from MLflow instead.
"""

from pathlib import Path
from typing import Any

from optuna import logging
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.trial_table import search_design
from ablations.engine.analysis.tuning.optuna_trials import frozen_trials

logging.set_verbosity(logging.WARNING)  # otherwise Optuna logs every study that it creates

FILE_NAME = "optuna.journal"


def export(evidence: Evidence, path: Path) -> None:
    """Write the ended trials to an Optuna journal, with one Optuna study per cell of the search, named `<study> <label>`."""
    search = search_design(evidence)
    logs = _MemoryBackend()
    storage = JournalStorage(logs)
    for cell in search.cells:
        better = StudyDirection.MINIMIZE if search.metric.better == "lower" else StudyDirection.MAXIMIZE
        directions = [better, *([StudyDirection.MINIMIZE] if search.objective else [])]
        study = storage.create_new_study(directions, f"{evidence.design.study} {cell.label}".strip())
        for trial in frozen_trials(evidence, cell):
            storage.create_new_trial(study, trial)
    JournalFileBackend(str(path)).append_logs(logs.written)


class _MemoryBackend(BaseJournalBackend):
    """An Optuna journal in memory, to write the file once. Optuna's own backend locks and syncs the file for every line."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.written[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.written += logs
