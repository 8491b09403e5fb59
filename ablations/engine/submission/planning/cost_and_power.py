"""Cost and power of a study before it trains: duration of its missing runs, and the smallest difference it can detect."""

import bisect
import heapq
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ablations.engine.study.design import Design
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.published_results import PUBLISHED
from ablations.engine.task.metric import PERCENT
from ablations.engine.task.workload import Workload
from ablations.engine.tracking.run_queries import CompletedRun
from resnet_core import RunSpec
from resnet_core.data.datasets import Dataset, Sizes
from resnet_core.fields import counted
from resnet_core.model.cost import measure_cost

if TYPE_CHECKING:
    from ablations.engine.analysis.statistics.power import Spread

TARGET_POINTS = 0.5
"""Difference between percentages, in points, for which a plan prints the number of seeds needed."""
TARGET_FRACTION = 0.01
"""The same difference between values in another unit, as a fraction of the median value."""
MAX_SEEDS = 100
"""Maximum number of seeds considered."""


ComputeMode = tuple[str, bool, bool, bool]
"""Settings that change the speed of a step: precision, deterministic algorithms, channels last, activation checkpointing."""


@dataclass(frozen=True)
class CostModel:
    """Linear model of the training time on one device."""

    per_layer: float
    """Seconds of each layer in each step, independent of its size."""
    per_multiply_add: float
    """Seconds of each multiply-add."""

    def seconds(self, layers: float, multiply_adds: float) -> float:
        """Return the seconds of a training. `layers` is the number of layers times the number of steps."""
        return self.per_layer * layers + self.per_multiply_add * multiply_adds


