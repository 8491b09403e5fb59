"""The factors of a study as its cells have them: single fields, arms, and fields whose levels are paired."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablations.engine.study import designs
from ablations.engine.study.factors import NOT_FACTORS, NOT_SETTINGS, Level, format_level, values_by_field
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject
from resnet_core.schema import Schema

ARM = "arm"
"""Name of the factor whose levels are a study's arms."""
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Settings = Mapping[str, Any]
"""Values by dotted field."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The factors of a study, and which combinations of their levels it trains."""

    kind: str
    """One of `designs.DESIGNS`."""
    factors: Mapping[str, tuple[Level, ...]]
    """Levels of each factor."""
    baseline: Mapping[str, Level]
    """Reference levels."""
    compound: Mapping[str, Mapping[str, Settings]] = field(default_factory=dict)
    """Factors that set several fields: arms and paired fields. For each of their levels, the values of the fields."""

    @property
    def combinations(self) -> tuple[tuple[Level, ...], ...]:
        """Combinations of levels; raises ConfigError if the factors do not allow the design."""
        return designs.combinations(self.kind, self.factors, self.baseline)

    def values(self, levels: Mapping[str, Level], schema: Schema) -> Settings:
        """Return the values of the fields that a combination of levels sets."""
        found: dict[str, Any] = {}
        for name, level in levels.items():
            found |= self.compound[name][str(level)] if name in self.compound else {schema.field_name(name): level}
        return found

    def fields_of(self, name: str, schema: Schema) -> tuple[str, ...]:
        """Return the dotted fields that a factor sets."""
        if name not in self.compound:
            return (schema.field_name(name),)
        return tuple(dict.fromkeys(each for values in self.compound[name].values() for each in values))


def make_grid(
    kind: str,
    factors: Mapping[str, tuple[Level, ...]],
    baseline: Mapping[str, Level],
    arms: Mapping[str, Settings],
    pairs: Sequence[Sequence[str]],
    schema: Schema,
) -> Grid:
    """Return the grid of a study whose fields are all checked.

    A design that starts from the baseline, which all but a factorial one do, has a reference level for each factor: without one in
    the baseline, the first.
    """
    compound: dict[str, Mapping[str, Settings]] = {ARM: arms} if arms else {}
    found: dict[str, tuple[Level, ...]] = {ARM: tuple(arms)} if arms else {}
    group_of = {name: group for group in pairs for name in group}
    for name, levels in factors.items():
        if name not in group_of:
            found[name] = levels
        elif pair_name(group := group_of[name]) not in found:
            fields = list(map(schema.field_name, group))
            rows = [dict(zip(fields, row, strict=True)) for row in zip(*(factors[each] for each in group), strict=True)]
            compound[pair_name(group)] = {pair_name(list(map(format_level, row.values()))): row for row in rows}
            found[pair_name(group)] = tuple(compound[pair_name(group)])
    references = {name: level for name, level in baseline.items() if name not in group_of}
    for group in pairs:
        wanted = {schema.field_name(name): baseline[name] for name in group if name in baseline}
        if wanted:
            rows_of = compound[pair_name(group)]
            references[pair_name(group)] = next(level for level, row in rows_of.items() if wanted.items() <= row.items())
    firsts = {name: levels[0] for name, levels in found.items() if kind != designs.FACTORIAL or name == ARM}
    return Grid(kind=kind, factors=found, baseline={**firsts, **references}, compound=compound)


def pair_name(names: Sequence[str]) -> str:
    """Return the name of a factor of paired fields, or of a level of it: `depth+width`, `20+16`."""
    return "+".join(names)


def checked_arms(arms: object, factors: Collection[str], workload: Workload) -> dict[str, dict[str, Any]]:
    """Return the arms with their values converted to the types of the fields; raise ConfigError if one is wrong.

    Args:
        arms: settings by name of the arm.
        factors: names of the study's factors, which no arm may set.
        workload: trainings that have these fields.
    """
    if not isinstance(arms, Mapping):
        raise reject("arms", arms, "accepted: settings by name, such as {'modern': {'schedule': 'cosine'}}")
    schema, found = workload.schema, dict[str, dict[str, Any]]()
    if arms and ARM in schema.names:
        raise ConfigError(
            f"arms: the task has a field {ARM}, which is the name of their factor; accepted: another name of the field"
        )
    varied = {schema.field_name(name) for name in factors}
    forbidden = {**NOT_FACTORS, **NOT_SETTINGS, **workload.not_factors}
    for arm, settings in arms.items():
        if not (isinstance(arm, str) and _ARM_NAME.fullmatch(arm)):
            raise reject("arms", arm, "accepted as a name: up to 64 of a-z, A-Z, 0-9, ., - and _, the first a letter or digit")
        values = {}
        for dotted, (name, value) in values_by_field(f"arms {arm}", settings, schema).items():
            if dotted in forbidden:
                raise reject(f"arms {arm}", name, f"cannot differ between arms: {forbidden[dotted]}")
            if dotted in varied:
                raise reject(f"arms {arm}", name, "is a factor of the study as well; accepted: one of the two")
            values[dotted] = schema.convert(dotted, value)
        if same := next((other for other, of_other in found.items() if of_other == values), None):
            raise reject("arms", arm, f"sets the same as {same}; accepted: arms that differ")
        found[arm] = values
    if len(found) == 1:
        raise reject("arms", next(iter(found)), "is the only one; accepted: two arms or more")
    return found


def checked_pairs(pairs: object, factors: Mapping[str, Sequence[Level]], schema: Schema) -> tuple[tuple[str, ...], ...]:
    """Return the groups of paired factors under the study's names; raise ConfigError if one is wrong."""
    accepted = "accepted: groups of factors, such as [('depth', 'width')]"
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise reject("zip", pairs, accepted)
    groups = [pairs] if pairs and all(isinstance(each, str) for each in pairs) else pairs
    names = {schema.field_name(name): name for name in factors}
    found: list[tuple[str, ...]] = []
    for group in groups:
        if isinstance(group, str) or not isinstance(group, Sequence) or len(group) < 2:
            raise reject("zip", group, accepted)
        dotted = [schema.field_name(name) for name in group]
        for each, given in zip(dotted, group, strict=True):
            if each not in names:
                raise reject("zip", given, f"not a factor; accepted: {', '.join(factors)}")
            if dotted.count(each) > 1 or any(names[each] in other for other in found):
                raise reject("zip", given, "is named twice; accepted: each factor once")
        found.append(tuple(names[each] for each in dotted))
        counts = {name: len(factors[name]) for name in found[-1]}
        if len(set(counts.values())) > 1:
            numbers = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise reject("zip", pair_name(found[-1]), f"{numbers} levels; accepted: as many levels of each")
    return tuple(found)


def check_pair_baseline(
    pairs: Sequence[Sequence[str]], factors: Mapping[str, Sequence[Level]], baseline: Mapping[str, Level]
) -> None:
    """Raise ConfigError if the reference levels of paired factors are not a pair."""
    for group in pairs:
        wanted = [baseline.get(name) for name in group]
        rows = zip(*(factors[name] for name in group), strict=True)
        if not any(all(name not in baseline or a == b for name, a, b in zip(group, wanted, row, strict=True)) for row in rows):
            levels = pair_name([format_level(each) for each in wanted])
            raise reject(f"baseline {pair_name(group)}", levels, "accepted: levels that are paired with each other")
