"""Optuna's samplers, created anew for every suggestion, so that a suggestion depends only on the trials that Optuna knows.

A search that is resumed with the same trials therefore continues with the same suggestions, whatever an earlier sampler had drawn.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler


def make_sampler(name: str, seeds: Sequence[int], *, trials: int | None, objectives: int) -> BaseSampler:
    """Return the sampler for one suggestion.

    Args:
        name: `tpe`, `random` or `gp`.
        seeds: entropy of the sampler's random numbers.
        trials: budget of the search; None if there is none. TPE and GP start after a quarter of it, but at least 4 and at most 10
            random trials.
        objectives: number of objectives.
    """
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    startup_trials = 10 if trials is None else min(10, max(4, trials // 4))
    # Optuna 4 has another default for `constant_liar`, without which TPE repeats configurations that are being tried.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of `group`, needed for fields that only some trials have
        if name == "tpe" and objectives == 1:
            return TPESampler(n_startup_trials=startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed)
        if name == "tpe":
            return TPESampler(n_startup_trials=startup_trials, constant_liar=True, seed=seed)
        if name == "gp":
            return GPSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)
