"""What a check found: one line, and what to do where something is wrong.

>>> spread({"a": "2.4", "b": "2.4", "c": "9.9"})
'2.4 on 2 nodes, 9.9 on c'
>>> spread({"a": "2.4"})
'2.4'
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "wrong", "not checked"]

MAX_NAMED = 3
"""Nodes that a line names; of more it says how many."""


@dataclass(frozen=True)
class Check:
    """One line of the list."""

    name: str
    state: State
    value: str
    """What was measured, or why nothing was."""
    remedy: str = ""
    """What to do where something is wrong."""


def ok(name: str, value: str) -> Check:
    return Check(name, "ok", value)


def wrong(name: str, value: str, remedy: str) -> Check:
    return Check(name, "wrong", value, remedy)


def unchecked(name: str, why: str) -> Check:
    return Check(name, "not checked", why)


def listed(names: Iterable[str]) -> str:
    """`a, b, c and 5 more`."""
    names = sorted(names)
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def spread(values: Mapping[str, str]) -> str:
    """Which nodes have which value, the commonest first."""
    counted = Counter(values.values()).most_common()
    if len(counted) == 1:
        return counted[0][0]
    (most, count), *others = counted
    where = f"{count} nodes" if count > 1 else listed(node for node in values if values[node] == most)
    parts = [f"{value} on {listed(node for node in values if values[node] == value)}" for value, _ in others]
    return ", ".join([f"{most} on {where}", *parts])
