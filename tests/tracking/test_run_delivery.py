"""A process killed at any request to MLflow: after the next submission, MLflow has each run once and each step once."""

import base64
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.task.predictions import Predictions
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer

pytestmark = pytest.mark.slow

STUDY = Study(name="killed", question="?", factors={"shortcut": ("A",)}, baseline={}, seeds=1, preset="smoke")
ROWS = [{"probe": "responses", "epoch": 3, "layer": 1, "name": "conv1", "quantity": "std", "value": 0.5}]
PREDICTIONS = base64.b64encode(Predictions(np.arange(50) % 10, np.arange(50) % 5 != 0).to_bytes()).decode()
EPOCHS = 3
COUNTED = {"create_run", "get_run", "log_batch", "log_inputs", "log_text", "search_runs", "get_metric_history", "set_terminated"}
COUNTED |= {"log_artifact", "set_tag", "delete_tag", "update_run"}


def metrics(epoch: int) -> dict[str, float]:
    last = {"parameters": 100.0, "flops": 200.0, "train_seconds": 3.0} if epoch == EPOCHS else {}
    return {"train/error": 50.0 / epoch, "test/error": 60.0 / epoch, "epoch_seconds": 1.0, **last}


class Mortal(MlflowClient):
    """A client whose process is killed at its n-th request, before or after the store has processed it."""

    def __init__(self, uri: str, fatal: int, *, done: bool) -> None:
        super().__init__(uri)
        self.fatal, self.done, self.count = fatal, done, 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self._counted(found) if name in COUNTED else found

    def _counted(self, request: Callable[..., Any]) -> Callable[..., Any]:
        def send(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.fatal and not self.done:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = request(*arguments, **named)
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return send


def plan_of(home: Path) -> Plan:
    return make_plan(STUDY, StudyRequest(), cache=home / "data")


def submit(home: Path, client: MlflowClient) -> None:
    """Write what a submission writes whose runs continue from the checkpoint of their last epoch."""
    os.environ["RESNET_ABLATIONS_HOME"] = str(home)
    plan = plan_of(home)
    with Journal(client.tracking_uri, plan.study.name, plan.base_id) as journal:
        writer = Writer(client, journal)
        assert writer.flush(60) == 0
        known = run_queries.find_plan_runs(client, plan)
        tracker = Tracker(client, writer, plan, known)
        for run in plan.runs:
            if run.fingerprint not in known or not known[run.fingerprint].has_result:
                tracker.started(run)
                for epoch in range(1, EPOCHS + 1):
                    last = (ROWS, PREDICTIONS) if epoch == EPOCHS else ()
                    tracker.epoch(run, epoch, metrics(epoch), {"device": "cpu"}, *last)
                tracker.ended(run, "completed")
        assert writer.close(60) == 0
        tracker.study_run.close("FINISHED")


def submit_mortal(home: Path, uri: str, fatal: int, done: bool) -> None:
    submit(home, Mortal(uri, fatal, done=done))


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Processes that start at once, with all imports done, and share nothing with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tracking.test_run_delivery", "mlflow.store.tracking.sqlalchemy_store"])
    yield context
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def killed_at(context: Any, home: Path, fatal: int, *, done: bool) -> bool:
    """Return whether a submission that would be killed at this request got that far."""
    process = context.Process(target=submit_mortal, args=(home, f"sqlite:///{home}/mlflow.db", fatal, done))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


def check(home: Path) -> None:
    """Submit again without a kill, and assert that everything is there once."""
    client = connect(f"sqlite:///{home}/mlflow.db")
    submit(home, client)
    (experiment,) = client.search_experiments(filter_string="name = 'killed'")
    parents = client.search_runs([experiment.experiment_id], "tags.base != ''")
    assert [parent.info.status for parent in parents] == ["FINISHED"]
    plan = plan_of(home)
    assert parents[0].data.params == {name: str(value) for name, value in plan.shared_fields().items()}
    runs = client.search_runs([experiment.experiment_id], "tags.fingerprint != ''")
    assert sorted(run.data.tags["fingerprint"] for run in runs) == sorted(run.fingerprint for run in plan.runs)
    for run in runs:
        assert (run.info.status, run.data.tags["outcome"], run.data.tags["device"]) == ("FINISHED", "completed", "cpu")
        (planned,) = (r for r in plan.runs if r.fingerprint == run.data.tags["fingerprint"])
        assert run.data.params == {name: str(value) for name, value in planned.spec.flat().items()}
        assert len(run.inputs.dataset_inputs) == 1
        for name in metrics(1):
            history = client.get_metric_history(run.info.run_id, name)
            assert [(metric.step, metric.value) for metric in history] == [(n, metrics(n)[name]) for n in range(1, EPOCHS + 1)]
        assert Path(client.download_artifacts(run.info.run_id, run_queries.PROBES_ARTIFACT)).read_text().count("\n") == 2
        assert run.data.tags[run_queries.PREDICTIONS_TAG] == run_queries.PREDICTIONS_ARTIFACT
        path = Path(client.download_artifacts(run.info.run_id, run_queries.PREDICTIONS_ARTIFACT))
        assert base64.b64encode(path.read_bytes()).decode() == PREDICTIONS
    assert {path.name for path in (home / "journals").iterdir()} == {"mutex"}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_kill_at_any_request_loses_and_doubles_nothing(
    processes: Any, empty: Path, tmp_path: Path, step: int, done: bool
) -> None:
    for fatal in range(2, 100, step):
        home = tmp_path / str(fatal)
        home.mkdir()
        shutil.copy(empty, home / "mlflow.db")
        reached = killed_at(processes, home, fatal, done=done)
        check(home)
        if not reached:
            break
    assert 12 < fatal < 100, "the last of these submissions came to its end"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_kills_at_several_drawn_requests_in_a_row_lose_and_double_nothing(
    processes: Any, empty: Path, tmp_path: Path, seed: int
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    draw = random.Random(seed)
    kills = sum(killed_at(processes, tmp_path, draw.randrange(3, 15), done=draw.random() < 0.5) for _ in range(6))
    assert kills
    check(tmp_path)
