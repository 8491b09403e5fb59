"""Configuration of a run: network, images, optimizer, arithmetic and seed."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from resnet_core.config.data import DataConfig
from resnet_core.config.model import ModelConfig
from resnet_core.config.network import Network
from resnet_core.config.optim import OptimConfig
from resnet_core.fields import Checked, reject
from resnet_core.schema import check_config_class


@dataclass(frozen=True, kw_only=True)
class RunSpec(Checked):
    """Complete description of one training of one network. Equal RunSpecs, data and code give equal results."""

    model: ModelConfig | Network = field(default_factory=ModelConfig)
    """Network: of He et al., or a frozen dataclass of one's own with a method `build`."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and length of the training."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of convolutions and matrix products. `fp32`: float32. `tf32`: PyTorch's default, float32 whose convolutions on
    NVIDIA GPUs since Ampere round their inputs to 10 bits of mantissa; equal to `fp32` elsewhere. `bf16`, `fp16`: autocast.
    Weights and BatchNorm stay in float32.

    Source: PyTorch's numerical accuracy and AMP notes.
    """
    deterministic: bool = False
    """Use only deterministic algorithms on a GPU, so that a repeated or resumed training is equal to the last bit, at some cost in
    speed. Training on a CPU is deterministic in any case, for a fixed number of threads.

    Source: PyTorch's `torch.use_deterministic_algorithms`.
    """
    channels_last: bool = True
    """Store images and activations as NHWC, the faster memory layout on CPUs and tensor cores.

    Source: PyTorch's channels-last memory format.
    """
    compile: bool = False
    """Compile the network with `torch.compile`.

    Source: PyTorch's `torch.compile`.
    """
    checkpoint_activations: bool = False
    """Keep only some activations for the backward pass and recompute the others. The result is equal, memory grows with the
    square root of the depth, and training takes about a third longer.

    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    probes: tuple[Literal["responses", "gradients"], ...] = ()
    """Measurements inside the network. `responses`: standard deviation of each 3×3 layer's output over the evaluation split
    (figure 7), and mean absolute scale of each block's last BatchNorm. `gradients`: norm of each layer's gradient, averaged over
    an epoch, and norm of its weights.

    Source: section 4.2, figure 7 (`responses`).
    """
    probe_epochs: tuple[int, ...] = ()
    """Epochs in which probes measure. Empty: the first and the last epoch.

    Unit: epochs, from 1.
    Accepted: epochs of the training, together with `probes`.
    """
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation.

    Unit: none.
    Accepted: at least 0.
    """
    world_size: int = 1
    """Number of workers of data-parallel training.

    Unit: workers.
    Accepted: a divisor of `optim.global_batch_size`.
    """

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        """Return `value` as the type of field `name`, as in `Checked.converted`; `model` may be a network of one's own."""
        if name != "model" or isinstance(value, ModelConfig):
            return super().converted(name, value)
        if isinstance(value, type) or not callable(getattr(value, "build", None)):
            shown = value.__name__ if isinstance(value, type) else value
            own = "an instance of a frozen dataclass with build(image_size, in_channels, num_classes)"
            raise reject("model", shown, f"accepted: a ModelConfig, or {own}")
        check_config_class(value)
        return value

    def _check(self) -> None:
        self._at_least(0, "seed")
        self._at_least(1, "world_size")
        if any(epoch < 1 for epoch in self.probe_epochs) or (self.probe_epochs and not self.probes):
            raise self._reject("probe_epochs", "accepted: epochs, counted from 1, where there are probes")
        batch = self.optim.global_batch_size
        if batch % self.world_size:
            near = max(self.world_size, batch - batch % self.world_size)
            raise reject("optim.global_batch_size", batch, f"accepted: a multiple of the {self.world_size} workers, such as {near}")

    @property
    def depth(self) -> int:
        """Number of weighted layers of a network of He et al., by which the time of a step on a GPU grows; 1 for other networks."""
        return self.model.depth if isinstance(self.model, ModelConfig) and not self.model.name else 1

    def probed_epochs(self, total_epochs: int) -> set[int]:
        """Return the epochs, from 1, in which probes measure.

        Raises:
            ConfigError: `probe_epochs` names an epoch after `total_epochs`.
        """
        late = max(self.probe_epochs, default=0)
        if late > total_epochs:
            raise reject("probe_epochs", late, f"accepted: 1 to {total_epochs}, the epochs of this training")
        return set(self.probe_epochs) or {1, total_epochs}

    def flat(self) -> dict[str, Any]:
        """Return every field by its dotted name, in order: `{"model.family": "cifar", "model.depth": 20, …, "seed": 0}`."""
        return dict(_flattened(self, ""))


def _flattened(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for each in fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from _flattened(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", value
