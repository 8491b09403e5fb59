"""A network of one's own trains, resumes, costs and is probed as those of He et al., and what it cannot do is said before."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from ablations import Study
from resnet_core import (
    ConfigError,
    Dataset,
    ModelConfig,
    Network,
    RunSpec,
    build_network,
    fingerprint,
    fit,
    load_dataset,
    measure_cost,
    override,
    preset,
)
from resnet_core.data.datasets import resolve
from resnet_core.model.measurement import can_capture
from tests.helpers.own_networks import Inner, Tiny, Varied
from tests.helpers.training_runs import learned, train, weights_differ

SMOKE = preset("smoke")
PROBES: dict[str, Any] = {"probes": ("responses", "gradients")}


def of(model: Network, **changes: Any) -> RunSpec:
    return override(replace(SMOKE, model=model), changes)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(SMOKE.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        of(Tiny()),
        of(Tiny(norm="none", dropout=0.3), precision="bf16"),
        of(Tiny(norm="group", dropout=0.3), precision="fp16"),
        of(Tiny(dropout=0.3), channels_last=False, bn_recalibration=True, **PROBES),
        of(Varied(), **PROBES),
        of(Varied(), checkpoint_activations=True),
    ],
    ids=lambda spec: type(spec.model).__name__,
)
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(spec: RunSpec) -> None:
    """Dropout, too, draws what it would have drawn."""
    torch.rand(3)  # another state of PyTorch's generator
    results, checkpoints = train(spec)
    torch.manual_seed(7)
    again, resumed = train(spec, restore=checkpoints[0])
    assert len(results) == len(again) + 1 == 2
    assert not weights_differ(checkpoints[-1]["model"], resumed[-1]["model"])
    assert learned(checkpoints[-1]["history"]) == learned(resumed[-1]["history"])
    assert checkpoints[-1]["probes"] == resumed[-1]["probes"]


def test_recomputed_activations_change_nothing() -> None:
    kept, recomputed = (train(of(Varied(), checkpoint_activations=each))[1][-1] for each in (False, True))
    assert not weights_differ(kept["model"], recomputed["model"])


def test_weights_depend_on_the_seed_and_dropout_on_the_seed_and_the_epoch() -> None:
    first, second = (train(of(Tiny(dropout=0.5), seed=seed))[1] for seed in (0, 1))
    assert weights_differ(first[0]["model"], second[0]["model"])
    without = train(of(Tiny(), seed=0))[1]
    assert weights_differ(first[0]["model"], without[0]["model"])


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for _ in fit(of(Tiny(dropout=0.5), epochs=1)):
        pass
    assert torch.equal(torch.rand(1), expected)


def test_costs_are_those_of_a_count_by_hand(dataset: Dataset) -> None:
    spec = of(Tiny(width=8))
    *_, last = fit(spec)
    parameters = 3 * 8 * 9 + 16 + (8 * 4 * 9 + 8) + (8 * 16 * 10 + 10)
    multiply_adds = 64 * 3 * 8 * 9 + 16 * 8 * 4 * 9 + 8 * 16 * 10
    cost = measure_cost(spec.model, **dataset.sizes)
    assert (cost.parameters, cost.flops) == (parameters, multiply_adds)
    assert (last.metrics["parameters"], last.metrics["flops"]) == (parameters, multiply_adds)
    # The image, the convolution, the BatchNorm's ReLU, the second convolution's ReLU, which is what the linear layer gets.
    assert cost.activation_bytes == 4 * (3 * 64 + 8 * 64 + 8 * 64 + 8 * 16)


def test_attention_and_convolutions_of_any_dimension_cost() -> None:
    solid, rows = 2 * 64 * 27, 8 * 8 * 3 * 16
    attention = 8 * (3 * 8 * 8) + 2 * 8 * 8 * 8 + 8 * 8 * 8
    assert measure_cost(Varied(), image_size=8, in_channels=3, num_classes=10).flops == solid + rows + attention + 8 * 10


def test_costs_of_he_s_networks_take_the_data_s_channels_and_classes() -> None:
    assert measure_cost(ModelConfig(), 32, in_channels=1) == measure_cost(ModelConfig(in_channels=1), 32)


def test_probes_name_the_layers_as_the_state_dict_does() -> None:
    *_, last = fit(of(Varied(), **PROBES))
    rows = [row for row in last.state.probes if row["epoch"] == 1]
    names = {quantity: [row["name"] for row in rows if row["quantity"] == quantity] for quantity in ("std", "gradient_norm")}
    weights = ["solid", "rows", "attention.in_proj_weight", "attention.out_proj", "fc"]
    assert names == {"std": ["solid", "rows", "fc"], "gradient_norm": weights}  # attention calls no module for its projections
    assert [row["layer"] for row in rows if row["quantity"] == "weight_norm"] == [1, 2, 3, 4, 5]
    assert all(row["value"] > 0 for row in rows)


def test_a_response_is_the_deviation_of_the_layer_s_output(dataset: Dataset) -> None:
    *_, last = fit(of(Tiny(norm="none"), **PROBES))
    net: Any = last.state.net.eval()
    images = torch.as_tensor(dataset.test.images).float()  # type: ignore[union-attr]
    images = (images - torch.tensor(dataset.mean).view(-1, 1, 1)) / torch.tensor(dataset.std).view(-1, 1, 1)
    (value,) = (row["value"] for row in last.state.probes if row["epoch"] == 2 and row["quantity"] == "std" and row["name"] == "0")
    assert value == pytest.approx(net[0](images).std(correction=0).item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.nightly  # compiles for a minute
def test_compiled_networks_train_alike() -> None:
    eager, compiled = (train(of(Tiny(), compile=each, epochs=1))[0][-1].metrics["train/loss"] for each in (False, True))
    assert compiled == pytest.approx(eager, rel=1e-4)


def data_parallel(rank: int, spec: RunSpec, folder: str, restore: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=spec.world_size)
    for result in fit(spec, restore=restore):
        if rank == 0:
            torch.save(result.checkpoint(), f"{folder}/{result.epoch}.pt")
    distributed.destroy_process_group()


def in_two_workers(spec: RunSpec, folder: Path, restore: Any = None) -> list[Any]:
    folder.mkdir()
    spawn(data_parallel, args=(spec, str(folder), restore), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_two_workers_resume_to_the_same_weights(norm: Any, tmp_path: Path) -> None:
    spec = of(Tiny(norm=norm, dropout=0.3), world_size=2)
    checkpoints = in_two_workers(spec, tmp_path / "whole")
    (resumed,) = in_two_workers(spec, tmp_path / "resumed", checkpoints[0])
    assert not weights_differ(checkpoints[1]["model"], resumed["model"])
    assert learned(checkpoints[1]["history"]) == learned(resumed["history"])


def test_fields_are_fields_of_the_run() -> None:
    spec = override(of(Varied()), {"model.inner.heads": "4", "lr": 0.05})
    assert spec.model == Varied(inner=Inner(heads=4))
    assert spec.flat()["model.inner.heads"] == 4
    with pytest.raises(ConfigError, match=r"^model.depth: no such field"):
        override(spec, {"model.depth": 20})
    with pytest.raises(ConfigError, match=r"accepted: batch, group, none"):
        override(of(Tiny()), {"norm": "layer"})


def test_identity_is_all_fields_the_class_and_its_sources() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(Tiny):
        pass

    specs = [of(Tiny()), of(Tiny(width=9)), of(Other()), of(Tiny(), lr=0.3)]
    names = [fingerprint(spec, data_version="1", sources=sources) for spec in specs for sources in ("", "abc")]
    assert len({*names}) == len(names)
    assert fingerprint(of(Tiny()), data_version="1") == names[0]


def test_sources_are_no_part_of_the_identity_of_he_s_networks() -> None:
    assert fingerprint(SMOKE, data_version="1", sources="abc") == fingerprint(SMOKE, data_version="1")


def test_a_hundred_classes_have_a_top5_error() -> None:
    spec = of(Tiny(), epochs=1)
    few = load_dataset(spec.data)
    many = replace(few, classes=tuple(map(str, range(100))))
    *_, last = fit(spec, dataset=many)
    assert 0 <= last.metrics["test/error_top5"] <= last.metrics["test/error"]
    *_, last = fit(spec, dataset=few)
    assert "test/error_top5" not in last.metrics


def network(make: Callable[[int, int, int], Any]) -> Network:
    """Return a configuration whose `build` is `make(image_size, in_channels, num_classes)`."""

    @dataclass(frozen=True, kw_only=True)
    class Mine:
        number: int = next(_numbers)

        def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
            net: nn.Module = make(image_size, in_channels, num_classes)
            return net

    return Mine()


_numbers = itertools.count()


def linear(size: int, channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))


class Pair(nn.Linear):
    """Layer with two outputs."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.flatten(1)), None


