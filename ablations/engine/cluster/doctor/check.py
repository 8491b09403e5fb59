"""The result of a check: one line, and a remedy if the check failed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from resnet_core.fields import enumerated

Status = Literal["ok", "failed", "not checked"]

MAX_LISTED_NAMES = 3
"""Maximum number of names in a line. The line counts the others."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Status
    detail: str
    """The measured value, or the reason why nothing was measured."""
    remedy: str = ""
    """Instruction for a check that failed."""


def passed(name: str, detail: str) -> Check:
    """Return a check that passed."""
    return Check(name, "ok", detail)


def failed(name: str, detail: str, remedy: str) -> Check:
    """Return a check that failed, with what to do about it."""
    return Check(name, "failed", detail, remedy)


def not_checked(name: str, reason: str) -> Check:
    """Return a check that could not be carried out."""
    return Check(name, "not checked", reason)


def join_names(names: Iterable[str]) -> str:
    """Return the first names in alphabetical order and the number of the others: `a, b, c and 5 more`."""
    return enumerated(sorted(names), MAX_LISTED_NAMES)


def describe_values(values: Mapping[str, str]) -> str:
    """Return which nodes have which value, the most common value first.

    >>> describe_values({"a": "2.4", "b": "2.4", "c": "9.9"})
    '2.4 on 2 nodes, 9.9 on c'
    >>> describe_values({"a": "2.4"})
    '2.4'
    """
    counted = Counter(values.values()).most_common()
    if len(counted) == 1:
        return counted[0][0]
    (most, count), *others = counted
    where = f"{count} nodes" if count > 1 else join_names(node for node in values if values[node] == most)
    parts = [f"{value} on {join_names(node for node in values if values[node] == value)}" for value, _ in others]
    return ", ".join([f"{most} on {where}", *parts])
