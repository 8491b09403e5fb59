"""New runs from old ones: fields by name, with values as a command line or a file gives them."""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import Checked, ConfigError


def override(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A new spec with the named fields replaced. Names are dotted (`optim.lr`) or unambiguous last parts (`lr`).

    Raises:
        ConfigError: unknown or ambiguous name, or a value the field does not accept.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = field_name(name).rpartition(".")
        changes.setdefault(section, {})[leaf] = value
    if "epochs" in changes.get("optim", {}):
        changes["optim"].setdefault("iterations", None)  # a recipe's length is in one unit: the one asked for
    top = changes.pop("", {})
    # One replace per section, all sections before the top: rules between fields see the final values only.
    nested = {section: replace(getattr(spec, section), **changed) for section, changed in changes.items()}
    return replace(spec, **nested, **top)


def from_flat(values: Mapping[str, Any]) -> RunSpec:
    """The inverse of `RunSpec.flat`, also from JSON (lists for tuples)."""
    return override(RunSpec(), values)


_SECTIONS: dict[str, type[Checked]] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig}


def convert(name: str, value: Any) -> Any:
    """A value for the field with this dotted name, as that field's type; raises ConfigError if it is not acceptable."""
    section, _, leaf = name.rpartition(".")
    return _SECTIONS.get(section, RunSpec).converted(leaf, value)


@functools.cache
def _field_names() -> dict[str, tuple[str, ...]]:
    by_leaf: dict[str, tuple[str, ...]] = {}
    for name in _all_fields():
        leaf = name.rpartition(".")[2]
        by_leaf[leaf] = (*by_leaf.get(leaf, ()), name)
    return by_leaf


@functools.cache
def _all_fields() -> tuple[str, ...]:
    return tuple(RunSpec().flat())


def field_name(name: str) -> str:
    """The dotted name of a field given in full or by its last part; raises ConfigError for unknown ones."""
    if name in _all_fields():
        return name
    found = _field_names().get(name, ())
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name}: ambiguous; accepted: {', '.join(found)}")
    near = difflib.get_close_matches(name, [*_all_fields(), *_field_names()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(_all_fields())}"
    raise ConfigError(f"{name}: no such field; {hint}")
