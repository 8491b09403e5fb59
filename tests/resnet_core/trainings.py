"""Short trainings of tiny networks, one or more for every field of a run: the numbers that `TRAINING_VERSION` stands for.

`python -m tests.resnet_core.trainings` records them in the JSON file beside it. It refuses where recorded numbers have moved and
the version is the recorded one: such a change needs a new version, and a line in the log beside it (`resnet_core/identity.py`). A
training that is not in the file is recorded with any version: where the images of `make_images`
change, and not what is computed, delete its entry in the file first.
"""

import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import distributed
from torch.multiprocessing.spawn import spawn

from resnet_core import PRESETS, RunSpec, fit, override
from resnet_core.identity import NOT_IDENTITY, TRAINING_VERSION
from tests.helpers.training_runs import CLOCKED

FILE = Path(__file__).with_suffix(".json")
TINY: dict[str, Any] = {"model.depth": 8, "model.width": 8, "optim.global_batch_size": 16}
GENERATED = TINY | {
    "data.name": "synthetic",
    "data.image_size": 8,
    "data.train_examples": 64,
    "data.test_examples": 48,
    "data.pad": 1,
}
FOLDER = TINY | {"data.name": "imagefolder", "data.image_size": 16, "data.pad": 2}
STREAMED = FOLDER | {"data.stream": True, "data.decode_workers": 1}
SHORT = {"optim.epochs": 2, "optim.lr": 0.05}  # 4 steps an epoch
GENTLE = {"optim.epochs": 3, "optim.lr": 0.02}
BASE = GENERATED | SHORT
NAMED = {"model.name": "torchvision:shufflenet_v2_x0_5", "model.depth": 20, "model.width": None, "data.image_size": 32}
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}
"""Relative difference of losses between processors, at most. With the instructions of SSE 4.1, AVX2 and AVX-512, and with MKL's
compatible code path, they differed by at most 5e-6, 5e-4 in bf16 and 8e-5 in fp16 (torch 2.14.1). Larger rates than these amplify
rounding by a factor of 1,000 within 16 steps."""

