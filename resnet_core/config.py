"""What a run is: frozen, typed configurations.

Everything here is a value. A new run is derived from an old one (`resnet_core.overrides`); nothing is mutated and there is no
registry. This module imports neither torch nor numpy, so that plans, help texts and error messages cost nothing.
"""

import dataclasses
import re
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal, Self

from resnet_core.fields import Checked, ConfigError, reject

MAX_LAYERS = 20_000
"""The deepest network accepted, far beyond the paper's 1,202 layers: building one takes seconds, and a typing error for ever."""
MAX_STAGES = 8
"""Filters double from stage to stage, and more stages than these would see one pixel."""
MAX_FILTERS = 4096
MAX_CROP = 8192
"""Side of streamed images' crops, in pixels."""
MAX_SIDE = 65_536
"""Shorter side that streamed images are scaled to before the crop, in pixels."""
MAX_PADDING = 256
MAX_DECODERS = 1024

IMAGENET_STAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("basic", 18): (2, 2, 2, 2),
    ("basic", 34): (3, 4, 6, 3),
    ("bottleneck", 50): (3, 4, 6, 3),
    ("bottleneck", 101): (3, 4, 23, 3),
    ("bottleneck", 152): (3, 8, 36, 3),
}
"""Blocks per stage of the ImageNet networks (He et al. 2015, table 1)."""

