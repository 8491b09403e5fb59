"""Two drivers of one study on machines that share only MLflow: the one that lost its lease notices before its next write."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from ablations.engine.cli import options
from ablations.engine.report import bundle
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.submission import reporting, study_submission
from ablations.engine.tracking import lease, results, run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.holder import HEARTBEAT_TAG, HOLDER_TAG, is_held
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.lease import LeaseLost, StudyLease
from ablations.engine.tracking.tracker import Tracker
from ablations.engine.tracking.writer import Writer
from resnet_core import ConfigError
from tests.helpers.mlflow_proxy import Mode, Proxy
from tests.helpers.project import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_figures")]

ANOTHER = json.dumps({"name": "process 7 on elsewhere", "machine": "elsewhere", "pid": 7, "born": 0.0, "token": "another"})
METRICS = {"train/error": 50.0, "test/error": 60.0, "epoch_seconds": 1.0}


@pytest.fixture
def client(server: int) -> MlflowClient:
    return connect(f"http://127.0.0.1:{server}")


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    return str(client.create_run("0").info.run_id)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    monkeypatch.setattr(lease, "RACE_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "CHECK_INTERVAL_SECONDS", 0.0)
    return tmp_path


@pytest.fixture
def plan(tmp_path: Path, request: pytest.FixtureRequest) -> Plan:
    study = Study(name=request.node.name[:60], question="?", factors={"shortcut": ("A",)}, baseline={}, seeds=1, preset="smoke")
    return make_plan(study, StudyRequest(overrides={"lr": 1 + len(request.node.name) / 1000}), cache=tmp_path)


class Driver(Tracker):
    """A tracker with its own journal and writer."""

    def __init__(self, client: MlflowClient, plan: Plan) -> None:
        self.journal = Journal(client.tracking_uri, plan.study.name, plan.base_id)
        self.succeeded = threading.Event()
        writer = Writer(client, self.journal)
        try:
            writer.flush(10)
            super().__init__(client, writer, plan, run_queries.find_plan_runs(client, plan), on_lease_lost=self.succeeded.set)
        except BaseException:
            writer.close(0)
            self.journal.__exit__(None, None, None)
            raise

    def epochs(self, *numbers: int) -> None:
        for number in numbers:
            self.epoch(self.plan.runs[0], number, METRICS, {"device": "cpu"})

    def ended_with(self, outcome: str) -> None:
        self.ended(self.plan.runs[0], outcome)

    def die(self) -> None:
        """End as if killed: records stay in the journal, and MLflow still names this process as the holder."""
        self.writer._closing = self.writer._abandoned = True
        with self.writer._changed:
            self.writer._changed.notify_all()
        self.writer._thread.join(10)
        self.study_run.lease.stop_renewing()
        self.journal.__exit__(None, None, None)

    def finish(self) -> None:
        """End as a study does, with a release of the lease."""
        assert self.writer.close(10) == 0
        self.study_run.close("FAILED")
        self.journal.__exit__(None, None, None)

    def end(self) -> int:
        waiting = self.writer.close(10)
        self.study_run.lease.stop_renewing()
        self.journal.__exit__(None, None, None)
        return waiting


def steps(client: MlflowClient, plan: Plan) -> list[int]:
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    return [metric.step for metric in client.get_metric_history(entry.run_id, "test/error")]


def test_a_holder_that_was_succeeded_learns_of_it_before_its_next_write_and_leaves_the_other_alone(
    client: MlflowClient, plan: Plan
) -> None:
    driver = Driver(client, plan)
    driver.started(plan.runs[0])
    driver.epochs(1, 2)
    assert driver.writer.flush(30) == 0
    client.set_tag(driver.study_run.run_id, HOLDER_TAG, ANOTHER)
    driver.epochs(3, 4)
    assert driver.succeeded.wait(30)
    assert driver.lost_to.startswith("process 7 on elsewhere holds it now; ")
    with pytest.raises(LeaseLost):
        driver.study_run.close("FAILED")
    before = client.get_run(driver.study_run.run_id)
    driver.ended_with("stopped")
    assert driver.end() == 0, "nothing waits: the other one reports all of its epochs"
    assert sorted(path.suffix for path in driver.journal.folder.iterdir()) == ["", ".refused"]
    (aside,) = driver.journal.folder.glob("*.refused")
    assert aside.read_text().count('"kind": "epoch"') == 2
    assert "stopped" not in aside.read_text(), "what comes after the loss is dropped"
    assert steps(client, plan) == [1, 2]
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert entry.status == "RUNNING", "it is the other's to end"
    assert client.get_run(driver.study_run.run_id).data.tags == before.data.tags


def test_a_request_that_is_on_its_way_when_another_one_takes_over_doubles_nothing(
    server: int, client: MlflowClient, plan: Plan, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, taken_over = threading.Event(), threading.Event()

    def decide(_number: int, content: bytes) -> Mode:
        if b"epoch_seconds" in content and b"log-batch" in content and b'"step": 3' in content:
            sent.set()
            taken_over.wait(60)
        return Mode.PASS

    with Proxy(server, 0).listening() as proxy:
        proxy.decide = decide
        first = Driver(connect(proxy.uri), plan)
        first.started(plan.runs[0])
        first.epochs(1, 2)
        assert first.writer.flush(30) == 0
        first.epochs(3)
        assert sent.wait(30)
        holder = json.loads(client.get_run(first.study_run.run_id).data.tags[HOLDER_TAG])
        client.set_tag(first.study_run.run_id, HOLDER_TAG, json.dumps(holder | {"machine": "elsewhere"}))
        monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home / "another"))
        monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 1.0)
        second = Driver(client, plan)
        second.started(plan.runs[0])
        second.epochs(1, 2, 3, 4)
        assert second.writer.flush(30) == 0
        taken_over.set()
        first.epochs(4, 5)
        assert first.succeeded.wait(10)
        assert first.end() == 0
    second.ended_with("completed")
    assert second.end() == 0
    assert steps(client, plan) == [1, 2, 3, 4]
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert (entry.outcome, entry.tags["attempts"]) == ("completed", "2")


def test_records_of_a_holder_that_was_succeeded_are_not_delivered_while_the_other_one_trains_their_run(
    client: MlflowClient, plan: Plan, caplog: pytest.LogCaptureFixture, home: Path
) -> None:
    first = Driver(client, plan)
    first.started(plan.runs[0])
    first.epochs(1, 2)
    assert first.writer.flush(30) == 0
    client.set_tag(first.study_run.run_id, HOLDER_TAG, ANOTHER)
    first.epochs(3, 4)
    assert first.succeeded.wait(30)
    first.die()
    other = Study(**{**vars(plan.study), "name": f"{plan.study.name[:50]}-b", "factors": {"shortcut": ("B",)}})
    heir = Driver(client, make_plan(other, StudyRequest(), cache=home))
    assert heir.end() == 0
    assert steps(client, plan) == [1, 2]
    assert "process 7 on elsewhere has taken over its study" in caplog.text


@pytest.mark.parametrize("ours", [False, True], ids=["delivered at once", "delivered once the study is held again"])
def test_records_of_a_holder_that_was_succeeded_stay_out_when_its_successor_has_ended(
    client: MlflowClient, plan: Plan, caplog: pytest.LogCaptureFixture, home: Path, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    first = Driver(client, plan)
    first.started(plan.runs[0])
    first.epochs(1)
    assert first.writer.flush(30) == 0
    holder = json.loads(client.get_run(first.study_run.run_id).data.tags[HOLDER_TAG])
    with first.writer._changed:  # killed before its thread has sent these
        first.writer._closing = first.writer._abandoned = True
        first.epochs(2, 3, 4)
        first.ended_with("completed")
    first.die()
    client.set_tag(first.study_run.run_id, HOLDER_TAG, json.dumps(holder | {"machine": "elsewhere"}))
    with monkeypatch.context() as patched:
        patched.setenv("RESNET_ABLATIONS_HOME", str(home / "another"))
        patched.setattr(lease, "LEASE_TIMEOUT_SECONDS", 1.0)
        second = Driver(client, plan)
        second.started(plan.runs[0])
        second.epochs(1, 2)
        second.ended_with("oom")
        second.finish()
    if ours:
        monkeypatch.setattr(Writer, "flush", lambda *_: 0)
        monkeypatch.setattr(Writer, "_advance", held_back(Writer._advance, held := threading.Event()))
    third = Driver(client, plan)
    if ours:
        held.set()
    monkeypatch.undo()
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
    assert third.end() == 0
    assert "has taken over its study" in caplog.text
    assert "restore" not in caplog.text
    assert steps(client, plan) == [1, 2]
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    assert entry.outcome == "oom"


@pytest.fixture
def trained(client: MlflowClient, plan: Plan) -> Plan:
    """A study with finished runs and no holder."""
    driver = Driver(client, plan)
    driver.started(plan.runs[0])
    last = {**METRICS, "train/loss": 2.0, "test/loss": 2.5, "parameters": 100.0, "flops": 200.0, "train_seconds": 2.0}
    driver.epoch(plan.runs[0], plan.runs[0].spec.optim.epochs, last, {"device": "cpu"})
    driver.ended_with("completed")
    driver.finish()
    return plan


def parent_of(client: MlflowClient, plan: Plan) -> MlflowRun:
    return next(run_queries.search_runs(client, f"tags.study = '{plan.study.name}' and tags.base = '{plan.base_id}'"))


def test_a_study_is_held_until_its_report_is_stored_and_stores_none_once_it_is_lost(
    client: MlflowClient, trained: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, held = bundle.publish, list[bool]()

    def taken_over(client: MlflowClient, run_id: str, *arguments: Any, **named: Any) -> None:
        held.append(is_held(lease.get_holder(client, run_id)))
        client.set_tag(run_id, HOLDER_TAG, ANOTHER)
        publish(client, run_id, *arguments, **named)

    monkeypatch.setattr(reporting, "publish", taken_over)
    asked = options.parse_options(trained.study, ["--tracking-uri", client.tracking_uri])
    assert study_submission.run_study(trained, asked) == 1
    assert held == [True]
    parent = parent_of(client, trained)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {run_queries.DESIGN_ARTIFACT}
    assert (parent.info.status, parent.data.tags[HOLDER_TAG]) == ("RUNNING", ANOTHER)
    assert f"{trained.study.name}: process 7 on elsewhere holds it now; " in capsys.readouterr().out

    client.set_tag(parent.info.run_id, HOLDER_TAG, json.dumps({**json.loads(ANOTHER), "ended": True}))
    monkeypatch.setattr(reporting, "publish", publish)
    assert study_submission.run_study(trained, asked) == 0
    parent = parent_of(client, trained)
    assert "report" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert parent.info.status == "FINISHED"
    assert not is_held(lease.get_holder(client, parent.info.run_id))


def test_a_study_without_a_table_does_not_seem_to_run(
    client: MlflowClient, trained: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise MlflowException("a signal, as a library may report it")

    monkeypatch.setattr(results, "gather", interrupted)
    assert study_submission.run_study(trained, options.parse_options(trained.study, ["--tracking-uri", client.tracking_uri])) == 1
    assert "There is no table: " in capsys.readouterr().out
    assert parent_of(client, trained).info.status == "KILLED"


def held_back(advance: Callable[..., None], until: threading.Event) -> Callable[..., None]:
    def wait(*arguments: Any) -> None:
        until.wait(60)
        advance(*arguments)

    return wait


def test_after_a_gap_a_holder_beats_and_looks_again_at_what_mlflow_has(
    client: MlflowClient, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(client, plan)
    driver.started(plan.runs[0])
    driver.epochs(1)
    assert driver.writer.flush(30) == 0
    (entry,) = run_queries.find_plan_runs(client, plan).values()
    for name, value in METRICS.items():  # another study, elsewhere, trains the run as well
        client.log_metric(entry.run_id, name, value, step=2)
    before = client.get_run(driver.study_run.run_id).data.tags[HEARTBEAT_TAG]
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 1.0)
    time.sleep(0.6)
    driver.epochs(2, 3)
    assert driver.end() == 0
    assert steps(client, plan) == [1, 2, 3]
    assert client.get_run(driver.study_run.run_id).data.tags[HEARTBEAT_TAG] != before
    assert not driver.lost_to


@pytest.mark.parametrize("clock", ["time", "clock_gettime"])
def test_a_gap_is_seen_by_either_clock(monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    then, real = lease._Stopwatch(), getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda *which: real(*which) + 90)
    assert 90 <= then.seconds() < 100


def once(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_that_find_a_study_free_at_the_same_moment_one_gives_way_also_through_a_tunnel(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RACE_WAIT_SECONDS", 1.0)

    def later() -> None:
        once(lambda: HOLDER_TAG in client.get_run(run_id).data.tags)
        client.set_tag(run_id, HOLDER_TAG, ANOTHER)

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(ConfigError, match="is running already: process 7 on elsewhere holds it"):
        StudyLease(client, run_id, "small")
    thread.join()


def test_of_two_that_begin_a_new_study_at_the_same_moment_one_gives_way(server: int, client: MlflowClient, plan: Plan) -> None:
    made: list[MlflowRun] = []

    def decide(_number: int, content: bytes) -> Mode:
        if HOLDER_TAG.encode() in content and not made:  # by another machine, whose look for a study came as early as ours
            experiment = client.get_experiment_by_name(plan.study.name)
            assert experiment
            tags = {"study": plan.study.name, "base": plan.base_id, HOLDER_TAG: ANOTHER}
            made.append(client.create_run(experiment.experiment_id, start_time=2 * 10**12, tags=tags))
        return Mode.PASS

    with Proxy(server, 0).listening() as proxy:
        proxy.decide = decide
        with pytest.raises(ConfigError, match="is running already: process 7 on elsewhere holds it"):
            Driver(connect(proxy.uri), plan)
    (left,) = client.search_runs([made[0].info.experiment_id])
    assert left.info.run_id == made[0].info.run_id


def test_of_two_that_wait_for_a_dead_holder_the_second_sees_the_first(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 3.0)
    client.set_tag(run_id, HOLDER_TAG, ANOTHER)

    def first() -> None:
        time.sleep(1)
        client.set_tag(run_id, HOLDER_TAG, ANOTHER.replace("process 7", "process 8"))

    thread = threading.Thread(target=first)
    thread.start()
    with pytest.raises(ConfigError, match="is running already: process 8 on elsewhere holds it"):
        StudyLease(client, run_id, "small")
    thread.join()


LEASE = "from ablations.engine.tracking import lease; lease.LEASE_TIMEOUT_SECONDS, lease.RENEW_INTERVAL_SECONDS = 6.0, 1.5"
EPOCHS = 2000


class Machine:
    """A driver with its own home folder, Ray and host name."""

    def __init__(self, home: Path, uri: str) -> None:
        code = f"import runpy, sys; sys.path.insert(0, {str(PROJECT)!r}); {LEASE}; sys.argv[:1] = []; "
        code += "runpy.run_path(sys.argv[0], run_name='__main__')"
        study = ["ablations/shortcuts.py", "--preset", "smoke", "--levels", "shortcut=A", "depth=8", "--seeds", "1"]
        study += ["--set", f"optim.epochs={EPOCHS}", "--tracking-uri", uri]
        named = ["unshare", "--uts", "sh", "-c", f'hostname {home.name} && exec "$@"', "sh", sys.executable, "-c", code, *study]
        environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": "local"}
        home.mkdir()
        self.output = home / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(named, cwd=PROJECT, env=environment, stdout=file, stderr=file, start_new_session=True)
        self.known: list[psutil.Process] = []

    def stand_still(self) -> None:
        driver = psutil.Process(self.process.pid)
        self.known = [driver, *driver.children(recursive=True)]
        for process in self.known:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def go_on(self) -> None:
        for process in reversed(self.known):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def living(self) -> list[str]:
        """Return the names of its processes that existed when it was suspended and have not ended."""
        found = []
        for process in self.known:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.name())
        return found

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            driver = psutil.Process(self.process.pid)
            for process in [*driver.children(recursive=True), driver]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@pytest.fixture
def two(client: MlflowClient, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """A driver that was suspended while another one took its study over, and has just been resumed."""
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to another host name")

    def run() -> Any:
        found = list(
            run_queries.search_runs(client, f"tags.study = 'shortcuts' and params.`optim.epochs` = '{EPOCHS}' and tags.seed = '0'")
        )
        return found[0] if found else None

    def newest() -> float:
        known = run()
        return float(max((m.step for m in client.get_metric_history(known.info.run_id, "test/error")), default=0)) if known else 0

    with Machine(tmp_path / "first-host", client.tracking_uri) as first:
        once(lambda: newest() > 5)
        first.stand_still()
        reached = newest()
        with Machine(tmp_path / "second-host", client.tracking_uri) as second:
            deadline = time.monotonic() + 300
            while newest() < reached + 5:
                assert second.process.poll() is None, second.output.read_text()
                assert time.monotonic() < deadline, second.output.read_text()
                time.sleep(0.2)
            first.go_on()
            yield first, second


@pytest.mark.ray
@pytest.mark.nightly
def test_a_driver_that_stood_still_while_another_took_over_stops_in_one_line(
    client: MlflowClient, two: tuple[Machine, Machine]
) -> None:
    first, second = two
    assert first.process.wait(60) == 1
    said = first.output.read_text()
    assert f"shortcuts: process {second.process.pid} on second-host holds it now; this process had sent no heartbeat for" in said
    assert "Traceback" not in said
    assert "There is no table" not in said
    once(lambda: not first.living())
    assert second.process.poll() is None, second.output.read_text()
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(60) == 1
    (run,) = run_queries.search_runs(client, f"tags.study = 'shortcuts' and params.`optim.epochs` = '{EPOCHS}' and tags.seed = '0'")
    for name in run.data.metrics:
        history = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert history == list(range(1, len(history) + 1)), name
    assert run.data.tags["attempts"] == "2"
