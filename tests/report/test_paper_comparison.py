"""Our results beside published ones: never of other data, and never as equal where the protocol is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import CellFinding, Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.inference import estimate_means
from ablations.engine.report.paper_comparison import PaperRow, compare_with_published
from ablations.engine.study.design import Design
from ablations.engine.task.metric import error_metric
from resnet_core import override, preset
from tests.helpers.synthetic_study import design, evidence, without

DEPTHS = {"depth": ("20", "110")}


def of(name: str, changes: Mapping[str, Any] | None = None, factors: Any = DEPTHS, images: int = 50_000) -> Design:
    """A study on `cifar10` or `imagenet` that follows the preset but for some fields."""
    made = design(factors, spec=override(preset(name), changes or {}).flat())
    split = "validation" if (changes or {}).get("data.validation") else "test"
    cells = tuple(replace(cell, train_examples=images) for cell in made.cells)
    return replace(made, dataset=name, preset=name, cells=cells, metric=error_metric(split))


def rows(made: Design | Evidence, error: float = 8.0) -> tuple[PaperRow, ...]:
    given = made if isinstance(made, Evidence) else evidence(made, lambda _, seed: error + seed)
    return compare_with_published(given, findings(given))


def findings(given: Evidence) -> Findings:
    cells = []
    for cell in given.design.cells:
        of_cell = given.runs[given.runs["cell"] == cell.label]
        found: dict[str, Any] = dict.fromkeys(
            ("parameters", "flops", "images_per_second", "peak_memory_mb", "seconds", "gpu_hours")
        )
        (error,) = estimate_means([of_cell["value"].to_numpy(float)])
        cells.append(
            CellFinding(
                **found,
                label=cell.label,
                levels=cell.levels,
                planned=3,
                value=error,
                train_value=Estimate(n=0),
                problems={},
                reasons=(),
            )
        )
    empty: dict[str, Any] = dict.fromkeys(("comparisons", "effects", "interactions", "answers", "flags"), ())
    return Findings(metric=error_metric("test"), cells=tuple(cells), anova=None, no_anova="", **empty)


def differs(name: str, changes: Mapping[str, Any], factors: Any = DEPTHS, images: int = 50_000) -> tuple[str, ...]:
    return rows(of(name, changes, factors, images))[0].differs


def test_the_papers_recipe_is_comparable_and_the_paper_comes_first() -> None:
    first, *others = rows(of("cifar10"))
    assert (first.cell, first.metric, first.source, first.runs) == ("depth=20", "one view", "He et al. 2015, table 6", 1)
    assert (first.ours.mean, first.ours.n, first.published) == (9, 3, 8.75)
    assert first.difference == pytest.approx(0.25)
    assert all(row.comparable for row in (first, *others))
    assert others[0].published_std == 0.22


def test_both_results_of_table_6_for_110_layers_are_there_and_told_apart() -> None:
    found = [row for row in rows(of("cifar10")) if row.cell == "depth=110"][:2]
    assert [(row.published, row.published_std, row.runs) for row in found] == [(6.43, None, 1), (6.61, 0.16, 5)]
    assert [row.source for row in found] == ["He et al. 2015, table 6, best of five", "He et al. 2015, table 6"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 10}, "10 epochs, not 164"),
        ({"optim.lr": 0.02}, "learning rate 0.02, not 0.1"),
        ({"optim.weight_decay": 0.0005}, "weight decay 0.0005, not 0.0001"),
        ({"optim.schedule": "cosine"}, "schedule cosine, not step"),
        ({"optim.milestones": (0.25, 0.5)}, "milestones 0.25 and 0.5, not 0.5 and 0.75"),
        ({"optim.nesterov": True}, "nesterov on, not off"),
        ({"data.flip": False}, "flip off, not on"),
        ({"data.test_examples": 1000}, "test examples 1,000, not all"),
        ({"optim.warmup_steps": 1000}, "warm-up 1,000 steps at 0.01, not none"),
        ({"optim.warmup_error": 80}, "warm-up until 80 % training error at 0.01, not none"),
        ({"model.bn_momentum": 0.3}, "bn momentum 0.3, not 0.1"),
        ({"model.zero_init_residual": True}, "zero init residual on, not off"),
        ({"precision": "bf16"}, "bf16 arithmetic, not fp32"),
        ({"precision": "tf32"}, "tf32 arithmetic, not fp32"),
        ({"world_size": 4}, "BatchNorm over 32 images, the part of each of 4 workers"),
    ],
    ids=str,
)
def test_what_differs_from_the_papers_recipe_is_named_and_makes_it_incomparable(changes: Mapping[str, Any], text: str) -> None:
    row, *_ = rows(of("cifar10", changes))
    assert row.differs == (text,)
    assert not row.comparable


@pytest.mark.parametrize(
    "changes",
    [
        {"data.root": "/elsewhere", "data.decode_workers": 3, "data.extra_tests": ("ten_crop",)},
        {"channels_last": False, "compile": True, "checkpoint_activations": True},
        {"probes": ("responses",), "probe_epochs": (1,)},
        {"optim.momentum_form": "caffe", "optim.bn_recalibration": True, "data.normalize": "pixel"},
        {"epochs": 164},
    ],
    ids=str,
)
def test_how_it_is_computed_and_what_is_looked_at_is_no_protocol(changes: Mapping[str, Any]) -> None:
    assert differs("cifar10", changes) == ()


def test_steps_and_batch_are_compared_as_epochs_and_batch() -> None:
    assert differs("cifar10", {"optim.global_batch_size": 64}) == ("82 epochs, not 164", "batch size 64, not 128")
    assert differs("imagenet", {"optim.global_batch_size": 512}, {"depth": ("34",)}, 1_281_167)[1] == "batch size 512, not 256"


def test_110_layers_may_warm_up_as_the_paper_does_and_not_otherwise() -> None:
    def deep(changes: Mapping[str, Any]) -> tuple[str, ...]:
        return next(row.differs for row in rows(of("cifar10", changes)) if row.cell == "depth=110")

    assert deep({"optim.warmup_error": 80}) == deep({"optim.warmup_steps": 400}) == deep({}) == ()
    expected = "warm-up 400 steps at 0.05, not until 80 % training error at 0.01"
    assert deep({"optim.warmup_steps": 400, "optim.warmup_lr": 0.05}) == (expected,)


def test_held_out_images_are_not_the_test_set() -> None:
    found = differs("cifar10", {"data.validation": 0.1}, images=45_000)
    assert found == ("evaluated on images held out of the training set, not on the test set",)


def test_nothing_published_stands_beside_other_data_or_other_networks() -> None:
    assert rows(design(DEPTHS)) == ()
    assert rows(replace(of("cifar10"), dataset="cifar100")) == ()
    assert rows(of("cifar10", factors={"depth": ("20",), "shortcut": ("B", "C")})) == ()


def test_a_lower_bound_gives_a_difference_only_to_what_is_below_it() -> None:
    plain = of("cifar10", factors={"depth": ("110",), "shortcut": ("none",)})
    (below,), (beyond,) = rows(plain, error=50), rows(plain, error=70)
    assert below.above
    assert (below.published, below.difference) == (60, -9)
    assert beyond.difference is None


def test_cells_without_a_completed_run_have_no_row_and_missing_seeds_do_not_count() -> None:
    given = evidence(of("cifar10"), lambda _, seed: 8.0 + seed)
    given = without(given, "depth=20/2", "diverged")
    assert rows(given)[0].ours.n == 2
    for seed in range(2):
        given = without(given, f"depth=20/{seed}")
    assert {row.cell for row in rows(given)} == {"depth=110"}


def test_a_network_of_other_code_has_no_row() -> None:
    made = of("cifar10")
    cells = [replace(cell, spec={**cell.spec, "model.unheard_of": 1}) for cell in made.cells[:1]]
    assert {row.cell for row in rows(replace(made, cells=(*cells, *made.cells[1:])))} == {"depth=110"}


IMAGENET = {"depth": ("34",), "shortcut": ("B",)}


def test_ten_crops_are_compared_with_ten_crops() -> None:
    given = evidence(of("imagenet", factors=IMAGENET, images=1_281_167), lambda _, seed: 27.0 + seed)
    given.runs["test/ten_crop_error"] = [24.0, 25.0, 26.0]
    found = {(row.metric, row.published): row for row in rows(given)}
    crops, views = found["10-crop", 24.52], found["one view", 26.686]
    assert (crops.ours.mean, views.ours.mean) == (25, 28)
    assert crops.difference == pytest.approx(0.48)
    assert crops.differs == ("learning rate divided at set epochs, not at plateaus",)
    assert views.differs == ("crops of one shape, not of random shapes and sizes",)
    assert found["one view", 21.84].differs[0] == "one view, not multi-scale"


def test_one_view_stands_beside_ten_crops_only_with_a_word() -> None:
    first = rows(of("imagenet", factors=IMAGENET, images=1_281_167))[0]
    assert (first.metric, first.published) == ("one view", 24.52)
    assert first.differs[0] == "one view, not 10-crop"


def test_a_fixed_scale_of_training_images_is_named() -> None:
    found = differs("imagenet", {"data.scale": None, "data.image_size": 128}, IMAGENET, 1_281_167)
    assert "scale none, not 256 and 480" in found
    assert "image size 128, not 224" in found
    assert not any("image size" in text for text in differs("imagenet", {"data.image_size": 224}, IMAGENET, 1_281_167))
