"""Who proposes configurations: Optuna's samplers, each made anew for every proposal, so that it depends on the trials told only.

An optimiser that was told the same trials goes on with the same proposals, whatever the one before it drew or remembered.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

TRIAL_NUMBER = "number"
"""User attribute of a trial of Optuna's: its number in the search."""


def make_sampler(name: str, seeds: Sequence[int], *, trials: int | None, objectives: int) -> BaseSampler:
    """The sampler of one proposal.

    Args:
        name: `tpe`, `random`, `gp`, `cmaes` or `nsga2`.
        seeds: what its randomness follows from.
        trials: budget of the search. Models are asked after a quarter of it, but at least 4 and at most 10 trials; generations of
            NSGA-II have a fifth, at least 8 and at most 50.
    """
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    begin = 10 if trials is None else min(10, max(4, trials // 4))
    if name == "tpe" and objectives == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # `group`: fields that only some trials have
            return TPESampler(n_startup_trials=begin, multivariate=True, group=True, seed=seed)
    if name == "tpe":
        return TPESampler(n_startup_trials=begin, seed=seed)
    if name == "gp":
        return GPSampler(n_startup_trials=begin, seed=seed, warn_independent_sampling=False)
    if name == "nsga2":
        return StatelessNSGAIISampler(population_size=50 if trials is None else min(50, max(8, trials // 5)), seed=seed)
    return StatelessCmaEsSampler(seed) if name == "cmaes" else RandomSampler(seed=seed)


class StatelessNSGAIISampler(NSGAIISampler):
    """NSGA-II (Deb et al. 2002) whose generations are those of the trials' numbers, not what earlier samplers remembered."""

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        assert self.population_size
        return int(trial.user_attrs[TRIAL_NUMBER]) // self.population_size

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [trial for trial in done if self.get_trial_generation(study, trial) == generation]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        parents = self.select_parent(study, generation) if generation else []
        return parents if len(parents) > 1 else []  # a crossover needs two


class StatelessCmaEsSampler(BaseSampler):
    """CMA-ES (Hansen 2016, arXiv:1604.00772) over the numbers of a space; choices are drawn at random.

    Finished trials in the order of their numbers are its generations, whichever distribution they were drawn from.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._independent = seed, RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        shared = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: each for name, each in shared.items() if not isinstance(each, CategoricalDistribution) and not each.single()}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if not search_space:
            return {}
        size = len(search_space)
        cma = CMA(np.full(size, 0.5), 1 / 6, bounds=np.tile([0.0, 1.0], (size, 1)), seed=self._seed, n_max_resampling=10 * size)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        points = [
            (np.array([_place(each, trial.params[name]) for name, each in search_space.items()]), trial.values[0]) for trial in done
        ]
        for start in range(0, len(points) - cma.population_size + 1, cma.population_size):
            cma.tell(points[start : start + cma.population_size])
        return {name: _value(each, place) for (name, each), place in zip(search_space.items(), cma.ask(), strict=True)}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _ends(dimension: Any) -> tuple[float, float]:
    """Of a range on its scale; steps have their half on both sides."""
    half = (dimension.step or 0) / 2
    ends = dimension.low - half, dimension.high + half
    return (math.log(ends[0]), math.log(ends[1])) if dimension.log else ends


def _place(dimension: Any, value: float) -> float:
    """Where a value lies in its range, from 0 to 1."""
    low, high = _ends(dimension)
    return ((math.log(value) if dimension.log else value) - low) / (high - low)


def _value(dimension: Any, place: float) -> float:
    """The value at a place in its range."""
    low, high = _ends(dimension)
    value = low + place * (high - low)
    value = math.exp(value) if dimension.log else value
    if dimension.step:
        value = dimension.low + round((value - dimension.low) / dimension.step) * dimension.step
    kept = min(max(value, dimension.low), dimension.high)
    return int(kept) if isinstance(dimension.low, int) else float(kept)
