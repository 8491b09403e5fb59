"""Whether two trainings of the same run agree: to the last bit, within the noise of seeds, or not."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from ablations.engine.analysis.findings import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE

Epochs = Mapping[int, Mapping[str, float]]
"""Losses and errors (percent) of training and scored images by their metric's name, by epoch from 1."""


@dataclass(frozen=True)
class Training:
    """How a training went."""

    outcome: str
    """`completed`, `diverged`, …; empty: it was interrupted."""
    epochs: Epochs
    message: str = ""


def compare_trainings(recorded: Training, replayed: Training, seeds: Sequence[float], scored: str) -> tuple[bool, list[str]]:
    """Whether a replay gave the recorded result, exactly or within seed noise, and the lines that say so.

    Seed noise is judged by the 95 % prediction interval of one more seed: mean ± t · s · √(1 + 1/n) over the recorded seeds.

    Args:
        seeds: final errors of the recorded run and of those that differ from it in the seed only.
        scored: the metric that is the result, `test/error` or `validation/error`.
    """
    if replayed.outcome != recorded.outcome:
        if replayed.outcome in ("completed", "diverged"):
            return False, [f"differs: the record {recorded.outcome}, the replay {replayed.outcome}"]
        return False, [f"no verdict: the replay ended {replayed.outcome}, {replayed.message}"]
    difference = first_difference(recorded.epochs, replayed.epochs)
    first = [f"first difference: {difference}"] if difference else []
    if recorded.epochs and not difference:
        end = ", then diverged" if recorded.outcome == "diverged" else ""
        return True, [f"exactly equal: {len(recorded.epochs)} epochs, every loss and error to the last bit{end}"]
    if recorded.outcome == "diverged":
        return True, [f"diverged as recorded: in epoch {len(replayed.epochs) + 1}, recorded {len(recorded.epochs) + 1}", *first]
    before, now = (training.epochs[max(training.epochs)][scored] for training in (recorded, replayed))
    change = f"{scored} {now:.2f} %, recorded {before:.2f} %, difference {now - before:+.2f} points"
    if len(seeds) < MIN_SEEDS_FOR_P_VALUE:
        why = f"seed noise is not known: it takes {MIN_SEEDS_FOR_P_VALUE} seeds, {len(seeds)} are recorded"
        return False, [f"not equal: {change}", why, *first]
    mean, std, half = seed_noise(seeds)
    within = abs(now - mean) <= half
    expected = f"one more is expected (95 %) within {half:.2f} points of the mean"
    noise = f"{len(seeds)} recorded seeds: {mean:.2f} ± {std:.2f} %; {expected}"
    return within, [f"{'within seed noise' if within else 'differs'}: {change}", noise, *first]


def seed_noise(errors: Sequence[float]) -> tuple[float, float, float]:
    """Mean and sample standard deviation of errors over seeds, and how far from the mean one more seed may be expected."""
    n, std = len(errors), statistics.stdev(errors)
    return statistics.mean(errors), std, float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, n - 1)) * std * (1 + 1 / n) ** 0.5


def first_difference(recorded: Epochs, replayed: Epochs) -> str:
    """The first loss or error that is not equal to the last bit, and by how much; empty if there is none."""
    for epoch in sorted(recorded.keys() | replayed.keys()):
        before, now = recorded.get(epoch, {}), replayed.get(epoch, {})
        for name in {**before, **now}:
            if name not in before or name not in now:
                return f"epoch {epoch}, {name} is {'recorded' if name in before else 'replayed'} only"
            if now[name] != before[name]:
                return f"epoch {epoch}, {name} {now[name]!r}, recorded {before[name]!r}, difference {now[name] - before[name]:+.1e}"
    return ""


def environment_changes(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """One line: what is not as it was when the run was recorded."""
    changed = [f"{name} {recorded[name]} → {value}" for name, value in here.items() if recorded.get(name, value) != value]
    unknown = [name for name in here if name not in recorded]
    text = "; ".join(changed) or f"the same {', '.join(name for name in here if name in recorded)}"
    return f"environment: {text}" + (f" (not recorded: {', '.join(unknown)})" if unknown else "")
