"""Tests of faults: processes are killed, hang or run out of memory, nodes are lost; runs continue, and no resource leaks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from ablations.engine.cli import options
from ablations.engine.environment import paths
from ablations.engine.scheduling import connection
from ablations.engine.scheduling.ray_internals.key_value_store import kv_get, kv_keys
from ablations.engine.study.expansion import make_plan
from ablations.engine.trial import process_failures
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.process_failures import ProcessFailure
from ablations.shortcuts import STUDY
from resnet_core import ConfigError, fit
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import (
    RecordingListener,
    assert_free,
    epochs_saved,
    make_job,
    run_jobs,
    smoke_spec,
    unreadable_checkpoint,
    wait_until,
)
from tests.helpers.ray_nodes import kill_node_processes

pytestmark = pytest.mark.slow


class Nodes:
    """A head without CPUs, and nodes with one each and a GPU that nobody computes on, all on this machine."""

    def __init__(self) -> None:
        config = {
            "memory_monitor_refresh_ms": 0,  # others on this machine may take memory
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 3,
        }
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "_system_config": config}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        connection.connect()

    def lose(self, index: int) -> None:
        """A node with all its processes is gone at once."""
        node = self.nodes.pop(index)
        kill_node_processes(psutil.Process(node.all_processes["raylet"][0].process.pid))
        self.cluster.remove_node(node, allow_graceful=False)

    def lose_that_of(self, pid: int) -> None:
        raylet = next(p.pid for p in psutil.Process(pid).parents() if "raylet" in p.name())
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.nodes]
        self.lose(raylets.index(raylet))

    def lose_that_of_a_training(self, old: list[str]) -> None:
        """A node on which a run trains right now, of those that have left word since these old ones."""
        word = next(word for word in self.words() if word not in old)
        node = json.loads(kv_get(word) or b"{}")["node"]
        self.lose([node.node_id for node in self.nodes].index(node))

    def words(self) -> list[str]:
        """Keys of what processes that train have left with Ray for the case of their death."""
        return kv_keys(process_failures.RECORD_PREFIX)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, num_gpus=1))

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of Ray's processes that do this."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(name):
                    found.append(process)
            except psutil.Error:  # gone, or a zombie
                continue
        return found

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


# One worker


@pytest.fixture(scope="module")
def bad_day(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> RecordingListener:
    """Three runs that may die once: one hangs whenever it begins, one is killed and then loses its node, one has luck."""
    folder = tmp_path_factory.mktemp("bad-day")
    jobs = [
        make_job(folder, "unlucky", max_failures=1, optim__epochs=200),
        make_job(folder, "stuck", max_failures=1, hang_timeout=2.5),
        make_job(folder, "lucky", max_failures=1),
    ]
    unreadable_checkpoint(folder, "stuck")

    def disturb(heard: RecordingListener) -> None:
        wait_until(lambda: epochs_saved(folder, "unlucky") >= 3)
        psutil.Process(heard.pids["unlucky"]).kill()
        wait_until(lambda: "unlucky" in heard.deaths)
        reached = epochs_saved(folder, "unlucky")
        wait_until(lambda: epochs_saved(folder, "unlucky") > reached + 3)
        nodes.lose_that_of(heard.pids["unlucky"])

    heard = run_jobs(folder, jobs, disturb, gpus=1)
    nodes.add()
    return heard


@pytest.mark.cluster
def test_a_crashed_run_is_reported_with_its_cause_and_retried(bad_day: RecordingListener) -> None:
    killed, lost = bad_day.deaths["unlucky"]
    assert killed == ("its process was killed", None)
    address = ray.util.get_node_ip_address()
    assert lost == (f"its node {address} was lost", None)
    assert bad_day.ended["unlucky"] == ("completed", "")
    assert sorted(set(bad_day.epochs["unlucky"])) == list(range(1, 201))


@pytest.mark.cluster
def test_a_run_that_hangs_repeatedly_fails_and_other_runs_continue(bad_day: RecordingListener) -> None:
    reasons, outcomes = zip(*bad_day.deaths["stuck"], strict=True)
    assert outcomes == (None, "failed")
    # Its watchdog says so, or the leader where the machine is too busy for the watchdog.
    assert all(re.fullmatch(r"made no step for 2\.5 s|its process stood still for \d+ s", reason) for reason in reasons)
    assert bad_day.ended["lucky"] == ("completed", "")
    assert "lucky" not in bad_day.deaths


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_run_that_loses_one_node_after_the_other_without_an_epoch_fails(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = process_failures.explain_failure

    def lost(*asked: Any) -> ProcessFailure:
        """Return the failure of a run that takes its node down each time, without the seconds that this takes."""
        explain(*asked)
        return ProcessFailure("its node was lost", "node")

    monkeypatch.setattr(process_failures, "explain_failure", lost)
    monkeypatch.setattr(process_failures, "MAX_NODE_LOSSES", 1)
    unreadable_checkpoint(tmp_path, "taking")
    heard = run_jobs(tmp_path, [make_job(tmp_path, "taking", max_failures=0, hang_timeout=2.5)])
    last = "its node was lost, and 1 before it without a new epoch"
    assert heard.deaths["taking"] == [("its node was lost", None), (last, "failed")]


# Memory


@pytest.fixture
def small_container() -> Iterator[Path]:
    """A memory cgroup that holds next to nothing."""
    own = next((line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), "/")
    group = Path("/sys/fs/cgroup/memory", own.lstrip("/"), f"small-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("65536")
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield group
    wait_until(lambda: not (group / "cgroup.procs").read_text(), 20)
    group.rmdir()


@pytest.mark.cluster
def test_an_oom_kill_by_the_kernel_is_distinguished_from_other_kills(nodes: Nodes, tmp_path: Path, small_container: Path) -> None:
    def squeeze(heard: RecordingListener) -> None:
        wait_until(lambda: epochs_saved(tmp_path, "big") >= 3)
        (small_container / "cgroup.procs").write_text(str(heard.pids["big"]))

    heard = run_jobs(tmp_path, [make_job(tmp_path, "big", max_failures=0, optim__epochs=2000)], squeeze)
    assert heard.deaths["big"] == [("killed by the kernel: its node ran out of memory", "oom")]


def test_oom_kills_are_counted_from_the_kernels_counters(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    assert process_failures.count_oom_kills(counters) == 0
    counters.write_text("nr_free_pages 17\noom_kill 3\nnuma_hit 5\n")
    assert process_failures.count_oom_kills(counters) == 3


@pytest.mark.cluster
@pytest.mark.alone  # what others take of the machine's memory would count
def test_a_kill_by_rays_memory_monitor_is_oom_and_other_runs_continue(tmp_path: Path) -> None:
    """On a Ray of its own that guards what this machine has left."""
    code = f"""
