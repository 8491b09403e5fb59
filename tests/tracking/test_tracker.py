"""Queries read back from a real database what the tracker writes."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from zlib import crc32

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.cli import options
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan, SearchTrial
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission import study_submission
from ablations.engine.task.predictions import Predictions
from ablations.engine.tracking import results, run_queries, study_run, writer
from ablations.engine.tracking.connection import connect, create_database_file, is_new_database
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.study_run import origin_tags
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from resnet_core import ConfigError

METRICS = {"train/loss": 2.0, "train/error": 50.0, "test/loss": 2.5, "test/error": 60.0, "epoch_seconds": 1.0}
ROWS = [{"probe": "responses", "epoch": 2, "layer": 1, "name": "conv1", "quantity": "std", "value": 0.5}]
FILE = Predictions(np.arange(50) % 10, np.arange(50) % 5 != 0).to_bytes()
PREDICTIONS = base64.b64encode(FILE).decode()
CPU = {"device": "cpu", "torch": "2.14.1"}
LAST = {**METRICS, "test/error": 40.0, "parameters": 100.0, "flops": 200.0, "train_seconds": 2.0}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def plan(tmp_path: Path, request: pytest.FixtureRequest) -> Plan:
    # A name for each test: an experiment of its own. A learning rate too: fingerprints of its own.
    name = f"test-{crc32(request.node.name.encode())}"
    study = Study(name=name, question="?", factors={"shortcut": ("none", "A")}, baseline={}, seeds=2, preset="smoke")
    return make_plan(study, StudyRequest(overrides={"lr": 1 + crc32(name.encode()) / 2**32}), cache=tmp_path)


class Submission(Tracker):
    """A tracker with its own journal and writer."""

    def __init__(self, client: MlflowClient, plan: Plan, *, rerun: bool = False) -> None:
        self.journal = Journal(client.tracking_uri, plan.study.name, plan.base_id)
        writer = Writer(client, self.journal)
        writer.flush(10)
        super().__init__(client, writer, plan, run_queries.find_plan_runs(client, plan), rerun=rerun)
        self.closed = False

    def flush(self, seconds: float = 10) -> int:
        """Close writer and journal; return the number of undelivered records."""
        if self.closed:
            return 0
        self.closed = True
        waiting = self.writer.close(seconds)
        self.study_run.lease.stop_renewing()
        self.journal.__exit__(None, None, None)
        return waiting


@pytest.fixture
def tracker(client: MlflowClient, plan: Plan) -> Iterator[Submission]:
    tracker = Submission(client, plan)
    yield tracker
    tracker.flush()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["former", "of its user"])
def test_a_study_of_an_earlier_version_gets_the_name_of_its_settings_unless_its_user_has_named_it(
    client: MlflowClient, plan: Plan, name: str
) -> None:
    first = Submission(client, plan)
    first.flush()
    run_id = first.study_run.run_id
    assert client.get_run(run_id).info.run_name == plan.title != plan.former_title
    client.update_run(run_id, name=plan.former_title if name == "former" else name)
    Submission(client, plan).flush()
    assert client.get_run(run_id).info.run_name == (plan.title if name == "former" else name)


def test_two_studies_with_the_same_settings_on_other_images_have_names_of_their_own(client: MlflowClient, plan: Plan) -> None:
    other = replace(plan, data={key: replace(data, version="other images") for key, data in plan.data.items()})
    submissions = [Submission(client, plan), Submission(client, other)]
    names = [client.get_run(each.study_run.run_id).info.run_name for each in submissions]
    for each in submissions:
        each.flush()
    assert names == [plan.title, f"{plan.title} · {other.base_id[:4]}"]


@pytest.mark.slow
def test_a_report_is_marked_once_the_study_is_submitted_with_other_runs(client: MlflowClient, tracker: Submission) -> None:
    """Its answer would otherwise be taken for that of the new runs, for as long as they train or if they are interrupted."""
    design = Design.from_plan(tracker.plan, {"command": "python earlier.py"})
    tracker.study_run.log_design(design)
    run_id = tracker.study_run.run_id
    for name, value in {run_queries.REPORT_TAG: run_queries.WHOLE, run_queries.SUMMARY_TAG: "{}"}.items():
        client.set_tag(run_id, name, value)
    client.set_tag(run_id, "mlflow.note.content", "The answer.")
    tracker.study_run.log_design(design)
    assert (tracker.study_run.report_is_current, tracker.study_run.left_out) == (True, 0)
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "The answer."
    first, *others = design.cells
    renamed = replace(first, label="depth=other")
    tracker.study_run.log_design(replace(design, cells=(renamed, *others)))  # as many runs, but not the same
    tags = client.get_run(run_id).data.tags
    assert (tracker.study_run.report_is_current, tracker.study_run.left_out) == (False, len(first.fingerprints))
    assert tracker.study_run.previous_command == "python earlier.py"
    assert tags[run_queries.REPORT_TAG] == run_queries.EARLIER
    assert tags["mlflow.note.content"] == f"{study_run.EARLIER_NOTE}\n\nThe answer."
    tracker.study_run.log_design(replace(design, question="A third?"))
    assert client.get_run(run_id).data.tags["mlflow.note.content"].count("earlier submission") == 1


def children(client: MlflowClient, tracker: Submission) -> list[MlflowRun]:
    return list(client.search_runs([tracker.study_run.experiment_id], f"tags.mlflow.parentRunId = '{tracker.study_run.run_id}'"))


def train(tracker: Submission, plan: Plan, *, runs: int | None = None) -> None:
    for run in plan.runs[:runs]:
        tracker.started(run)
        tracker.epoch(run, 1, METRICS, CPU)
        tracker.epoch(run, 2, LAST, CPU)
        tracker.ended(run, "completed")
    assert tracker.flush() == 0


@pytest.mark.slow
def test_a_run_carries_its_parameters_tags_metrics_data_set_and_status(
    client: MlflowClient, plan: Plan, tracker: Submission
) -> None:
    train(tracker, plan, runs=1)
    (child,) = children(client, tracker)
    run = plan.runs[0]
    assert child.info.status == "FINISHED"
    assert child.info.run_name == str(run) == "shortcut=none seed=0"
    assert child.data.params == {name: str(value) for name, value in run.spec.flat().items()}
    expected = {
        "study": plan.study.name,
        "cell": "shortcut=none",
        "seed": "0",
        "fingerprint": run.fingerprint,
        "outcome": "completed",
        "attempts": "1",
        "world_size": "1",
        "device": "cpu",
    }
    assert expected.items() <= child.data.tags.items()
    assert len(child.data.tags["git.commit"]) == 40
    assert child.data.tags["git.dirty"] in ("true", "false")
    assert child.data.metrics == LAST
    assert [m.step for m in client.get_metric_history(child.info.run_id, "test/error")] == [1, 2]
    (data,) = child.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic", plan.dataset.version)


def test_a_run_that_went_on_elsewhere_names_all_that_it_was_trained_under(
    client: MlflowClient, plan: Plan, tracker: Submission
) -> None:
    run = plan.runs[0]
    tracker.started(run)
    tracker.epoch(run, 1, METRICS, {"device": "A100", "torch": "2.14.1"})
    tracker.flush()  # and here its node is lost
    again = Submission(client, plan)
    again.started(run, "its node was lost")
    again.epoch(run, 1, METRICS, {"device": "H100", "torch": "2.14.1"})
    again.epoch(run, 2, LAST, {"device": "H100", "torch": "2.14.1"})
    again.ended(run, "completed")
    again.flush()
    (child,) = children(client, again)
    assert (child.data.tags["device"], child.data.tags["torch"]) == ("A100, H100", "2.14.1")


def test_an_epoch_that_is_reported_again_is_logged_once(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    run = plan.runs[0]
    for _ in range(2):  # a trial that died after its first epoch, and its successor
        tracker.started(run)
        tracker.epoch(run, 1, METRICS, CPU)
    tracker.epoch(run, 2, LAST, CPU)
    tracker.flush()
    (child,) = children(client, tracker)
    assert [m.step for m in client.get_metric_history(child.info.run_id, "test/error")] == [1, 2]
    assert child.data.tags["attempts"] == "2"


def test_what_probes_saw_is_one_table_of_the_run_however_often_it_is_reported(
    client: MlflowClient, plan: Plan, tracker: Submission
) -> None:
    run = plan.runs[0]
    tracker.started(run)
    tracker.epoch(run, 1, METRICS, CPU)
    tracker.flush()
    for _ in range(2):
        again = Submission(client, plan)
        again.started(run)
        again.epoch(run, 2, LAST, CPU, ROWS)
        again.flush()
    (child,) = children(client, tracker)
    text = Path(client.download_artifacts(child.info.run_id, run_queries.PROBES_ARTIFACT)).read_text()
    assert text == "probe,epoch,layer,name,quantity,value\nresponses,2,1,conv1,std,0.5\n"
    assert [m.step for m in client.get_metric_history(child.info.run_id, "test/error")] == [1, 2]


@pytest.mark.slow
def test_of_a_fresh_attempt_that_was_cut_off_a_plain_one_goes_on_with_what_it_had_begun(
    client: MlflowClient, plan: Plan, tracker: Submission
) -> None:
    train(tracker, plan)
    begun, *untouched = plan.runs
    fresh = Submission(client, plan, rerun=True)
    fresh.started(begun)
    fresh.flush()
    plain, known = Submission(client, plan), run_queries.find_plan_runs(client, plan)
    assert run_queries.with_result(known).keys() == {run.fingerprint for run in untouched}
    assert plain.generation(begun) == 2
    plain.flush()
    anew = Submission(client, plan, rerun=True)
    assert [anew.generation(run) for run in (begun, untouched[0])] == [3, 2]
    anew.flush()


def test_a_run_whose_table_could_not_be_stored_is_not_done_and_mended_by_the_next_submission(
    client: MlflowClient, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    blocked = tmp_path / "artifacts"
    blocked.write_text("a file where the folder of artifacts should be")
    run = plan.runs[0]

    def submit() -> int:
        tracker = Submission(client, plan)
        tracker.started(run)
        tracker.epoch(run, 1, METRICS, CPU)
        tracker.epoch(run, 2, LAST, CPU, ROWS)
        tracker.ended(run, "completed")
        return tracker.flush(2)

    assert submit() == 2  # the table, and the end behind it
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert (entry.status, entry.outcome) == ("KILLED", "stopped")
    blocked.unlink()
    assert submit() == 0
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert (entry.status, entry.outcome) == ("FINISHED", "completed")
    assert results.gather(client, Design.from_plan(plan, {})).probes.empty, "this plan asks for no probes"
    assert Path(client.download_artifacts(entry.run_id, run_queries.PROBES_ARTIFACT)).exists()


@pytest.mark.slow
def test_predictions_are_one_file_of_the_run_however_often_they_are_reported(
    client: MlflowClient, plan: Plan, tracker: Submission
) -> None:
    tracker.flush()
    for _ in range(2):
        again = Submission(client, plan)
        again.started(plan.runs[0])
        again.epoch(plan.runs[0], 2, LAST, CPU, (), PREDICTIONS)
        again.flush()
    again = Submission(client, plan)
    again.ended(plan.runs[0], "completed")
    again.flush()
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert entry.tags[run_queries.PREDICTIONS_TAG] == run_queries.PREDICTIONS_ARTIFACT
    (file,) = client.list_artifacts(entry.run_id)
    assert Path(client.download_artifacts(entry.run_id, file.path)).read_bytes() == FILE


def test_a_store_that_takes_no_predictions_costs_no_result(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    def refuse(run_id: str, file: str) -> None:
        tries.append(run_id)
        raise PermissionError("no key for the bucket\nand much more")

    monkeypatch.setattr(client, "log_artifact", refuse)
    run = plan.runs[0]
    tracker.started(run)
    tracker.epoch(run, 2, LAST, CPU, (), PREDICTIONS)
    tracker.ended(run, "completed")
    assert tracker.flush() == 0
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert entry.completed
    assert run_queries.PREDICTIONS_TAG not in entry.tags
    assert len(tries) == 2
    (warning,) = caplog.messages
    assert warning == f"the predictions of {run} cannot be stored, which changes no result: no key for the bucket"


def test_the_writer_survives_whatever_a_store_raises(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_INTERVAL_SECONDS", 0.01)
    store, raised = client.log_batch, [KeyError("a library's own"), RuntimeError()]

    def log_batch(*arguments: Any, **named: Any) -> Any:
        if raised:
            raise raised.pop()
        return store(*arguments, **named)

    tracker.started(plan.runs[0])
    monkeypatch.setattr(client, "log_batch", log_batch)
    tracker.epoch(plan.runs[0], 1, METRICS, CPU)
    tracker.ended(plan.runs[0], "completed")
    assert tracker.flush() == 0
    (child,) = children(client, tracker)
    assert child.info.status == "FINISHED"
    assert not raised


def test_an_unfinished_run_is_continued_by_the_next_submission(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    run = plan.runs[0]
    tracker.started(run)
    tracker.epoch(run, 1, METRICS, CPU)
    tracker.flush()  # and here the driver is killed: RUNNING for ever
    assert [entry.has_result for entry in run_queries.find_plan_runs(client, plan).values()] == [False]
    again = Submission(client, plan)
    train(again, plan, runs=1)
    (child,) = children(client, again)
    assert (child.info.status, child.data.tags["attempts"]) == ("FINISHED", "2")
    assert [m.step for m in client.get_metric_history(child.info.run_id, "test/error")] == [1, 2]
    assert again.study_run.run_id == tracker.study_run.run_id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outcome", "status"), [("diverged", "FINISHED"), ("oom", "FAILED"), ("failed", "FAILED"), ("stopped", "KILLED")]
)
def test_the_status_tells_whether_there_is_a_result(
    client: MlflowClient, plan: Plan, tracker: Submission, outcome: str, status: str
) -> None:
    tracker.ended(plan.runs[0], outcome, "because", "Traceback: because")
    tracker.flush()
    (child,) = children(client, tracker)
    assert (child.info.status, child.data.tags["outcome"], child.data.tags["message"]) == (status, outcome, "because")
    assert run_queries.find_plan_runs(client, plan)[plan.runs[0].fingerprint].has_result == (status == "FINISHED")
    traceback = [file.path for file in client.list_artifacts(child.info.run_id)]
    assert traceback == (["traceback.txt"] if status == "FAILED" else [])


def test_a_fresh_attempt_is_another_run_and_the_newest_counts(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    train(tracker, plan, runs=1)
    first = run_queries.find_plan_runs(client, plan)[plan.runs[0].fingerprint]
    again = Submission(client, plan, rerun=True)
    assert again.generation(plan.runs[0]) == 2
    train(again, plan, runs=1)
    newest = run_queries.find_plan_runs(client, plan)[plan.runs[0].fingerprint]
    assert newest.run_id != first.run_id
    assert len(children(client, again)) == 2


def test_a_run_is_found_whichever_study_trained_it(client: MlflowClient, plan: Plan, tracker: Submission, tmp_path: Path) -> None:
    train(tracker, plan)
    other = Study(name="another", question="?", factors={"shortcut": ("A", "B")}, baseline={}, seeds=2, preset="smoke")
    lr = plan.base.optim.lr
    found = run_queries.find_plan_runs(client, make_plan(other, StudyRequest(overrides={"lr": lr}), cache=tmp_path))
    assert len(found) == 2
    assert {entry.tags["cell"] for entry in found.values()} == {"shortcut=A"}


@pytest.mark.parametrize("ended", ["completed", "pruned"])
def test_a_trial_that_another_search_ended_meanwhile_is_of_both(
    client: MlflowClient, plan: Plan, tracker: Submission, ended: str
) -> None:
    run = plan.runs[0]
    both = [replace(run, trial=SearchTrial(number=number, tag=f"trial.{number}", values={"optim.lr": 0.5})) for number in (3, 7)]
    for trial in both:
        tracker.started(trial)
        tracker.epoch(trial, 1, LAST, CPU)
        tracker.ended(trial, ended)
        assert tracker.writer.flush(10) == 0
    (found,) = (child.data for child in children(client, tracker))
    assert [json.loads(found.tags[f"trial.{number}"])["number"] for number in (3, 7)] == [3, 7]
    assert found.tags["outcome"] == ended


def test_runs_without_a_result_are_counted_and_the_others_averaged(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    first, second = (run for run in plan.runs if str(run.cell) == "shortcut=none")
    tracker.started(first)
    tracker.epoch(first, 1, LAST, CPU)
    tracker.ended(first, "completed")
    tracker.started(second)
    tracker.ended(second, "diverged", "the loss is not finite")
    tracker.flush()
    none, a = analyze_study(results.gather(client, Design.from_plan(plan, {}))).cells
    assert (none.value.n, none.planned, none.value.mean, dict(none.problems)) == (1, 2, 40.0, {"diverged": 1})
    assert none.reasons == ("the loss is not finite",)
    assert (a.value.n, a.planned, dict(a.problems)) == (0, 2, {"missing": 2})
    assert (none.without_result, a.without_result) == (0, 2)


@pytest.mark.slow
def test_the_ledger_reads_every_page(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tracker, plan)
    monkeypatch.setattr(run_queries, "PAGE_SIZE", 1)
    assert len(run_queries.find_plan_runs(client, plan)) == len(plan.runs)


@pytest.mark.slow
def test_looking_up_a_few_old_runs_does_not_read_all_that_came_since(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tracker, plan)
    old = run_queries.find_plan_runs(client, plan)
    data = {"data_version": plan.dataset.version}
    for number in range(30):
        client.create_run(tracker.study_run.experiment_id, tags={**data, "fingerprint": f"another {number}"})
    run_record = Mock(side_effect=run_queries.run_record)
    monkeypatch.setattr(run_queries, "run_record", run_record)
    monkeypatch.setattr(run_queries, "MIN_RUNS_READ", 5)
    monkeypatch.setattr(run_queries, "RUNS_READ_PER_LOOKUP", 1)
    assert run_queries.find_plan_runs(client, plan) == old
    assert run_record.call_count == 5 + len(plan.runs) < 30


def test_a_database_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"--tracking-uri=sqlite:////proc/no/mlflow\.db: MLflow does not answer"):
        connect("sqlite:////proc/no/mlflow.db")


def test_a_database_in_a_folder_that_may_not_be_entered_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "shut"
    folder.mkdir(mode=0)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)  # nobody: root may enter everything
    try:
        with pytest.raises(ConfigError, match=r"--tracking-uri=\S+/shut/mlflow\.db: MLflow does not answer \(.*Permission denied"):
            is_new_database(f"sqlite:///{folder}/mlflow.db")
    finally:
        os.seteuid(user)


def test_a_new_database_is_one_that_has_no_file_yet(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/sub/mlflow.db?timeout=1"
    assert is_new_database(uri)
    create_database_file(uri)
    assert (tmp_path / "sub" / "mlflow.db").stat().st_size == 0
    assert not is_new_database(uri)
    assert not is_new_database("sqlite:///:memory:")


def test_whoever_has_no_name_on_this_machine_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError("getpwuid(): uid not found")))
    assert origin_tags()["mlflow.user"] == f"uid {os.getuid()}"


def another(plan: Plan, tmp_path: Path) -> Plan:
    """Another study with the same runs."""
    study = replace(plan.study, name=f"{plan.study.name}-b")
    return make_plan(study, StudyRequest(overrides={"lr": plan.base.optim.lr}), cache=tmp_path)


def cut_off(monkeypatch: pytest.MonkeyPatch, client: MlflowClient, tracker: Submission, plan: Plan) -> None:
    """Let the tracker's process crash with all records of a run undelivered."""
    with monkeypatch.context() as outage:
        for name in ("search_runs", "create_run", "log_batch"):
            outage.setattr(client, name, lambda *_, **__: (_ for _ in ()).throw(OSError("down")))
        tracker.started(plan.runs[0])
        tracker.epoch(plan.runs[0], 1, METRICS, CPU)
        tracker.epoch(plan.runs[0], 2, LAST, CPU)
        tracker.ended(plan.runs[0], "completed")
        assert tracker.flush(0.2) == 4


