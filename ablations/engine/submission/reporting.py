"""Report of a study, computed from MLflow alone: at its end, and on demand."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.environment.console import make_console, print_line
from ablations.engine.environment.provenance import resubmit_command
from ablations.engine.report import terminal
from ablations.engine.report.bundle import publish
from ablations.engine.report.mlflow_page import REPORT_PATH
from ablations.engine.study.design import Design
from ablations.engine.study.factors import format_level
from ablations.engine.study.plan import Draft, Plan
from ablations.engine.study.request import Options, Rates
from ablations.engine.tracking import looks, mlflow_internals, results, run_queries
from ablations.engine.tracking.connection import connect, is_new_database, mlflow_errors_as_config_errors
from ablations.engine.tracking.lease import LeaseLost
from ablations.engine.tracking.mlflow_errors import describe_error
from ablations.engine.tracking.relocation import artifact_file
from resnet_core.fields import counted, printable, reject


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study, or a part of it, as MLflow has it."""

    client: MlflowClient
    run_id: str
    """ID of the study's own run."""
    evidence: Evidence
    findings: Findings
    part: str
    """Name of the part for its folder in MLflow; empty for the whole study."""


def read_study(study: Draft | Plan, options: Options, *, details: bool = True) -> StoredStudy:
    """Return what MLflow has of a study that was submitted, or of the requested levels and seeds of it.

    Args:
        study: the study, which need not be resolved.
        options: levels and seeds to keep, and the address of MLflow.
        details: read curves and probes as well.

    Raises:
        ConfigError: MLflow does not answer, or has no such study.
    """
    if is_new_database(options.tracking_uri):
        raise reject("--tracking-uri", options.tracking_uri, "the database does not exist")
    client = connect(options.tracking_uri)
    schema, requested = study.study.workload.schema, options.request.levels
    asked = {schema.field_name(name) for name in requested if name not in study.grid.compound}
    levels = {
        name: tuple(map(format_level, of_factor))
        for name, of_factor in study.factors.items()
        if name in requested or not asked.isdisjoint(study.grid.fields_of(name, schema))
    }
    with mlflow_errors_as_config_errors(options.tracking_uri):
        run_id, whole = run_queries.find_design(
            client,
            study.study.name,
            study.preset,
            study.shared_fields(),
            kind=study.grid.kind,
            defaults=study.study.workload.schema.default.flat(),
            whole=bool(study.searched),
        )
        seeds, path = _seeds_of_part(whole, options.request.seeds), None
        if whole.seed_looks:  # its path is that of the whole study, as submitted
            followed = results.gather(client, whole, run_id, details=False)
            whole, path = followed.design, followed.path
        if options.request.margin is not None:
            whole = replace(whole, margin=options.request.margin)
        if options.request.rates != Rates():
            whole = replace(whole, rates=options.request.rates)
        asked_for = whole.restricted_to(levels, seeds)
        evidence = results.gather(client, asked_for, run_id, details=details, part=True)
    if asked_for == whole:
        evidence = replace(evidence, path=path)
    findings, part = analyze_study(evidence), ""
    if asked_for != whole:
        chosen = {name: ",".join(of_factor) for name, of_factor in evidence.design.factors.items() if name in levels}
        part = " ".join([*(f"{name}={texts}" for name, texts in chosen.items()), f"seeds={evidence.design.seeds}"])
        flag = f"a part of what was submitted: {part}; p-values are adjusted for the tests of this part only"
        findings = replace(findings, flags=(flag, *findings.flags))
        part = re.sub(r"[^\w.,=+-]+", "_", part)
    return StoredStudy(client=client, run_id=run_id, evidence=evidence, findings=findings, part=part)


def _seeds_of_part(whole: Design, seeds: int | tuple[int, ...] | None) -> int | None:
    """Return the number of seeds of the requested part; None for all. Raise ConfigError for looks that MLflow does not have."""
    if not isinstance(seeds, tuple):
        return seeds
    if seeds != whole.seed_looks:
        known = f"looks at {', '.join(map(str, whole.seed_looks))}" if whole.seed_looks else f"{whole.seeds} seeds in every cell"
        raise reject("--seeds", ",".join(map(str, seeds)), f"MLflow has {known}; accepted: these, or one number")
    return None


def rebuild_report(stored: StoredStudy) -> int:
    """Rebuild the report of a study, or of a part of it, from MLflow alone; return the exit code."""
    console = make_console()
    terminal.show_results(console, stored.evidence, stored.findings, resubmit_command())
    record_look_at(stored, console)
    publish_report(console, stored.client, stored.run_id, stored.evidence, stored.findings, part=stored.part)
    return 0 if stored.findings.complete else 1


def record_look_at(stored: StoredStudy, console: Console) -> None:
    """Record a look at a stored study that was shown. A part of a study is no look."""
    if not stored.part:
        record_look(console, stored.client, stored.run_id, stored.evidence, stored.findings)


def record_look(console: Console, client: MlflowClient, run_id: str, evidence: Evidence, findings: Findings) -> None:
    """Record that the answer to a whole study was shown, if it is complete. A failure is printed, since no result depends on it."""
    if not findings.complete:
        return
    try:
        looks.record_look(client, run_id, evidence)
    except Exception as error:  # a store's own library may raise anything
        print_line(console, f"This look at the study cannot be recorded in MLflow: {describe_error(error)}")


def publish_report(
    console: Console,
    client: MlflowClient,
    run_id: str,
    evidence: Evidence,
    findings: Findings,
    *,
    part: str = "",
    permit: Callable[[], object] = lambda: None,
) -> None:
    """Publish a report and print its address. Failures are printed, since no result depends on the report.

    Raises:
        LeaseLost: another process has taken the study over, as `permit` found.
    """
    try:
        publish(client, run_id, evidence, findings, part=part, permit=permit)
    except LeaseLost:
        raise
    except Exception as error:  # a store's own library may raise anything
        reason = describe_error(error) if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}".splitlines()[0]
        print_line(console, f"The report could not be made or stored: {reason}")
    else:
        print_report_address(console, client, run_id, part=part)


def describe_findings(findings: Findings) -> str:
    """Return how many runs have a result, and the answers, as one line."""
    planned, without = (sum(getattr(cell, name) for cell in findings.cells) for name in ("planned", "without_result"))
    have = "has a result" if planned == 1 else "have a result"
    return " ".join([f"{planned - without} of {counted(planned, 'run')} {have}.", *(answer.text for answer in findings.answers)])


def print_report_address(console: Console, client: MlflowClient, run_id: str, *, part: str = "") -> None:
    """Print the address of a report."""
    try:
        print_line(console, f"Report: {report_address(client, run_id, part=part)}")
    except MlflowException as error:
        print_line(console, f"The address of the report is not known: {describe_error(error)}")


def report_address(client: MlflowClient, run_id: str, *, part: str = "", page: str = REPORT_PATH) -> str:
    """Return the address at which a user opens a report, or another page of a run: of a web page, or of a file."""
    page = f"parts/{part}/{page}" if part else page
    run = client.get_run(run_id).info
    if client.tracking_uri.startswith("http"):
        where = printable(client.tracking_uri)
        return mlflow_internals.web_address(where, mlflow_internals.artifact_page(run.experiment_id, run_id, page))
    where = f"{run.artifact_uri}/{page}"
    if where.startswith(mlflow_internals.PROXIED) and (file := artifact_file(where)):
        where = file.as_uri()
    path = unquote(where.removeprefix("file://"))
    # Terminals make no link of a path with a space, and an escaped path does not exist; a file:// address works in both respects.
    return where if path != where.removeprefix("file://") else path
