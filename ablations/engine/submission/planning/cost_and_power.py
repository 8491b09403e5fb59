"""What a study will cost and what it can show, before it trains: seconds of its missing runs, smallest difference it detects."""

import bisect
import heapq
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.published_results import PUBLISHED
from ablations.engine.tracking.run_queries import CompletedRun
from resnet_core import RunSpec
from resnet_core.data.datasets import Dataset
from resnet_core.fields import counted

SPEED_FIELDS = ("global_batch_size", "image_size", "stream", "scale", "extra_tests")
"""Of the optimiser's and the data's fields, those that decide how long a step takes on the same images."""
OTHER_FIELDS = ("zero_init_residual", "bn_momentum", "probes", "probe_epochs", "seed")
"""Of all others, those that do not."""
TARGET_POINTS = 0.5
"""A plan says how many seeds a difference of so many points of error needs."""
MAX_SEEDS = 100
"""More are not looked for."""
ROUNDING = 1e-9
"""In percent of error."""


ComputeMode = tuple[str, bool, bool, bool]
"""How a step is computed: precision, only by deterministic algorithms, channels last, activations computed again."""


@dataclass(frozen=True)
class CostModel:
    """Seconds of training on one device."""

    per_layer: float
    """Of each layer in each step, however little it computes."""
    per_multiply_add: float

    def seconds(self, layers: float, multiply_adds: float) -> float:
        """Of so many layers, each counted in each step, and so many multiply-adds."""
        return self.per_layer * layers + self.per_multiply_add * multiply_adds


