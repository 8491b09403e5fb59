"""Parameters, multiply-adds and activation memory of any network."""

from resnet_core.config import ModelConfig, Network
from resnet_core.model.paper_cost import NOTHING, Cost, Part, matched, measure_parts, paper_cost

__all__ = ["NOTHING", "Cost", "Part", "matched", "measure_cost", "measure_parts"]


def measure_cost(
    config: ModelConfig | Network, image_size: int, *, in_channels: int | None = None, num_classes: int | None = None
) -> Cost:
    """Return the cost of a network.

    Args:
        config: network of He et al., whose fields that are None become the paper's, of another library, or of one's own.
        image_size: side of the square images, in pixels.
        in_channels: number of color channels. None: the configuration's, else 3.
        num_classes: number of classes. None: the configuration's, else the paper's for a network of He et al. and 10 for others.

    Raises:
        ConfigError: a network of one's own cannot be built, computes no logits or cannot be trained.

    Example:
        >>> measure_cost(ModelConfig(depth=20), image_size=32).parameters
        269722
    """
    if isinstance(config, ModelConfig):
        config = config.resolved(num_classes=num_classes, in_channels=in_channels)
        in_channels, num_classes = config.in_channels, config.num_classes
    if isinstance(config, ModelConfig) and not config.name:
        return paper_cost(config, image_size)
    from resnet_core.model.measurement import measure_any  # imports torch

    return measure_any(config, image_size, in_channels, num_classes).cost
