"""Several nodes, each with a disk of its own: four workers train a run as one group, two on each, with checkpoints in an object
store and records behind a password, through the loss of the store and of a worker, to what they come to on one node."""

import io
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from ray.cluster_utils import Cluster
from ray.tune import TuneConfig

from ablations.engine.cli import options
from ablations.engine.cluster.doctor.shared_storage import MEGABYTE
from ablations.engine.scheduling import connection, tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.submission import jobs, study_submission
from ablations.engine.submission.replay import ReplayRequest, replay
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import ConfigError, fit
from tests.helpers.image_folders import save_images
from tests.helpers.local_service import free_port
from tests.helpers.object_store import object_store
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import RecordingListener, assert_free, make_job, wait_until
from tests.helpers.ray_nodes import TRIAL_ACTOR, actor_nodes
from tests.helpers.submission import STUDY, Killer, Submitted, planned

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.cluster, pytest.mark.timeout(600)]

EPOCHS = 8
DATA = ("data.name=imagefolder", "data.root=~/images", "data.image_size=8")
ASKED = ("--levels", "shortcut=A", "--set", *DATA, f"optim.epochs={EPOCHS}", "probe_epochs=2", "--probe", "responses", "gradients")


class Nodes:
    """A head without CPUs, and nodes, all on this machine, but each with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, dict[str, Any]()
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": {"memory_monitor_refresh_ms": 0}})
        self.head = self.cluster.head_node.node_id
        self.add("stocked", 2)
        self.add("bare", 2)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        connection.connect()

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return {"HOME": str(home), "RESNET_ABLATIONS_HOME": str(home / "state")}

    def add(self, name: str, cpus: int) -> None:
        self.left[name] = self.cluster.add_node(num_cpus=cpus, env_vars=self.environment(name))

    def remove(self, name: str) -> None:
        self.cluster.remove_node(self.left.pop(name))

    def stock(self, name: str) -> None:
        """Copies the images to a node."""
        save_images(self.folder / name / "images" / "train", count=64, shape=(8, 8, 3))
        save_images(self.folder / name / "images" / "test", count=16, shape=(8, 8, 3))

    def prepare(self, name: str) -> None:
        """The same, and has the node read them, as the documentation says."""
        self.stock(name)
        command = [sys.executable, "-m", "resnet_core.data", "prepare", "--preset", "smoke", "--set", *DATA]
        subprocess.run(command, cwd=PROJECT, env={**os.environ, **self.environment(name)}, check=True, capture_output=True)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    nodes.stock("head")
    nodes.stock("stocked")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in nodes.environment("head").items():
            monkeypatch.setenv(name, value)
        yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def tracking_uri(nodes: Nodes) -> Iterator[str]:
    """An MLflow server on the head, as clusters have it. Its password lies in the head's home."""
    port = free_port()
    command = [sys.executable, "-m", "ablations.engine", "mlflow", "--port", str(port)]
    environment = {**os.environ, **nodes.environment("head")}
    output = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=output, start_new_session=True) as server:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), 60)
        yield f"http://127.0.0.1:{port}"
        os.killpg(server.pid, 15)


def answers(uri: str) -> bool:
    try:
        connect(uri)
    except ConfigError:
        return False
    return True


# Data


@pytest.fixture(scope="module")
def half(nodes: Nodes) -> RecordingListener:
    """Two runs, one on each node; one node has no data."""
    heard = RecordingListener(lambda _: None)
    data: dict[str, Any] = {"data__name": "imagefolder", "data__root": "~/images", "data__image_size": 8}
    jobs = [make_job(nodes.folder, f"half-{index}", **data) for index in range(2)]
    with pytest.MonkeyPatch.context() as patch:  # none gets the process, and so the node, of the other
        patch.setattr("ray.tune.TuneConfig", lambda **given: TuneConfig(**{**given, "reuse_actors": False}))
        tune_runner.train_runs(
            jobs, RunResources(cpus_per_worker=2), max_concurrent=None, listener=heard, scratch=nodes.folder / "tune"
        )
    nodes.prepare("bare")
    return heard


def test_a_node_without_the_data_says_so_in_a_line_that_names_it_and_the_others_go_on(
    nodes: Nodes, half: RecordingListener
) -> None:
    (failed,), (message,) = zip(*(end for end in half.ended.values() if end[0] != "completed"), strict=True)
    assert failed == "failed"
    assert message == (
        f"ConfigError: on node {os.uname().nodename}: data.root={nodes.folder}/bare/images: accepted: an existing folder with "
        "imagefolder data; every node needs its own copy"
    )
    assert len(half.ended) == 2


# A group


class OnNodes(Submitted):
    """A study whose records go to a server."""

    def __init__(self, tracking_uri: str, storage: str) -> None:
        arguments = ("--workers", "4", *ASKED)
        chosen = options.parse_options(STUDY, ["--tracking-uri", tracking_uri, "--storage", storage, *arguments])
        self.plan, self.client, self.storage = planned(*arguments), connect(tracking_uri), storage
        with redirect_stdout(io.StringIO()) as out:
            self.code = study_submission.run_study(self.plan, chosen)
        self.text = out.getvalue()
        self.entries = run_queries.find_plan_runs(self.client, self.plan)


