"""Tests of the capacity of a cluster, now and with the nodes that its autoscaler may add."""

import json
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config

from ablations.engine.scheduling import capacity
from ablations.engine.scheduling.capacity import AutoscalerLimits, NodeType, RunResources, parse_cluster_file
from tests.helpers.project import PROJECT

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
GROWTH = AutoscalerLimits(
    [NodeType({"CPU": 4, "GPU": 1}, 2), NodeType({"CPU": 32, "GPU": 0}, 6), NodeType({"CPU": 192, "GPU": 8}, 0)], 5
)
"""One type of node is switched off."""


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (RunResources(gpus_per_worker=8), "--gpus-per-worker=8: the largest node type has 1 GPU"),
        (RunResources(cpus_per_worker=33), "--cpus-per-worker=33: the largest node type has 32 CPUs"),
        (RunResources(cpus_per_worker=5, gpus_per_worker=1), "--cpus-per-worker=5: no node type has 5 CPUs and 1 GPU"),
        (
            RunResources(workers=3, gpus_per_worker=1),
            "--workers=3: each needs 1 CPU and 1 GPU; all nodes of the autoscaler together hold 2 workers",
        ),
        (
            RunResources(workers=161),
            "--workers=161: each needs 1 CPU; all nodes of the autoscaler together hold 160 workers",
        ),  # five nodes of 32
        (RunResources(workers=160), None),
        (RunResources(workers=8, gpus_per_worker=0.25), None),
    ],
)
def test_the_error_for_a_run_that_never_fits_names_the_field_and_the_largest_possible_value(
    needs: RunResources, message: str | None
) -> None:
    refusal = needs.unsatisfiable_error(HEAD, GROWTH)
    assert (refusal and str(refusal)) == message


@pytest.mark.parametrize(("share", "runs"), [(0.25, 32), (0.3, 24), (0.6, 8), (1, 8), (3, 2)])
def test_a_worker_with_a_share_of_a_gpu_uses_a_single_gpu(share: float, runs: int) -> None:
    assert RunResources(gpus_per_worker=share).runs_on({"CPU": 100, "GPU": 8}) == runs


def test_a_head_with_cpus_counts_as_capacity() -> None:
    assert RunResources(workers=162).unsatisfiable_error({"CPU": 2.0}, GROWTH) is None


def test_limits_of_the_autoscaler_are_read_from_a_cluster_file_unless_a_type_has_no_resources() -> None:
    head = {"resources": {"CPU": 0}, "max_workers": 0}
    kinds = {"head": head, "small": {"resources": {"CPU": 4}, "max_workers": 3}, "any": {"resources": {"CPU": 8}}}
    file = {"head_node_type": "head", "max_workers": 5, "available_node_types": kinds}
    assert parse_cluster_file(file) == AutoscalerLimits([NodeType({"CPU": 4}, 3), NodeType({"CPU": 8}, 5)], 5)
    kinds_unknown: list[dict[str, Any]] = [{"resources": {}}, {}]
    for unknown in kinds_unknown:
        assert parse_cluster_file({**file, "available_node_types": {**kinds, "mine": unknown}}) is None


def test_limits_of_machines_on_premises_are_unknown() -> None:
    config: dict[str, Any] = yaml.safe_load((PROJECT / "deploy" / "on-premises.yaml").read_text())
    assert parse_cluster_file(prepare_config(config)) is None


@pytest.mark.parametrize(
    ("v2", "labels", "types", "expected"),
    [
        (None, {}, None, False),
        (None, {}, {"node_a": 1}, False),  # without an autoscaler, each node is a type of its own
        (None, {}, {"head": 1}, True),
        (b"1", {}, None, False),  # a head that was told of version 2, and no more
        (b"1", {"ray.io/node-group": "head"}, None, True),
        (b"0", {"ray.io/node-group": "head"}, None, False),
    ],
)
def test_an_autoscaler_is_known_by_the_types_of_its_nodes(
    v2: bytes | None, labels: dict[str, str], types: dict[str, int] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = None if types is None else json.dumps({"autoscaler_report": {"active_nodes": types, "idle_nodes": None}}).encode()
    stored = {(None, "__autoscaling_status"): report, ("__autoscaler", "__autoscaler_v2_enabled"): v2}
    monkeypatch.setattr(capacity, "kv_get", lambda key, namespace=None: stored[namespace, key])
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True, "Labels": labels}])
    assert capacity.has_autoscaler() is expected
