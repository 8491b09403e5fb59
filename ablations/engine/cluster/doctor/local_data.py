"""Whether every node has the data, and the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, listed, ok, spread, unchecked, wrong
from resnet_core import ConfigError, DataConfig, load_dataset


@dataclass(frozen=True)
class Data:
    """What a node has."""

    version: str = ""
    """Hash of the content."""
    images: int = 0
    """To train on."""
    error: str = ""


def measure(config: DataConfig, cache: str) -> Data:
    """Reads a data set as a run does, on the node of this process: what is decoded stays in the cache.

    Args:
        config: which.
        cache: folder for decoded copies, the same path on every node.
    """
    try:
        dataset = load_dataset(config, Path(cache))
    except (ConfigError, OSError) as error:
        return Data(error=str(error).partition("\n")[0])
    return Data(dataset.version, len(dataset.train.labels))


def judge(name: str, data: Mapping[str, Data], late: Mapping[str, str]) -> Check:
    """Of all nodes, by name.

    Args:
        name: of the data set.
        data: what they have.
        late: why others did not answer.
    """
    missing = {node: found.error for node, found in data.items() if found.error}
    if missing:
        remedy = "python -m resnet_core.data prepare on each node; CIFAR comes to each by a study's --data-download"
        return wrong("data", f"{name} on {listed(missing)}: {missing[min(missing)]}", remedy)
    versions = {node: found.version for node, found in data.items()}
    if len(set(versions.values())) > 1:
        return wrong(
            "data", f"{name} differs: {spread(versions)}", "copy one node's folder to the others: rsync --checksum --delete"
        )
    if late:
        shown = listed(f"{node} {reason}" for node, reason in late.items())
        return unchecked("data", f"{name}: {shown}; python -m resnet_core.data prepare decodes large sets beforehand")
    found = next(iter(data.values()))
    return ok("data", f"{name}, {found.images:,} images to train on, hash {found.version} on every node")
