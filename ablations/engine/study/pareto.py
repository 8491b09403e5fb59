"""The Pareto front: the configurations that no other configuration beats in both value and cost."""

import math
from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, by rising first objective.

    A point dominates another if it is no worse in every objective and better in at least one; less is better. Points with equal
    objectives do not dominate each other, so all of them can be on the front. With one objective, the front is every minimum.

    Args:
        points: one or two objectives each. A point with NaN or an infinite objective is never on the front.
    """
    finite = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    front: list[int] = []
    for i in sorted(finite, key=lambda i: tuple(points[i])):
        if not front or points[i][-1] < points[front[-1]][-1] or tuple(points[i]) == tuple(points[front[-1]]):
            front.append(i)
    return front