def test_a_run_that_another_study_trained_before_its_records_came_is_one_run(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = another(plan, tmp_path)
    second = Submission(client, other)  # before the first one dies: it does not inherit
    cut_off(monkeypatch, client, tracker, plan)
    train(second, other, runs=1)
    Submission(client, plan).flush()  # inherits what waited
    (run,) = run_queries.search_runs(client, f"tags.fingerprint = '{plan.runs[0].fingerprint}'")
    assert run.data.tags["study"] == other.study.name
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "completed")


def test_records_that_wait_are_not_delivered_while_a_living_study_trains_their_run(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = another(plan, tmp_path)
    second = Submission(client, other)
    cut_off(monkeypatch, client, tracker, plan)
    second.journal.claim([plan.runs[0].fingerprint])
    third = Submission(client, plan)
    assert not third.journal.recovered
    assert not run_queries.find_plan_runs(client, plan)
    third.flush()
    second.flush()


def test_runs_whose_records_wait_are_held(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off(monkeypatch, client, tracker, plan)
    fingerprint = plan.runs[0].fingerprint
    uri = client.tracking_uri
    with Journal(uri, plan.study.name, plan.base_id) as heir, Journal(uri, "other", "base") as other:
        assert set(other.claim([fingerprint])) == {fingerprint}
        heir.claim([])
        assert set(other.claim([fingerprint])) == {fingerprint}, "they are not delivered yet"
        heir.clear()
        heir.claim([])
        assert not other.claim([fingerprint])


def test_records_that_mlflow_will_never_take_are_put_aside_and_hold_up_nobody(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off(monkeypatch, client, tracker, plan)
    client.delete_experiment(tracker.study_run.experiment_id)
    other = another(plan, tmp_path)
    second = Submission(client, other)
    assert len(second.journal.recovered) == 4
    train(second, other, runs=1)
    assert "experiment" in (second.journal.folder / f"{second.journal._file.stem}.refused").read_text()
    client.restore_experiment(tracker.study_run.experiment_id)


@pytest.mark.parametrize("culprit", ["kind", "flush"])
def test_nothing_is_delivered_any_longer_when_a_study_that_failed_to_start_lets_go(
    client: MlflowClient, plan: Plan, tracker: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, culprit: str
) -> None:
    cut_off(monkeypatch, client, tracker, plan)
    before, left = set(threading.enumerate()), list[str]()
    release = Journal.__exit__

    def noted(journal: Journal, *error: Any) -> None:
        left.extend(thread.name for thread in set(threading.enumerate()) - before)
        release(journal, *error)

    monkeypatch.setattr(Journal, "__exit__", noted)
    failing = {"kind": (study_submission.StudySubmission, "__init__"), "flush": (Writer, "flush")}[culprit]
    monkeypatch.setattr(*failing, Mock(side_effect=[ConfigError("it does not start"), 0]))
    uri = ["--tracking-uri", client.tracking_uri, "--storage", str(tmp_path)]
    with pytest.raises(ConfigError, match="it does not start"):
        study_submission.run_study(plan, options.parse_options(plan.study, uri))
    assert not left


def test_a_result_is_not_taken_back_by_whoever_comes_later(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    run = plan.runs[0]
    tracker.started(run)
    assert tracker.writer.flush(10) == 0
    (child,) = children(client, tracker)
    client.set_terminated(child.info.run_id, "FINISHED")  # by a process that was taken for dead
    tracker.ended(run, "stopped")
    assert tracker.flush() == 0
    assert client.get_run(child.info.run_id).info.status == "FINISHED"


def test_the_next_submission_mends_what_a_killed_one_left_running(client: MlflowClient, plan: Plan, tracker: Submission) -> None:
    train(tracker, plan, runs=1)
    (done,) = children(client, tracker)
    client.update_run(done.info.run_id, status="RUNNING")  # as it is while its model is being logged
    again = Submission(client, plan)
    again.started(plan.runs[1])
    again.flush()  # and the job is killed
    Submission(client, plan).flush()
    found = run_queries.find_plan_runs(client, plan)
    assert [found[run.fingerprint].status for run in plan.runs[:2]] == ["FINISHED", "KILLED"]
    assert found[plan.runs[1].fingerprint].tags["message"] == "its job was killed"
