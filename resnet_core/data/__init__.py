"""Data sets, splits, augmentation and batches. Importing this costs nothing: torch is loaded by what is used of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from resnet_core.config import RunSpec
    from resnet_core.data.batches import Batches
    from resnet_core.data.datasets import Dataset
    from resnet_core.data.streaming import StreamedBatches


def make_batches(dataset: "Dataset", spec: "RunSpec", *, device: "torch.device", rank: int = 0) -> "Batches | StreamedBatches":
    """The batches of a data set for one worker of `spec.world_size`, from memory or from files as the data set has them.

    Args:
        dataset: what `load_dataset` gave.
        spec: a resolved spec.
        device: where the batches are wanted.
        rank: which worker this is.
    """
    from resnet_core.data.splits import Files

    if isinstance(dataset.train, Files):
        from resnet_core.data.streaming import StreamedBatches

        return StreamedBatches(dataset, spec, device=device, rank=rank)
    from resnet_core.data.batches import Batches

    return Batches(dataset, spec, device=device, rank=rank)
