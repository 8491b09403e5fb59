"""MLflow is down, slow, locked, or loses responses: training goes on, and each record arrives exactly once."""

import base64
import logging
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric

from ablations.engine.cli import options
from ablations.engine.environment import paths
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission import lifecycle, study_submission
from ablations.engine.task.predictions import Predictions
from ablations.engine.tracking import lease, mlflow_internals, results, run_delivery, run_queries, writer
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.journal import Journal, Record
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import JOB_KILLED, Writer
from resnet_core import ConfigError
from tests.helpers.local_service import free_port
from tests.helpers.mlflow_proxy import Mode, Proxy
from tests.helpers.project import PROJECT

pytestmark = pytest.mark.slow

EPOCHS = 3
PREDICTIONS = base64.b64encode(Predictions(np.arange(50) % 10, np.arange(50) % 5 != 0).to_bytes()).decode()
ROWS = [{"probe": "responses", "epoch": EPOCHS, "layer": 1, "name": "conv1", "quantity": "std", "value": 0.5}]
AT_ONCE_SECONDS = 0.05
SLOW_SECONDS = 1.0
OTHERWISE_DOWN = [Mode.SLOW, Mode.UNAVAILABLE, Mode.BAD_GATEWAY]
DOWN = [Mode.REFUSE, Mode.LOSE, *(pytest.param(mode, marks=pytest.mark.nightly) for mode in OTHERWISE_DOWN)]


def metrics(epoch: int) -> dict[str, float]:
    last = {"parameters": 100.0, "flops": 200.0, "train_seconds": 3.0} if epoch == EPOCHS else {}
    return {"train/error": 50.0 / epoch, "test/error": 60.0 / epoch, "epoch_seconds": 1.0, **last}


@pytest.fixture
def proxy(server: int) -> Iterator[Proxy]:
    with Proxy(server, SLOW_SECONDS).listening() as proxy:
        yield proxy


@pytest.fixture
def client(server: int) -> MlflowClient:
    """A client that bypasses the proxy."""
    return connect(f"http://127.0.0.1:{server}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    monkeypatch.setattr(writer, "RETRY_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "RACE_WAIT_SECONDS", 0.05)
    return tmp_path


@pytest.fixture
def plan(tmp_path: Path, request: pytest.FixtureRequest) -> Plan:
    # A name for each test: an experiment of its own. A learning rate too: fingerprints of its own.
    number = crc32(request.node.name.encode())
    study = Study(name=f"outage-{number}", question="?", factors={"shortcut": ("none", "A")}, baseline={}, seeds=10, preset="smoke")
    return make_plan(study, StudyRequest(overrides={"lr": 1 + number / 2**32}), cache=tmp_path)


class Submission(Tracker):
    """A tracker with what it writes through; notes how long callers wait for it.

    Args:
        uri: where to.
        plan: the study.
        settle_seconds: how long what an earlier submission left is waited for first.
    """

    def __init__(self, uri: str, plan: Plan, *, settle_seconds: float = 30) -> None:
        client = connect(uri)
        self.journal = Journal(uri, plan.study.name, plan.base_id)
        writer = Writer(client, self.journal)
        writer.flush(settle_seconds)
        super().__init__(client, writer, plan, run_queries.find_plan_runs(client, plan))
        self.waits: list[float] = []

    def _put(self, kind: str, run: Run, **values: Any) -> None:
        began = time.monotonic()
        super()._put(kind, run, **values)
        self.waits.append(time.monotonic() - began)

    def begin(self, run: Run) -> None:
        self.started(run)
        self.epoch(run, 1, metrics(1), {"device": "cpu"})

    def complete(self, run: Run) -> None:
        for epoch in range(2, EPOCHS + 1):
            self.epoch(run, epoch, metrics(epoch), {"device": "cpu"}, *((ROWS, PREDICTIONS) if epoch == EPOCHS else ()))
        self.ended(run, "completed")

    def check_waits(self) -> None:
        """Assert that no caller waited for a request, each of which takes a second unless it is refused at once."""
        assert statistics.median(self.waits) < AT_ONCE_SECONDS
        assert sorted(self.waits)[-2] < SLOW_SECONDS / 2

    def end(self, seconds: float) -> int:
        """Close the writer; return the number of undelivered records."""
        waiting = self.writer.close(seconds)
        self.study_run.lease.stop_renewing()
        self.writer._thread.join()  # it ends with its process
        self.journal.__exit__(None, None, None)
        return waiting


