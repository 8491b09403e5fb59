"""Validation of factors and their levels, shared by study files and the command line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject
from resnet_core.schema import Schema

Level = str | float | bool | None | Sequence[Any]
"""A value of a field. Validated levels have the field's type, with tuples instead of lists."""

NOT_FACTORS = {
    "seed": "every cell is trained with the same seeds; accepted: --seeds N",
    "world_size": "every cell is trained with the same workers; accepted: --workers N",
}
"""Fields that must be equal in all cells, and how to set them for all. `Workload.not_factors` has further ones."""
NOT_SETTINGS = {"seed": "--seeds N", "world_size": "--workers N"}
"""Fields that have options of their own and cannot be settings."""
_PARTS = re.compile(r"(?:\[[^\[\]]*\]|[^,])+")
_BRACKETS = re.compile(r"\s*\[[^\[\]]*\]\s*")


def split_levels(schema: Schema, name: str, text: str) -> tuple[str, ...]:
    """Split the levels of `NAME=A,B` from the command line at commas. A level that is a list is in brackets: `[0.5,0.75],[0.3]`.

    Raises:
        ConfigError: unknown field, or a list without brackets.
    """
    levels = split_at_commas(text)
    if schema.takes_list(schema.field_name(name)) and not all(
        _BRACKETS.fullmatch(each) or each.lower() == "none" for each in levels
    ):
        accepted = "each level is a list; accepted: lists in brackets, as in 'milestones=[0.5,0.75],[0.3,0.6]'"
        raise reject("--levels", f"{name}={text}", accepted)
    return levels


def split_at_commas(text: str) -> tuple[str, ...]:
    """Split text at the commas that are not in brackets."""
    return tuple(_PARTS.findall(text))


def validated_factors(source: str, factors: object, workload: Workload) -> dict[str, tuple[Level, ...]]:
    """Return the factors with their levels converted to the types of the fields.

    Args:
        source: origin of the factors for error messages: `factors` of a study file, or `--levels`.
        factors: levels by field.
        workload: trainings that have these fields.

    Raises:
        ConfigError: unknown or repeated field, a field that cannot be a factor, or an invalid or repeated level.
    """
    found: dict[str, tuple[Level, ...]] = {}
    forbidden = {**NOT_FACTORS, **workload.not_factors}
    for dotted, (name, levels) in values_by_field(source, factors, workload.schema).items():
        if not isinstance(levels, Sequence) or isinstance(levels, (str, bytes)):
            raise reject(f"{source} {name}", levels, f"accepted: a list of levels, such as {name}: [A, B]")
        if not levels:
            raise ConfigError(f"{source} {name}: accepted: one or more levels, such as {name}=a,b")
        found[name] = tuple(workload.schema.convert(dotted, level) for level in levels)
        text = ",".join(map(format_level, found[name]))
        if dotted in forbidden:
            raise reject(f"{source} {name}", text, f"cannot be a factor: {forbidden[dotted]}")
        if len(set(found[name])) != len(levels):
            raise reject(f"{source} {name}", text, "a level is named twice; accepted: each level once")
    return found


def values_by_field(source: str, values: object, schema: Schema) -> dict[str, tuple[str, Any]]:
    """Return the given name and value of each field, by the field's dotted name.

    Raises:
        ConfigError: not a mapping, an unknown field, or a field given twice, such as `lr` and `optim.lr`.
    """
    if not isinstance(values, Mapping):
        raise reject(source, values, "accepted: values by field, such as {'depth': …}")
    found: dict[str, tuple[str, Any]] = {}
    for name, value in values.items():
        try:
            dotted = schema.field_name(name)
        except ConfigError as error:
            raise ConfigError(f"{source} {error}") from error
        if dotted in found:
            raise reject(source, name, f"is the same field as {found[dotted][0]}; accepted: one of them")
        found[dotted] = name, value
    return found


def is_level(level: object, text: str) -> bool:
    """Return True if text denotes a level, also in another notation: `1e-3` of 0.001, `true` of True."""
    if text.casefold() == format_level(level).casefold():
        return isinstance(level, bool) or level is None or text == format_level(level)
    try:
        return isinstance(level, int | float) and not isinstance(level, bool) and float(text) == level
    except ValueError:
        return False


def format_level(level: object) -> str:
    """Return a level as text: `0.1`, `A`, `None`, `[0.5,0.75]`. Different levels of a field have different texts."""
    if isinstance(level, (list, tuple)):
        return f"[{','.join(map(format_level, level))}]"
    short = f"{level:g}" if isinstance(level, float) else str(level)
    return short if not isinstance(level, float) or float(short) == level else repr(level)
