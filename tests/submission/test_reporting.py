"""From MLflow to the report: design and results are read back from a real database."""

import dataclasses
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.cli.study import main
from ablations.engine.environment import provenance
from ablations.engine.environment.console import make_console
from ablations.engine.environment.provenance import submission_origin
from ablations.engine.report import bundle, mlflow_page, updates
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission import reporting
from ablations.engine.tracking import mlflow_internals, results, run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.run_queries import WHOLE
from benchmarks.report import database
from resnet_core import ConfigError, RunSpec
from tests.helpers.synthetic_study import design

EPOCHS = 4
STUDY = Study(
    name="reported",
    question="Is <b>it</b> read back?",
    factors={"shortcut": ("none", "A"), "depth": (8, 14)},
    baseline={"shortcut": "A"},
    preset="smoke",
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(STUDY, StudyRequest(), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def asked(plan: Plan) -> Design:
    return Design.from_plan(plan, {"command": "python reported.py"})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, plan: Plan, asked: Design) -> MlflowClient:
    home = tmp_path_factory.mktemp("mlflow")
    client = connect(f"sqlite:///{home}/mlflow.db")
    database.fill(client, asked, plan.shared_fields(), EPOCHS, artifacts=home / "artifacts")
    return client


@pytest.fixture(scope="module")
def gathered(client: MlflowClient, asked: Design) -> Evidence:
    return results.gather(client, asked)


def study_run(client: MlflowClient) -> str:
    return run_queries.find_design(client, "reported", "smoke", {})[0]


def report_of(client: MlflowClient, folder: Path) -> str:
    return Path(client.download_artifacts(study_run(client), mlflow_page.REPORT_PATH, str(folder))).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_design_comes_back_as_it_was(client: MlflowClient, asked: Design) -> None:
    assert run_queries.find_design(client, "reported", "smoke", {})[1] == asked


def test_every_epoch_of_every_run_comes_back(client: MlflowClient, gathered: Evidence, asked: Design) -> None:
    assert len(gathered.runs) == 12
    assert len(gathered.curves) == 12 * EPOCHS
    row = gathered.runs.iloc[5]
    history = {m.step: m.value for m in client.get_metric_history(row["run_id"], "test/error")}
    curve = gathered.curves[(gathered.curves["cell"] == row["cell"]) & (gathered.curves["seed"] == row["seed"])]
    assert dict(zip(curve["epoch"], curve["value"], strict=True)) == history
    assert row["value"] == history[EPOCHS]
    assert (row["device"], row["torch"], row["precision"], row["world_size"]) == ("CPU", "2.14.1", "fp32", "1")


def test_reading_asks_for_many_runs_at_a_time(client: MlflowClient, asked: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    read = mlflow_internals._read_from_database

    def count(uri: str, run_ids: list[str], metrics: list[str]) -> object:
        batches.append(len(run_ids))
        return read(uri, run_ids, metrics)

    monkeypatch.setattr(mlflow_internals, "_read_from_database", count)
    monkeypatch.setattr(mlflow_internals, "MAX_RUNS_PER_REQUEST", 5)
    assert len(results.gather(client, asked).curves) == 12 * EPOCHS
    assert batches == [5, 5, 2]


def test_runs_that_are_not_there_are_missing_and_other_sources_do_not_lose_a_run(client: MlflowClient, asked: Design) -> None:
    first = asked.cells[0]
    more = dataclasses.replace(first, fingerprints=(*first.fingerprints, "0" * 20))
    runs = results.gather(client, dataclasses.replace(asked, cells=(more,))).runs
    assert list(runs["outcome"]) == ["completed"] * 3 + ["missing"]
    assert math.isnan(runs["value"].iloc[3])
    other = results.gather(client, dataclasses.replace(asked, code_version="other"))
    assert set(other.runs["outcome"]) == {"completed"}


def test_a_design_of_before_there_were_training_versions_is_read(asked: Design) -> None:
    values = json.loads(asked.to_json())
    del values["training_version"]
    assert Design.from_json(json.dumps(values)) == dataclasses.replace(asked, training_version="")
    assert run_queries.training_version_filter("", "c" * 20) == f"tags.code_version = '{'c' * 20}'"


def test_an_unknown_study_and_other_settings_are_refused(client: MlflowClient) -> None:
    for name, preset, shared in (("nothing", "smoke", {}), ("reported", "digits", {}), ("reported", "smoke", {"optim.lr": 7})):
        with pytest.raises(ConfigError, match="--report: MLflow has no study"):
            run_queries.find_design(client, name, preset, shared)


def test_a_whole_study_has_no_shared_settings_but_those_asked_for(client: MlflowClient, plan: Plan) -> None:
    assert run_queries.find_design(client, "reported", "smoke", plan.shared_fields(), whole=True)
    # One setting is not asked for; another one is, but the study was recorded before there was such a field.
    shared = {name: value for name, value in plan.shared_fields().items() if name != "optim.lr"}
    with pytest.raises(ConfigError, match="--report: MLflow has no study"):
        run_queries.find_design(client, "reported", "smoke", {**shared, "model.depth": RunSpec().flat()["model.depth"]}, whole=True)


def test_a_report_is_narrowed_to_levels_and_seeds() -> None:
    whole = design()
    narrow = whole.restricted_to({"shortcut": ("A", "B")}, 2)
    assert {cell.levels["shortcut"] for cell in narrow.cells} == {"A", "B"}
    assert narrow.factors == {"shortcut": ("A", "B"), "depth": ("20", "56")}
    assert {len(cell.fingerprints) for cell in narrow.cells} == {2}
    with pytest.raises(ConfigError, match=r"--levels: .* accepted: depth=20,56"):
        whole.restricted_to({"depth": ("110",)}, None)


@pytest.mark.slow
def test_report_tables_and_figures_become_artifacts(
    client: MlflowClient, asked: Design, gathered: Evidence, tmp_path: Path
) -> None:
    bundle.publish(client, study_run(client), gathered, analyze_study(gathered))
    files = {file.path for folder in ("", "report", "figures") for file in client.list_artifacts(study_run(client), folder)}
    assert {"report/report.html", "table.csv", "table.md", "table.tex", "design.json"} < files
    assert {f"figures/{name}.{suffix}" for name in ("curves", "differences", "depth") for suffix in ("png", "svg")} < files
    assert "Is &lt;b&gt;it&lt;/b&gt; read back?" in report_of(client, tmp_path)


def test_mlflows_pages_have_the_answer_the_report_and_a_view_of_cells(
    client: MlflowClient, gathered: Evidence, tmp_path: Path
) -> None:
    findings, run_id = analyze_study(gathered), study_run(client)
    mlflow_page.write_overview(client, run_id, gathered, findings)
    run = client.get_run(run_id)
    cell = findings.cells[0]
    assert run.data.metrics["completed_runs"] == 12
    note = run.data.tags["mlflow.note.content"]
    assert r"Is \<b\>it\</b\> read back?" in note
    assert f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/report/report.html" in note
    assert f"{cell.value.mean:.2f} ± {cell.value.std:.2f}" in note
    assert f"runs?viewStateShareKey={run_id}&compareRunsMode=CHART" in note
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[f"mlflow.sharedViewState.{run_id}"])
    shown = client.search_runs([run.info.experiment_id], view["searchFilter"])
    assert len(shown) == 12
    assert {chart["metricKey"] for chart in view["compareRunCharts"]} < shown[0].data.metrics.keys()
    (group,) = view["groupBy"]["groupByKeys"]
    assert {run.data.tags[group["groupByData"]] for run in shown} == {"none·8", "none·14", "A·8", "A·14"}
    image = re.search(r"get-artifact\?path=(\S+?)&run_uuid=", note)
    assert image
    assert Path(client.download_artifacts(run_id, unquote(image[1]), str(tmp_path))).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def as_study(monkeypatch: pytest.MonkeyPatch, client: MlflowClient) -> list[str]:
    arguments = ["reported.py", "--report", "--tracking-uri", client.tracking_uri]
    monkeypatch.setattr(sys, "argv", arguments)
    return arguments


@pytest.mark.versions
@pytest.mark.usefixtures("few_figures")
@pytest.mark.slow
def test_a_report_is_made_again_without_data_or_code(
    as_study: list[str], client: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ablations.engine.task.image_classification.load_dataset", lambda *_, **__: pytest.fail("looked for the data")
    )
    with pytest.raises(SystemExit) as exited:
        main(STUDY)
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    (address,) = re.findall(r"Report: (\S+)", printed)
    whole = Path(address).read_text(encoding="utf-8")
    assert "<title>" in whole
    as_study += ["--levels", "shortcut=A", "--seeds", "2"]
    with pytest.raises(SystemExit):
        main(STUDY)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["A"], ["none"])] == [["A", "8"], ["A", "14"]]
    (other,) = re.findall(r"Report: (\S+)", printed)
    assert other.endswith("/parts/shortcut=A_seeds=2/report/report.html")
    assert "a part of what was submitted: shortcut=A seeds=2" in Path(other).read_text(encoding="utf-8")
    assert Path(address).read_text(encoding="utf-8") == whole, "the report of the study is of the whole study"
    as_study += ["--set", "lr=9"]
    with pytest.raises(SystemExit) as exited:
        main(STUDY)
    assert exited.value.code == 2


