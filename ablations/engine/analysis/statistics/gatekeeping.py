"""One family of tests for a whole study: a graph of hypotheses through which the significance level flows.

Average effects share four fifths of the significance level and interactions one fifth; without interactions, effects have all of
it. If runs fail to train, half of the effects' part is for tests of failures. A hypothesis that is rejected passes on its part:
half to the other effects or interactions, as in Holm's method, half to the single combinations of its level. So a combination is
tested only after its level has been shown to matter, on average or in an interaction. Whatever is true, the probability of at
least one false rejection is at most 5 % (graphical procedure; Bretz et al. 2009).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablations.engine.analysis.statistics.inference import Array

INTERACTION_PART = 0.2
"""Initial part of the significance level for interactions, if there are any."""
FAILURE_PART = 0.5
"""Initial part of what the effects have for tests of failures to train, if there are enough failures for one."""
PART_PASSED_DOWN = 0.5
"""Part of a rejected hypothesis' level that goes to the combinations of its level; the rest goes to the others of its kind."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A hypothesis of the family."""

    name: Any
    p: float
    weight: float = 0.0
    """Initial part of the significance level."""
    siblings: Sequence[Any] = ()
    """Hypotheses that share the part that stays, or all of it without children."""
    children: Sequence[Any] = ()
    """Hypotheses that share the part that is passed down, or all of it without siblings."""


def adjust_p_values(nodes: Sequence[Node]) -> Mapping[Any, float]:
    """Return the adjusted p-value of each hypothesis (Bretz et al. 2009, algorithm 2). Names outside the family are ignored."""
    index = {node.name: i for i, node in enumerate(nodes)}
    passed = np.zeros((len(nodes), len(nodes)))
    for i, node in enumerate(nodes):
        siblings, children = (
            [index[name] for name in names if index.get(name, i) != i] for names in (node.siblings, node.children)
        )
        down = 0.0 if not children else PART_PASSED_DOWN if siblings else 1.0
        passed[i, children] += down / max(1, len(children))
        passed[i, siblings] += (1 - down) / max(1, len(siblings))
    weights = np.array([node.weight for node in nodes])
    p = np.array([node.p for node in nodes])
    adjusted = np.ones(len(nodes))
    left, highest = np.ones(len(nodes), bool), 0.0
    while left.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(left & (weights > 0), p / weights, np.inf)
        first = int(np.argmin(ratios))
        highest = max(highest, float(ratios[first]))
        if highest >= 1:
            break
        adjusted[first], left[first] = highest, False
        weights, passed = _without(first, weights, passed)
    return {node.name: float(adjusted[i]) for i, node in enumerate(nodes)}


def _without(gone: int, weights: Array, passed: Array) -> tuple[Array, Array]:
    """Return the weights and the parts that are passed on after a hypothesis is rejected and its paths are bridged."""
    row, column = passed[gone], passed[:, gone]
    weights = weights + weights[gone] * row
    stays = 1 - column * row  # what does not come back to where it came from
    bridged = np.divide(passed + np.outer(column, row), stays[:, None], out=np.zeros_like(passed), where=stays[:, None] > 1e-12)
    np.fill_diagonal(bridged, 0)
    bridged[gone], bridged[:, gone], weights[gone] = 0, 0, 0
    return weights, bridged
