"""Published results match the paper, and this project's networks have the sizes that the paper prints."""

import math
from dataclasses import replace

import pytest

from ablations.engine.study.published_results import PUBLISHED, PublishedResult, published_results
from resnet_core import ModelConfig, measure_cost

BOTTLENECKS = ModelConfig(family="imagenet", depth=50, block="bottleneck", shortcut="B")


def sized(name: str) -> list[PublishedResult]:
    entries = {(e.depth, e.shortcut): e for e in PUBLISHED if getattr(e, name) is not None}
    return [entries[key] for key in sorted(entries)]


def digits(printed: str) -> int:
    return len(printed.partition(".")[2])


@pytest.mark.parametrize("entry", sized("parameters_millions"), ids=lambda e: str(e.depth))
def test_cifar_networks_have_the_papers_parameters(entry: PublishedResult) -> None:
    """Table 6, rounded to the digits it prints."""
    printed = entry.parameters_millions or ""
    assert f"{measure_cost(entry.model, 32).parameters / 1e6:.{digits(printed)}f}" == printed


def test_the_paper_prints_parameters_of_six_networks() -> None:
    assert [e.depth for e in sized("parameters_millions")] == [20, 32, 44, 56, 110, 1202]


@pytest.mark.slow
@pytest.mark.parametrize("entry", sized("flops_billions"), ids=lambda e: f"{e.depth}{e.shortcut}")
def test_imagenet_networks_have_the_papers_multiply_adds(entry: PublishedResult) -> None:
    """Compare with table 1 to the printed digit, which is rounded, except for 50 layers, where 3.858 is printed as 3.8.

    No other way of counting explains it: leaving out the projections (3.50) or the stem (3.74) would move 101 and 152 layers away
    from what is printed, and BatchNorm and biases would only add.
    """
    printed, billions = float(entry.flops_billions or 0), measure_cost(entry.model, 224).flops / 1e9
    cut = math.floor(10 * billions) / 10
    assert printed == (cut if entry.depth == 50 else round(billions, 1))


def test_the_paper_prints_multiply_adds_of_five_depths() -> None:
    found = [(e.depth, e.shortcut) for e in sized("flops_billions")]
    assert found == [(18, "A"), (18, "none"), (34, "A"), (34, "none"), (50, "B"), (101, "B"), (152, "B")]


@pytest.mark.parametrize("entry", [e for e in PUBLISHED if e.shortcut == "none"], ids=lambda e: f"{e.dataset} {e.depth}")
def test_a_plain_network_has_as_many_parameters_and_multiply_adds_as_its_option_a(entry: PublishedResult) -> None:
    size = 32 if entry.family == "cifar" else 224
    assert measure_cost(entry.model, size) == measure_cost(replace(entry.model, shortcut="A"), size)


def test_results_of_a_network_are_found_with_the_paper_first() -> None:
    found = published_results(ModelConfig(depth=20, num_classes=10), "cifar10")
    assert [e.error for e in found] == [8.75, 8.51, 8.27, 8.29]
    assert found[0].source == "He et al. 2015, table 6"
    assert [(e.error, e.std, e.runs) for e in published_results(ModelConfig(depth=110), "cifar10")][:2] == [
        (6.43, None, 1),
        (6.61, 0.16, 5),
    ]
    (plain,) = published_results(ModelConfig(depth=110, shortcut="none"), "cifar10")
    assert (plain.error, plain.is_lower_bound) == (60, True)


def test_imagenet_results_are_separated_by_protocol() -> None:
    found = {(e.protocol, e.error, e.top5_error) for e in published_results(BOTTLENECKS, "imagenet")}
    assert found == {("10-crop", 22.85, 6.71), ("multi-scale", 20.74, 5.25), ("one view", 24.7, None)}


def test_torchvision_results_are_for_bottlenecks_with_stride_in_the_3x3() -> None:
    (theirs,) = published_results(replace(BOTTLENECKS, stride_in="3x3"), "imagenet")
    assert theirs.error == pytest.approx(100 - 76.130)
    assert {e.error for e in published_results(ModelConfig(depth=20, stride_in="3x3"), "cifar10")} >= {8.75}, (
        "basic blocks have one place"
    )


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        (ModelConfig(depth=20), "digits"),
        (ModelConfig(depth=20), "imagenet"),
        (ModelConfig(depth=20, shortcut="B"), "cifar10"),
        (ModelConfig(depth=20, width=32), "cifar10"),
        (ModelConfig(depth=20, block="bottleneck"), "cifar10"),
        (ModelConfig(depth=20, stages=(2, 3, 4)), "cifar10"),
        (ModelConfig(depth=20, match_parameters="C"), "cifar10"),
    ],
)
def test_other_networks_have_no_published_results(model: ModelConfig, dataset: str) -> None:
    assert published_results(model, dataset) == ()


def test_the_training_recipe_does_not_affect_which_results_are_found() -> None:
    varied = ModelConfig(depth=20, bn_momentum=0.3, zero_init_residual=True, num_classes=10)
    assert published_results(varied, "cifar10") == published_results(ModelConfig(depth=20), "cifar10")


def test_every_result_names_its_source_and_is_a_percentage() -> None:
    for entry in PUBLISHED:
        assert entry.source
        assert entry.error is not None
        assert 0 < entry.error < 100
        assert entry.top5_error is None or entry.top5_error < entry.error
        assert (entry.std is None) == (entry.runs == 1)
        assert entry.model.depth == entry.depth
