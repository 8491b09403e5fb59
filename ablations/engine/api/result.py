"""`Result`: a study's results as DataFrames, findings, report and trained networks."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.engine.analysis.verdicts.expectations import assess
from ablations.engine.environment import paths
from ablations.engine.report import bundle, data_frames
from ablations.engine.report.findings_json import findings_document
from ablations.engine.report.mlflow_page import REPORT_PATH
from ablations.engine.study.definition import Study
from ablations.engine.study.expectations import Expectation
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import checkpoint_folder
from ablations.engine.submission.reporting import StoredStudy
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import build_network
from resnet_core.config import ModelConfig
from resnet_core.fields import counted, reject
from resnet_core.training.state import evaluated_weights

REPORT_HEIGHT_PIXELS = 800
"""Height of a report in a notebook, in pixels."""


class Report:
    """A report as a web page without further files. A notebook displays it.

    Attributes:
        html: text of the page.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | Path) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """Return a frame with the page, so that its style and the notebook's do not mix."""
        page = escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {REPORT_HEIGHT_PIXELS}px; border: 0"></iframe>'


class Result:
    """The results of a study, as MLflow has them. `run` and `load` return it.

    Tables have a column per factor, with the type of the field, and the compared metric under its own name, such as `test/error`.
    """

    def __init__(self, study: Study, stored: StoredStudy, options: Options, expected: Sequence[Expectation] = ()) -> None:
        self._study, self._stored, self._options, self._expected = study, stored, options, expected

    @property
    def complete(self) -> bool:
        """True if every run has a result. A run that diverged has one."""
        return self._stored.findings.complete

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run: factors, `seed`, `outcome`, metrics of the final epoch, costs, and the conditions of the training."""
        return data_frames.run_frame(self._stored.evidence)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per epoch of each completed run: factors, `seed`, `epoch`, and the metrics of the epoch."""
        return data_frames.curve_frame(self._stored.evidence)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A row per cell: factors, `mean` over seeds with its interval, the paired `difference` from the baseline, and costs."""
        return data_frames.cell_frame(self._stored.evidence, self._stored.findings)

    @cached_property
    def findings(self) -> dict[str, Any]:
        """Everything that the report says, as in `findings.json`."""
        stored = self._stored
        assessed = assess(self._expected, stored.evidence, stored.findings)
        return findings_document(stored.evidence, stored.findings, assessed)

    @cached_property
    def report(self) -> Report:
        """The report with its figures. A notebook displays it."""
        with tempfile.TemporaryDirectory() as folder:
            bundle.write(self._stored.evidence, self._stored.findings, Path(folder))
            return Report((Path(folder) / REPORT_PATH).read_text(encoding="utf-8"))

    def net(self, run: Any) -> Any:
        """Return the trained network of a run, as a `torch.nn.Module` in evaluation mode, on the CPU.

        Args:
            run: a row of `runs`, or its levels and seed, such as `{"depth": 20, "seed": 1}`. What is left out must be unambiguous.

        Raises:
            ConfigError: no run, or several runs, are meant, or the run has no checkpoint.
        """
        if self._study.task is not None:
            raise reject("run", self._study.task.name, "a task has no network to build; accepted: checkpoint(run), its saved state")
        row = self._row(run)
        (cell,) = (cell for cell in self._stored.evidence.design.cells if row["fingerprint"] in cell.fingerprints)
        workload = self._study.workload
        spec = workload.from_flat({**cell.spec, "seed": int(row["seed"])})
        if isinstance(spec.model, ModelConfig):  # which has the sizes of the data
            net = build_network(spec.model, spec.data.image_size or 0)
        else:
            net = build_network(spec.model, **workload.load_data(spec, paths.data_cache(), download=False).sizes)
        net.load_state_dict(evaluated_weights(self.checkpoint(run)))
        return net.eval()

    def checkpoint(self, run: Any) -> dict[str, Any]:
        """Return the last checkpoint of a run, with a task what `train` yielded. `run` is as in `net`."""
        row = self._row(run)
        named = f"{_shown(row, self._factors)}"
        if not row["run_id"]:
            raise reject("run", named, "has not started; accepted: a run with a checkpoint")
        generation = int(self._stored.client.get_run(row["run_id"]).data.tags.get("generation", "1"))
        folder = CheckpointFolder(self._options.storage, checkpoint_folder(row["fingerprint"], generation))
        saved = folder.latest()
        if saved is None:
            raise reject("run", named, f"has no checkpoint in {folder.where}; accepted: storage=… with its checkpoints")
        return saved if self._study.task is None else dict(saved["state"])

    @property
    def _factors(self) -> list[str]:
        return list(self._stored.evidence.design.factors)

    def _row(self, run: Any) -> Mapping[str, Any]:
        """Return the row of `runs` that is meant."""
        wanted = dict(run) if isinstance(run, (Mapping, pd.Series)) else getattr(run, "_asdict", lambda: None)()
        if not wanted:
            raise reject("run", str(run), f"accepted: a row of runs, or levels and seed: {', '.join(self._factors)}, seed")
        if "fingerprint" in wanted:
            wanted = {"fingerprint": wanted["fingerprint"]}
        elif unknown := [name for name in wanted if name not in (*self._factors, "seed")]:
            raise reject("run", unknown[0], f"accepted: {', '.join(self._factors)}, seed")
        rows = [row for row in self.runs.to_dict("records") if all(row[name] == value for name, value in wanted.items())]
        if len(rows) != 1:
            shown = " ".join(f"{name}={value}" for name, value in wanted.items())
            raise reject("run", shown, f"{counted(len(rows), 'run')} with these values; accepted: exactly one")
        return {str(name): value for name, value in rows[0].items()}

    def __repr__(self) -> str:
        """Return the verdicts, and what is missing."""
        design = self._stored.evidence.design
        lines = [f"{design.title}: {design.question}", *(answer.text for answer in self._stored.findings.answers)]
        return "\n".join([*lines, *self._stored.findings.flags])


def _shown(row: Mapping[str, Any], factors: Sequence[str]) -> str:
    return " ".join(f"{name}={row[name]}" for name in (*factors, "seed"))