import json, psutil, ray
from pathlib import Path
from tests.helpers.ray_jobs import SPARE_BYTES, make_job, run_jobs
memory = psutil.virtual_memory()
threshold = (memory.total - memory.available + SPARE_BYTES) / memory.total
guard = dict(memory_usage_threshold=threshold, memory_monitor_refresh_ms=100)
ray.init("local", num_cpus=1, include_dashboard=True, log_to_driver=False, _system_config=guard)
folder = Path({str(tmp_path)!r})
huge = dict(data__image_size=64, data__train_examples=4096, optim__global_batch_size=4096, model__width=64)
heard = run_jobs(folder, [make_job(folder, "huge", max_failures=1, **huge), make_job(folder, "small", max_failures=1)])
print("heard:", json.dumps([heard.deaths["huge"], heard.ended["small"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=280)
    killed, small = json.loads(done.stdout.partition("heard:")[2] or f'"{done.stderr}"')
    assert [outcome for _, outcome in killed] == [None, "oom"]
    assert all(reason.startswith("killed by Ray's memory monitor: its node had ") for reason, _ in killed)
    assert small == ["completed", ""]


def test_a_failed_allocation_is_oom_and_the_message_names_batch_and_device(tmp_path: Path) -> None:
    """In a process that may take 200 MB more than it has when training begins."""
    code = f"""
import resource, sys, torch
from pathlib import Path
from ablations.engine.trial.outcomes import with_outcome
from ablations.engine.trial.worker import train_epochs
from tests.helpers.ray_jobs import make_job
job = make_job(Path({str(tmp_path)!r}), "large", data__image_size=64, data__train_examples=512, optim__global_batch_size=512)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
*_, report = with_outcome(train_epochs(job, "cpu"))
print(report["outcome"], report["message"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.startswith("oom OutOfMemory: a batch of 512 images on "), done.stdout + done.stderr
    assert "DefaultCPUAllocator" in done.stdout


# A group of workers


@pytest.fixture(scope="module")
def bad_day_of_a_group(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> RecordingListener:
    """A run of two workers that may restart once: one worker is stuck, then a node is lost, and another takes its place. When it
    has gone on, it is stopped."""
    folder = tmp_path_factory.mktemp("group")
    job = make_job(folder, "group", max_failures=1, hang_timeout=30, world_size=2, optim__epochs=5000)

    def goes_on() -> None:
        reached = epochs_saved(folder, "group")
        wait_until(lambda: epochs_saved(folder, "group") > reached + 2)

    def disturb(heard: RecordingListener) -> None:
        try:
            goes_on()
            nodes.processes("ray::GroupWorker")[0].suspend()
            wait_until(lambda: heard.restarts)
            goes_on()
            nodes.lose(0)
            wait_until(lambda: len(heard.restarts) == 2)
            goes_on()
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # the run would train to its end

    def replace(heard: RecordingListener) -> None:
        if len(heard.restarts) == 2:
            nodes.add()

    return run_jobs(folder, [job], disturb, on_restart=replace)


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_group_with_a_hung_worker_is_restarted(bad_day_of_a_group: RecordingListener) -> None:
    assert bad_day_of_a_group.restarts[0] == "made no step for 30 s"


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_group_that_lost_a_node_waits_for_another_and_counts_no_failure(bad_day_of_a_group: RecordingListener) -> None:
    assert bad_day_of_a_group.restarts[1:] == [f"its node {ray.util.get_node_ip_address()} was lost"]
    epochs = bad_day_of_a_group.epochs["group"]
    assert set(epochs) == set(range(1, max(epochs) + 1))
    begins = [index for index, epoch in enumerate(epochs) if epoch == 1]  # what was reported before is reported again
    assert len(begins) == 3
    assert max(epochs[: begins[2]]) < max(epochs)


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_stopped_group_holds_no_resources(bad_day_of_a_group: RecordingListener) -> None:
    assert not bad_day_of_a_group.ended  # and `run` has looked


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_stopped_study_holds_no_resources(nodes: Nodes, tmp_path: Path) -> None:
    def stop(_: RecordingListener) -> None:
        wait_until(lambda: epochs_saved(tmp_path, "stopped") >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    heard = run_jobs(tmp_path, [make_job(tmp_path, "stopped", optim__epochs=5000)], stop, gpus=1)  # asserts it
    assert not heard.ended


@pytest.mark.cluster
def test_a_crashed_driver_holds_no_resources(nodes: Nodes, tmp_path: Path) -> None:
    code = f"""
import ray
from pathlib import Path
from tests.helpers.ray_jobs import make_job, run_jobs
ray.init({nodes.cluster.address!r}, log_to_driver=False)
folder = Path({str(tmp_path)!r})
run_jobs(folder, [make_job(folder, "orphan", world_size=2, optim__epochs=5000)])
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT) as driver:
        wait_until(lambda: epochs_saved(tmp_path, "orphan") >= 2)
        driver.kill()
    assert assert_free(30) < 30


# The whole way


EPOCHS = 120


@pytest.mark.cluster
def test_runs_of_a_lost_node_continue_elsewhere_with_the_same_results(server: int, nodes: Nodes, tmp_path: Path) -> None:
    tracking_uri = f"http://127.0.0.1:{server}"
    chosen = ["--preset", "smoke", "--seeds", "1", "--levels", "depth=8", "shortcut=none,A", "--set", f"optim.epochs={EPOCHS}"]
    # The nodes have made-up GPUs, one each, on which nothing can train.
    where = ["--gpus-per-worker", "0", "--tracking-uri", tracking_uri, "--storage", f"file://{tmp_path}/checkpoints"]
    plan = make_plan(STUDY, options.parse_options(STUDY, chosen).request, cache=paths.data_cache())
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
    command = [sys.executable, "ablations/shortcuts.py", *chosen, *where]
    pipe, before = subprocess.PIPE, nodes.words()
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True) as study:
        wait_until(lambda: any(epochs_saved(tmp_path, run.fingerprint) >= 3 for run in plan.runs))
        nodes.lose_that_of_a_training(before)  # the other node's process may still be starting
        text, error = study.communicate(timeout=300)
    nodes.add()
    assert study.returncode == 0, text
    assert "aylet" not in error  # Ray prints its own words, and up to 20 lines of a log, on standard output
    assert f"its node {ray.util.get_node_ip_address()} was lost" in text
    client = MlflowClient(tracking_uri)
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == STUDY.name)
    expected = sorted(run.fingerprint for run in plan.runs)
    found = [run for run in client.search_runs([experiment]) if run.data.tags.get("fingerprint") in expected]
    assert sorted(run.data.tags["fingerprint"] for run in found) == expected
    assert sorted(run.data.tags["attempts"] for run in found) == ["1", "2"]
    for run in found:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "test/error")]
        assert steps == list(range(1, EPOCHS + 1))
    torch.set_num_threads(1)
    for planned in plan.runs:
        *_, last = fit(planned.spec)
        saved = CheckpointFolder(f"file://{tmp_path}/checkpoints", planned.fingerprint).latest()
        assert saved is not None
        assert all(torch.equal(value, saved["model"][name]) for name, value in last.checkpoint()["model"].items())


