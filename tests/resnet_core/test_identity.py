"""A fingerprint changes with what changes a result, and with nothing else: not with the Python that computes it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnet_core import RunSpec, fingerprint, identity, override
from resnet_core.identity import IN_DATA_VERSION, NOT_IDENTITY, NOT_TRAINING
from resnet_core.overrides import from_flat
from tests.helpers import identities

BASE = RunSpec()
PACKAGE = Path(identity.__file__).parent
CHANGED: dict[str, Any] = {
    "model.family": "imagenet",
    "model.depth": 32,
    "model.block": "bottleneck",
    "model.shortcut": "B",
    "model.width": 32,
    "model.stages": (1, 3, 5),
    "model.stride_in": "3x3",
    "model.num_classes": 7,
    "model.in_channels": 1,
    "data.name": "synthetic",
    "data.image_size": 16,
    "model.name": "torchvision:resnet18",
    "model.zero_init_residual": True,
    "model.bn_momentum": 0.2,
    "model.match_flops": "bottleneck",
    "model.match_parameters": "B",
    "data.stream": True,
    "data.scale": (40, 80),
    "data.color_augmentation": True,
    "data.normalize": "pixel",
    "data.validation": 0.1,
    "data.extra_tests": ("ten_crop",),
    "data.pad": 2,
    "data.mixup": 0.2,
    "data.cutmix": 1.0,
    "data.erasing": 0.25,
    "data.flip": False,
    "optim.epochs": 11,
    "optim.iterations": 64_000,
    "optim.global_batch_size": 64,
    "optim.lr": 0.05,
    "optim.momentum": 0.8,
    "optim.algorithm": "adamw",
    "optim.betas": (0.9, 0.95),
    "optim.ema": 0.999,
    "optim.nesterov": True,
    "optim.weight_decay": 0.0,
    "optim.decay": "weights",
    "optim.schedule": "cosine",
    "optim.milestones": (0.5,),
    "optim.warmup_steps": 400,
    "optim.warmup_lr": 0.02,
    "optim.label_smoothing": 0.1,
    "optim.momentum_form": "caffe",
    "optim.bn_recalibration": True,
    "optim.warmup_error": 80.0,
    "optim.changes": ("4:lr=0.04",),
    "checkpoint_activations": True,
    "probes": ("responses",),
    "probe_epochs": (1,),
    "precision": "tf32",
    "deterministic": True,
    "channels_last": False,
    "compile": True,
    "seed": 1,
    "world_size": 2,
}
EXAMPLE = '''
"""Module."""
class A:
    """Class."""
    x: int = 1
    """Attribute."""

def f(y):
    return y + "text"
'''


def identify(spec: RunSpec = BASE, data_version: str = "1") -> str:
    return fingerprint(spec, data_version=data_version)


def test_a_fingerprint_changes_with_every_field_but_those_that_cannot_change_a_result() -> None:
    assert {*CHANGED, *NOT_IDENTITY, *IN_DATA_VERSION} == set(BASE.flat()), "every field is decided on here"
    # Data sets that take every field: in memory and streamed.
    memory = override(BASE, {"data.name": "imagefolder", "data.root": "/somewhere"})
    streamed = override(memory, {"data.stream": True, "data.image_size": 32})
    prints = set()
    for name, value in CHANGED.items():
        base = streamed if name in ("data.scale", "data.color_augmentation") else memory
        needed: dict[str, Any] = {"depth": 18} if value == "imagenet" else {"depth": 56} if name == "model.match_flops" else {}
        needed |= {"probes": "gradients"} if name == "probe_epochs" else {}
        needed |= {"optim.algorithm": "adamw"} if name == "optim.betas" else {}
        prints.add(identify(override(base, {name: value} | needed)))
    assert len({identify(memory), identify(streamed), *prints}) == 2 + len(CHANGED)
    others = {"data.root": "/elsewhere", "data.decode_workers": 3, "data.train_examples": 100, "data.test_examples": 100}
    assert others.keys() == {*NOT_IDENTITY, *IN_DATA_VERSION}
    for name, value in others.items():
        assert identify(override(memory, {name: value})) == identify(memory)


def test_a_fingerprint_is_the_same_for_equal_specs_however_made() -> None:
    assert identify(from_flat(dict(reversed(BASE.flat().items())))) == identify()
    assert identify(override(BASE, {"lr": "0.1", "epochs": 10.0})) == identify()


def test_a_fingerprint_changes_with_the_data() -> None:
    assert identify(data_version="2") != identify(data_version="1")


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = "from resnet_core import RunSpec, fingerprint; print(fingerprint(RunSpec(), data_version='1'))"
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        out = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
        assert out.strip() == identify()


def test_a_fingerprint_changes_with_the_version_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify()
    monkeypatch.setattr(identity, "TRAINING_VERSION", identity.TRAINING_VERSION + 1)
    assert identify() != before


def test_a_field_that_is_added_leaves_runs_that_do_not_use_it_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [override(BASE, {"lr": 0.05}), override(BASE, {"deterministic": True})]
    before = [identify(spec) for spec in specs]
    flat = RunSpec.flat
    monkeypatch.setattr(
        RunSpec, "flat", lambda spec: {name: value for name, value in flat(spec).items() if name != "deterministic"}
    )
    assert identify(specs[0]) == before[0]
    assert identify(specs[1]) != before[1]


def pythons(version: str) -> list[str]:
    """Installed interpreters of this version."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(root.glob(f"versions/{version}.*/bin/python")))]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = [name for name in candidates if name]
    return [name for name in found if subprocess.run([name, "-c", code], capture_output=True, text=True).stdout.strip() == version]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_python_computes_the_same_identities(version: str) -> None:
    """Configurations and sources have the same identities in interpreters that have no other library."""
    found = pythons(version)
    if not found:
        pytest.skip(f"Python {version} is not installed")
    out = subprocess.run([found[0], "-B", identities.__file__], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == identities.identities()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, whose code counts instead of the real one's."""
    copy = tmp_path / "resnet_core"
    shutil.copytree(PACKAGE, copy)
    monkeypatch.setattr(identity, "__file__", str(copy / "identity.py"))
    monkeypatch.setattr(identity, "code_version", identity.code_version.__wrapped__)  # read anew each time
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("momentum=config.momentum,", "momentum=config.momentum,  # heavy ball", True),
        ('"""Return the optimizer of', '"""Return what minimizes', True),
        ("lr=config.lr,", "lr = ( config.lr ),\n\n", True),
        ("momentum=config.momentum,", "momentum=0.9,", False),
    ],
)
def test_the_hash_of_the_sources_changes_with_the_code_not_with_its_words_and_no_fingerprint_does(
    package: Path, old: str, new: str, same: bool
) -> None:
    before, run, file = identity.code_version(), identify(), package / "training/optim.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert (identity.code_version() == before) is same
    assert identify() == run


