"""`DatasetsResult`: the results of a study on several data sets."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.engine.analysis.verdicts.expectations import assess
from ablations.engine.api.result import Report, Result
from ablations.engine.report.findings_json import findings_document
from ablations.engine.report.summary.bundle import PAGE_PATH
from ablations.engine.report.summary.document import effect_frame
from ablations.engine.study.expectations import Expectation
from ablations.engine.submission.dataset_summary import StoredDatasets
from resnet_core.fields import reject

DATASET = "dataset"
"""Column with the name of the data set."""


class DatasetsResult(Result):
    """The results of a study on several data sets, as MLflow has them. `run` and `load` return it for such a study.

    The tables `runs`, `curves` and `cells` have the rows of all data sets, with a first column `dataset`.

    Attributes:
        datasets: the result on each data set, by name.
    """

    def __init__(self, given: StoredDatasets, results: Mapping[str, Result], expected: Sequence[Expectation] = ()) -> None:
        self._given, self._expected = given, expected
        self.datasets = dict(results)

    @property
    def complete(self) -> bool:
        """True if every run on every data set has a result. A run that diverged has one."""
        return self._given.findings.complete

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run: data set, factors, `seed`, `outcome`, metrics of the final epoch, costs, and conditions."""
        return self._together("runs")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per epoch of each completed run: data set, factors, `seed`, `epoch`, and the metrics of the epoch."""
        return self._together("curves")

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row per cell on each data set: factors, `mean` over seeds, the paired `difference` from the baseline, and costs."""
        return self._together("cells")

    @cached_property
    def effects(self) -> pd.DataFrame:
        """A row per effect and data set, and one with the mean over data sets, whose `dataset` is `all`."""
        return effect_frame(self._given.findings)

    @cached_property
    def findings(self) -> dict[str, Any]:
        """Everything that the summary and the reports say, as in `--json`."""
        documents = [
            findings_document(each.evidence, each.findings, assess(self._expected, each.evidence, each.findings))
            for each in self._given.stored
        ]
        return self._given.document(documents)

    @property
    def summary(self) -> dict[str, Any]:
        """Findings over all data sets: the part `summary` of `findings`."""
        found: dict[str, Any] = self.findings["summary"]
        return found

    @cached_property
    def report(self) -> Report:
        """The page of the summary with its figures. A notebook displays it."""
        with tempfile.TemporaryDirectory() as folder:
            self._given.write(Path(folder))
            return Report((Path(folder) / PAGE_PATH).read_text(encoding="utf-8"))

    def net(self, run: Any) -> Any:
        """Return the trained network of a run: a row of `runs`, or its data set, levels and seed. See `Result.net`."""
        result, rest = self._result_of(run)
        return result.net(rest)

    def checkpoint(self, run: Any) -> dict[str, Any]:
        """Return the last checkpoint of a run. `run` is as in `net`."""
        result, rest = self._result_of(run)
        return result.checkpoint(rest)

    def _result_of(self, run: Any) -> tuple[Result, dict[Any, Any]]:
        """Return the result on a run's data set, and the run without the data set."""
        wanted = dict(run) if isinstance(run, (Mapping, pd.Series)) else getattr(run, "_asdict", dict)()
        name = wanted.pop(DATASET, None)
        if name not in self.datasets:
            raise reject("run", str(run), f"accepted: with dataset, one of {', '.join(self.datasets)}")
        return self.datasets[name], wanted

    def _together(self, table: str) -> pd.DataFrame:
        frames = []
        for name, result in self.datasets.items():
            frame: pd.DataFrame = getattr(result, table).copy()
            frame.insert(0, DATASET, name)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        """Return what holds over the data sets, and what is missing."""
        found = self._given.findings
        lines = [f"{found.study} on {len(found.datasets)} data sets: {found.question}", *(each.text for each in found.effects)]
        return "\n".join([*lines, *([found.ranks.text] if found.ranks else []), *found.flags])
