"""Compare results with published ones of the same networks on the same data, and list differences in training and testing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.study.design import Design, DesignCell
from ablations.engine.study.published_results import PAPER, TORCHVISION, PublishedResult, published_results
from resnet_core import PRESETS, ConfigError, ModelConfig, OptimConfig, RunSpec
from resnet_core.overrides import from_flat

METRIC_PREFIXES = {"10-crop": "ten_crop", "multi-scale": "multi_scale"}
"""Prefixes of metric names for test protocols with several views. The protocol `one view` is the test of every epoch."""
CIFAR_TRAIN_IMAGES = 50_000
"""Number of training images of CIFAR-10, to convert the length of its published recipe from steps to epochs."""
FIELDS_COMPARED_SEPARATELY = {
    *("data.root", "data.stream", "data.decode_workers", "data.validation", "data.extra_tests"),
    *("optim.epochs", "optim.iterations", "optim.warmup_steps", "optim.warmup_error", "optim.warmup_lr"),
}
"""Fields of data and optimizer that are not compared one by one, since other differences cover them."""
MODEL_TRAINING_FIELDS = ("model.bn_momentum", "model.zero_init_residual")
"""Fields of the model that belong to its training rather than its architecture."""
PAPER_VALUES = {"optim.momentum_form": "caffe", "optim.bn_recalibration": True, "data.normalize": "pixel"}
"""Values of the paper for fields whose presets have PyTorch's values. Neither value counts as a difference."""
MIN_WARMUP_DEPTH_LAYERS = 110
"""Smallest depth, in layers, that the paper trains with a warm-up, of about 400 of 64,000 steps (section 4.2). A run without
warm-up counts as comparable."""
FIELD_LABELS = {"optim.lr": "learning rate", "optim.global_batch_size": "batch size", "data.train_examples": "training images"}
"""Names of fields in the report; other fields keep their own names."""
PLATEAUS = "learning rate divided at set epochs, not at plateaus"
RANDOM_CROPS = "crops of one shape, not of random shapes and sizes"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A published result of a cell's network and the result of this study."""

    cell: str
    metric: str
    """Test protocol: `one view`, `10-crop` or `multi-scale`."""
    ours: Estimate
    """Error of this study in percent, over the completed runs of the cell."""
    published: float
    """Published error in percent."""
    published_std: float | None
    runs: int
    """Number of runs in the published mean."""
    above: bool
    """True if the published error is only a lower bound."""
    source: str
    difference: float | None
    """Error of this study minus published error, in percentage points; None if the published error is a lower bound and not above
    that of this study."""
    differs: tuple[str, ...]
    """Differences in training or testing, such as `10 epochs, not 164`."""

    @property
    def comparable(self) -> bool:
        """True if no difference in training or testing is known."""
        return not self.differs


def compare_with_published(evidence: Evidence, findings: Findings) -> tuple[PaperRow, ...]:
    """Return the published results of the study's networks on its data, cell by cell, the paper first; empty for most studies.

    A cell is left out if it has no completed runs, or if it was trained with fields that this version of the project lacks.
    """
    if evidence.design.own_code:
        return ()
    found = {cell.label: cell.value for cell in findings.cells}
    rows = []
    for cell in evidence.design.cells:
        spec = _run_spec(cell)
        if spec is not None and isinstance(spec.model, ModelConfig) and not spec.model.name and found[cell.label].n:
            entries = published_results(spec.model, evidence.design.dataset)
            rows += [_row(evidence, cell, spec, found[cell.label], entry) for entry in entries if entry.error is not None]
    return tuple(rows)


def _run_spec(cell: DesignCell) -> RunSpec | None:
    try:
        return from_flat(cell.spec)
    except ConfigError:
        return None


def _row(evidence: Evidence, cell: DesignCell, spec: RunSpec, one_view: Estimate, entry: PublishedResult) -> PaperRow:
    assert entry.error is not None, "compare_with_published leaves out entries without an error"
    viewed = _multi_view_error(evidence, cell, entry.protocol)
    differs = [*_testing_differences(evidence.design), *_training_differences(spec, entry, cell.train_examples)]
    if viewed is None and entry.protocol != "one view":
        differs.insert(0, f"one view, not {entry.protocol}")
    ours = viewed or one_view
    assert ours.mean is not None, "compare_with_published leaves out cells without completed runs"
    known = not entry.is_lower_bound or ours.mean < entry.error
    return PaperRow(
        cell=cell.label,
        metric="one view" if viewed is None else entry.protocol,
        ours=ours,
        published=entry.error,
        published_std=entry.std,
        runs=entry.runs,
        above=entry.is_lower_bound,
        source=f"{entry.source}, best of five" if _is_best_of_five(entry) else entry.source,
        difference=ours.mean - entry.error if known else None,
        differs=tuple(differs),
    )


