"""Deleting experiments and runs in MLflow, before or during a study: one message says how to continue, and no result is lost."""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from mlflow import MlflowClient

from ablations.engine.cli import options
from ablations.engine.study import request
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft, make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission import model_logging, reporting, study_submission
from ablations.engine.submission.planning import preview
from ablations.engine.tracking import lease, results, run_queries, writer
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.mlflow_errors import DeletedInMlflow, describe_error
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import ConfigError, build_model
from tests.helpers.training_runs import paper_network

pytestmark = pytest.mark.usefixtures("few_figures")

METRICS = {"train/loss": 2.0, "train/error": 50.0, "test/loss": 2.5, "test/error": 60.0, "epoch_seconds": 1.0}
LAST = {**METRICS, "parameters": 100.0, "flops": 200.0, "train_seconds": 2.0}
EPOCHS = 80


@pytest.fixture(autouse=True)
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
    monkeypatch.setattr(writer, "RETRY_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "CHECK_INTERVAL_SECONDS", 0.0)
    return home


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return connect(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def plan(home: Path, request: pytest.FixtureRequest) -> Plan:
    name = f"deleted-{crc32(request.node.name.encode())}"
    study = Study(name=name, question="?", factors={"shortcut": ("A",)}, baseline={}, seeds=1, preset="smoke")
    return make_plan(study, StudyRequest(), cache=home)


class Submission(Tracker):
    """A tracker with its own journal and writer."""

    def __init__(self, client: MlflowClient, plan: Plan) -> None:
        self.journal = Journal(client.tracking_uri, plan.study.name, plan.base_id)
        writer = Writer(client, self.journal)
        writer.flush(10)
        super().__init__(client, writer, plan, run_queries.find_plan_runs(client, plan))

    def train(self, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            self.epoch(self.plan.runs[0], epoch, LAST if epoch == EPOCHS else METRICS, {"device": "cpu"})

    def end(self) -> int:
        waiting = self.writer.close(10)
        self.study_run.lease.stop_renewing()
        self.journal.__exit__(None, None, None)
        return waiting


@pytest.fixture
def trained(client: MlflowClient, plan: Plan) -> Plan:
    """A finished study."""
    submission = Submission(client, plan)
    submission.started(plan.runs[0])
    submission.train(1, EPOCHS)
    submission.ended(plan.runs[0], "completed")
    assert submission.writer.flush(30) == 0
    submission.study_run.close("FINISHED")
    assert submission.end() == 0
    return plan


def shell(command: str) -> None:
    """Run a command that a message suggests."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def said_between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


def parsed(plan: Plan, client: MlflowClient, *more: str) -> request.Options:
    return options.parse_options(plan.study, ["--tracking-uri", client.tracking_uri, *more])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["restore", pytest.param("remove", marks=pytest.mark.nightly)])
def test_a_study_whose_experiment_was_deleted_is_refused_with_the_commands_that_go_on(
    client: MlflowClient, trained: Plan, capsys: pytest.CaptureFixture[str], home: Path, way: str
) -> None:
    (experiment,) = client.search_experiments(filter_string=f"name = '{trained.study.name}'")
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match=f"^the experiment {trained.study.name} was deleted in MLflow; restore it: ") as refused:
        study_submission.run_study(trained, parsed(trained, client))
    said = str(refused.value)
    assert "\n" not in said
    assert not list(home.glob("journals/*.hold"))
    with pytest.raises(ConfigError, match="was deleted in MLflow; restore it: "):
        reporting.read_study(make_draft(trained.study, StudyRequest()), parsed(trained, client, "--report"))
    assert preview.preview(trained, parsed(trained, client, "--plan", "--no-calibrate")) == 0
    assert said in capsys.readouterr().out
    restore, remove = said_between(said, "restore it: ", "; or delete"), said.rpartition("starts a new one: ")[2]
    assert shlex.quote(client.tracking_uri) in restore
    shell(restore if way == "restore" else remove)
    found = run_queries.find_plan_runs(client, trained)
    assert [entry.has_result for entry in found.values()] == ([True] if way == "restore" else [])
    if way == "restore":
        assert study_submission.run_study(trained, parsed(trained, client)) == 0
    else:
        assert client.get_experiment_by_name(trained.study.name) is None


Delete = Callable[[MlflowClient, Submission], Callable[[], object]]


def the_experiment(client: MlflowClient, submission: Submission) -> Callable[[], object]:
    client.delete_experiment(submission.study_run.experiment_id)
    return lambda: client.restore_experiment(submission.study_run.experiment_id)


def the_run(client: MlflowClient, submission: Submission) -> Callable[[], object]:
    (entry,) = run_queries.find_plan_runs(client, submission.plan).values()
    client.delete_run(entry.run_id)
    return lambda: client.restore_run(entry.run_id)


def the_studys_run(client: MlflowClient, submission: Submission) -> Callable[[], object]:
    client.delete_run(submission.study_run.run_id)
    return lambda: client.restore_run(submission.study_run.run_id)


@pytest.fixture
def begun(client: MlflowClient, plan: Plan) -> Iterator[Submission]:
    submission = Submission(client, plan)
    submission.started(plan.runs[0])
    submission.train(1, 2)
    assert submission.writer.flush(30) == 0
    yield submission
    submission.study_run.lease.stop_renewing()


@pytest.mark.slow
@pytest.mark.parametrize("delete", [the_experiment, the_run, the_studys_run])
def test_what_is_deleted_amid_a_study_is_told_once_and_its_records_wait_until_it_is_restored(
    client: MlflowClient, plan: Plan, begun: Submission, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    restore = delete(client, begun)
    for epoch in range(3, EPOCHS + 1):
        begun.train(epoch, epoch)
        if epoch in (3, 40):
            begun.writer.flush(0.5, max_seconds=0.5)
    begun.ended(plan.runs[0], "completed")
    assert begun.writer.flush(60) == EPOCHS - 1, "nobody waits for what is deleted"
    (warning,) = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert "deleted in MLflow; restore it: MLFLOW_TRACKING_URI=sqlite:///" in warning
    assert "Training goes on" in warning
    assert begun.writer.deletion_messages()[0] in warning
    restore()
    deadline = time.monotonic() + 180
    while begun.writer.pending_fingerprints():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert begun.end() == 0
    assert caplog.records[-1].message == "MLflow accepts records again"
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert (entry.status, entry.outcome) == ("FINISHED", "completed")
    assert [m.step for m in client.get_metric_history(entry.run_id, "test/error")] == list(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_a_deleted_run_that_nobody_restores_is_logged_anew_by_the_next_submission(
    client: MlflowClient, plan: Plan, begun: Submission
) -> None:
    the_run(client, begun)
    begun.train(3, 4)
    assert begun.end() == 2
    again = Submission(client, plan)
    assert not run_queries.find_plan_runs(client, plan)
    again.started(plan.runs[0])
    again.train(1, EPOCHS)  # what its checkpoint knows is reported again
    again.ended(plan.runs[0], "completed")
    assert again.end() == 0
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert [m.step for m in client.get_metric_history(entry.run_id, "test/error")] == list(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_a_study_that_is_done_ends_as_done_though_its_own_run_is_deleted_at_the_last_moment(
    client: MlflowClient, trained: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = results.gather

    def deleting(client: MlflowClient, *arguments: Any, **named: Any) -> Any:
        (parent,) = client.search_runs(["1"], "tags.base != ''")
        client.delete_run(parent.info.run_id)
        return gather(client, *arguments, **named)

    monkeypatch.setattr(results, "gather", deleting)
    assert study_submission.run_study(trained, parsed(trained, client)) == 0
    said = capsys.readouterr().out
    assert f"cannot be ended: the run of the study {trained.study.name} was deleted" in said
    assert "shortcut" in said, "the table"
    assert "There is no table" not in said


@pytest.mark.slow
def test_a_model_that_cannot_be_logged_is_a_line_after_the_table_and_exit_code_1(
    client: MlflowClient, trained: Plan, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    asked = parsed(trained, client, "--log-models", "--storage", str(home / "checkpoints"))
    (home / "checkpoints").mkdir()
    assert study_submission.run_study(trained, asked) == 1
    said = capsys.readouterr().out
    assert "There is no table" not in said
    run = trained.runs[0]
    assert f"{run}: its model was not logged: there is no checkpoint in {home}/checkpoints/{run.fingerprint}\n" in said
    assert said.index("60.00") < said.index("its model was not logged")


@pytest.mark.slow
@pytest.mark.parametrize("gone", [False, True])
def test_an_error_of_mlflow_amid_the_models_says_what_it_is_about(
    client: MlflowClient,
    trained: Plan,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    gone: bool,
) -> None:
    run = trained.runs[0]
    storage = home / "checkpoints"
    storage.mkdir()
    checkpoint = {"model": build_model(paper_network(run.spec)).state_dict()}
    CheckpointFolder(str(storage), run.fingerprint).save(checkpoint, EPOCHS)
    log = model_logging._log

    def deleting(client: MlflowClient, run: Any, entry: run_queries.RunRecord, *more: Any) -> None:
        if gone:
            (home / "mlflow.db").write_bytes(b"no database" * 1000)
        else:
            client.delete_run(entry.run_id)
        log(client, run, entry, *more)

    monkeypatch.setattr(model_logging, "_log", deleting)
    assert study_submission.run_study(trained, parsed(trained, client, "--log-models", "--storage", str(storage))) == 1
    said = capsys.readouterr().out
    assert "There is no table" not in said
    what = (
        "its model was not logged, nor those after it: MLflow does not answer"
        if gone
        else "its model was not logged: MLflow refuses"
    )
    assert f"{run}: {what}" in said, said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("PERMISSION_DENIED", "MLflow refuses this user (no)"),
        ("UNAUTHENTICATED", "MLflow refuses this user (no)"),
        ("RESOURCE_EXHAUSTED", "MLflow's rate limit is reached (no)"),
        ("INVALID_PARAMETER_VALUE", "MLflow refuses the request (no)"),
        ("TEMPORARILY_UNAVAILABLE", "MLflow does not answer (no)"),
        ("INTERNAL_ERROR", "MLflow does not answer (no)"),
    ],
)
def test_an_error_of_mlflow_is_called_what_it_is(code: str, said: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    assert describe_error(MlflowException("no\nlonger", ErrorCode.Value(code))) == said
    assert describe_error(DeletedInMlflow("the experiment x was deleted")) == "the experiment x was deleted"
