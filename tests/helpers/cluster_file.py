"""`cluster.yaml` as Ray's cluster launcher prepares it."""

import copy
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

from tests.helpers.project import PROJECT

CLUSTER_TEXT = (PROJECT / "cluster.yaml").read_text()
CLUSTER = yaml.safe_load(CLUSTER_TEXT)


def prepared_cluster_file() -> dict[str, Any]:
    """Return the content of the file with Ray's defaults added, as `ray up` uses it."""
    config: dict[str, Any] = prepare_config(copy.deepcopy(CLUSTER))
    return config


def worker_types() -> dict[str, dict[str, Any]]:
    return {
        name: kind for name, kind in prepared_cluster_file()["available_node_types"].items() if name != CLUSTER["head_node_type"]
    }