class BadDays:
    """A study whose object store goes; submitted again, one of its workers is killed."""

    def __init__(self, nodes: Nodes, tracking_uri: str) -> None:
        self.uri = tracking_uri
        with object_store() as line:
            storage = line.store("group")
            # Each node writes a megabyte before the study; a checkpoint has 0.16.
            line.left = len(ray.nodes()) * MEGABYTE + 600_000
            self.broken = OnNodes(tracking_uri, storage)
            line.left = math.inf
            self.before = self.broken.checkpoint()["history"]
            folder = CheckpointFolder(storage, self.broken.plan.runs[0].fingerprint)
            self.actors: dict[str, list[str]] = {}

            def enough() -> bool:
                reached = max(folder._names()) > f"epoch-{len(self.before) + 2:06d}"
                if reached:
                    self.actors = actor_nodes()
                return reached

            killer = Killer("ray::GroupWorker", enough)
            self.ended = OnNodes(tracking_uri, storage)
            self.killed = killer.join()
            self.after = self.ended.checkpoint()["history"]


@pytest.fixture(scope="module")
def group(nodes: Nodes, half: RecordingListener, tracking_uri: str) -> BadDays:
    return BadDays(nodes, tracking_uri)


def test_a_group_whose_object_store_was_gone_for_a_while_goes_on_from_there(group: BadDays) -> None:
    assert (group.broken.code, group.broken.entry().outcome) == (1, "failed")
    assert "not saved in s3://bucket/" in group.broken.entry().tags["message"]
    assert group.ended.run_ids() == group.broken.run_ids()
    assert 0 < len(group.before) < len(group.after) == EPOCHS
    assert group.after[: len(group.before)] == group.before  # to the nanosecond: not trained again


def test_a_group_goes_on_from_its_checkpoint_when_one_worker_is_killed(group: BadDays) -> None:
    assert group.killed
    entry = group.ended.entry()
    assert (group.ended.code, entry.outcome, entry.tags["attempts"]) == (0, "completed", "3")  # the store's failure was the first
    assert group.ended.steps() == list(range(1, EPOCHS + 1))


def test_workers_are_placed_where_resources_are_free_and_their_leader_is_on_the_head(nodes: Nodes, group: BadDays) -> None:
    workers = group.actors.pop("GroupWorker")
    assert sorted(Counter(workers).values()) == [2, 2]
    assert TRIAL_ACTOR in group.actors
    assert {node for on in group.actors.values() for node in on} == {nodes.head}


def test_records_are_behind_a_password(group: BadDays, monkeypatch: pytest.MonkeyPatch) -> None:
    assert group.ended.entry().tags["world_size"] == "4"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "else")
    with pytest.raises(MlflowException, match=r"401|not authenticated"):
        MlflowClient(group.uri).search_experiments()


def test_four_workers_train_as_one_group_and_agree_with_one(group: BadDays) -> None:
    (alone,) = planned(*ASKED).runs
    assert alone.fingerprint not in group.ended.entries
    # Statistics of a quarter of a batch differ a little from those of all; the loss they reach does not differ much.
    torch.set_num_threads(1)
    losses = [result.metrics["train/loss"] for result in fit(alone.spec)]
    reached = [metric.value for metric in group.ended.history("train/loss")]
    assert all(math.isclose(*pair, rel_tol=0.2) for pair in zip(losses, reached, strict=True)), (losses, reached)


def test_what_the_probes_of_a_group_saw_is_an_artifact_of_its_run(group: BadDays) -> None:
    rows = group.ended.evidence().probes
    assert set(rows["probe"]) == {"responses", "gradients"}
    assert set(rows["epoch"]) == {2}
    assert (rows["quantity"] == "std").sum() == 7  # ResNet-8: stem and six more
    assert (rows["value"] > 0).all()


@pytest.mark.parametrize(("placement", "on"), [("pack", [2]), ("spread", [1, 1])])
def test_two_workers_are_packed_onto_a_node_or_spread_over_two(nodes: Nodes, group: BadDays, placement: str, on: list[int]) -> None:
    seen: list[str] = []

    class Looking(RecordingListener):
        def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
            super().reported(fingerprint, report)
            seen[:] = seen or actor_nodes().get("GroupWorker", [])

    heard = Looking(lambda _: None)
    job, needs = make_job(nodes.folder, placement, world_size=2), RunResources(workers=2, placement=placement)
    tune_runner.train_runs([job], needs, max_concurrent=None, listener=heard, scratch=nodes.folder / "tune")
    assert [outcome for outcome, _ in heard.ended.values()] == ["completed"]
    assert list(Counter(seen).values()) == on


@pytest.mark.parametrize(("option", "value"), [("--storage", "/checkpoints"), ("--tracking-uri", "sqlite:////mlflow.db")])
def test_a_local_path_is_refused_where_there_are_several_nodes(
    nodes: Nodes, group: BadDays, tmp_path: Path, option: str, value: str
) -> None:
    asked = {"--storage": f"file://{tmp_path}", "--tracking-uri": group.uri, option: value}
    arguments = [*(part for pair in asked.items() for part in pair), "--workers", "2"]
    with pytest.raises(ConfigError, match=rf"^{option}=.*: a local path on several nodes; set s3://…"):
        jobs.prepare_cluster(planned("--workers", "2"), options.parse_options(STUDY, arguments))


def test_a_replay_on_one_node_without_faults_is_bit_identical(
    nodes: Nodes, group: BadDays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(nodes.left):
        nodes.remove(name)
    nodes.add("stocked", 4)
    asked = ReplayRequest(run=group.ended.entry().run_id, tracking_uri=group.uri, storage=f"file://{tmp_path}")
    assert replay(asked) == 0
    assert f"exactly equal: {EPOCHS} epochs, every metric to the last bit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_group_releases_all_resources(nodes: Nodes, group: BadDays) -> None:
    assert assert_free() < 30
    assert ray.available_resources()["CPU"] == 4
