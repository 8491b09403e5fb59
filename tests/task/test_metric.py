"""Metrics: the limits at which their intervals end when they are shown."""

import math

import pytest

from ablations.engine.task.metric import Metric

NO_LIMITS = (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("name", "unit", "values", "limits"),
    [
        ("test/error", "%", [3.0, 8.0], (0.0, 100.0)),
        ("valid/accuracy", "%", [3.0, 8.0], (0.0, 100.0)),
        ("valid/accuracy", "", [0.5, math.nan, 0.9], (0.0, 1.0)),
        ("valid/top1_accuracy", "", [0.5, 1.0], (0.0, 1.0)),
        ("valid/accuracy", "", [50.0, 90.0], NO_LIMITS),
        ("valid/accuracy", "", [math.nan], NO_LIMITS),
        ("valid/accuracy", "points", [0.5, 0.9], NO_LIMITS),
        ("valid/loss", "nats", [0.5, 0.9], NO_LIMITS),
        ("score", "", [0.5, 0.9], NO_LIMITS),
    ],
)
def test_intervals_end_at_0_and_1_only_where_a_share_is_certain(
    name: str, unit: str, values: list[float], limits: tuple[float, float]
) -> None:
    assert Metric(name, unit, better="higher").limits(values) == limits