# The watchdog


@pytest.mark.parametrize("hanging", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"], ids=["waits", "keeps the lock"])
def test_a_hung_process_exits_and_prints_its_stacks(hanging: str) -> None:
    code = f"""
import ctypes, time
from ablations.engine.trial.watchdog import Watchdog
def stuck():
    {hanging}
with Watchdog(2.0, lambda: print("last words", flush=True)) as watchdog:
    for _ in range(12):
        time.sleep(0.25)
        watchdog.alive()
    print("all steps", flush=True)
    stuck()
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=50)
    assert time.monotonic() < began + 20
    assert done.returncode == 1
    assert done.stdout == ("all steps\nlast words\n" if "time" in hanging else "all steps\n")
    assert "in stuck" in done.stderr


def test_a_watchdog_stops_when_its_context_is_left() -> None:
    code = """
import time
from ablations.engine.trial.watchdog import Watchdog
for _ in range(2):
    with Watchdog(2.0, lambda: None):
        time.sleep(0.05)
    time.sleep(2.6)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=50)
    assert (done.stdout, done.stderr) == ("still here\n", "")


def test_every_step_and_every_evaluated_batch_is_a_heartbeat() -> None:
    spec = smoke_spec(optim__epochs=1, optim__bn_recalibration=True, data__extra_tests="ten_crop")
    signs: list[None] = []
    list(fit(spec, heartbeat=lambda: signs.append(None)))
    assert len(signs) == 4 + 4 + 1 + 10  # four batches to train, and again for BatchNorm; one to test, and ten views of it


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "1e12"])
def test_a_hang_timeout_that_never_or_always_expires_is_rejected(seconds: str) -> None:
    with pytest.raises(ConfigError, match="--hang-timeout"):
        options.parse_options(STUDY, [f"--hang-timeout={seconds}"])