TRAININGS: dict[str, dict[str, Any]] = {
    **{f"recipe of {name}": {"preset": name} | GENERATED | GENTLE for name in ("smoke", "digits", "cifar10", "cifar100")},
    "recipe of imagenet": {"preset": "imagenet"} | STREAMED | {"model.depth": 18, "data.scale": (20, 24)} | GENTLE,
    "model.name": BASE | NAMED,
    "model.family": BASE | {"model.family": "imagenet", "model.depth": 18, "data.image_size": 32},
    "model.depth": BASE | {"model.depth": 14},
    **{f"model.shortcut={kind}": BASE | {"model.shortcut": kind} for kind in ("none", "A", "B", "C")},
    **{
        f"model.block=bottleneck {kind}": BASE | {"model.block": "bottleneck", "model.depth": 11, "model.shortcut": kind}
        for kind in ("none", "A", "B", "C")
    },
    "model.stride_in": BASE | {"model.block": "bottleneck", "model.depth": 11, "model.stride_in": "3x3"},
    "model.width": BASE | {"model.width": 12},
    "model.stages": BASE | {"model.stages": (2, 1), "model.depth": 8},
    "model.num_classes": BASE | {"model.num_classes": 10},
    "model.in_channels": BASE | {"model.in_channels": 3},
    "model.zero_init_residual": BASE | {"model.zero_init_residual": True},
    "model.bn_momentum": BASE | {"model.bn_momentum": 0.5},
    "model.match_flops": BASE | {"model.match_flops": "bottleneck", "model.depth": 20, "model.width": None},
    "model.match_parameters": BASE | {"model.match_parameters": "B", "model.width": None},
    "data.name=digits": SHORT | TINY | {"data.name": "digits", "data.train_examples": 64, "data.test_examples": 48},
    "data.name=imagefolder": SHORT | FOLDER,
    "data.stream": SHORT | STREAMED,
    "data.image_size": SHORT | STREAMED | {"data.image_size": 12},
    "data.scale": SHORT | STREAMED | {"data.scale": (16, 32)},
    "data.color_augmentation": SHORT | STREAMED | {"data.color_augmentation": True},
    "data.normalize": BASE | {"data.normalize": "pixel"},
    "data.validation": BASE | {"data.validation": 0.25},
    "data.extra_tests": BASE | {"data.extra_tests": ("ten_crop",)},
    "data.extra_tests streamed": SHORT | STREAMED | {"data.extra_tests": ("ten_crop", "multi_scale")},
    "data.pad": BASE | {"data.pad": 0},
    "data.mixup": BASE | {"data.mixup": 0.4},
    "data.cutmix": BASE | {"data.cutmix": 1.0},
    "data.erasing": BASE | {"data.erasing": 0.5},
    "data.flip": BASE | {"data.flip": False},
    "data.train_examples": SHORT | FOLDER | {"data.train_examples": 40},
    "data.test_examples": SHORT | FOLDER | {"data.test_examples": 10},
    "optim.epochs": BASE | {"optim.epochs": 4},
    "optim.iterations": BASE | {"optim.iterations": 6},
    "optim.global_batch_size": BASE | {"optim.global_batch_size": 24},
    "optim.lr": BASE | {"optim.lr": 0.2},
    "optim.algorithm": BASE | {"optim.algorithm": "adamw", "optim.lr": 0.001},
    "optim.betas": BASE | {"optim.algorithm": "adamw", "optim.lr": 0.001, "optim.betas": (0.8, 0.95)},
    "optim.ema": BASE | {"optim.ema": 0.9},
    "optim.momentum": BASE | {"optim.momentum": 0.5},
    "optim.momentum=0": BASE | {"optim.momentum": 0.0},
    "optim.nesterov": BASE | {"optim.nesterov": True},
    "optim.momentum_form": BASE | {"optim.momentum_form": "caffe"},
    "optim.weight_decay": BASE | {"optim.weight_decay": 0.1},
    "optim.decay": BASE | {"optim.weight_decay": 0.1, "optim.decay": "weights"},
    "optim.bn_recalibration": BASE | {"optim.bn_recalibration": True},
    **{f"optim.schedule={kind}": BASE | {"optim.schedule": kind} for kind in ("step", "cosine", "constant")},
    "optim.milestones": BASE | {"optim.milestones": (0.25, 0.5)},
    "optim.warmup_steps": BASE | {"optim.warmup_steps": 3},
    "optim.warmup_lr": BASE | {"optim.warmup_steps": 3, "optim.warmup_lr": 0.002},
    "optim.warmup_error": BASE | {"optim.warmup_error": 97.0, "optim.epochs": 3},
    "optim.label_smoothing": BASE | {"optim.label_smoothing": 0.2},
    "optim.changes": BASE | {"optim.changes": ("1:lr=0.01", "1:momentum=0.5", "1:weight_decay=0.2", "1:label_smoothing=0.1")},
    **{f"precision={kind}": BASE | {"precision": kind} for kind in ("fp32", "tf32", "bf16", "fp16")},
    "deterministic": BASE | {"deterministic": True},
    "channels_last": BASE | {"channels_last": False},
    "checkpoint_activations": BASE | {"checkpoint_activations": True, "model.depth": 14},
    "probes": BASE | {"probes": ("responses", "gradients")},
    "probe_epochs": BASE | {"probes": ("responses", "gradients"), "probe_epochs": (2,)},
    "seed": BASE | {"seed": 2**40},
    "world_size": BASE | {"world_size": 2},
}
"""By the field that they are about: what to train."""
ELSEWHERE = {"compile"}
"""Fields without a training here. Compiling takes longer than all of these;
test_training.py compares it with the network as it is."""


def spec_of(changes: Mapping[str, Any], images: Path) -> RunSpec:
    """Return the run that an entry of `TRAININGS` describes."""
    values = {name: value for name, value in changes.items() if name != "preset"}
    if values["data.name"] == "imagefolder":
        values["data.root"] = str(images)
    return override(PRESETS[changes["preset"]] if "preset" in changes else RunSpec(), {"data.root": None} | values)


