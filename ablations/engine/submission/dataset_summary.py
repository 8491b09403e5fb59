"""Summary of a study over several data sets, computed from MLflow, with a run of its own beside the studies'.

The run is identified by the studies that it summarizes, so that another submission updates it instead of adding one.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags
from rich.console import Console

from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy
from ablations.engine.analysis.datasets.summary import analyze_datasets
from ablations.engine.environment.console import print_line
from ablations.engine.report import tables
from ablations.engine.report.findings_json import findings_document
from ablations.engine.report.mlflow_page import COMPLETED_METRIC, REPORT_PATH, update_experiment_note
from ablations.engine.report.page.files import MlflowPlace
from ablations.engine.report.summary import bundle, document, terminal
from ablations.engine.submission.reporting import StoredStudy, report_address
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.tracking.study_run import origin_tags

SUMMARY_TAG = "summary"
"""Tag of a summary's run: a hash of the studies that it summarizes."""
DATASETS_TAG = "summary.datasets"
"""Tag of a summary's run: the names of its data sets."""


@dataclass(frozen=True)
class StoredDatasets:
    """A study on several data sets, or a part of it, as MLflow has it."""

    names: tuple[str, ...]
    """Names of the data sets."""
    stored: tuple[StoredStudy, ...]
    """The study on each data set."""

    @cached_property
    def studies(self) -> list[DatasetStudy]:
        """The evidence and the findings on each data set."""
        return [DatasetStudy(name, each.evidence, each.findings) for name, each in zip(self.names, self.stored, strict=True)]

    @cached_property
    def findings(self) -> DatasetsFindings:
        """Findings over the data sets."""
        return analyze_datasets(self.studies)

    def document(self, findings: Sequence[Any] = ()) -> dict[str, Any]:
        """Return everything as JSON values.

        Args:
            findings: findings about the studies as JSON values; empty for those without expectations.
        """
        documents = findings or [findings_document(each.evidence, each.findings) for each in self.stored]
        return document.datasets_document(self.findings, self.studies, documents)

    def write(self, folder: Path, place: MlflowPlace | None = None) -> None:
        """Write the page, its figures and its tables to an empty folder, for a place in MLflow if one is given."""
        documents = [findings_document(each.evidence, each.findings) for each in self.stored]
        bundle.write(self.findings, self.studies, documents, [each.run_id for each in self.stored], folder, place)


def show_and_publish(console: Console, given: StoredDatasets) -> None:
    """Print the summary, publish its page to MLflow, and print the page's address.

    A failure to publish is printed, since no result depends on it.
    """
    console.print()
    console.print(terminal.summary_view(given.findings))
    client, parts = given.stored[0].client, list(dict.fromkeys(each.part for each in given.stored))
    part = "" if parts == [""] else "_".join(filter(None, parts))
    try:
        run_id = _publish(client, given, part)
        address = report_address(client, run_id, part=part, page=bundle.PAGE_PATH)
    except Exception as error:  # a store's own library may raise anything
        reason = describe_error(error) if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}".splitlines()[0]
        print_line(console, f"The summary could not be made or stored: {reason}")
    else:
        print_line(console, f"Summary: {address}")


def _publish(client: MlflowClient, given: StoredDatasets, part: str) -> str:
    """Store the page in the summary's run, and return the run's ID. The page of a part is stored beside that of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        experiment_id, run_id = _find_or_create(client, given)
        root = Path("parts", part) if part else Path()
        place = MlflowPlace(tracking_uri=client.tracking_uri, experiment_id=experiment_id, run_id=run_id, folder=root.as_posix())
        given.write(Path(folder), place)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            where = root / file.parent.relative_to(folder)
            client.log_artifact(run_id, str(file), None if where == Path() else where.as_posix())
    if not part:
        text = _description(given, experiment_id, run_id)
        client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, text)
        client.set_tag(run_id, DATASETS_TAG, ", ".join(given.names))
        completed = sum(cell.value.n for each in given.stored for cell in each.findings.cells)
        client.log_metric(run_id, COMPLETED_METRIC, completed)
        update_experiment_note(client, experiment_id, run_id)
        client.set_terminated(run_id, "FINISHED" if given.findings.complete else "FAILED")
    return run_id


def _find_or_create(client: MlflowClient, given: StoredDatasets) -> tuple[str, str]:
    """Return the IDs of the experiment and of the summary's run. If two processes create one at once, the first one stays."""
    studies = [client.get_run(each.run_id) for each in given.stored]
    experiment_id = str(studies[0].info.experiment_id)
    bases = sorted(run.data.tags.get("base", run.info.run_id) for run in studies)
    identity = hashlib.sha256(json.dumps(bases).encode()).hexdigest()[:12]
    where = f"tags.`{SUMMARY_TAG}` = '{identity}' and tags.study = '{given.findings.study}'"
    created = None
    if not client.search_runs([experiment_id], where, max_results=1):
        tags = {**origin_tags(), "study": given.findings.study, SUMMARY_TAG: identity, DATASETS_TAG: ", ".join(given.names)}
        name = f"{given.findings.study} · summary of {', '.join(given.names)}"
        created = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    first = client.search_runs([experiment_id], where, max_results=1, order_by=["attributes.start_time ASC"])[0].info.run_id
    if created and created != first:
        client.delete_run(created)
    return experiment_id, str(first)


def _description(given: StoredDatasets, experiment_id: str, run_id: str) -> str:
    """Return question and answers in Markdown, with links to the page and to the reports of the studies."""
    found = given.findings
    page = mlflow_internals.artifact_page(experiment_id, run_id, bundle.PAGE_PATH)
    lines = [tables.escape_markdown(found.question), ""]  # without markup: the list of experiments shows raw text
    lines += [f"- {tables.escape_markdown(each.text)}" for each in found.effects]
    lines += [f"- {tables.escape_markdown(found.ranks.text)}"] if found.ranks else []
    lines += [f"- ⚠ {tables.escape_markdown(flag)}" for flag in found.flags]
    reports = [
        f"[{tables.escape_markdown(name)}]({mlflow_internals.artifact_page(experiment_id, each.run_id, REPORT_PATH)})"
        for name, each in zip(given.names, given.stored, strict=True)
    ]
    return "\n".join([*lines, "", f"[Summary]({page}) · reports: {' · '.join(reports)}"])