def test_a_database_that_is_not_there_is_not_made(as_study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_study[-1] = f"sqlite:///{tmp_path / 'typing-error.db'}"
    with pytest.raises(SystemExit) as exited:
        main(STUDY)
    assert exited.value.code == 2
    assert "the database does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_a_report_that_cannot_be_stored_is_told_and_made_by_the_next_submission(
    client: MlflowClient, gathered: Evidence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings, run_id = analyze_study(gathered), study_run(client)
    client.set_tag(run_id, "report", "5 of 12 runs")
    with monkeypatch.context() as broken:
        broken.setattr(client, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        reporting.publish_report(make_console(), client, run_id, gathered, findings)
    printed = capsys.readouterr().out
    assert "The report could not be made or stored: OSError: the disk is full" in printed
    assert "Report:" not in printed
    assert client.get_run(run_id).data.tags["report"] == "5 of 12 runs"
    reporting.publish_report(make_console(), client, run_id, gathered, findings)
    assert client.get_run(run_id).data.tags["report"] == WHOLE


def test_reports_take_their_share_of_the_drivers_time_and_no_more() -> None:
    assert updates.seconds_until_next_report(0.1) == 60
    assert updates.seconds_until_next_report(20) == pytest.approx(1000)


@pytest.mark.slow
def test_while_a_study_runs_its_report_follows_and_survives_what_goes_wrong(
    client: MlflowClient, asked: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    ended = 0

    def publish(*_: object, progress: str, **__: object) -> None:
        made.append(progress)
        if len(made) == 1:
            raise OSError("the disk is full")

    monkeypatch.setattr(updates, "UPDATE_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(updates, "MAX_TIME_SHARE", 1e6)
    monkeypatch.setattr(bundle, "publish", publish)
    with updates.ReportUpdater(client, study_run(client), asked, lambda: (ended, f"{ended} of 12 runs")) as refresher:
        time.sleep(0.5)
        assert not made, "no run had ended"
        ended = 5
        deadline = time.monotonic() + 20
        while len(made) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        assert made == ["5 of 12 runs"] * 2, "one that failed and one that came; then nothing had changed"
    assert not refresher._thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("making", [pytest.param("figures", marks=pytest.mark.nightly), "last step"])
@pytest.mark.usefixtures("few_figures")
def test_a_report_that_is_being_made_when_its_study_is_stopped_does_not_overwrite_a_later_one(
    client: MlflowClient, asked: Design, gathered: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, making: str
) -> None:
    reached, go_on, run_id = threading.Event(), threading.Event(), study_run(client)
    module, name = (bundle, "write") if making == "figures" else (mlflow_page, "write_overview")
    slow: Callable[..., None] = getattr(module, name)

    def standing(*arguments: Any, **named: Any) -> None:
        if threading.current_thread().name == "report":
            reached.set()
            go_on.wait(60)
        slow(*arguments, **named)

    monkeypatch.setattr(module, name, standing)
    monkeypatch.setattr(updates, "UPDATE_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(updates, "INTERRUPTED_TIMEOUT_SECONDS", 0.05)
    refresher = updates.ReportUpdater(client, run_id, asked, lambda: (5, "5 of 12 runs"))
    with pytest.raises(KeyboardInterrupt), refresher:  # noqa: PT012
        assert reached.wait(60)
        raise KeyboardInterrupt
    assert refresher.busy, "who stops a study does not wait"
    bundle.publish(client, run_id, gathered, analyze_study(gathered))  # by the next submission
    go_on.set()
    refresher._thread.join(60)
    assert not refresher._thread.is_alive()
    assert client.get_run(run_id).data.tags["report"] == WHOLE
    assert "5 of 12 runs" not in report_of(client, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("few_figures")
def test_a_page_of_a_running_study_says_so(client: MlflowClient, gathered: Evidence, tmp_path: Path) -> None:
    bundle.publish(client, study_run(client), gathered, analyze_study(gathered), progress="5 of 12 runs")
    assert "5 of 12 runs" in report_of(client, tmp_path)


def test_an_origin_names_command_commit_and_versions_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--tracking-uri", "http://me:secret@host"])
    found = submission_origin()
    assert found["command"] == "python x.py --tracking-uri http://host"
    assert re.fullmatch("[0-9a-f]{40}|unknown", found["git.commit"])
    assert {"python", "ray", "mlflow", "torch", "platform", "submitted"} < found.keys()


def test_local_changes_are_kept_without_what_looks_like_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"diff": "+password = 'hunter2'\n+API_KEY: abc\n+url = http://me:p@ss@host/x\n+depth = 20"}
    top = str(Path(provenance.__file__).resolve().parents[3])
    monkeypatch.setattr(provenance, "_git", lambda *words: answers.get(words[0], top))
    assert provenance._local_changes().splitlines() == ["+password = …", "+API_KEY: …", "+url = http://host/x", "+depth = 20"]
    top = "/another/project"
    assert provenance._local_changes() == ""