@pytest.mark.slow
def test_the_hash_of_the_sources_changes_when_a_module_comes_or_is_renamed(package: Path) -> None:
    before = identity.code_version()
    (package / "new.py").write_text("x = 1\n")
    added = identity.code_version()
    (package / "new.py").rename(package / "newer.py")
    assert len({before, added, identity.code_version()}) == 3


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (EXAMPLE.replace('"""', "'''"), True),
        (EXAMPLE.replace('"""Module."""', "# Module"), True),
        (EXAMPLE.replace('    """Class."""\n', "").replace('    """Attribute."""\n', ""), True),
        (EXAMPLE.replace("x: int = 1", "x: int = 2"), False),
        (EXAMPLE.replace('"text"', '"other text"'), False),
        (EXAMPLE.replace('"text"', 'f"text"'), False),
        (EXAMPLE.replace("f(y)", 'f(y, z="")'), False),
    ],
)
def test_only_text_that_does_nothing_is_left_out_of_the_code(other: str, same: bool) -> None:
    assert other != EXAMPLE
    assert (identity.normalized_source(other) == identity.normalized_source(EXAMPLE)) is same


@pytest.mark.slow
def test_the_hash_of_the_sources_does_not_change_with_what_no_training_runs(package: Path) -> None:
    before = identity.code_version()
    for name in NOT_TRAINING:
        file = package / name
        file.write_text(file.read_text() + "\nx = 1\n")
    assert identity.code_version() == before
    code = "import sys, resnet_core.training.loop; print(*(m.__file__ for name, m in sys.modules.items() if 'resnet_core' in name))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    imported = {Path(file).relative_to(PACKAGE).as_posix() for file in loaded}
    assert {file.relative_to(package).as_posix() for file in package.rglob("*.py")} - imported == set(NOT_TRAINING)