Measure = Callable[[Sequence[RunSpec]], Mapping[ComputeMode, CostModel]]
"""Measures how fast such networks train here; see `calibration.calibrate`."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """How long the missing runs of a study will train."""

    seconds: Mapping[str, float]
    """Of each run, by fingerprint; without those of which nothing is known."""
    source: str
    """What that is judged by; empty where nothing is known."""
    at_once: int | None
    """Runs at a time; None: not known."""
    hours: float | None
    """From the first start to the last end; None where runs at a time are not known."""
    gpu_hours: float

    @property
    def runs_estimated(self) -> int:
        return len(self.seconds)

    @property
    def total_seconds(self) -> float:
        """One after another."""
        return sum(self.seconds.values())


def estimate_cost(
    plan: Plan,
    missing: Sequence[Run],
    finished: Iterable[CompletedRun],
    measure: Measure | None = None,
    *,
    at_once: int | None = None,
    gpus_per_worker: float = 0,
) -> CostEstimate:
    """How long the missing runs will train, judged by finished runs of the same shape, else by what `measure` finds.

    Starting processes, talk between workers and reading images from disk are not in what is measured.

    Args:
        plan: the study.
        missing: its runs to train, in the order in which they start.
        finished: completed runs on the same data.
        measure: called once, with the runs that no finished one tells of. None: these stay open.
        at_once: runs at a time; None: not known.
        gpus_per_worker: what a worker takes; 0: training is on CPUs.
    """
    candidates = [past for past in finished if past.on_gpu == (gpus_per_worker > 0)]
    seconds, devices = _from_finished(plan, missing, candidates)
    sources = ["finished runs on " + ", ".join(sorted(devices))] if seconds else []
    rest = {run.fingerprint: replace(run.spec, seed=0) for run in missing if run.fingerprint not in seconds}
    models = measure(list(dict.fromkeys(rest.values()))) if measure and rest else {}
    if models:
        sources.append("a few steps measured here")
        modelled = {spec: _modelled(spec, plan.dataset_for_spec(spec), models[compute_mode(spec)]) for spec in set(rest.values())}
        seconds |= {name: modelled[spec] for name, spec in rest.items()}
    in_order = [seconds[run.fingerprint] for run in missing if run.fingerprint in seconds]
    return CostEstimate(
        seconds=seconds,
        source=" and ".join(sources),
        at_once=at_once,
        hours=_wall_seconds(in_order, at_once) / 3600 if at_once else None,
        gpu_hours=sum(in_order) * gpus_per_worker * plan.base.world_size / 3600,
    )


def compute_mode(spec: RunSpec) -> ComputeMode:
    """Networks of one mode differ in time by layers and multiply-adds only."""
    return spec.precision, spec.deterministic, spec.channels_last, spec.checkpoint_activations


def multiply_adds(spec: RunSpec, image_size: int, trained: int, tested: int = 0) -> int:
    """Of training on so many images, where backward costs twice a forward pass, and testing on others."""
    from resnet_core import measure_cost  # imports torch

    return measure_cost(spec.model, image_size).flops * (3 * trained + tested)


def _from_finished(plan: Plan, missing: Sequence[Run], finished: Iterable[CompletedRun]) -> tuple[dict[str, float], Set[str]]:
    """Return the predicted seconds of each missing run, from the seconds per step of finished runs with the same network and
    settings, and the devices of those runs.

    Tests after each epoch are part of it, so that runs on as many training images tell best.
    """
    per_step: dict[tuple[str, ...], dict[int, list[float]]] = {}
    devices: dict[tuple[str, ...], set[str]] = {}
    defaults = {name: str(value) for name, value in RunSpec().flat().items() if _decides_speed(name)}
    for past in finished:
        shape = tuple(past.spec.get(name, default) for name, default in defaults.items())  # earlier runs lack later fields
        optim = {name: past.spec.get(f"optim.{name}") for name in ("epochs", "iterations", "global_batch_size")}
        steps = replace(RunSpec().optim, **optim).total_steps(past.train_images)  # type: ignore[arg-type]  # it converts text
        per_step.setdefault(shape, {}).setdefault(past.train_images, []).append(past.seconds / steps)
        devices.setdefault(shape, set()).add(past.device)
    seconds: dict[str, float] = {}
    used: set[str] = set()
    for run in missing:
        flat = run.spec.flat()
        shape = tuple(str(flat[name]) for name in defaults)
        if shape in per_step:
            images = len(plan.dataset_for_run(run).train.labels)
            nearest = min(per_step[shape], key=lambda others: abs(math.log(others / images)))
            seconds[run.fingerprint] = statistics.median(per_step[shape][nearest]) * run.spec.optim.total_steps(images)
            used |= devices[shape]
    return seconds, used


def _decides_speed(name: str) -> bool:
    section, _, leaf = name.rpartition(".")
    return leaf in SPEED_FIELDS if section in ("optim", "data") else leaf not in OTHER_FIELDS


def _modelled(spec: RunSpec, dataset: Dataset, model: CostModel) -> float:
    images = len(dataset.train.labels)
    steps = spec.optim.total_steps(images)
    trained = steps * spec.optim.global_batch_size // spec.world_size
    tested = spec.optim.total_epochs(images) * len(dataset.test.labels) // spec.world_size
    return model.seconds(steps * spec.model.depth, multiply_adds(spec, dataset.image_size, trained, tested))


def _wall_seconds(seconds: Sequence[float], at_once: int) -> float:
    """When the last run ends, if each starts as soon as there is room."""
    ends = [0.0] * min(at_once, max(1, len(seconds)))
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


@dataclass(frozen=True, kw_only=True)
class Power:
    """The smallest true differences that a study finds with 80 % power at 5 %, two-sided. In points of error."""

    seeds: int
    comparisons: int
    spread: float
    """Standard deviation of differences between seeds."""
    source: str
    """What the spread is taken from."""
    alone: float | None
    """In a comparison on its own; None: too few seeds for a test."""
    p_adjusted: float | None
    """In one of all comparisons, corrected for their number."""
    seeds_needed: int | None
    """For `corrected` to be at most `TARGET_POINTS`; None: more than `MAX_SEEDS`."""


def power(design: Design, errors: Mapping[str, float]) -> Power | None:
    """What differences a study can find; None where nothing is known of their spread.

    Args:
        design: the study.
        errors: of its completed runs so far, in percent by fingerprint.
    """
    from ablations.engine.analysis.inference import smallest_detectable  # imports scipy

    found = _spread(design, errors)
    if found is None:
        return None
    spread, source = found
    seeds = max(len(cell.fingerprints) for cell in design.cells)
    comparisons = max(1, sum(design.baseline_label(cell) is not None for cell in design.cells))

    def detected(n: int) -> float:
        return smallest_detectable(spread, n, comparisons) or math.inf

    enough = bisect.bisect_left(range(MAX_SEEDS + 1), True, lo=2, key=lambda n: detected(n) <= TARGET_POINTS)
    return Power(
        seeds=seeds,
        comparisons=comparisons,
        spread=spread,
        source=source,
        alone=smallest_detectable(spread, seeds),
        p_adjusted=smallest_detectable(spread, seeds, comparisons),
        seeds_needed=enough if enough <= MAX_SEEDS else None,
    )


def _spread(design: Design, errors: Mapping[str, float]) -> tuple[float, str] | None:
    """Standard deviation of paired differences, and where it is from: the best that is known."""
    by_cell = {
        cell.label: {seed: errors[name] for seed, name in enumerate(cell.fingerprints) if name in errors} for cell in design.cells
    }
    differences, spreads = [], []
    for cell in design.cells:
        own, other = by_cell[cell.label], by_cell.get(design.baseline_label(cell) or "", {})
        differences += _std([own[seed] - other[seed] for seed in own.keys() & other.keys()])
        spreads += _std(list(own.values()))
    if differences:
        return statistics.median(differences), f"the median of {counted(len(differences), 'comparison')} so far"
    if spreads:
        return statistics.median(spreads) * math.sqrt(2), "√2 × the spread between seeds so far"
    if design.dataset == "cifar10":
        known = [entry.std for entry in PUBLISHED if entry.dataset == "cifar10" and entry.std is not None]
        return statistics.median(known) * math.sqrt(2), f"√2 × the spread between seeds in {len(known)} published results"
    return None


def _std(values: Sequence[float]) -> list[float]:
    """The sample standard deviation, if there is one; values equal but for rounding do not say how far others would be apart."""
    return [std] if len(values) > 1 and (std := statistics.stdev(values)) > ROUNDING else []
