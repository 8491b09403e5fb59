"""How numbers are written in tables, sentences and figures."""

from ablations.engine.analysis.findings import Estimate

NONE = "–"
"""Where there is no number."""
MIN_P = 0.001
"""Smaller ones are not told apart."""
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, decimals: int = 2) -> str:
    """`1,234.50`; a dash where there is none."""
    return NONE if value is None or value != value else f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference in points: `+0.28`, `−1.07`."""
    if value is None:
        return NONE
    shown = f"{value:+,.2f}" if abs(value) >= 0.005 or abs(value) < 1e-9 else f"{value:+.1g}"  # not −0.00 with a p of 0.001
    return shown.replace("-", "−")


def scaled(value: float | None) -> str:
    """Three digits and a prefix: `40.8 M`."""
    if value is None:
        return NONE
    factor, prefix = next(((factor, f" {prefix}") for factor, prefix in PREFIXES if value >= factor), (1.0, ""))
    return f"{value / factor:.3g}{prefix}"


def mean_std(estimate: Estimate) -> str:
    """`48.83 ± 5.36`; without a spread the mean alone."""
    return number(estimate.mean) + ("" if estimate.std is None else f" ± {number(estimate.std)}")


def interval(estimate: Estimate) -> str:
    """`[7.90, 8.36]`."""
    return NONE if estimate.low is None else f"[{number(estimate.low)}, {number(estimate.high)}]"


def signed_interval(difference: Estimate) -> str:
    """`[−0.57, +1.12]`."""
    return NONE if difference.low is None else f"[{signed(difference.low)}, {signed(difference.high)}]"


def with_interval(difference: Estimate) -> str:
    """`+0.28 [−0.57, +1.12]`; without an interval the difference alone."""
    return signed(difference.mean) + ("" if difference.low is None else f" {signed_interval(difference)}")


def probability(p: float | None) -> str:
    """`0.012`, `<0.001`."""
    if p is None:
        return NONE
    return f"<{MIN_P}" if p < MIN_P else f"{p:.3f}"