def check(client: MlflowClient, plan: Plan, runs: tuple[Run, ...] | list[Run], attempts: int = 1) -> None:
    """Assert that MLflow has exactly these runs, with all their records, each once."""
    experiment = client.get_experiment_by_name(plan.study.name)
    assert experiment
    found = client.search_runs([experiment.experiment_id], "tags.fingerprint != ''")
    assert sorted(run.data.tags["fingerprint"] for run in found) == sorted(run.fingerprint for run in runs)
    planned = {run.fingerprint: run for run in runs}
    for run in found:
        tags = run.data.tags
        assert (run.info.status, tags["outcome"], tags["device"], tags["attempts"]) == (
            "FINISHED",
            "completed",
            "cpu",
            str(attempts),
        )
        assert run.data.params == {name: str(value) for name, value in planned[tags["fingerprint"]].spec.flat().items()}
        assert len(run.inputs.dataset_inputs) == 1
        for name in metrics(EPOCHS):
            history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            assert history == [(n, metrics(n)[name]) for n in range(1, EPOCHS + 1) if name in metrics(n)]
        assert client.download_artifacts(run.info.run_id, run_queries.PROBES_ARTIFACT)
        path = client.download_artifacts(run.info.run_id, run_queries.PREDICTIONS_ARTIFACT)
        assert base64.b64encode(Path(path).read_bytes()).decode() == PREDICTIONS
        assert tags[run_queries.PREDICTIONS_TAG] == run_queries.PREDICTIONS_ARTIFACT


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.UNAVAILABLE])
def test_a_server_that_is_down_is_asked_once_and_named(proxy: Proxy, mode: Mode) -> None:
    proxy.always(mode)
    with pytest.raises(ConfigError, match=f"--tracking-uri={proxy.uri}: MLflow does not answer") as error:
        connect(proxy.uri)
    assert "\n" not in str(error.value)
    plain = {Mode.REFUSE: "closed without an answer", Mode.UNAVAILABLE: "the server there answers with HTTP 503; is it MLflow?"}
    assert plain[mode] in str(error.value)
    assert "Pool" not in str(error.value)
    assert proxy.count == 1


def test_a_server_that_never_answers_is_not_waited_for_long(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.always(Mode.SILENT)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"MLflow does not answer \(no answer in time\); accepted: "):
        connect(proxy.uri)
    assert time.monotonic() - began < 20
    assert proxy.count == 1


def test_a_study_whose_server_is_down_ends_at_once_in_one_line(home: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "ablations/shortcuts.py", "--preset", "smoke", "--tracking-uri", uri]
    began = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    why = "connection refused: nothing listens there"
    assert done.stderr.startswith(f"error: --tracking-uri={uri}: MLflow does not answer ({why}); accepted: a running server")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert not (home / "journals").exists()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("mode", DOWN)
