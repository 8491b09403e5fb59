"""Probes: the numbers of a naive computation, whatever the batches and workers, with nothing changed or left behind."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from resnet_core import ConfigError, ModelConfig, build_model, fit, override, preset
from resnet_core.model.network import ResNet
from resnet_core.training.probes import Gradients, Responses, Row, layers

SMOKE = preset("smoke")
NETWORKS = {
    "residual": (ModelConfig(depth=8, width=8, shortcut="A"), 7),
    "plain": (ModelConfig(depth=8, width=8, shortcut="none"), 7),
    "projections": (ModelConfig(depth=14, width=8, shortcut="C"), 13),
    "bottleneck": (ModelConfig(depth=20, width=8, block="bottleneck", shortcut="B"), 7),
    "paper": (ModelConfig(depth=20, shortcut="A"), 19),
    "imagenet": (ModelConfig(family="imagenet", depth=18, width=8, shortcut="B"), 16),
    "imagenet bottleneck": (ModelConfig(family="imagenet", depth=50, width=8, block="bottleneck", shortcut="B"), 16),
}
"""Each with its number of 3×3 layers."""
each_network = pytest.mark.parametrize("name", NETWORKS)


def used(config: ModelConfig) -> ResNet:
    """A network whose BatchNorms are not as they were made."""
    torch.manual_seed(0)
    net = build_model(config)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.get_buffer("running_mean"))
    return net.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def responses(net: ResNet, batches: Sequence[Tensor]) -> list[Row]:
    with torch.inference_mode(), Responses(net) as probe:
        for batch in batches:
            net(batch)
    rows = probe.read(epoch=3)
    again = probe.read(epoch=3)
    assert again == rows or not batches  # reading changes nothing; without images it is NaN, which equals nothing
    return rows


def values(rows: list[Row], quantity: str) -> dict[str, float]:
    return {row["name"]: row["value"] for row in rows if row["quantity"] == quantity}


def naive_deviations(net: ResNet, x: Tensor) -> dict[str, float]:
    """Return standard deviations of the outputs of the BatchNorms behind 3×3 convolutions, all kept, in float64."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, out: kept.update({name: out.detach().double()})

    modules = dict(net.named_modules())
    threes = [name for name, module in modules.items() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    hooks = [modules[name.replace("conv", "bn")].register_forward_hook(keep(name)) for name in threes]
    net(x)
    for hook in hooks:
        hook.remove()
    return {name: out.std(correction=0).item() for name, out in kept.items()}


@each_network
def test_a_response_is_the_deviation_of_a_3x3_layers_batchnorm_over_all_elements(name: str) -> None:
    config, count = NETWORKS[name]
    net = used(config)
    found, expected = values(responses(net, images(6).chunk(2)), "std"), naive_deviations(net, images(6))
    assert len(found) == count
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_response_of_known_numbers_is_their_deviation_by_hand() -> None:
    net = used(NETWORKS["residual"][0])
    net.bn1.weight.data.zero_()
    net.bn1.bias.data = torch.tensor([0.0, 0, 0, 0, 2, 2, 2, 2])  # half of the channels 0, half 2: mean 1, deviation 1
    assert values(responses(net, (images(2),)), "std")["conv1"] == 1.0


def test_deviations_are_exact_to_four_digits_where_the_mean_is_thirty_times_as_large_and_elements_are_millions() -> None:
    net = used(ModelConfig(depth=8, width=16))
    net.bn1.bias.data.fill_(30.0)
    net.bn1.weight.data.fill_(1.0)
    x = torch.randn(64, 3, 64, 64)
    with torch.no_grad():
        expected = net.bn1(net.conv1(x)).double().std(correction=0).item()
    assert values(responses(net, (x,)), "std")["conv1"] == pytest.approx(expected, rel=1e-4)


@each_network
def test_layers_are_counted_along_the_main_path_from_stem_to_depth(name: str) -> None:
    config, _ = NETWORKS[name]
    net = build_model(config)
    found = {layer.name: layer.number for layer in layers(net)}
    weighted = {path: m for path, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {layer.name: layer.weight for layer in layers(net)} == {path: m.weight for path, m in weighted.items()}
    assert {path for path, number in found.items() if number == 0} == {path for path in weighted if "downsample" in path}
    main_path = [path for path in weighted if "downsample" not in path]
    assert [found[path] for path in main_path] == list(range(1, config.depth + 1))


@each_network
def test_scale_is_the_mean_absolute_scale_of_each_blocks_last_batchnorm(name: str) -> None:
    net, modules = used(NETWORKS[name][0]), {}
    last = net.config.layers_per_block
    modules = {path.replace("bn", "conv"): module for path, module in net.named_modules() if path.endswith(f".bn{last}")}
    expected = {path: module.get_parameter("weight").detach().abs().mean().item() for path, module in modules.items()}
    assert values(responses(net, ()), "scale") == pytest.approx(expected)


def test_half_precision_activations_are_summed_in_single_precision() -> None:
    net, x = used(NETWORKS["paper"][0]), images(32)
    with torch.autocast("cpu", torch.bfloat16):
        found = values(responses(net, (x,)), "std")
        with torch.no_grad():
            expected = naive_deviations(net, x)
    assert found == pytest.approx(expected, rel=1e-5)


def test_responses_do_not_depend_on_the_size_of_batches() -> None:
    net = used(NETWORKS["residual"][0]).double()
    whole, singly = (values(responses(net, images(20).double().chunk(chunks)), "std") for chunks in (1, 20))
    assert whole == pytest.approx(singly, rel=1e-12)


def worker(rank: int, folder: str) -> None:
    """Responses of three workers, of which the last has no images."""
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    share = images(9).double()[:5] if rank == 0 else images(9).double()[5:]
    rows = responses(used(NETWORKS["residual"][0]).double(), () if rank == 2 else (share,))
    torch.save(rows, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.nightly
@pytest.mark.slow
def test_workers_read_the_responses_of_one_process_also_one_without_images(tmp_path: Path) -> None:
    alone = responses(used(NETWORKS["residual"][0]).double(), (images(9).double(),))
    spawn(worker, args=(str(tmp_path),), nprocs=3, daemon=True)  # type: ignore[no-untyped-call]
    for rank in range(3):
        rows: list[Row] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert values(rows, "std") == pytest.approx(values(alone, "std"), rel=1e-12)
        assert values(rows, "scale") == values(alone, "scale")


def attached(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if module._forward_hooks or module._forward_pre_hooks]


def test_nothing_stays_attached_to_the_network_also_after_an_exception() -> None:
    net = used(NETWORKS["residual"][0])
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    responses(net, (images(2),))
    with Responses(net):
        assert len(attached(net)) == 7
    assert not attached(net)
    with pytest.raises(RuntimeError, match="channels"), Responses(net) as probe:
        net(images(2)[:, :1])
    assert not attached(net)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == before
    counted = probe.sums.clone()
    net(images(2))
    assert torch.equal(probe.sums, counted)


def backward(net: ResNet, x: Tensor, scale: float = 1.0) -> None:
    net.zero_grad()
    (F.cross_entropy(net(x), torch.arange(len(x)) % 10) * scale).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("scale", [1.0, 1024.0, torch.tensor(1024.0)], ids=str)
def test_gradient_norms_are_means_over_steps_without_the_loss_scale(scale: float | Tensor) -> None:
    net = used(NETWORKS["projections"][0])
    gradients, expected = Gradients(net), {layer.name: 0.0 for layer in layers(net)}
    for batch in images(6).chunk(3):
        backward(net, batch)
        for layer in layers(net):
            assert layer.weight.grad is not None
            expected[layer.name] += layer.weight.grad.double().square().sum().sqrt().item() / 3
        backward(net, batch, float(scale))
        gradients.add(scale)
    rows = gradients.read(epoch=1)
    assert values(rows, "gradient_norm") == pytest.approx(expected, rel=1e-4)
    weights = {layer.name: layer.weight.detach().double().square().sum().sqrt().item() for layer in layers(net)}
    assert values(rows, "weight_norm") == pytest.approx(weights, rel=1e-5)


def test_a_network_whose_weights_belong_to_no_layer_has_no_responses() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    assert Responses(Own()).read(epoch=1) == []
    assert [row["name"] for row in Gradients(Own()).read(epoch=1)] == ["weight", "weight"]


def test_steps_that_overflow_are_left_out_of_the_mean() -> None:
    net = used(NETWORKS["residual"][0])
    gradients = Gradients(net)
    backward(net, images(2))
    gradients.add()
    once = gradients.read(epoch=1)
    assert net.fc.weight.grad is not None
    net.fc.weight.grad[0, 0] = math.inf
    gradients.add()
    assert gradients.read(epoch=1) == once


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shortcut": "none"}, {"precision": "bf16"}], ids=str)
def test_probes_do_not_change_training_by_a_bit(changes: dict[str, Any]) -> None:
    without = override(SMOKE, changes)
    with_probes = override(without, {"probes": "responses,gradients", "probe_epochs": "1,2"})
    (*_, plain), (*_, probed) = fit(without), fit(with_probes)
    assert len(probed.state.probes) > 0
    torch.testing.assert_close(probed.state.net.state_dict(), plain.state.net.state_dict(), rtol=0, atol=0)
    for name in ("train/loss", "train/error", "test/loss", "test/error"):
        assert probed.metrics[name] == plain.metrics[name]


def test_rows_survive_a_checkpoint_and_name_epoch_layer_and_quantity() -> None:
    net = used(NETWORKS["residual"][0])
    rows, file = responses(net, (images(2),)), io.BytesIO()
    torch.save(rows, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == rows
    assert rows[2] == {
        "probe": "responses",
        "epoch": 3,
        "layer": 3,
        "name": "layer1.0.conv2",
        "quantity": "std",
        "value": rows[2]["value"],
    }
    assert {type(value) for row in rows for value in row.values()} == {str, int, float}


def test_probes_look_in_the_first_and_the_last_epoch_unless_told_otherwise() -> None:
    assert SMOKE.probed_epochs(10) == {1, 10}
    assert SMOKE.probed_epochs(1) == {1}
    assert override(SMOKE, {"probes": "gradients", "probe_epochs": "2,10"}).probed_epochs(10) == {2, 10}


def test_an_epoch_beyond_the_training_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^probe_epochs=20: accepted: 1 to 10, the epochs of this training$"):
        override(SMOKE, {"probes": "gradients", "probe_epochs": "2,20"}).probed_epochs(10)
