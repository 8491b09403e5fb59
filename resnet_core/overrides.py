"""New runs from old ones: fields by name, with values as a command line or a file gives them."""

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import Checked, ConfigError, reject
from resnet_core.renamed_fields import current_name


def override(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A new spec with the named fields replaced. Names are dotted (`optim.lr`) or unambiguous last parts (`lr`).

    Raises:
        ConfigError: unknown or ambiguous name, or a value the field does not accept.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = field_name(name).rpartition(".")
        if leaf in changes.setdefault(section, {}):
            raise reject("field", name, "is named twice")
        changes[section][leaf] = value
    if "epochs" in changes.get("optim", {}):
        changes["optim"].setdefault("iterations", None)  # a recipe's length is in one unit: the one asked for
    top = changes.pop("", {})
    # One replace per section, all sections before the top: rules between fields see the final values only.
    nested = {section: replace(getattr(spec, section), **changed) for section, changed in changes.items()}
    return replace(spec, **nested, **top)


def from_flat(values: Mapping[str, Any]) -> RunSpec:
    """The inverse of `RunSpec.flat`, also from JSON (lists for tuples). Raises ConfigError for anything else."""
    if not isinstance(values, Mapping):
        raise reject("RunSpec", values, "accepted: fields by their names")
    return override(RunSpec(), values)


def assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """The values of a command line's `NAME=VALUE` by field; raises ConfigError for other texts and for a field named twice."""
    pairs: dict[str, str] = {}
    named = set()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise reject(option, text, "accepted: NAME=VALUE")
        if field_name(name) in named:
            raise reject(option, text, "is named twice")
        named.add(field_name(name))
        pairs[name] = value
    return pairs


_SECTIONS: dict[str, type[Checked]] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig}


def convert(name: str, value: Any) -> Any:
    """A value for the field with this dotted name, as that field's type; raises ConfigError if it is not acceptable."""
    section, _, leaf = name.rpartition(".")
    return _SECTIONS.get(section, RunSpec).converted(leaf, value)


def takes_list(name: str) -> bool:
    """Return whether the values of the field with this dotted name are lists."""
    section, _, leaf = name.rpartition(".")
    hint = _SECTIONS.get(section, RunSpec)._hints[leaf]
    return any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))


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
    if not isinstance(name, str):  # a key of other people's data
        raise reject("field", name, "accepted: a name")
    name = current_name(name)
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