def test_callers_never_wait_and_everything_arrives_once_after_an_outage(
    proxy: Proxy, client: MlflowClient, plan: Plan, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    submission, runs = Submission(proxy.uri, plan), plan.runs[:3]
    submission.begin(runs[0])
    submission.writer.flush(30)
    proxy.always(mode)
    for run in runs[1:]:
        submission.begin(run)
    for run in runs:
        submission.complete(run)
    submission.check_waits()
    assert submission.writer.flush(1.5, max_seconds=1.5) > 0
    proxy.always(Mode.PASS)
    assert submission.end(30) == 0
    check(client, plan, runs)
    if mode is not Mode.SLOW:
        assert [r.message.partition(" the ")[0] for r in caplog.records if r.levelno == logging.WARNING] == [
            "MLflow does not accept",
            "MLflow accepts records again",
        ]


def test_a_server_is_waited_for_as_long_as_it_takes_records(
    monkeypatch: pytest.MonkeyPatch, client: MlflowClient, plan: Plan
) -> None:
    def slow(_: object, records: Sequence[Record]) -> int:
        time.sleep(0.2)
        if len(records) == 1 and records[0].kind == "end":
            raise OSError("no more")
        return 1

    monkeypatch.setattr(run_delivery.RunDelivery, "deliver", slow)
    with Journal("http://127.0.0.1:9", plan.study.name, plan.base_id) as journal:
        writer = Writer(client, journal)
        for kind in ["epoch"] * 9 + ["end"]:
            writer.put(Record(kind=kind, fingerprint="f" * 20, generation=1, experiment_id="1", run="a run", time_ms=0))
        began = time.monotonic()
        assert writer.flush(0.6, max_seconds=0.6) > 5
        assert 0.5 < time.monotonic() - began < 3
        assert writer.flush(1.0) == 1  # longer than that in all; the last is never taken
        assert 2.5 < time.monotonic() - began < 10
        assert writer.close(0.1) == 1
        writer._thread.join()


@pytest.mark.parametrize("mode", [Mode.LOSE, pytest.param(Mode.BAD_GATEWAY, marks=pytest.mark.nightly)])
def test_whichever_answer_is_lost_everything_is_there_once(proxy: Proxy, client: MlflowClient, plan: Plan, mode: Mode) -> None:
    submission = Submission(proxy.uri, plan)
    for lost, run in enumerate(plan.runs, 1):
        proxy.only(mode, lambda number, _, lost=lost: number == lost)  # type: ignore[misc]
        submission.begin(run)
        submission.writer.flush(30)
        submission.complete(run)
        submission.writer.flush(30)
        if proxy.count < lost:
            break
        proxy.always(Mode.PASS)
    assert submission.end(30) == 0
    assert 10 < lost < len(plan.runs), "every request of a run was lost once"
    check(client, plan, plan.runs[:lost])


def test_a_run_that_is_refused_does_not_hold_up_the_others(proxy: Proxy, client: MlflowClient, plan: Plan) -> None:
    submission, (refused, *others) = Submission(proxy.uri, plan), plan.runs[:4]
    submission.begin(refused)
    submission.writer.flush(30)
    run_id = run_queries.find_plan_runs(client, plan)[refused.fingerprint].run_id
    proxy.only(Mode.UNAVAILABLE, lambda _, content: run_id.encode() in content)
    submission.complete(refused)
    for run in others:
        submission.begin(run)
        submission.complete(run)
    deadline = time.monotonic() + 40
    while sum(entry.has_result for entry in run_queries.find_plan_runs(client, plan).values()) < len(others):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not run_queries.find_plan_runs(client, plan)[refused.fingerprint].has_result
    proxy.always(Mode.PASS)
    assert submission.end(30) == 0
    check(client, plan, [refused, *others])


def test_what_an_outage_kept_from_mlflow_is_delivered_by_the_next_submission(
    proxy: Proxy, client: MlflowClient, plan: Plan
) -> None:
    first, runs = Submission(proxy.uri, plan), plan.runs[:2]
    first.begin(runs[0])
    first.writer.flush(30)
    proxy.always(Mode.REFUSE)
    first.complete(runs[0])
    first.begin(runs[1])
    first.complete(runs[1])
    assert first.end(0.2) > 0
    proxy.always(Mode.PASS)
    second = Submission(proxy.uri, plan)
    assert second.end(30) == 0
    check(client, plan, runs)


def test_a_run_whose_end_is_on_its_way_is_not_taken_for_one_that_was_killed(proxy: Proxy, client: MlflowClient, plan: Plan) -> None:
    first, run = Submission(proxy.uri, plan), plan.runs[0]
    first.begin(run)
    first.writer.flush(30)
    proxy.always(Mode.REFUSE)
    first.complete(run)
    assert first.end(0.2) > 0
    looked = threading.Event()

    def decide(_number: int, content: bytes) -> Mode:
        """Deliver the end between the query for running runs and their repair."""
        if b"status = 'RUNNING'" in content:
            looked.set()
        if JOB_KILLED.encode() in content:
            return Mode.SLOW
        return Mode.PASS if looked.is_set() or b"epoch_seconds" not in content else Mode.REFUSE

    proxy.decide = decide
    second = Submission(proxy.uri, plan, settle_seconds=0)
    assert second.end(30) == 0
    check(client, plan, [run])


def test_learning_curves_come_over_http_in_a_few_questions_whatever_the_number_of_runs(
    proxy: Proxy, client: MlflowClient, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = Submission(proxy.uri, plan)
    for run in plan.runs[:6]:
        submission.begin(run)
        submission.complete(run)
    assert submission.end(60) == 0
    asked = Design.from_plan(plan, {})
    evidence = results.gather(client, asked)
    assert len(evidence.curves) == 6 * EPOCHS
    assert dict(zip(evidence.curves["epoch"], evidence.curves["value"], strict=True)) == {n: 60.0 / n for n in range(1, EPOCHS + 1)}
    results.gather(connect(proxy.uri), asked)  # reads the predictions of each run, which this process then keeps
    before = proxy.count
    results.gather(connect(proxy.uri), asked)
    assert proxy.count - before <= 6  # what there is, one page of runs, three metrics
    monkeypatch.setattr(mlflow_internals, "MAX_VALUES_PER_RESPONSE", 5)  # truncated: asked again in halves
    assert results.gather(client, asked).curves.equals(evidence.curves)


def impatient(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    """Shorten the 20 s for which MLflow waits for a lock, so that it gives up."""
    return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters


def test_a_database_that_another_program_locks_delays_records_and_loses_none(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission, runs = Submission(f"sqlite:///{tmp_path}/mlflow.db", plan), plan.runs[:2]
    engine = submission.client._tracking_client.store.engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", impatient, retval=True)
    submission.begin(runs[0])
    submission.writer.flush(30)
    lock = f"""
import sqlite3, sys
connection = sqlite3.connect({str(tmp_path / "mlflow.db")!r}, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout
        assert locker.stdout.readline() == "locked\n"
        submission.complete(runs[0])
        submission.begin(runs[1])
        submission.complete(runs[1])
        submission.check_waits()
        assert submission.writer.flush(2) == len(submission.waits) - 2
        assert submission.writer._retry_at, "MLflow has given up at least once"
    assert submission.end(30) == 0
    assert capsys.readouterr() == ("", "")
    check(submission.client, plan, runs)


class Submitted:
    """A study submitted through a proxy, as by the command line."""

    def __init__(self, uri: str, name: str, *arguments: str) -> None:
        study = Study(name=name, question="Does it run?", factors={"shortcut": ("none", "A")}, baseline={}, seeds=1, preset="smoke")
        chosen = options.parse_options(study, ["--tracking-uri", uri, *arguments])
        self.plan = make_plan(study, chosen.request, cache=paths.data_cache())
        self.code = study_submission.run_study(self.plan, chosen)

    def histories(self, client: MlflowClient) -> list[list[Metric]]:
        entries = run_queries.find_plan_runs(client, self.plan).values()
        assert {entry.outcome for entry in entries} == {"completed"}
        return [client.get_metric_history(entry.run_id, "test/error") for entry in entries]


@pytest.mark.usefixtures("cluster")
def test_a_study_ends_without_mlflow_and_the_next_submission_delivers_it_without_training(
    proxy: Proxy, client: MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifecycle, "CLOSE_TIMEOUT_SECONDS", 1)
    proxy.from_the_first(b"epoch_seconds", Mode.REFUSE)
    first = Submitted(proxy.uri, "cut")
    said = capsys.readouterr().out
    assert first.code == 1
    assert "There is no table: MLflow does not answer (" in said
    told = re.search(r"(\d+) records wait for MLflow. Continue with: ", said)
    assert told
    waiting = int(told[1])
    assert list(home.glob("journals/*.jsonl"))

    proxy.always(Mode.PASS)
    monkeypatch.setattr(lifecycle, "CLOSE_TIMEOUT_SECONDS", 30)
    second = Submitted(proxy.uri, "cut")
    said = capsys.readouterr().out
    assert second.code == 0
    assert f"Delivered records of an earlier submission: {waiting} records." in said
    assert "cut on synthetic: all 2 runs are in MLflow already." in said
    assert [[metric.step for metric in history] for history in second.histories(client)] == [[1, 2], [1, 2]]
    assert [path.name for path in (home / "journals").iterdir()] == ["mutex"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.nightly
def test_a_slow_server_does_not_slow_training_down(proxy: Proxy, client: MlflowClient, home: Path) -> None:
    epochs = 40
    proxy.from_the_first(b"epoch_seconds", Mode.SLOW)

    def recover() -> None:
        deadline = time.monotonic() + 300
        while not list(home.glob(f"checkpoints/*/epoch-{epochs:06d}-*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        proxy.always(Mode.PASS)

    recovery = threading.Thread(target=recover)
    recovery.start()
    slow = Submitted(proxy.uri, "slow", "--levels", "shortcut=A", "--set", f"optim.epochs={epochs}")
    recovery.join()
    assert slow.code == 0
    (history,) = slow.histories(client)
    assert [metric.step for metric in history] == list(range(1, epochs + 1))
    assert (history[-1].timestamp - history[0].timestamp) / 1000 < epochs * SLOW_SECONDS / 2, "an epoch takes a tenth of a request"


@pytest.mark.usefixtures("cluster")
@pytest.mark.nightly
def test_a_study_whose_experiment_is_deleted_amid_it_says_so_once_and_goes_on_when_it_is_restored(
    proxy: Proxy, client: MlflowClient, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    deleted: list[str] = []

    def decide(_number: int, content: bytes) -> Mode:
        if b"log-batch" in content and b"epoch_seconds" in content and not deleted:
            experiment = client.get_experiment_by_name("gone")
            assert experiment
            deleted.append(experiment.experiment_id)
            client.delete_experiment(experiment.experiment_id)
        return Mode.PASS

    proxy.decide = decide
    assert Submitted(proxy.uri, "gone", "--set", "optim.lr=0.07").code == 1
    said = capsys.readouterr().out
    assert "There is no table: the experiment gone was deleted in MLflow; restore it: " in said
    assert re.search(r"\d+ records wait for MLflow. Continue with: ", said)
    assert "does not answer" not in said + caplog.text
    assert caplog.text.count("was deleted in MLflow") == 1
    client.restore_experiment(deleted[0])
    again = Submitted(proxy.uri, "gone", "--set", "optim.lr=0.07")
    assert again.code == 0
    assert [[metric.step for metric in history] for history in again.histories(client)] == [[1, 2], [1, 2]]
