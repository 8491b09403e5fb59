"""Check of the data set: every node has it, and all have the same content."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablations.engine.cluster.doctor.check import Check, describe_values, failed, join_names, not_checked, passed
from resnet_core import ConfigError, DataConfig, load_dataset


@dataclass(frozen=True)
class LocalDataset:
    """The data set as one node has it."""

    version: str = ""
    """Hash of the content."""
    images: int = 0
    """Number of training images."""
    error: str = ""
    """Reason why the data set could not be read."""


def measure(config: DataConfig, cache: str) -> LocalDataset:
    """Read the data set as a run does, on the node of this process. Decoded images stay in the cache.

    Args:
        config: which data set to read.
        cache: folder of decoded copies, the same path on every node.
    """
    try:
        dataset = load_dataset(config, Path(cache))
    except (ConfigError, OSError) as error:
        return LocalDataset(error=str(error).partition("\n")[0])
    return LocalDataset(dataset.version, len(dataset.train.labels))


def evaluate(name: str, datasets: Mapping[str, LocalDataset], no_answers: Mapping[str, str]) -> Check:
    """Return the verdict on the data set of all nodes.

    Args:
        name: name of the data set.
        datasets: the data set of each node that answered, by node name.
        no_answers: why other nodes did not answer, by node name.
    """
    missing = {node: found.error for node, found in datasets.items() if found.error}
    if missing:
        remedy = (
            "copy the data to each node and run python -m resnet_core.data prepare there; for CIFAR, a study with "
            "--data-download does it"
        )
        return failed("data", f"{name} on {join_names(missing)}: {missing[min(missing)]}", remedy)
    versions = {node: found.version for node, found in datasets.items()}
    if len(set(versions.values())) > 1:
        return failed(
            "data",
            f"{name} differs between nodes: {describe_values(versions)}",
            "copy one node's folder to the others: rsync --archive --checksum --delete",
        )
    if no_answers:
        reasons = join_names(f"{node} {reason}" for node, reason in no_answers.items())
        return not_checked("data", f"{name}: {reasons}; decode a large data set beforehand: python -m resnet_core.data prepare")
    found = next(iter(datasets.values()))
    return passed("data", f"{name}, {found.images:,} training images, hash {found.version} on every node")
