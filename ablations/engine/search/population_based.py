"""Population-based training (Jaderberg et al. 2017, arXiv:1711.09846), as a function of what its members reported.

A population trains as many members at a time as it is large. At the end of each generation all are compared: the worst quarter, and
those that ended before, are over, and as many branches of the best quarter take their places. A branch is its parent up to that
epoch, and then goes on with other hyperparameters: as a configuration, the parent's with more `optim.changes`. All members have the
same seed, so a branch trained from the beginning gives what its parent's checkpoint would have given.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnet_core.config import change

CHANGES = "optim.changes"
PERTURBABLE = ("optim.label_smoothing", "optim.lr", "optim.momentum", "optim.weight_decay")
"""Fields that may change during a training."""
PERTURBATION_FACTORS = (0.8, 1.25)
GENERATIONS = 5
MIN_POPULATION = 4
"""Members of which a quarter can be replaced."""
MAX_BELOW_ONE = 0.999
MAX_PERTURBATION_ATTEMPTS = 20
"""How often a new configuration is sought in each of two ways. Both are exhausted only by a range of a few numbers."""


@dataclass(kw_only=True)
class Member:
    """A trial, as far as it is known."""

    values: Mapping[str, Any]
    errors: dict[int, float] = field(default_factory=dict)
    """In percent, by epoch from 1."""
    outcome: str = ""
    """Empty: it runs, waits or is to be trained again."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A member that begins as another one."""

    parent: int
    epoch: int
    """At the end of which it leaves its parent."""
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerationState:
    """How far a population is."""

    epoch: int | None
    """At the end of which members wait for each other; None: they train to the end."""
    members: Sequence[int]
    """In the order in which to go on: branches before their parents, whose checkpoints they need."""
    branches: Mapping[int, Branch]
    """All so far, by number."""


def replay_generations(
    told: Mapping[int, Member], ranges: Mapping[str, tuple[float, float]], *, size: int, epochs: int, seed: int
) -> GenerationState:
    """The generation that the members are in, by replaying those before it.

    Args:
        told: members that were begun, by number: the first ones `size`, then branches in the order of their generations.
        ranges: lowest and highest value of the fields that branches perturb.
        epochs: of a whole training.
    """
    members, branches, free = list(range(size)), dict[int, Branch](), size
    interval = max(1, epochs // GENERATIONS)
    for epoch in range(interval, epochs, interval):
        decided = any(number >= free for number in told)  # a branch was begun: whoever had not come so far was given up
        if not decided and any(number not in told or _awaited(told[number], epoch) for number in members):
            return GenerationState(epoch=epoch, members=members, branches=branches)
        scores = {number: _score(told.get(number), epoch) for number in members}
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
            if number in told:
                changed = told[number].values
            else:
                known = [*(each.values for each in told.values()), *(each.values for each in branches.values())]
                changed = _changed(told[parent].values, epoch, ranges, known, rng)
            if changed is not None:  # else its place stays empty until the next generation, and its number unused
                branches[number] = Branch(parent=parent, epoch=epoch, values=changed)
        free = places.stop
        members = [*(number for number in places if number in branches), *others, *parents]
    return GenerationState(epoch=None, members=members, branches=branches)


def ready_members(now: GenerationState, told: Mapping[int, Member], running: Collection[int]) -> list[int]:
    """Members that can begin or go on, in their order."""
    idle = (number for number in now.members if number not in running)
    return [number for number in idle if number not in told or not (told[number].outcome or now.epoch in told[number].errors)]


def evicted_members(now: GenerationState, told: Mapping[int, Member], running: Collection[int]) -> list[int]:
    """Those that have not ended, and whose place another one has."""
    return [number for number, each in told.items() if not each.outcome and number not in now.members and number not in running]


def perturb(name: str, value: float, low: float, high: float, factor: float) -> float:
    """Return a value times a factor, within its range; of momentum, the distance to 1, which its effect is proportional to."""
    moved = 1 - (1 - value) * factor if name == "optim.momentum" else value * factor
    return _within(name, moved, low, high)


def _within(name: str, value: float, low: float, high: float) -> float:
    """Return the nearest value of the range that a training can go on with."""
    below_one = name in ("optim.momentum", "optim.label_smoothing") and high >= 1
    floor = low or high / 1000  # from zero, no factor leads away
    return min(max(value, floor), max(low, MAX_BELOW_ONE) if below_one else high)


def _awaited(member: Member, epoch: int) -> bool:
    return not member.outcome and epoch not in member.errors


def _score(member: Member | None, epoch: int) -> float:
    error = member.errors.get(epoch, math.inf) if member else math.inf
    return error if math.isfinite(error) else math.inf


def _changed(
    values: Mapping[str, Any],
    epoch: int,
    ranges: Mapping[str, tuple[float, float]],
    known: Collection[Mapping[str, Any]],
    rng: np.random.Generator,
) -> Mapping[str, Any] | None:
    """Return an unknown configuration with other hyperparameters from the end of an epoch on, or None if none is found.

    The hyperparameters are perturbed until the configuration is new. In a narrow range factors soon lead to its ends only, which
    are known after a few branches; then values are drawn from the range instead.
    """
    before = {name: _in_force(values, name) for name in sorted(ranges)}
    now = dict(before)
    for attempt in range(2 * MAX_PERTURBATION_ATTEMPTS):
        for name in now:
            if attempt < MAX_PERTURBATION_ATTEMPTS:
                now[name] = perturb(name, now[name], *ranges[name], factor=PERTURBATION_FACTORS[rng.integers(2)])
            else:
                now[name] = _within(name, rng.uniform(*ranges[name]), *ranges[name])
        changes = [change(epoch, _leaf(name), now[name]) for name in now if now[name] != before[name]]
        found = {**values, CHANGES: (*values.get(CHANGES, ()), *changes)}
        if changes and found not in known:
            return found
    return None


def _in_force(values: Mapping[str, Any], name: str) -> float:
    """The value of a field after all changes."""
    changed = [text.partition("=")[2] for text in values.get(CHANGES, ()) if text.partition(":")[2].startswith(f"{_leaf(name)}=")]
    return float(changed[-1] if changed else values[name])


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
