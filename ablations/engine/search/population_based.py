"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846), as a function of the scores of its members: less is better.

At the end of each generation all members are compared. Branches of the best quarter replace the worst quarter and members that have
failed. A branch equals its parent up to the end of that generation and then continues with other hyperparameters. Its configuration
is that of the parent with more entries in `optim.changes`. All members have the same seed, so training a branch from the beginning
gives the same result as continuing from its parent's checkpoint.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnet_core.config import change

CHANGES = "optim.changes"
PERTURBABLE = ("optim.label_smoothing", "optim.lr", "optim.momentum", "optim.weight_decay")
"""Fields that can change during a training."""
PERTURBATION_FACTORS = (0.8, 1.25)
"""Factors by which a branch multiplies the hyperparameters of its parent, each with probability one half."""
GENERATIONS = 5
"""Approximate number of generations in a training."""
MIN_POPULATION = 4
"""Smallest population of which a quarter can be replaced."""
MAX_BELOW_ONE = 0.999
"""Largest value of momentum and label smoothing, which must stay below 1."""
MAX_PERTURBATION_ATTEMPTS = 20
"""Number of attempts to find a new configuration, first by perturbing and then by sampling. Only tiny ranges exhaust both."""


@dataclass(kw_only=True)
class Member:
    """A trial that belongs to a search, with its scores so far."""

    values: Mapping[str, Any]
    """Values of the searched fields, by dotted name."""
    scores: dict[int, float] = field(default_factory=dict)
    """Score by epoch, from 1; less is better."""
    outcome: str = ""
    """Outcome of an ended trial; empty if it is running, paused or to be resumed."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A member that continues another one with changed hyperparameters."""

    parent: int
    """Number of the parent."""
    epoch: int
    """Last epoch that it shares with its parent."""
    values: Mapping[str, Any]
    """Values of the searched fields, with `optim.changes`."""


@dataclass(frozen=True, kw_only=True)
class GenerationState:
    """The current generation of a population."""

    epoch: int | None
    """Epoch after which members are paused until all have reached it; None in the last generation."""
    members: Sequence[int]
    """Numbers of the members, in the order in which to resume them: branches before their parents, whose checkpoints they need."""
    branches: Mapping[int, Branch]
    """Branches of all generations so far, by number."""


def replay_generations(
    started: Mapping[int, Member], ranges: Mapping[str, tuple[float, float]], *, size: int, epochs: int, seed: int
) -> GenerationState:
    """Return the current generation, by replaying all earlier ones.

    Args:
        started: members that were started, by number: the first `size`, then branches in the order of their generations.
        ranges: lowest and highest value of the fields that branches perturb.
        size: number of members in a generation.
        epochs: epochs of a whole training.
        seed: seed of the perturbations.
    """
    members, branches, free = list(range(size)), dict[int, Branch](), size
    interval = max(1, epochs // GENERATIONS)
    for epoch in range(interval, epochs, interval):
        # Once a branch of this epoch was started, the generation is decided, and members that have not reached it are evicted.
        decided = any(number >= free for number in started)
        if not decided and any(number not in started or _awaited(started[number], epoch) for number in members):
            return GenerationState(epoch=epoch, members=members, branches=branches)
        scores = {number: _score(started.get(number), epoch) for number in members}
        ranked = sorted(members, key=lambda number: (scores[number], number))
        alive = sum(map(math.isfinite, scores.values()))
        stay, quarter = min(alive, size - size // 4), size // 4
        if not stay:
            return GenerationState(epoch=None, members=(), branches=branches)
        parents, others = ranked[: min(quarter, stay)], ranked[quarter:stay]
        places = range(free, free + size - stay)
        for number in places:
            rng = np.random.default_rng([seed, epoch, number])
            parent = parents[rng.integers(len(parents))]
            changed: Mapping[str, Any] | None
            if number in started:
                changed = started[number].values
            else:
                known = [*(each.values for each in started.values()), *(each.values for each in branches.values())]
                changed = _new_values(started[parent].values, epoch, ranges, known, rng)
            if changed is not None:  # otherwise the population has one member less in this generation, and the number stays unused
                branches[number] = Branch(parent=parent, epoch=epoch, values=changed)
        free = places.stop
        members = [*(number for number in places if number in branches), *others, *parents]
    return GenerationState(epoch=None, members=members, branches=branches)


def ready_members(state: GenerationState, started: Mapping[int, Member], running: Collection[int]) -> list[int]:
    """Return the members that can be started or resumed, in order."""
    idle = (number for number in state.members if number not in running)
    return [n for n in idle if n not in started or not (started[n].outcome or state.epoch in started[n].scores)]


def evicted_members(state: GenerationState, started: Mapping[int, Member], running: Collection[int]) -> list[int]:
    """Return the paused members that branches have replaced."""
    return [n for n, each in started.items() if not each.outcome and n not in state.members and n not in running]


def perturb(name: str, value: float, low: float, high: float, factor: float) -> float:
    """Return a value multiplied by a factor and clipped to its range.

    For momentum, the factor multiplies the distance to 1 instead, since that distance decides how many past gradients count.
    """
    moved = 1 - (1 - value) * factor if name == "optim.momentum" else value * factor
    return _clip(name, moved, low, high)


def _clip(name: str, value: float, low: float, high: float) -> float:
    """Return the nearest valid value in the range. Momentum and label smoothing stay below 1, and no value becomes 0."""
    below_one = name in ("optim.momentum", "optim.label_smoothing") and high >= 1
    floor = low or high / 1000  # no factor could move a value away from 0
    return min(max(value, floor), max(low, MAX_BELOW_ONE) if below_one else high)


def _awaited(member: Member, epoch: int) -> bool:
    """Return whether a member is still to report its score after `epoch`."""
    return not member.outcome and epoch not in member.scores


def _score(member: Member | None, epoch: int) -> float:
    score = member.scores.get(epoch, math.inf) if member else math.inf
    return score if math.isfinite(score) else math.inf


def _new_values(
    values: Mapping[str, Any],
    epoch: int,
    ranges: Mapping[str, tuple[float, float]],
    known: Collection[Mapping[str, Any]],
    rng: np.random.Generator,
) -> Mapping[str, Any] | None:
    """Return a new configuration whose hyperparameters change after `epoch`, or None if none is found.

    The hyperparameters are perturbed until the configuration is new. In a narrow range, perturbed values soon
    are only the two ends of the range, which a few branches use up. Values are then sampled from the range instead.
    """
    before = {name: _current_value(values, name) for name in sorted(ranges)}
    now = dict(before)
    for attempt in range(2 * MAX_PERTURBATION_ATTEMPTS):
        for name in now:
            if attempt < MAX_PERTURBATION_ATTEMPTS:
                now[name] = perturb(name, now[name], *ranges[name], factor=PERTURBATION_FACTORS[rng.integers(2)])
            else:
                now[name] = _clip(name, rng.uniform(*ranges[name]), *ranges[name])
        changes = [change(epoch, _leaf(name), now[name]) for name in now if now[name] != before[name]]
        found = {**values, CHANGES: (*values.get(CHANGES, ()), *changes)}
        if changes and found not in known:
            return found
    return None


def _current_value(values: Mapping[str, Any], name: str) -> float:
    """Return the value of a field after all changes."""
    changed = [text.partition("=")[2] for text in values.get(CHANGES, ()) if text.partition(":")[2].startswith(f"{_leaf(name)}=")]
    return float(changed[-1] if changed else values[name])


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
