"""The number of GPUs that a study's workers get if its user names none."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import ray

from ablations import Study
from ablations.engine.cli import options
from ablations.engine.scheduling import capacity, gpu_choice
from ablations.engine.scheduling.capacity import AutoscalerLimits, NodeType, RunResources
from ablations.engine.scheduling.gpu_choice import ClusterResources, choose_resources
from resnet_core import ConfigError

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
CPUS, GPUS = {"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}
ON_AWS = AutoscalerLimits([NodeType({"CPU": 4, "GPU": 1}, 8)], 8)
WITHOUT_GPUS = AutoscalerLimits([NodeType({"CPU": 4}, 8)], 8)


def there(*nodes: Mapping[str, float], limits: AutoscalerLimits | None = None, autoscaler: bool = False) -> ClusterResources:
    return ClusterResources(nodes=nodes, has_autoscaler=autoscaler or limits is not None, limits=limits, head=HEAD)


@pytest.mark.parametrize(
    ("cluster", "needs", "gpus", "sentence"),
    [
        (there(CPUS), {}, 0, "Each run takes 1 CPU, no GPU: this machine has none."),
        (
            there({"CPU": 8, "GPU": 2}),
            {},
            1,
            "Each run takes 1 CPU and 1 GPU: this machine has 2 GPUs; --gpus-per-worker 0 trains on CPUs.",
        ),
        (
            there({"CPU": 8, "GPU": 2}),
            {"workers": 2, "cpus_per_worker": 4},
            1,
            "Each of the 2 workers of a run takes 4 CPUs and 1 GPU: this machine has 2 GPUs; --gpus-per-worker 0 trains on CPUs.",
        ),
        (there(CPUS, CPUS), {}, 0, "Each run takes 1 CPU, no GPU: the cluster has none."),
        (
            there(HEAD, GPUS, GPUS),  # a head that trains nothing
            {},
            1,
            "Each run takes 1 CPU and 1 GPU: the cluster has 2 GPUs on 2 of 3 nodes; --gpus-per-worker 0 trains on CPUs.",
        ),
        (
            there(GPUS, CPUS),
            {},
            1,
            "Each run takes 1 CPU and 1 GPU: the cluster has 1 GPU on 1 of 2 nodes, and nodes without GPU stay idle; "
            "--gpus-per-worker 0 trains on CPUs.",
        ),
        (
            there(HEAD, limits=ON_AWS),
            {"workers": 8},
            1,
            "Each of the 8 workers of a run takes 1 CPU and 1 GPU: the cluster's autoscaler adds nodes with GPUs; "
            "--gpus-per-worker 0 trains on CPUs.",
        ),
        (
            there(HEAD, limits=WITHOUT_GPUS),
            {},
            0,
            "Each run takes 1 CPU, no GPU: the cluster has none, and its autoscaler adds none.",
        ),
        (
            there(HEAD, GPUS, autoscaler=True),  # more may come than are there
            {"workers": 2},
            1,
            "Each of the 2 workers of a run takes 1 CPU and 1 GPU: the cluster has 1 GPU on 1 of 2 nodes; "
            "--gpus-per-worker 0 trains on CPUs.",
        ),
    ],
)
def test_a_worker_gets_a_gpu_where_the_cluster_has_or_can_get_any(
    cluster: ClusterResources, needs: dict[str, Any], gpus: float, sentence: str
) -> None:
    choice = choose_resources(RunResources(**needs), None, cluster)
    assert (choice.resources.gpus_per_worker, choice.describe()) == (gpus, sentence)
    assert choice.resources.cpus_per_worker == needs.get("cpus_per_worker", 1)


@pytest.mark.parametrize(
    ("cluster", "needs", "message"),
    [
        (
            there({"CPU": 8, "GPU": 1}),
            {"workers": 2},
            r"this machine has GPUs, and a run does not fit \(--workers=2: each worker needs 1 CPU and 1 GPU; the cluster has 8 "
            "CPUs and 1 GPU on 1 node, .*; --gpus-per-worker 0 trains on CPUs",
        ),
        (
            there(GPUS, CPUS),
            {"cpus_per_worker": 8},
            "the cluster has GPUs, and a run does not fit .*each worker needs 8 CPUs and 1 GPU",
        ),
        (
            there(HEAD, limits=ON_AWS),
            {"cpus_per_worker": 8},
            r"a run does not fit \(--cpus-per-worker=8: the largest node type has 4",
        ),
        (there(HEAD, limits=ON_AWS), {"workers": 9}, "all nodes of the autoscaler together hold 8 workers"),
        (
            there(HEAD, autoscaler=True),
            {},
            "no node has a GPU now, .* as on Kubernetes; accepted: 1 to wait for GPUs, 0 to train on CPUs",
        ),
    ],
)
def test_a_study_is_rejected_where_it_would_train_on_cpus_beside_gpus(
    cluster: ClusterResources, needs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^--gpus-per-worker=auto: .*{message}"):
        choose_resources(RunResources(**needs), None, cluster)


@pytest.mark.parametrize("cluster", [there(CPUS), there({"CPU": 8, "GPU": 2}), there(HEAD, autoscaler=True)])
@pytest.mark.parametrize(("gpus", "takes"), [(0.0, "1 CPU, no GPU"), (0.5, "1 CPU and 0.5 GPUs")])
def test_a_requested_number_is_taken_as_it_is(cluster: ClusterResources, gpus: float, takes: str) -> None:
    choice = choose_resources(RunResources(), gpus, cluster)
    assert (choice.resources.gpus_per_worker, choice.reason, choice.describe()) == (gpus, "", f"Each run takes {takes}.")


def test_gpus_do_not_identify_a_run() -> None:
    study = Study(name="x", question="?", factors={"depth": (20, 56)}, baseline={"depth": 20})
    requests = [options.parse_options(study, words).request for words in ([], ["--gpus-per-worker", "1"])]
    assert requests[0] == requests[1]  # a plan and its fingerprints are made from nothing else


def fake_node(monkeypatch: pytest.MonkeyPatch, *resources: Mapping[str, float], usable: int) -> None:
    nodes = [{"Alive": True, "Resources": each} for each in resources]
    monkeypatch.setattr(capacity, "alive_nodes", lambda: nodes)
    monkeypatch.setattr("ablations.engine.scheduling.capacity.has_autoscaler", lambda: False)
    monkeypatch.setattr(capacity, "local_gpus", lambda: usable)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_that_ray_counts_and_torch_cannot_use_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_node(monkeypatch, GPUS, usable=0)
    choice = choose_resources(RunResources(), None, gpu_choice.joined_cluster())
    assert choice.resources.gpus_per_worker == 0
    why = "Ray counts 1 GPU on this machine, but torch finds none that it can use"
    assert choice.describe() == f"Each run takes 1 CPU, no GPU: {why}."
    fake_node(monkeypatch, GPUS, usable=1)
    assert choose_resources(RunResources(), None, gpu_choice.joined_cluster()).resources.gpus_per_worker == 1


def test_the_driver_of_a_job_that_sees_no_gpu_says_nothing_about_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_node(monkeypatch, GPUS, usable=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_resources(RunResources(), None, gpu_choice.joined_cluster()).resources.gpus_per_worker == 1


@pytest.mark.parametrize(("files", "gpus"), [((), 0), (("driver",), 2)])
def test_torch_counts_the_gpus_of_this_machine_only_if_it_has_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, files: Sequence[str], gpus: int
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(capacity, "GPU_DRIVER_FILES", (str(tmp_path / "driver"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert capacity.local_gpus() == gpus


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.ray
def test_gpus_of_a_joined_cluster_are_found() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, num_gpus=2)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        choice = choose_resources(RunResources(), None, gpu_choice.joined_cluster())
        assert choice.reason == "the cluster has 2 GPUs on 1 of 2 nodes, and nodes without GPU stay idle"
        choice.resources.check()
        assert choice.resources.current_capacity() == 1  # its one CPU
        with pytest.raises(ConfigError, match="each worker needs 1 CPU and 1 GPU; the cluster has 2 CPUs and 2 GPUs on 2 nodes"):
            choose_resources(RunResources(workers=2), None, gpu_choice.joined_cluster())
    finally:
        ray.shutdown()
        cluster.shutdown()
