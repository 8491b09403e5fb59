"""Ray's own autoscaler, with the node types of `cluster.yaml`: nodes come for runs that wait and go when none do. Its nodes are
processes on this machine; what they count as GPUs is asked for by the scheduler alone, since the training here has none."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from ablations.engine.scheduling import connection, gpu_choice, tune_runner
from ablations.engine.scheduling.capacity import RunResources
from resnet_core import ConfigError
from tests.helpers.cluster_file import prepared_cluster_file, worker_types
from tests.helpers.local_service import free_port
from tests.helpers.ray_jobs import RecordingListener, epochs_saved, make_job, wait_until
from tests.helpers.ray_nodes import TRIAL_ACTOR, actor_nodes, kill_node_processes

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.cluster]

MACHINE = {"CPU": 4.0, "GPU": 1.0}
"""AWS's description of the workers' instance type."""
HEAD = "f" * 51 + "00000"
"""The name of the head with this provider, which knows one type of head only."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
IDLE_SECONDS = 6


class Growing:
    """A head without CPUs, and nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        kinds = {name: {**kind, "resources": MACHINE, "node_config": {}} for name, kind in worker_types().items()}
        provider = {"type": "external", "module": PROVIDER, "gcs_address": address, "head_node_id": HEAD, "launch_multiple": True}
        config = {
            **prepared_cluster_file(),
            **{name: [] for name in prepared_cluster_file() if name.endswith("_commands")},
            "file_mounts": {},
            "idle_timeout_minutes": IDLE_SECONDS / 60,
            "provider": {**provider, "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **kinds},
        }
        file = folder / "cluster.json"
        file.write_text(json.dumps(config))
        environment = {
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            # What `ray up` sets, and this provider's name for the head.
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_memory_monitor_refresh_ms": "0",  # others on this machine may take memory
        }
        ray_start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={address.rpartition(':')[2]}"]
        options = ["--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={file}", f"--temp-dir={folder / 'ray'}"]
        with (folder / "log").open("w") as log:
            self.head = subprocess.Popen([*ray_start, *options], env=environment, stdout=log, stderr=log)
        wait_until(lambda: "Ray runtime started" in (folder / "log").read_text(), 60)
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        connection.connect()

    def gpus(self) -> float:
        return float(ray.cluster_resources().get("GPU", 0))

    def lose_that_of(self, pid: int) -> None:
        """A node with all its processes is gone at once."""
        kill_node_processes(next(p for p in psutil.Process(pid).parents() if "raylet" in p.name()))

    def close(self) -> None:
        ray.shutdown()
        everything = [*psutil.Process(self.head.pid).children(recursive=True), psutil.Process(self.head.pid)]
        for process in everything:
            process.kill()
        self.head.wait()


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    growing = Growing(Path(os.path.realpath(tmp_path_factory.mktemp("g"))))
    yield growing
    growing.close()
    monkeypatch.undo()


# Runs of one worker


class Rented:
    """Two runs that want a GPU each, where there is none; the node of one is taken away. Once it goes on, the study is stopped."""

    def __init__(self, growing: Growing, folder: Path) -> None:
        self.heard = RecordingListener(lambda _: None)
        self.at_first, self.later = growing.gpus(), set[str]()
        jobs = [make_job(folder, name, optim__epochs=5000) for name in ("moved", "stays")]
        disturbing = threading.Thread(target=self._disturb, args=[growing, folder], daemon=True)
        disturbing.start()
        tune_runner.train_runs(
            jobs, RunResources(gpus_per_worker=1), max_concurrent=None, listener=self.heard, scratch=folder / "tune"
        )
        disturbing.join(1)
        wait_until(lambda: not growing.gpus(), 10 * IDLE_SECONDS)

    def _disturb(self, growing: Growing, folder: Path) -> None:
        wait_until(lambda: min(epochs_saved(folder, "moved"), epochs_saved(folder, "stays")) >= 2)
        self.nodes = actor_nodes()[TRIAL_ACTOR]
        growing.lose_that_of(self.heard.pids["moved"])
        wait_until(lambda: "moved" in self.heard.deaths)
        reached = epochs_saved(folder, "moved")
        wait_until(lambda: epochs_saved(folder, "moved") > reached)
        self.later = set(actor_nodes()[TRIAL_ACTOR]) - set(self.nodes)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def rented(growing: Growing, tmp_path_factory: pytest.TempPathFactory) -> Rented:
    return Rented(growing, tmp_path_factory.mktemp("rented"))


def test_the_autoscaler_adds_nodes_for_waiting_gpu_runs_and_removes_all_at_the_end(rented: Rented) -> None:
    assert rented.at_first == 0
    assert len(set(rented.nodes)) == 2
    assert HEAD not in rented.nodes
    assert not rented.heard.ended  # each is one that goes on


def test_a_run_whose_node_is_preempted_continues_from_its_checkpoint_on_a_new_node(rented: Rented) -> None:
    assert rented.heard.deaths == {"moved": [(f"its node {ray.util.get_node_ip_address()} was lost", None)]}
    assert rented.later
    epochs = rented.heard.epochs["moved"]
    assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))


# Groups


def test_the_autoscaler_sees_every_waiting_group_and_its_leader_stays_on_the_head(
    growing: Growing, rented: Rented, tmp_path: Path
) -> None:
    leaders: list[dict[str, list[str]]] = []

    def stop() -> None:
        wait_until(lambda: growing.gpus() == 2)
        wait_until(lambda: len(actor_nodes().get("GroupWorker", [])) == 4)
        leaders.append(actor_nodes())
        os.kill(os.getpid(), signal.SIGINT)

    jobs = [replace(make_job(tmp_path, f"group-{i}", world_size=2, optim__epochs=5000), cpus_per_worker=2) for i in range(2)]
    threading.Thread(target=stop, daemon=True).start()
    needs = RunResources(workers=2, cpus_per_worker=2)  # a node each
    tune_runner.train_runs(jobs, needs, max_concurrent=None, listener=RecordingListener(lambda _: None), scratch=tmp_path / "tune")
    workers = leaders[0].pop("GroupWorker")
    assert HEAD not in workers
    assert len(leaders[0][TRIAL_ACTOR]) == 2
    assert {node for nodes in leaders[0].values() for node in nodes} == {HEAD}


# What never fits


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus_per_worker": 8}, "--gpus-per-worker=8: the largest node type has 1 GPU"),
        ({"cpus_per_worker": 6}, "--cpus-per-worker=6: the largest node type has 4 CPUs"),
        (
            {"gpus_per_worker": 1, "workers": 9},
            "--workers=9: each needs 1 CPU and 1 GPU; all nodes of the autoscaler together hold 8 workers",
        ),
    ],
)
def test_a_run_that_no_node_can_hold_is_rejected_at_once(growing: Growing, asked: dict[str, Any], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        RunResources(**asked).check()
    assert str(error.value) == message
    assert time.monotonic() < began + 10  # no node comes so soon


def test_gpus_that_the_autoscaler_can_bring_are_chosen(growing: Growing) -> None:
    choice = gpu_choice.choose_resources(RunResources(workers=8), None, gpu_choice.joined_cluster())
    assert choice.resources.gpus_per_worker == 1
    # Nodes may have come before.
    assert choice.reason.startswith(("the cluster's autoscaler adds nodes with GPUs", "the cluster has "))
    with pytest.raises(ConfigError, match=r"^--gpus-per-worker=auto: .*--workers=9: each needs 1 CPU and 1 GPU; all nodes of"):
        gpu_choice.choose_resources(RunResources(workers=9), None, gpu_choice.joined_cluster())


def test_a_run_that_new_nodes_can_hold_is_accepted_and_a_local_path_is_rejected(growing: Growing) -> None:
    needs = RunResources(gpus_per_worker=1, workers=8)
    needs.check()
    assert needs.max_capacity() == 1
    assert RunResources(gpus_per_worker=0.5).max_capacity() == 16
    with pytest.raises(ConfigError, match="--storage=/checkpoints: a local path on several nodes"):
        connection.check_reachable("--storage", "/checkpoints")