def make_images(root: Path) -> Path:
    """Write the folder of images that some of the trainings read.

    They are PNG, since decoding it is exact, but for one: each class has a file that is not simply pixels, turned by EXIF, with
    transparency, or of 16 bits.
    """
    random = np.random.RandomState(0)
    for label in range(3):
        for number in range(30):
            pixels = random.randint(0, 256, (16 + number % 3, 20, 3)) // 2 + 40 * label
            path = root / f"class {label}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    turned = Image.fromarray(np.repeat(random.randint(0, 256, (20, 16, 1)), 3, 2).astype(np.uint8))
    exif = turned.getexif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(root / "class 0" / "turned.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(random.randint(0, 256, (16, 20, 4)).astype(np.uint8)).save(root / "class 1" / "transparent.png")
    Image.fromarray(random.randint(0, 2**16, (16, 20)).astype(np.uint16)).save(root / "class 2" / "deep.png")
    return root


def numbers_of(spec: RunSpec) -> dict[str, float]:
    """Train and return what came of it: `epoch 1 train/loss` and the like, and sums over what probes saw."""
    if spec.world_size > 1 and not distributed.is_initialized():
        with tempfile.TemporaryDirectory() as folder:
            spawn(_work, args=(spec, folder), nprocs=spec.world_size)  # type: ignore[no-untyped-call]
            found: dict[str, float] = json.loads(Path(folder, "numbers").read_text())
            return found
    torch.set_num_threads(1)
    numbers: dict[str, float] = defaultdict(float)
    for result in fit(spec):
        numbers |= {f"epoch {result.epoch} {name}": value for name, value in result.metrics.items() if name not in CLOCKED}
    for row in result.state.probes:
        numbers[f"epoch {row['epoch']} {row['probe']} {row['quantity']}"] += row["value"]
    return dict(numbers)


def _work(rank: int, spec: RunSpec, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=spec.world_size)
    numbers = numbers_of(spec)
    if rank == 0:
        Path(folder, "numbers").write_text(json.dumps(numbers))
    distributed.destroy_process_group()


def moved(spec: RunSpec, recorded: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """Yield the numbers that are not the recorded ones, up to rounding on another processor.

    Rounding may also decide about an image on which two classes are nearly equal.
    """
    for name in sorted(recorded.keys() | now.keys()):
        before, after = recorded.get(name, math.nan), now.get(name, math.nan)
        tolerance = {"error": 100 / 24, "lr": 1e-12 * before, "parameters": 0, "flops": 0, "warmup_steps": 0}
        kind = name.rpartition("/")[2].rpartition("_")[2] if "error" in name else name.rpartition(" ")[2]
        if not abs(after - before) <= tolerance.get(kind, TOLERANCES[spec.precision] * abs(before)):
            yield f"{name} {after!r}, recorded {before!r}"


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def main() -> int:
    """Record what is new, or everything if there is a new version."""
    recorded: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"training_version": 0, "trainings": {}}
    same_version = recorded["training_version"] == TRAINING_VERSION
    with tempfile.TemporaryDirectory() as folder:
        images, trainings = make_images(Path(folder)), {}
        for name, changes in TRAININGS.items():
            spec, old = spec_of(changes, images), recorded["trainings"].get(name, {})
            numbers = numbers_of(spec)
            if same_version and old.get("changes") == plain(changes):
                if differences := list(moved(spec, old["numbers"], numbers)):
                    print(f"{name}: {differences[0]}; raise TRAINING_VERSION, and say why in resnet_core/identity.py")
                    return 1
                numbers = old["numbers"]
            trainings[name] = {"changes": plain(changes), "numbers": numbers}
    defaults = {name: value for name, value in RunSpec().flat().items() if name not in NOT_IDENTITY}
    if same_version and not recorded["defaults"].items() <= plain(defaults).items():
        print("defaults of RunSpec have changed: raise TRAINING_VERSION, and say why in resnet_core/identity.py")
        return 1
    found = {"training_version": TRAINING_VERSION, "torch": torch.__version__, "defaults": defaults, "trainings": trainings}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