WRONG: dict[str, tuple[Callable[[int, int, int], Any], str]] = {
    "build raises": (lambda *_: 1 / 0, r"^Mine.build: ZeroDivisionError: division by zero$"),
    "no module": (lambda *_: 3, r"^Mine.build: returns int; accepted: a torch.nn.Module$"),
    "too few outputs": (
        lambda size, channels, _: linear(size, channels, 7),
        r"^Mine: its output for 2 images is \(2, 7\) of float32; accepted: logits \(2, 10\), a number for each image and class$",
    ),
    "an output for each pixel": (lambda _, channels, classes: nn.Conv2d(channels, classes, 1), r"is \(2, 10, 8, 8\) of float32"),
    "two outputs": (lambda size, channels, classes: Pair(channels * size**2, classes), r"its output is a tuple; accepted: logits"),
    "another size": (lambda *_: linear(9, 3, 10), r"^Mine, images \(2, 3, 8, 8\): RuntimeError: mat1 and mat2 shapes"),
    "layers without a size": (
        lambda _, channels, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)),
        r"^Mine.build: 1.weight has no size before the first images; accepted: layers with given sizes",
    ),
    "nothing to train": (
        lambda size, channels, classes: linear(size, channels, classes).requires_grad_(False),
        r"^Mine: its output depends on no trainable parameter",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_network_is_refused_in_one_line_before_training(kind: str, dataset: Dataset) -> None:
    make, message = WRONG[kind]
    with pytest.raises(ConfigError, match=message) as error:
        resolve(of(network(make)), dataset)
    assert "\n" not in str(error.value)


def test_what_needs_more_of_a_network_is_refused_without_it(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint_activations=true: the module of Tiny has no attribute"):
        resolve(of(Tiny(), checkpoint_activations=True), dataset)
    with pytest.raises(ConfigError, match=r"^world_size=2: accepted: 1, as the output does not depend on .* spare.weight"):
        resolve(of(Varied(unused=True), world_size=2), dataset)
    resolve(of(Varied(unused=True)), dataset)


@dataclass
class Thawed:
    """A dataclass whose instances can change."""

    width: int = 3

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        return linear(image_size, in_channels, num_classes)


@dataclass(frozen=True, kw_only=True)
class Untyped(Tiny):
    """A dataclass with a field without a type."""

    layers = 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Thawed(), r"^Thawed: its instances can change; accepted: @dataclass\(frozen=True, kw_only=True\)$"),
        (Untyped(), r"^Untyped.layers=3: has no type"),
        (Tiny, r"^model=Tiny: accepted: a ModelConfig, or an instance"),
        (linear, r"^model=.*: accepted: a ModelConfig, or an instance"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunSpec(model=model)


@dataclass(frozen=True, kw_only=True)
class Listed(Tiny):
    """A dataclass with a value that has no hash."""

    widths: tuple[int, ...] = field(default_factory=lambda: [3, 4])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Thawed, r"^Thawed: its instances can change; accepted: @dataclass\(frozen=True, kw_only=True\)$"),
        (Untyped, r"^Untyped.layers=3: has no type"),
    ],
)
def test_a_study_refuses_a_wrong_configuration_in_one_line(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(name="wrong", question="?", model=model, factors={"width": (3, 4)})


def test_a_list_becomes_the_tuple_that_its_field_declares() -> None:
    study = Study(name="listed", question="?", model=Listed, factors={"width": (3, 4)})
    assert study.workload.presets["smoke"].model.widths == (3, 4)


def test_a_network_that_reads_numbers_from_tensors_is_not_captured_as_a_cuda_graph(dataset: Dataset) -> None:
    captured = [can_capture(spec, **dataset.sizes) for spec in (SMOKE, of(Tiny()), of(Varied()))]
    assert captured == [True, True, False]


def test_networks_are_built_with_the_data_s_sizes() -> None:
    net = build_network(Tiny(), 8, in_channels=1, num_classes=4)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
