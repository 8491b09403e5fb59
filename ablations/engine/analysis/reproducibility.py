"""Compare a replayed training with the recorded one: equal to the last bit, within seed noise, or different."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from ablations.engine.analysis.number_format import ValueFormat, decimals_for
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted

Epochs = Mapping[int, Mapping[str, float]]
"""Values by name of the metric, by epoch from 1."""


@dataclass(frozen=True)
class Training:
    """The outcome and the metrics of one training."""

    outcome: str
    """`completed`, `diverged`, `oom`, `failed`, …; empty if the training was interrupted."""
    epochs: Epochs
    message: str = ""


def compare_trainings(recorded: Training, replayed: Training, seeds: Sequence[float], metric: Metric) -> tuple[bool, list[str]]:
    """Return whether a replay reproduces the recorded result, exactly or within seed noise, and the lines of the report.

    Seed noise is the 95 % prediction interval of one more seed: mean ± t · s · √(1 + 1/n) over the recorded seeds.

    Args:
        seeds: Final values of the recorded run and of the runs that differ from it only in the seed.
        metric: Metric that is the result.
    """
    if replayed.outcome != recorded.outcome:
        if replayed.outcome in ("completed", "diverged"):
            return False, [f"differs: the recorded run {recorded.outcome}, the replay {replayed.outcome}"]
        return False, [f"no verdict: the outcome of the replay is {replayed.outcome or 'interrupted'} ({replayed.message})"]
    difference = first_difference(recorded.epochs, replayed.epochs)
    first = [f"first difference: {difference}"] if difference else []
    if recorded.epochs and not difference:
        end = ", then diverged" if recorded.outcome == "diverged" else ""
        return True, [f"exactly equal: {counted(len(recorded.epochs), 'epoch')}, every metric to the last bit{end}"]
    if recorded.outcome == "diverged":
        epochs = f"the replay in epoch {len(replayed.epochs) + 1}, the recorded run in epoch {len(recorded.epochs) + 1}"
        return True, [f"diverged as recorded: {epochs}", *first]
    before, now = (training.epochs[max(training.epochs)][metric.name] for training in (recorded, replayed))
    formats = ValueFormat(metric, decimals_for(metric, [before, *seeds]))
    difference_text = formats.in_points(formats.signed(now - before))
    change = f"{metric.name} {formats.with_unit(now)}, recorded {formats.with_unit(before)}, difference {difference_text}"
    if len(seeds) < MIN_SEEDS_FOR_P_VALUE:
        why = f"seed noise is unknown: its estimate needs {MIN_SEEDS_FOR_P_VALUE} seeds, and the store has {len(seeds)}"
        return False, [f"not equal: {change}", why, *first]
    mean, std, half = seed_noise(seeds)
    within = abs(now - mean) <= half
    expected = f"95 % of further seeds are expected within {formats.size(half)} of the mean"
    noise = f"{len(seeds)} recorded seeds: {formats.number(mean)} ± {formats.with_unit(std)}; {expected}"
    return within, [f"{'within seed noise' if within else 'differs'}: {change}", noise, *first]


def seed_noise(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and sample standard deviation of values over seeds, and half the 95 % prediction interval of one more seed."""
    n, std = len(values), statistics.stdev(values)
    return statistics.mean(values), std, float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, n - 1)) * std * (1 + 1 / n) ** 0.5


def first_difference(recorded: Epochs, replayed: Epochs) -> str:
    """Return the first value that is not equal to the last bit, with its difference; empty if all are equal."""
    for epoch in sorted(recorded.keys() | replayed.keys()):
        before, now = recorded.get(epoch, {}), replayed.get(epoch, {})
        for name in {**before, **now}:
            if name not in before or name not in now:
                return f"epoch {epoch}, {name} is {'recorded' if name in before else 'replayed'} only"
            if now[name] != before[name]:
                return f"epoch {epoch}, {name} {now[name]!r}, recorded {before[name]!r}, difference {now[name] - before[name]:+.1e}"
    return ""


def environment_changes(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return one line with the parts of the environment that changed since the run was recorded."""
    changed = [f"{name} {recorded[name]} → {value}" for name, value in here.items() if recorded.get(name, value) != value]
    unknown = [name for name in here if name not in recorded]
    text = "; ".join(changed) or f"the same {', '.join(name for name in here if name in recorded)}"
    return f"environment: {text}" + (f" (not recorded: {', '.join(unknown)})" if unknown else "")
