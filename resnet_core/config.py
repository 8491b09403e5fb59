"""What a run is: frozen, typed configurations, named presets and overrides.

Everything here is a value. A new run is derived from an old one with `override`; nothing is mutated and there is no
registry. This module imports neither torch nor numpy, so that plans, help texts and error messages cost nothing.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from resnet_core.fields import Checked, ConfigError, reject

IMAGENET_STAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("basic", 18): (2, 2, 2, 2),
    ("basic", 34): (3, 4, 6, 3),
    ("bottleneck", 50): (3, 4, 6, 3),
    ("bottleneck", 101): (3, 4, 23, 3),
    ("bottleneck", 152): (3, 8, 36, 3),
}
"""Blocks per stage of the ImageNet networks (He et al. 2015, table 1)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A network of He et al. 2015: the CIFAR family (section 4.2) or the ImageNet family (table 1), residual or plain."""

    _section = "model."

    family: Literal["cifar", "imagenet"] = "cifar"
    """Stem and stages: `cifar` is 3×3 and three stages, `imagenet` is 7×7, max pooling and four stages."""
    depth: int = 20
    """Weighted layers on the main path. CIFAR: 6n+2 (basic) or 9n+2 (bottleneck); ImageNet: 18, 34 or 50, 101, 152."""
    block: Literal["basic", "bottleneck"] = "basic"
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 with an expansion of 4 (figure 5)."""
    shortcut: Literal["none", "A", "B", "C"] = "A"
    """`none`: plain network. A: identity, zero-padded where channels grow. B: projection where the size changes, identity
    elsewhere. C: projection on every block (section 4.1)."""
    width: int | None = None
    """Filters of the first stage, doubled at each next one. None: the paper's, 16 (cifar) or 64 (imagenet)."""
    stages: tuple[int, ...] | None = None
    """Blocks per stage. None: the paper's for `depth`. Any list is accepted if it makes `depth` layers."""
    stride_in: Literal["1x1", "3x3"] = "1x1"
    """Which convolution of a bottleneck carries the stride: the first 1×1 (the paper) or the 3×3 (torchvision)."""
    num_classes: int | None = None
    """Outputs. None: the data set's in a run; 10 (cifar) or 1000 (imagenet) for a network built by itself."""
    in_channels: int | None = None
    """Colour channels of the input. None: the data set's in a run; 3 for a network built by itself."""

    def _check(self) -> None:
        # Below 8 channels, oneDNN's strided 1×1 convolution in channels_last writes past its memory (torch 2.14, one thread).
        self._at_least(8, "width")
        self._at_least(1, "in_channels")
        self._at_least(2, "num_classes")
        if self.stages is None:
            self._paper_stages()
            return
        if not self.stages or min(self.stages) < 1:
            raise self._reject("stages", "accepted: one or more stages of at least one block")
        makes = 2 + self.layers_per_block * sum(self.stages)
        if makes != self.depth:
            raise self._reject("depth", f"stages {self.stages} of {self.block} blocks make depth {makes}")

    @property
    def layers_per_block(self) -> int:
        return 2 if self.block == "basic" else 3

    def _paper_stages(self) -> tuple[int, ...]:
        if self.family == "cifar":
            per_n = 3 * self.layers_per_block
            if self.depth < per_n + 2 or (self.depth - 2) % per_n:
                known = ", ".join(str(per_n * n + 2) for n in (1, 2, 3, 5, 7, 9, 18))
                raise self._reject("depth", f"cifar with {self.block} blocks has depths {per_n}n+2: {known}, …")
            return ((self.depth - 2) // per_n,) * 3
        if (self.block, self.depth) not in IMAGENET_STAGES:
            known = ", ".join(str(depth) for block, depth in IMAGENET_STAGES if block == self.block)
            raise self._reject("depth", f"imagenet with {self.block} blocks has depths {known}; others need model.stages")
        return IMAGENET_STAGES[self.block, self.depth]

    def resolved(self, *, num_classes: int | None = None, in_channels: int | None = None) -> Self:
        """The same network with every optional field filled in: from the arguments (a data set), else the paper's.

        Raises:
            ConfigError: a field was set to something that contradicts the data set.
        """
        for name, found in (("num_classes", num_classes), ("in_channels", in_channels)):
            if found is not None and getattr(self, name) not in (None, found):
                raise self._reject(name, f"the data set has {found}")
        cifar = self.family == "cifar"
        return replace(
            self,
            width=self.width or (16 if cifar else 64),
            stages=self.stages or self._paper_stages(),
            num_classes=self.num_classes or num_classes or (10 if cifar else 1000),
            in_channels=self.in_channels or in_channels or 3,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Which images, and how they are augmented and normalised."""

    _section = "data."

    name: Literal["digits", "cifar10", "imagefolder", "synthetic"] = "digits"
    """`digits`: scikit-learn's 1,797 images, no download. `cifar10`: torchvision's. `imagefolder`: any folder of class
    folders. `synthetic`: generated classes, for tests and speed."""
    root: str | None = None
    """Folder of `cifar10` or `imagefolder`. Not part of a run's identity: the content is."""
    image_size: int | None = None
    """Side in pixels. `imagefolder`: images are resized to it (None: they must all have one size). `synthetic`: 32 if None."""
    pad: int = 4
    """Training images are padded by this many pixels, then cropped at random to their size (section 4.2). 0: neither."""
    flip: bool = True
    """Training images are mirrored with probability one half."""
    train_examples: int | None = None
    """Training images: how many to generate (`synthetic`, 512 if None), else at most this many, a class-balanced subset."""
    test_examples: int | None = None
    """The same for the test set (`synthetic`: 128 if None)."""

    def _check(self) -> None:
        self._at_least(0, "pad")
        self._at_least(1, "train_examples", "test_examples")
        self._at_least(4, "image_size")
        if self.image_size is not None and self.name in ("digits", "cifar10"):
            raise self._reject("image_size", f"the images of {self.name} keep their size")
        if self.name in ("cifar10", "imagefolder") and self.root is None:
            raise self._reject("root", f"{self.name} needs a folder: --set data.root=FOLDER")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """SGD with momentum and a schedule that is a pure function of the step."""

    _section = "optim."

    epochs: int = 10
    """Passes over the training set. Ignored when `iterations` is set."""
    iterations: int | None = None
    """Steps of the whole training, where a recipe counts in steps (the paper: 64,000). The last epoch may be partial."""
    global_batch_size: int = 128
    """Images per step over all workers; each worker takes an equal share."""
    lr: float = 0.1
    """Peak learning rate. It multiplies the velocity (PyTorch's convention); the paper keeps it inside the velocity."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 1e-4
    """L2 penalty added to the gradient."""
    decay: Literal["weights", "all"] = "all"
    """What decays: convolution and linear weights only, or BatchNorm parameters and biases too."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """`step`: divided by 10 at each milestone. `cosine`: to zero over the training."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where `step` divides, as fractions of all steps (the paper: 32k and 48k of 64k)."""
    warmup_steps: int = 0
    """Steps at `warmup_lr` before the schedule (the paper: about 400 for 110 layers)."""
    warmup_lr: float = 0.01
    """Learning rate of the warm-up."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def _check(self) -> None:
        self._at_least(1, "epochs", "iterations", "global_batch_size")
        self._at_least(0, "lr", "momentum", "weight_decay", "warmup_steps", "warmup_lr", "label_smoothing")
        if self.label_smoothing > 1:
            raise self._reject("label_smoothing", "accepted: 0 to 1")
        if any(not 0 <= m <= 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise self._reject("milestones", "accepted: rising fractions of the training, such as 0.5,0.75")
        if self.nesterov and self.momentum == 0:
            raise self._reject("nesterov", "needs optim.momentum above 0")

    def total_steps(self, train_images: int) -> int:
        """Steps of a training on this many images; an epoch has full global batches only."""
        return self.iterations or self.epochs * (train_images // self.global_batch_size)

    def total_epochs(self, train_images: int) -> int:
        """Epochs of a training on this many images, the last one perhaps partial."""
        return -(-self.total_steps(train_images) // (train_images // self.global_batch_size))


@dataclass(frozen=True, kw_only=True)
class RunSpec(Checked):
    """One training of one network, completely described: the same RunSpec, data and code give the same result."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of convolutions and products (autocast). Weights and BatchNorm stay in float32."""
    channels_last: bool = True
    """Memory layout NHWC, the faster one on CPUs and tensor cores."""
    compile: bool = False
    """Whether the network goes through `torch.compile`."""
    seed: int = 0
    """Initial weights, order of the images and augmentation follow from it."""
    world_size: int = 1
    """Workers of data-parallel training."""

    def _check(self) -> None:
        self._at_least(0, "seed")
        self._at_least(1, "world_size")
        batch = self.optim.global_batch_size
        if batch % self.world_size:
            near = max(self.world_size, batch - batch % self.world_size)
            raise reject("optim.global_batch_size", batch, f"must divide evenly by {self.world_size} workers, for instance {near}")

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted name, in order: `{"model.depth": 20, …, "seed": 0}`."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if dataclasses.is_dataclass(value):
                out |= {f"{f.name}.{g.name}": getattr(value, g.name) for g in fields(value)}
            else:
                out[f.name] = value
        return out

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> "RunSpec":
        """The inverse of `flat`, also from JSON (lists for tuples)."""
        return override(cls(), values)


def override(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A new spec with the named fields replaced. Names are dotted (`optim.lr`) or unambiguous last parts (`lr`).

    Raises:
        ConfigError: unknown or ambiguous name, or a value the field does not accept.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = field_name(name).rpartition(".")
        changes.setdefault(section, {})[leaf] = value
    top = changes.pop("", {})
    # One replace per section, all sections before the top: rules between fields see the final values only.
    nested = {section: replace(getattr(spec, section), **changed) for section, changed in changes.items()}
    return replace(spec, **nested, **top)


_SECTIONS: dict[str, type[Checked]] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig}


def convert(name: str, value: Any) -> Any:
    """A value for the field with this dotted name, as that field's type; raises ConfigError if it is not acceptable."""
    section, _, leaf = name.rpartition(".")
    return _SECTIONS.get(section, RunSpec).converted(leaf, value)


@functools.cache
def _field_names() -> dict[str, tuple[str, ...]]:
    by_leaf: dict[str, tuple[str, ...]] = {}
    for name in _all_fields():
        leaf = name.rpartition(".")[2]
        by_leaf[leaf] = (*by_leaf.get(leaf, ()), name)
    return by_leaf


@functools.cache
def _all_fields() -> tuple[str, ...]:
    return tuple(RunSpec().flat())


def field_name(name: str) -> str:
    """The dotted name of a field given in full or by its last part; raises ConfigError for unknown ones."""
    if name in _all_fields():
        return name
    found = _field_names().get(name, ())
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name}: ambiguous; accepted: {', '.join(found)}")
    near = difflib.get_close_matches(name, [*_all_fields(), *_field_names()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(_all_fields())}"
    raise ConfigError(f"{name}: no such field; {hint}")


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
    "cifar10": RunSpec(
        data=DataConfig(name="cifar10", root="~/data"),
        optim=OptimConfig(iterations=64_000, global_batch_size=128),
    ),
}
"""Data set, recipe and sizes that go together. `smoke`: seconds. `digits`: minutes on a laptop, no download. `cifar10`: the
paper's recipe (section 4.2)."""


def preset(name: str) -> RunSpec:
    """A preset by name; raises ConfigError for an unknown one."""
    if name not in PRESETS:
        raise reject("preset", name, f"accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