CHANGEABLE = ("lr", "weight_decay", "momentum", "label_smoothing")
"""Fields of `OptimConfig` that may change during a training."""
_CHANGE = re.compile(rf"([1-9][0-9]{{0,9}}):({'|'.join(CHANGEABLE)})=(\S+)")


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
    zero_init_residual: bool = False
    """Whether the scale of each block's last BatchNorm starts at zero, so that every block starts as its shortcut (Goyal et
    al. 2017, arXiv:1706.02677, section 5.1). The paper: no."""
    bn_momentum: float = 0.1
    """Weight of the newest batch in BatchNorm's running statistics (PyTorch's default)."""
    match_flops: Literal["basic", "bottleneck"] | None = None
    """Chooses `width` so that the network costs as many multiply-adds as that of the paper's width with these blocks."""
    match_parameters: Literal["A", "B", "C"] | None = None
    """Chooses `width` so that the network has as many parameters as that of the paper's width with this shortcut option."""

    def _check(self) -> None:
        # Below 8 channels, oneDNN's strided 1×1 convolution in channels_last writes past its memory (torch 2.14, one thread).
        self._at_least(8, "width")
        self._at_least(1, "in_channels")
        self._at_least(2, "num_classes")
        self._at_most(MAX_LAYERS, "depth")
        self._at_most(MAX_FILTERS, "width", "in_channels")
        self._at_most(1_000_000, "num_classes")
        if not 0 < self.bn_momentum <= 1:
            raise self._reject("bn_momentum", "accepted: above 0 and at most 1")
        if self.zero_init_residual and self.shortcut == "none":
            raise self._reject("zero_init_residual", "a plain network has no residual functions; model.shortcut=none")
        self._check_matching()
        if self.stages is None:
            self._paper_stages()
            return
        if not self.stages or min(self.stages) < 1:
            raise self._reject("stages", "accepted: one or more stages of at least one block")
        if len(self.stages) > MAX_STAGES:
            raise self._reject("stages", f"accepted: at most {MAX_STAGES} stages")
        makes = 2 + self.layers_per_block * sum(self.stages)
        if makes != self.depth:
            raise self._reject("depth", f"stages {self.stages} of {self.block} blocks make depth {makes}")

    def _check_matching(self) -> None:
        wanted = [name for name in ("match_flops", "match_parameters") if getattr(self, name) is not None]
        if not wanted:
            return
        if self.width is not None or len(wanted) > 1:
            raise self._reject(wanted[0], f"chooses model.width, which {'another field' if len(wanted) > 1 else 'is given'} too")
        if getattr(self, wanted[0]) in (self.block, self.shortcut):
            raise self._reject(wanted[0], "is what this network has already")
        if self.match_flops:
            try:
                replace(self, match_flops=None, block=self.match_flops)
            except ConfigError as error:
                raise self._reject("match_flops", f"no such network of depth {self.depth}") from error

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

        A width that is to match a cost stays open, and the stages with it: `resnet_core.cost.matched` knows them.

        Raises:
            ConfigError: a field was set to something that contradicts the data set.
        """
        for name, found in (("num_classes", num_classes), ("in_channels", in_channels)):
            if found is not None and getattr(self, name) not in (None, found):
                raise self._reject(name, f"the data set has {found}")
        cifar = self.family == "cifar"
        known = replace(
            self,
            num_classes=self.num_classes or num_classes or (10 if cifar else 1000),
            in_channels=self.in_channels or in_channels or 3,
        )
        if self.match_flops or self.match_parameters:
            return known
        return replace(known, width=self.width or (16 if cifar else 64), stages=self.stages or self._paper_stages())


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Which images, and how they are augmented and normalised."""

    _section = "data."

    name: Literal["digits", "cifar10", "cifar100", "imagenet", "imagefolder", "synthetic"] = "digits"
    """`digits`: scikit-learn's 1,797 images, no download. `cifar10`, `cifar100`: torchvision's. `imagenet`: `train` and `val`
    with 1,000 class folders each, streamed. `imagefolder`: any folder of class folders. `synthetic`: generated classes, for
    tests and speed."""
    root: str | None = None
    """Folder of `cifar10`, `cifar100`, `imagenet` or `imagefolder`. Not part of a run's identity: the content is."""
    stream: bool = False
    """`imagefolder`: whether images stay on disk and are decoded in every epoch, as those of `imagenet` always are. Else they
    are decoded once and held in memory."""
    image_size: int | None = None
    """Side in pixels. `imagefolder`: images are resized to it (None: they must all have one size). Streamed: side of the
    crops, 224 if None. `synthetic`: 32 if None."""
    scale: tuple[int, ...] | None = None
    """Streamed training images: range of the shorter side, drawn anew each time, before the crop (the paper: 256,480;
    section 3.4). None: always 8/7 of the crop, as in testing."""
    colour: bool = False
    """Streamed training images: colours shift along their principal components (Krizhevsky et al. 2012, section 4.1)."""
    normalise: Literal["channel", "pixel"] = "channel"
    """What is subtracted: the mean of each channel, or of each pixel (the paper, section 4.2). Both divide by the standard
    deviation of each channel, which the first BatchNorm makes immaterial."""
    validation: float = 0.0
    """Share of every class's training images that is held out (the paper's 45k/5k split: 0.1). If above 0, runs report
    `validation/…` and never read the test set. The split is fixed, whatever the seed."""
    extra_tests: tuple[Literal["ten_crop", "multi_scale"], ...] = ()
    """More tests of the final network, next to the one view of every epoch. `ten_crop`: corners, centre, and mirrored (section
    3.4). `multi_scale`: whole streamed images, fully convolutional, with shorter sides 224, 256, 384, 480, 640 (section 3.4)."""
    decode_workers: int | None = None
    """Processes that decode streamed images. None: one for each CPU of the worker but one. Not part of a run's identity."""
    pad: int = 4
    """Training images in memory are padded by this many pixels, then cropped at random to their size (section 4.2). 0: neither."""
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
        self._at_least(1, "decode_workers")
        self._at_most(MAX_PADDING, "pad")
        self._at_most(MAX_DECODERS, "decode_workers")
        if self.image_size is not None and self.name in ("digits", "cifar10", "cifar100"):
            raise self._reject("image_size", f"the images of {self.name} keep their size")
        if self.root is None and self.name not in ("digits", "synthetic"):
            raise self._reject("root", f"{self.name} needs a folder: --set data.root=FOLDER")
        if not 0 <= self.validation < 1:
            raise self._reject("validation", "accepted: a share from 0 to below 1, such as 0.1")
        if self.stream and self.name not in ("imagefolder", "imagenet"):
            raise self._reject("stream", f"{self.name} is held in memory")
        self._check_streamed() if self.streamed else self._check_in_memory()

    def _check_streamed(self) -> None:
        self._at_most(MAX_CROP, "image_size")
        if self.scale is not None and (len(self.scale) != 2 or not self.crop <= self.scale[0] <= self.scale[1] <= MAX_SIDE):
            accepted = f"accepted: smallest and largest side, rising, at least {self.crop} pixels: 256,480"
            raise self._reject("scale", f"{accepted}; at most {MAX_SIDE:,}")
        if self.normalise == "pixel":
            raise self._reject("normalise", "streamed images have no mean image; accepted: channel")

    def _check_in_memory(self) -> None:
        for name in ("scale", "colour"):
            if getattr(self, name):
                raise self._reject(name, "only streamed images can have it: data.stream=true or data.name=imagenet")
        if "multi_scale" in self.extra_tests:
            raise self._reject("extra_tests", "multi_scale needs streamed images: data.stream=true or data.name=imagenet")
        if "ten_crop" in self.extra_tests and not self.pad:
            raise self._reject("extra_tests", "ten_crop of images in memory needs data.pad")

    @property
    def streamed(self) -> bool:
        """Whether images are decoded in every epoch, not held in memory."""
        return self.stream or self.name == "imagenet"

    @property
    def crop(self) -> int:
        """Side of streamed images' crops, in pixels."""
        return self.image_size or 224

    @property
    def scored_on(self) -> str:
        """Name of the images that runs are scored on: `test` or `validation`."""
        return "validation" if self.validation else "test"


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """SGD with momentum and a schedule that is a pure function of the step."""

    _section = "optim."

    epochs: int = 10
    """Passes over the training set. Ignored when `iterations` is set; overriding it alone clears `iterations`."""
    iterations: int | None = None
    """Steps of the whole training, where a recipe counts in steps (the paper: 64,000). The last epoch may be partial."""
    global_batch_size: int = 128
    """Images per step over all workers; each worker takes an equal share."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    velocity: Literal["gradients", "updates"] = "gradients"
    """What momentum accumulates. `gradients`: PyTorch's, v = momentum·v + g and w -= lr·v. `updates`: the paper's (Caffe's), v =
    momentum·v + lr·g and w -= v, so that past steps keep their learning rate where it drops."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 1e-4
    """L2 penalty added to the gradient."""
    decay: Literal["weights", "all"] = "all"
    """What decays: convolution and linear weights only (many later recipes), or BatchNorm and biases too (PyTorch's default and
    most reproductions)."""
    bn_statistics: Literal["running", "averaged"] = "running"
    """What BatchNorm uses in the final test: its running statistics (PyTorch), or their plain average over one more epoch of
    training images, taken after the training (as in the authors' release)."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """`step`: divided by 10 at each milestone. `cosine`: to zero over the training."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where `step` divides, as fractions of all steps (the paper: 32k and 48k of 64k)."""
    warmup_steps: int = 0
    """Steps at `warmup_lr` before the schedule (the paper: about 400 for 110 layers)."""
    warmup_error: float | None = None
    """Instead of a number of steps: `warmup_lr` until the training error, in percent, over 20 steps (or a shorter epoch) is below
    this (the paper, for 110 layers: 80; section 4.2)."""
    warmup_lr: float = 0.01
    """Learning rate of the warm-up."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    changes: tuple[str, ...] = ()
    """What changes during the training, as in population-based training (Jaderberg et al. 2017, arXiv:1711.09846). `4:lr=0.04`:
    from the end of epoch 4 on, `lr` is 0.04, and the schedule goes on from where it is. `weight_decay`, `momentum` and
    `label_smoothing` may change too."""

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        converted = super().converted(name, value)
        if name != "changes":
            return converted
        entries = [_parsed_change(text) for text in converted]
        if any(later[0] < earlier[0] for earlier, later in pairwise(entries)):
            raise reject("optim.changes", ",".join(converted), "accepted: epochs that do not fall: 4:lr=0.04,6:lr=0.01")
        if len({entry[:2] for entry in entries}) < len(entries):
            raise reject("optim.changes", ",".join(converted), "accepted: a field once in an epoch")
        return tuple(change(*entry) for entry in sorted(entries))  # equal policies are equal specs

    def _check(self) -> None:
        self._at_least(1, "epochs", "iterations", "global_batch_size")
        self._at_most(10**9, "epochs", "iterations", "global_batch_size", "warmup_steps")
        self._at_least(0, "lr", "momentum", "weight_decay", "warmup_steps", "warmup_lr", "label_smoothing")
        if self.label_smoothing > 1:
            raise self._reject("label_smoothing", "accepted: 0 to 1")
        if any(not 0 <= m <= 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise self._reject("milestones", "accepted: rising fractions of the training, such as 0.5,0.75")
        if self.nesterov and self.momentum == 0:
            raise self._reject("nesterov", "needs optim.momentum above 0")
        if self.warmup_error is not None and not (0 < self.warmup_error <= 100 and self.warmup_steps == 0):
            raise self._reject("warmup_error", "accepted: above 0 to 100 percent, without optim.warmup_steps")
        if self.velocity == "updates" and (self.lr == 0 or self.nesterov or (self.warmup_lr == 0 and self._warms_up)):
            raise self._reject("velocity", "updates needs learning rates above 0 and no optim.nesterov")
        for text in self.changes:
            _, name, value = _parsed_change(text)
            if name == "momentum" and 0 in (self.momentum, value):
                raise reject("optim.changes", text, "accepted: optim.momentum above 0, before and after")
            later: dict[str, Any] = {"changes": (), name: value}
            try:
                replace(self, **later)
            except ConfigError as error:
                raise reject("optim.changes", text, str(error)) from error

    @property
    def _warms_up(self) -> bool:
        return self.warmup_steps > 0 or self.warmup_error is not None

    def total_steps(self, train_images: int) -> int:
        """Steps of a training on this many images; an epoch has full global batches only."""
        return self.iterations or self.epochs * (train_images // self.global_batch_size)

    def total_epochs(self, train_images: int) -> int:
        """Epochs of a training on this many images, the last one perhaps partial; raises ConfigError for changes beyond it."""
        total = -(-self.total_steps(train_images) // (train_images // self.global_batch_size))
        if self.changes and _parsed_change(self.changes[-1])[0] >= total:
            raise reject("optim.changes", self.changes[-1], f"accepted: epochs below {total}, those of this training")
        return total

    def in_force(self, epoch: int) -> Self:
        """What holds after `epoch` finished epochs, with no changes to come."""
        changed: dict[str, Any] = {name: value for begins, name, value in map(_parsed_change, self.changes) if begins <= epoch}
        return replace(self, changes=(), **changed)


def change(epoch: int, name: str, value: float) -> str:
    """An entry of `OptimConfig.changes`: from the end of epoch `epoch` on, field `name` is `value`, in full precision."""
    return f"{epoch}:{name}={float(value) + 0.0!r}"  # + 0.0: minus zero is zero


def _parsed_change(text: str) -> tuple[int, str, float]:
    """Epoch, field and value of an entry of `OptimConfig.changes`."""
    with suppress(ValueError):
        if found := _CHANGE.fullmatch(text):
            return int(found[1]), found[2], float(found[3])
    accepted = f"accepted: EPOCH:FIELD=NUMBER, such as 4:lr=0.04; epochs are counted from 1, fields are {', '.join(CHANGEABLE)}"
    raise reject("optim.changes", text, accepted)


@dataclass(frozen=True, kw_only=True)
class RunSpec(Checked):
    """One training of one network, completely described: the same RunSpec, data and code give the same result."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of convolutions and matrix products. `fp32`: float32. `tf32`: PyTorch's own default, float32 whose convolutions on
    NVIDIA GPUs from Ampere on round their factors to 10 bits of mantissa; the same as `fp32` elsewhere. `bf16`, `fp16`: autocast.
    Weights and BatchNorm stay in float32."""
    deterministic: bool = False
    """Whether a GPU uses only algorithms that give the same bits each time, so that a repeated or continued training is the same to
    the last bit, at some cost in speed. Training on a CPU repeats itself in any case, with the same number of threads."""
    channels_last: bool = True
    """Memory layout NHWC, the faster one on CPUs and tensor cores."""
    compile: bool = False
    """Whether the network goes through `torch.compile`."""
    checkpoint_activations: bool = False
    """Whether blocks keep only some inputs and compute the rest again for the backward pass: the same result with memory that
    grows with the square root of the depth, for about a third more time (Chen et al. 2016, arXiv:1604.06174)."""
    probes: tuple[Literal["responses", "gradients"], ...] = ()
    """What to look at inside the network. `responses`: standard deviation of each 3×3 layer's output over the test set (figure 7),
    and mean size of each block's last BatchNorm scale. `gradients`: norm of each layer's gradient, mean over an epoch, and of its
    weights."""
    probe_epochs: tuple[int, ...] = ()
    """Epochs, from 1, in which probes look. None given: the first and the last."""
    seed: int = 0
    """Initial weights, order of the images and augmentation follow from it."""
    world_size: int = 1
    """Workers of data-parallel training."""

    def _check(self) -> None:
        self._at_least(0, "seed")
        self._at_least(1, "world_size")
        if any(epoch < 1 for epoch in self.probe_epochs) or (self.probe_epochs and not self.probes):
            raise self._reject("probe_epochs", "accepted: epochs, counted from 1, where there are probes")
        batch = self.optim.global_batch_size
        if batch % self.world_size:
            near = max(self.world_size, batch - batch % self.world_size)
            raise reject("optim.global_batch_size", batch, f"must divide evenly by {self.world_size} workers, for instance {near}")

    def probed_epochs(self, total_epochs: int) -> set[int]:
        """The epochs, from 1, in which probes look; raises ConfigError for one beyond the training."""
        late = max(self.probe_epochs, default=0)
        if late > total_epochs:
            raise reject("probe_epochs", late, f"accepted: 1 to {total_epochs}, the epochs of this training")
        return set(self.probe_epochs) or {1, total_epochs}

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
