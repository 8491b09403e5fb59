"""Numbers of seeds: a fixed number, or the looks at which an adaptive study decides which cells get more seeds.

`3..12` is a range: looks at 3, 5, 8 and 12 seeds. The first and the last number are looks. Each look in between has one and a half
times the seeds of the look before, rounded up, as long as the last number is at least a quarter larger. `3,6,12` states the looks.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

from resnet_core.fields import reject

GROWTH = 1.5
"""Factor from one look of a range to the next. Smaller steps would divide the significance level among more looks."""
MIN_LAST_GROWTH = 1.25
"""Smallest factor from the last but one look of a range to the last. A look just before the last one costs more than it saves."""
MAX_LOOKS = 10
"""Maximum number of looks. Each has a share of the significance level."""
ACCEPTED = "accepted: a number of replicates, 1 or more; a range, 3..12; or looks, 3,5,8,12"
ACCEPTED_IN_PYTHON = "accepted: a number of replicates, 1 or more; a range, (3, 12); or looks, (3, 5, 8, 12)"
_RANGE = re.compile(r"(\d{1,18})\s*\.\.\s*(\d{1,18})", re.ASCII)
_NUMBERS = re.compile(r"\d{1,18}(?:\s*,\s*\d{1,18})*", re.ASCII)


def read_seeds(source: str, seeds: object) -> int | tuple[int, ...]:
    """Return a fixed number of seeds, or the looks of an adaptive study, ascending.

    Args:
        source: Origin of the seeds for error messages: `seeds` of a study file, or `--seeds`.
        seeds: A number; text such as `5`, `3..12` or `3,5,8,12`; or a sequence, of which two numbers are a range.

    Raises:
        ConfigError: The seeds are neither, are below 1, or do not ascend.
    """
    if isinstance(seeds, str):
        return _read_text(source, seeds.strip())
    if not isinstance(seeds, bool) and isinstance(seeds, Integral):
        return _checked(source, [int(seeds)], seeds, ACCEPTED_IN_PYTHON)[0]
    if not isinstance(seeds, Sequence) or len(seeds) < 2 or not all(map(_is_whole, seeds)):
        raise reject(source, seeds, ACCEPTED_IN_PYTHON)
    numbers = _checked(source, seeds, tuple(seeds), ACCEPTED_IN_PYTHON)
    return _range_looks(source, *numbers) if len(numbers) == 2 else numbers


def checked_seeds(source: str, seeds: object) -> int | tuple[int, ...]:
    """Return seeds of a study file as given: a number, a range of two numbers, or looks; raise ConfigError for others."""
    if isinstance(seeds, str):
        raise reject(source, seeds, ACCEPTED_IN_PYTHON)
    read_seeds(source, seeds)
    return tuple(map(int, seeds)) if isinstance(seeds, Sequence) else int(seeds)  # type: ignore[call-overload]


def max_seeds(seeds: int | Sequence[int]) -> int:
    """Return the largest number of seeds that a cell can have, of valid seeds."""
    return seeds if isinstance(seeds, int) else seeds[-1]


def format_seeds(seeds: int | Sequence[int]) -> str:
    """Return valid seeds as text that the command line accepts."""
    if isinstance(seeds, int):
        return str(seeds)
    return f"{seeds[0]}..{seeds[1]}" if len(seeds) == 2 else ",".join(map(str, seeds))


def _read_text(source: str, text: str) -> int | tuple[int, ...]:
    if found := _RANGE.fullmatch(text):
        return _range_looks(source, *_checked(source, [int(found[1]), int(found[2])], text, ACCEPTED))
    if not _NUMBERS.fullmatch(text):
        raise reject(source, text, ACCEPTED)
    numbers = _checked(source, [int(part) for part in text.split(",")], text, ACCEPTED)
    return numbers if len(numbers) > 1 else numbers[0]


def _checked(source: str, numbers: Sequence[int], shown: object, accepted: str) -> tuple[int, ...]:
    if min(numbers) < 1:
        raise reject(source, shown, accepted)
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise reject(source, shown, "does not ascend; accepted: the smaller number first, and each number once")
    if len(numbers) > MAX_LOOKS:
        raise reject(source, shown, f"has {len(numbers)} looks, which share the significance level; accepted: at most {MAX_LOOKS}")
    return tuple(map(int, numbers))


def _range_looks(source: str, first: int, last: int) -> tuple[int, ...]:
    looks = [first]
    while (following := math.ceil(GROWTH * looks[-1])) * MIN_LAST_GROWTH <= last:
        looks.append(following)
    return _checked(source, [*looks, last], f"{first}..{last}", ACCEPTED)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
