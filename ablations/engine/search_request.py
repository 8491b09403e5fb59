"""What the command line can ask of a search."""

from collections.abc import Sequence
from dataclasses import dataclass

SAMPLERS = ("tpe", "random", "gp", "cmaes", "nsga2")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
OBJECTIVES = {"flops": "flops", "seconds": "train_seconds"}
"""What error can be weighed against, and the metric that it is."""
TRIALS = 24
"""Of a search for which no budget is asked."""
VALIDATION = 0.2
"""Share of the training images that trials are scored on, where none is asked."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a submission asks of a search."""

    per_cell: Sequence[str] | None = None
    """Factors inside whose levels to search; empty: all of the study; None: one search, without factors."""
    fields: Sequence[str] = ()
    """What is searched: fields of the study's space, or others with a range; empty: the whole space."""
    trials: int | None = None
    """Budget of each cell's search; of a population, its size."""
    seconds: float | None = None
    """Another budget: training time of each cell's search."""
    sampler: str | None = None
    scheduler: str | None = None
    against: str | None = None
    """A second objective."""
    seed: int = 0
    validation: float = VALIDATION
