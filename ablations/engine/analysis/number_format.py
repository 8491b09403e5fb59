"""Formats of numbers in tables, sentences and figures: a real minus sign, a dash for a missing value."""

from ablations.engine.analysis.findings import Estimate

MISSING = "–"
"""Text of a missing number."""
MIN_DISPLAYED_P = 0.001
"""Smallest p-value that is printed; smaller ones are printed as `<0.001`."""
SI_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
MIN_TWO_DECIMAL_SIZE = 0.005
"""Smaller sizes have one significant digit: with two decimals they would read `0.00` beside a p-value of 0.001."""
ZERO_SIZE = 1e-9
"""Smaller sizes are rounding errors and are printed as zero."""


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with thousands separators: `1,234.50`."""
    return MISSING if value is None or value != value else f"{value:,.{decimals}f}".replace("-", "−")


def magnitude(value: float | None) -> str:
    """Return a number without its sign: `0.28`, `1.07`, `0.003`."""
    if value is None or value != value:
        return MISSING
    size = abs(value)
    return f"{size:,.2f}" if size >= MIN_TWO_DECIMAL_SIZE or size < ZERO_SIZE else f"{size:.1g}"


def signed(value: float | None) -> str:
    """Return a difference with its sign: `+0.28`, `−1.07`."""
    if value is None or value != value:
        return MISSING
    return f"{'−' if value < 0 else '+'}{magnitude(value)}"


def percent(value: float | None) -> str:
    """Return a percentage with its unit: `8.13 %`."""
    return MISSING if value is None or value != value else f"{number(value)} %"


def scaled(value: float | None) -> str:
    """Return three significant digits with an SI prefix: `40.8 M`."""
    if value is None:
        return MISSING
    factor, prefix = next(((factor, f" {prefix}") for factor, prefix in SI_PREFIXES if value >= factor), (1.0, ""))
    return f"{value / factor:.3g}{prefix}"


def mean_std(estimate: Estimate) -> str:
    """Return `48.83 ± 5.36`, or the mean alone if there is no standard deviation."""
    return number(estimate.mean) + ("" if estimate.std is None else f" ± {number(estimate.std)}")


def interval(estimate: Estimate) -> str:
    """Return a confidence interval: `[7.90, 8.36]`."""
    return MISSING if estimate.low is None else f"[{number(estimate.low)}, {number(estimate.high)}]"


def signed_interval(difference: Estimate) -> str:
    """Return the confidence interval of a difference: `[−0.57, +1.12]`."""
    return MISSING if difference.low is None else f"[{signed(difference.low)}, {signed(difference.high)}]"


def signed_with_interval(difference: Estimate, missing: str = MISSING) -> str:
    """Return `+0.28 [−0.57, +1.12]`, the difference alone if it has no interval, or `missing` if it has no mean."""
    if difference.mean is None:
        return missing
    return signed(difference.mean) + ("" if difference.low is None else f" {signed_interval(difference)}")


def with_unit(difference: Estimate, unit: str) -> str:
    """Return `+0.28 points [−0.57, +1.12]`, or the difference and its unit alone if it has no interval."""
    return f"{signed(difference.mean)} {unit}" + ("" if difference.low is None else f" {signed_interval(difference)}")


def p_value(p: float | None) -> str:
    """Return a p-value: `0.012`, `<0.001`."""
    if p is None:
        return MISSING
    return f"<{MIN_DISPLAYED_P}" if p < MIN_DISPLAYED_P else f"{p:.3f}"