def _is_best_of_five(entry: PublishedResult) -> bool:
    """Return whether a result is the best of five runs: table 6 gives both the best and the mean for 110 layers."""
    return entry.dataset == "cifar10" and entry.depth == 110 and entry.source == f"{PAPER}, table 6" and entry.runs == 1


def _multi_view_error(evidence: Evidence, cell: DesignCell, protocol: str) -> Estimate | None:
    """Return the error of a cell in a protocol of several views; None if it was not measured."""
    from ablations.engine.analysis.statistics.inference import estimate_means

    column = f"{evidence.design.metric.split}/{METRIC_PREFIXES.get(protocol)}_error"
    if column not in evidence.runs:
        return None
    runs = evidence.runs[(evidence.runs["cell"] == cell.label) & (evidence.runs["outcome"] == "completed")]
    (found,) = estimate_means([runs[column].to_numpy(float)])
    return found if found.n else None


def _testing_differences(design: Design) -> Iterator[str]:
    if design.metric.split != "test":
        yield "evaluated on images held out of the training set, not on the test set"


def _training_differences(spec: RunSpec, entry: PublishedResult, train_examples: int) -> Iterator[str]:
    """Yield the differences between a training and the published one, whose recipe is the preset of the data set."""
    recipe = PRESETS[entry.dataset]
    yield from _length_difference(spec.optim, recipe.optim, train_examples)
    ours, theirs = _compared_fields(spec), _compared_fields(recipe)
    for name, own in ours.items():
        if own not in (theirs[name], PAPER_VALUES.get(name, theirs[name])):
            yield _field_difference(name, own, theirs[name])
    yield from _warmup_difference(spec)
    if spec.precision != "fp32":
        yield f"{spec.precision} arithmetic, not fp32"
    if spec.world_size > 1:
        share = spec.optim.global_batch_size // spec.world_size
        yield f"BatchNorm over {share} images, the part of each of {spec.world_size} workers"
    if entry.dataset == "imagenet":
        yield RANDOM_CROPS if entry.source == TORCHVISION else PLATEAUS


def _compared_fields(spec: RunSpec) -> dict[str, Any]:
    """Return the fields, besides length and warm-up, that decide how a network is trained and which images test it."""
    kept = {
        name: value
        for name, value in spec.flat().items()
        if name in MODEL_TRAINING_FIELDS or (name.startswith(("optim.", "data.")) and name not in FIELDS_COMPARED_SEPARATELY)
    }
    return kept | ({"data.image_size": spec.data.crop} if spec.data.streamed else {})


def _length_difference(ours: OptimConfig, theirs: OptimConfig, images: int) -> Iterator[str]:
    batch = ours.global_batch_size
    if (ours.total_steps(images), batch) == (theirs.total_steps(images), theirs.global_batch_size):
        return
    epochs = f"{ours.total_steps(images) * batch / images:.0f}"
    published = theirs.iterations * theirs.global_batch_size / CIFAR_TRAIN_IMAGES if theirs.iterations else theirs.epochs
    if epochs != f"{published:.0f}":
        yield f"{epochs} epochs, not {published:.0f}"


def _warmup_difference(spec: RunSpec) -> Iterator[str]:
    optim = spec.optim
    if not optim.warmup_steps and optim.warmup_error is None:
        return
    deep = spec.depth >= MIN_WARMUP_DEPTH_LAYERS
    if not (deep and optim.warmup_lr == 0.01 and (optim.warmup_error == 80 or optim.warmup_steps == 400)):
        length = f"{optim.warmup_steps:,} steps" if optim.warmup_steps else f"until {optim.warmup_error:g} % training error"
        yield f"warm-up {length} at {optim.warmup_lr:g}, not {'until 80 % training error at 0.01' if deep else 'none'}"


def _field_difference(name: str, own: object, usual: object) -> str:
    words = FIELD_LABELS.get(name, name.rpartition(".")[2].replace("_", " "))
    # None means an open choice: no range of scales in this study, or all images in the recipe.
    return f"{words} {'none' if own is None else _field_text(own)}, not {'all' if usual is None else _field_text(usual)}"


def _field_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " and ".join(map(_field_text, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
