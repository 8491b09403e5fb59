"""Data sets, splits, augmentation and batches. Importing this package does not import torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from resnet_core.config import RunSpec
    from resnet_core.data.batches import Batches
    from resnet_core.data.datasets import Dataset
    from resnet_core.data.streaming import StreamedBatches


def make_batches(dataset: "Dataset", spec: "RunSpec", *, device: "torch.device", rank: int = 0) -> "Batches | StreamedBatches":
    """Return the batches of a data set for one of `spec.world_size` workers: from memory, or streamed from files.

    Args:
        dataset: data set from `load_dataset`.
        spec: resolved run.
        device: device of the batches.
        rank: number of this worker, from 0.
    """
    from resnet_core.data.splits import Files

    if isinstance(dataset.train, Files):
        from resnet_core.data.streaming import StreamedBatches

        return StreamedBatches(dataset, spec, device=device, rank=rank)
    from resnet_core.data.batches import Batches

    return Batches(dataset, spec, device=device, rank=rank)
