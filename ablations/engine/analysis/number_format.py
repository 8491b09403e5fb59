"""Formats of numbers in tables, sentences and figures: a real minus sign, a dash for a missing value."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.tuning.findings import SearchFindings
from ablations.engine.task.metric import PERCENT, Metric

MISSING = "–"
"""Text of a missing number."""
MIN_DISPLAYED_P = 0.001
"""Smallest p-value that is printed; smaller ones are printed as `<0.001`."""
SI_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
PERCENT_DECIMALS = 2
"""Decimals of a percentage."""
SIGNIFICANT_DIGITS = 4
"""Digits of a typical value of a metric in another unit."""
MAX_DECIMALS = 12
"""Maximum number of decimals."""
ZERO_DECIMALS = 7
"""Sizes without a digit up to this many decimals after the last one printed are rounding errors, and are printed as zero."""


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with thousands separators: `1,234.50`."""
    return MISSING if value is None or value != value else f"{value:,.{decimals}f}".replace("-", "−")


def scaled(value: float | None) -> str:
    """Return three significant digits with an SI prefix: `40.8 M`."""
    if value is None:
        return MISSING
    factor, prefix = next(((factor, f" {prefix}") for factor, prefix in SI_PREFIXES if value >= factor), (1.0, ""))
    return f"{value / factor:.3g}{prefix}"


def p_value(p: float | None) -> str:
    """Return a p-value: `0.012`, `<0.001`."""
    if p is None:
        return MISSING
    return f"<{MIN_DISPLAYED_P}" if p < MIN_DISPLAYED_P else f"{p:.3f}"


def decimals_for(metric: Metric, values: Iterable[float]) -> int:
    """Return the decimals that suit the values of a metric: two for percentages, otherwise four digits of a typical value."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if metric.unit == PERCENT or not sizes:
        return PERCENT_DECIMALS
    return min(max(SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(statistics.median(sizes))), 0), MAX_DECIMALS)


@dataclass(frozen=True)
class ValueFormat:
    """Formats of the values of a metric and of differences between them, with decimals that suit their scale."""

    metric: Metric
    decimals: int = PERCENT_DECIMALS

    @classmethod
    def of(cls, findings: Findings | SearchFindings) -> Self:
        """Return the formats of a study's values, or of the scores of a search."""
        return cls(findings.metric, findings.decimals)

    def number(self, value: float | None) -> str:
        """Return a value without its unit: `8.13`."""
        return number(value, self.decimals)

    def with_unit(self, value: float | None) -> str:
        """Return a value with its unit: `8.13 %`, `1.386 nats`."""
        return MISSING if value is None or value != value else f"{self.number(value)} {self.metric.unit}".rstrip()

    def mean_std(self, estimate: Estimate) -> str:
        """Return `48.83 ± 5.36`, or the mean alone if there is no standard deviation."""
        return self.number(estimate.mean) + ("" if estimate.std is None else f" ± {self.number(estimate.std)}")

    def interval(self, estimate: Estimate) -> str:
        """Return a confidence interval: `[7.90, 8.36]`."""
        return MISSING if estimate.low is None else f"[{self.number(estimate.low)}, {self.number(estimate.high)}]"

    def magnitude(self, value: float | None) -> str:
        """Return a difference without its sign: `0.28`, `1.07`. One that would read `0.00` has one significant digit: `0.003`."""
        if value is None or value != value:
            return MISSING
        size = abs(value)
        return f"{size:,.{self.decimals}f}" if size > 0.5 * 10.0**-self.decimals or size < self._zero else f"{size:.1g}"

    @property
    def _zero(self) -> float:
        """Size below which a difference is a rounding error."""
        return 10.0 ** -(self.decimals + ZERO_DECIMALS)

    def signed(self, value: float | None) -> str:
        """Return a difference with its sign: `+0.28`, `−1.07`; zero has none."""
        if value is None or value != value:
            return MISSING
        return f"{'' if abs(value) < self._zero else '−' if value < 0 else '+'}{self.magnitude(value)}"

    def signed_interval(self, difference: Estimate) -> str:
        """Return the confidence interval of a difference: `[−0.57, +1.12]`."""
        return MISSING if difference.low is None else f"[{self.signed(difference.low)}, {self.signed(difference.high)}]"

    def signed_with_interval(self, difference: Estimate, missing: str = MISSING) -> str:
        """Return `+0.28 [−0.57, +1.12]`, the difference alone if it has no interval, or `missing` if it has no mean."""
        if difference.mean is None:
            return missing
        return self.signed(difference.mean) + ("" if difference.low is None else f" {self.signed_interval(difference)}")

    def size(self, difference: float) -> str:
        """Return a difference without its sign, with its unit: `0.28 points`, `0.012 nats`."""
        return self.in_points(self.magnitude(difference))

    def in_points(self, text: str) -> str:
        """Return the text of a difference with its unit: `+0.28 points`, `+0.012 nats`."""
        return f"{text} {self.metric.difference_unit}".rstrip()


def format_value(metric: Metric, value: float) -> str:
    """Return a single value with its unit: `8.13 %`, `1.386 nats`."""
    return ValueFormat(metric, decimals_for(metric, [value])).with_unit(value)