Measure = Callable[[Sequence[RunSpec]], Mapping[ComputeMode, CostModel]]
"""Function that times networks on this machine, such as `calibration.calibrate`."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Estimated duration of a study's missing runs."""

    seconds: Mapping[str, float]
    """Seconds by fingerprint, for the runs that can be estimated."""
    source: str
    """Source of the estimate; empty if there is none."""
    at_once: int | None
    """Number of concurrent runs; None if it is not known."""
    hours: float | None
    """Hours from the first start to the last end; None if the number of concurrent runs is not known."""
    gpu_hours: float
    """GPU-hours of all runs: hours times GPUs."""
    usd_per_gpu_hour: float | None = None
    """Price of a GPU for an hour; None: not given."""

    @property
    def usd(self) -> float | None:
        """Price of all runs; None without a price of a GPU."""
        return None if self.usd_per_gpu_hour is None else self.gpu_hours * self.usd_per_gpu_hour

    @property
    def runs_estimated(self) -> int:
        """Number of runs with an estimate."""
        return len(self.seconds)

    @property
    def total_seconds(self) -> float:
        """Seconds of all runs one after another."""
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
    """Estimate the duration of missing runs, from completed runs with the same network and settings, else from `measure`.

    `measure` leaves out the start of processes, communication between workers and reading from disk.

    Args:
        plan: the study.
        missing: runs to train, in the order in which they start.
        finished: completed runs on the same data.
        measure: called once, with the specifications that no completed run covers. None: those have no estimate.
        at_once: number of concurrent runs; None if it is not known.
        gpus_per_worker: GPUs of each worker; 0 for training on CPUs.
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
        source=" and ".join(sources) + ("; runs that share a GPU take longer" if sources and 0 < gpus_per_worker < 1 else ""),
        at_once=at_once,
        hours=wall_seconds(in_order, at_once) / 3600 if at_once else None,
        gpu_hours=sum(in_order) * gpus_per_worker * plan.base.world_size / 3600,
    )


def compute_mode(spec: RunSpec) -> ComputeMode:
    """Return the compute mode of a run. Within a mode, durations differ by layers and multiply-adds only."""
    return spec.precision, spec.deterministic, spec.channels_last, spec.checkpoint_activations


def multiply_adds(spec: RunSpec, sizes: Sizes, trained: int, tested: int = 0) -> int:
    """Return the multiply-adds of training on some images and testing on others. A backward pass counts as two forward passes."""
    return measure_cost(spec.model, **sizes).flops * (3 * trained + tested)


def _from_finished(plan: Plan, missing: Sequence[Run], finished: Iterable[CompletedRun]) -> tuple[dict[str, float], Set[str]]:
    """Return the predicted seconds of missing runs by fingerprint, and the devices of the finished runs used for the prediction.

    A prediction uses the seconds per step, or other unit of work, of finished runs with the same network and settings. They include
    the tests after each epoch, so runs with a similar number of training examples predict best.
    """
    workload = plan.workload
    per_unit: dict[tuple[str, ...], dict[int, list[float]]] = {}
    devices: dict[tuple[str, ...], set[str]] = {}
    shape_of = step_settings(workload)
    for past in finished:
        shape = shape_of(past.spec)
        units = workload.units_of_work(past.spec, past.train_examples)
        per_unit.setdefault(shape, {}).setdefault(past.train_examples, []).append(past.seconds / units)
        devices.setdefault(shape, set()).add(past.device)
    seconds: dict[str, float] = {}
    used: set[str] = set()
    for run in missing:
        flat = run.spec.flat()
        shape = shape_of(flat)
        if shape in per_unit:
            examples = plan.training_examples(run)
            nearest = min(per_unit[shape], key=lambda others: abs(math.log((others or 1) / (examples or 1))))
            units = workload.units_of_work(flat, examples)
            seconds[run.fingerprint] = statistics.median(per_unit[shape][nearest]) * units
            used |= devices[shape]
    return seconds, used


def step_settings(workload: Workload) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """Return a function from the fields of a run, as values or text, to those that decide its duration and memory, as text.

    Earlier runs lack later fields, which have their default.
    """
    flat_defaults = workload.schema.default.flat()
    defaults = {name: flat_defaults[name] for name in workload.speed_fields()}
    return lambda values: tuple(str(values.get(name, default)) for name, default in defaults.items())


def _modelled(spec: RunSpec, dataset: Dataset, model: CostModel) -> float:
    images = len(dataset.train.labels)
    steps = spec.optim.total_steps(images)
    trained = steps * spec.optim.global_batch_size // spec.world_size
    tested = spec.optim.total_epochs(images) * len(dataset.test.labels) // spec.world_size
    return model.seconds(steps * spec.depth, multiply_adds(spec, dataset.sizes, trained, tested))


def wall_seconds(seconds: Sequence[float], at_once: int) -> float:
    """Return the seconds until the last run ends, if each starts as soon as a slot is free."""
    ends = [0.0] * min(at_once, max(1, len(seconds)))
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


@dataclass(frozen=True, kw_only=True)
class Power:
    """Smallest true differences that a study detects with 80 % power at a two-sided level of 5 %, in the unit of differences.

    The power is averaged over the possible values of the standard deviation, which few seeds tell only roughly.
    """

    seeds: int
    comparisons: int
    difference_std: float
    """Standard deviation of paired differences over seeds."""
    difference_std_low: float
    """Lower end of the range that holds the true standard deviation with 80 % probability."""
    difference_std_high: float
    """Upper end of that range."""
    source: str
    """Source of the standard deviation."""
    detectable_alone: float | None
    """Detectable difference of a single comparison; None if the seeds are too few for a test."""
    detectable_corrected: float | None
    """Detectable difference of one of all comparisons, corrected for their number."""
    target: float
    """Difference for which `seeds_needed` is computed."""
    seeds_needed: int | None
    """Seeds with which the power for `target` is 80 %, as one of all comparisons; None if more than `MAX_SEEDS`."""


def power(design: Design, values: Mapping[str, float], earlier: tuple[int, ...] = ()) -> Power | None:
    """Return which differences a study can detect; None if nothing is known about their standard deviation.

    Args:
        design: design of the study.
        values: values of its completed runs by fingerprint.
        earlier: numbers of seeds at which the study's answer was shown before. Each takes a share of the significance level.
    """
    found = difference_spread(design, values)
    if found is None:
        return None
    from ablations.engine.analysis.statistics.looks import Looks, declared_shares, looks_at
    from ablations.engine.analysis.statistics.power import POWER, expected_power, smallest_detectable  # imports SciPy

    spread, source = found
    seeds = max(len(cell.fingerprints) for cell in design.cells)
    comparisons = max(1, sum(design.baseline_label(cell) is not None for cell in design.cells))
    declared = declared_shares(design, earlier)  # of an adaptive study
    share = declared.get(seeds) or looks_at(design, earlier).share

    def next_share(seeds: int) -> float:
        """Return the share of a look at this number of seeds, or at the next one that is above those of all earlier looks."""
        if declared:
            return share
        return Looks.at(max(seeds, earlier[-1] + 1), earlier, design.planned_seeds).share if earlier else 1.0

    target = TARGET_POINTS
    if design.metric.unit != PERCENT and values:
        target = float(f"{TARGET_FRACTION * abs(statistics.median(values.values())):.1g}")

    enough = bisect.bisect_left(
        range(MAX_SEEDS + 1), True, lo=2, key=lambda n: expected_power(target, spread, n, comparisons / next_share(n)) >= POWER
    )
    low, high = spread.range()
    return Power(
        seeds=seeds,
        comparisons=comparisons,
        difference_std=spread.std,
        difference_std_low=low,
        difference_std_high=high,
        source=source,
        detectable_alone=smallest_detectable(spread, seeds, 1 / share),
        detectable_corrected=smallest_detectable(spread, seeds, comparisons / share),
        target=target,
        seeds_needed=enough if enough <= MAX_SEEDS else None,
    )


def difference_spread(design: Design, values: Mapping[str, float]) -> "tuple[Spread, str] | None":
    """Return the best known standard deviation of paired differences, and its source; None if there is none."""
    published = design.dataset == "cifar10" and not design.task
    if not (values or published):
        return None
    from ablations.engine.analysis.statistics.inference import zero_tolerance  # imports SciPy
    from ablations.engine.analysis.statistics.power import pooled_spread

    rounding = zero_tolerance(list(values.values()))
    by_cell = {
        cell.label: {seed: values[name] for seed, name in enumerate(cell.fingerprints) if name in values} for cell in design.cells
    }
    by_baseline: dict[str, list[tuple[float, int]]] = {}
    cells = []
    for cell in design.cells:
        baseline = design.baseline_label(cell) or ""
        own, other = by_cell[cell.label], by_cell.get(baseline, {})
        by_baseline.setdefault(baseline, []).extend(_std([own[seed] - other[seed] for seed in own.keys() & other.keys()]))
        cells.append(_std(list(own.values())))
    for groups, factor, source in (
        ([group for group in by_baseline.values() if group], 1.0, "comparison"),
        ([group for group in cells if group], math.sqrt(2), "cell"),
    ):
        spread = pooled_spread(groups) if groups else None
        if spread and spread.std > rounding:
            count = counted(sum(map(len, groups)), source)
            differences = "" if source == "comparison" else "√2 × "
            kind = "the standard deviation" if count.startswith("1 ") else "the root mean square"
            return replace(spread, std=factor * spread.std), f"{differences}{kind} of {count} so far"
    if published:
        known = [(entry.std, entry.runs - 1) for entry in PUBLISHED if entry.dataset == "cifar10" and entry.std and entry.runs]
        spread = pooled_spread([[each] for each in known])
        source = f"√2 × the root mean square between seeds in {len(known)} published results"
        return replace(spread, std=math.sqrt(2) * spread.std), source
    return None


def _std(values: Sequence[float]) -> list[tuple[float, int]]:
    """Return the sample standard deviation with its degrees of freedom, or nothing for fewer than two values."""
    return [(statistics.stdev(values), len(values) - 1)] if len(values) > 1 else []
