"""Expectations about a study's outcome, `--expect`, which are stated before it starts and assessed at its end."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ablations.engine.study.factors import Level, format_level, is_level
from resnet_core.fields import reject

ACCEPTED = "FACTOR=LEVEL better than LEVEL [by N], FACTOR=LEVEL no worse than LEVEL by N, or FACTOR matters"
_COMPARISON = re.compile(
    r"(?P<factor>[^=\s]+)=(?P<level>.+?) (?P<kind>better|no worse) than (?P<reference>.+?)(?: by (?P<amount>\S+))?"
)
_MATTERS = re.compile(r"(?P<factor>\S+) matters")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A statement about one factor of a study."""

    text: str
    """The expectation as it was stated."""
    factor: str
    kind: Literal["matters", "better", "no worse"]
    level: str = ""
    """Level that is expected to be better or no worse; empty for `matters`."""
    reference: str = ""
    """Level that it is compared with; empty for `matters`."""
    amount: float = 0.0
    """Difference in the unit of the metric: the least improvement, or for `no worse` the largest loss that is accepted."""


def parse_expectations(texts: Iterable[str], factors: Mapping[str, Sequence[Level]]) -> tuple[Expectation, ...]:
    """Return the expectations about a study with these factors; raise ConfigError for one that the study cannot decide."""
    return tuple(_parse(text, factors) for text in texts)


def _parse(text: str, factors: Mapping[str, Sequence[Level]]) -> Expectation:
    words = " ".join(text.split())
    if found := _MATTERS.fullmatch(words):
        return Expectation(text=words, factor=_factor(text, found["factor"], factors), kind="matters")
    found = _COMPARISON.fullmatch(words)
    if found is None:
        raise reject("--expect", text, f"accepted: {ACCEPTED}")
    factor = _factor(text, found["factor"], factors)
    level, reference = (_level(text, factor, found[name], factors[factor]) for name in ("level", "reference"))
    if level == reference:
        raise reject("--expect", text, "accepted: two different levels")
    kind: Literal["better", "no worse"] = "better" if found["kind"] == "better" else "no worse"
    if kind == "no worse" and found["amount"] is None:
        raise reject("--expect", text, "names no margin, without which nothing can be shown; accepted: … no worse than LEVEL by N")
    amount = _amount(text, found["amount"], positive=kind == "no worse")
    return Expectation(text=words, factor=factor, kind=kind, level=level, reference=reference, amount=amount)


def _factor(text: str, name: str, factors: Mapping[str, Sequence[Level]]) -> str:
    named = [each for each in factors if each == name or each.endswith(f".{name}") or name.endswith(f".{each}")]
    if len(named) != 1:
        raise reject("--expect", text, f"{name} is no factor of this study; accepted: {', '.join(factors)}")
    if len(factors[named[0]]) < 2:
        raise reject("--expect", text, f"{name} has one level in this study; accepted: a factor with two levels or more")
    return named[0]


def _level(text: str, factor: str, given: str, levels: Sequence[Level]) -> str:
    known = [format_level(level) for level in levels]
    same = [shown for shown, level in zip(known, levels, strict=True) if is_level(level, given)]
    if not same:
        raise reject("--expect", text, f"{given} is no level of {factor}; accepted: {', '.join(known)}")
    return same[0]


def _amount(text: str, given: str | None, *, positive: bool) -> float:
    if given is None:
        return 0.0
    try:
        amount = float(given)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and (amount > 0 if positive else amount >= 0)):
        raise reject(
            "--expect", text, f"accepted after by: a number {'above 0' if positive else 'of 0 or more'}, in the metric's unit"
        )
    return amount
