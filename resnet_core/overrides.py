"""Override fields of a run by name, with values from code, a command line or a file."""

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import Checked, ConfigError, reject
from resnet_core.renamed_fields import current_name


def override(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """Return a copy of `spec` with the named fields replaced.

    An override of `optim.epochs` alone clears `optim.iterations`, so that the new length applies.

    Args:
        spec: run to derive from.
        values: new values, by dotted name (`optim.lr`) or unambiguous last part (`lr`). Text such as `"0.05"` is converted.

    Raises:
        ConfigError: a name is unknown, ambiguous or given twice, or a field does not accept its value.

    Example:
        >>> override(RunSpec(), {"depth": 56, "optim.lr": "0.05"}).optim.lr
        0.05
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = field_name(name).rpartition(".")
        if leaf in changes.setdefault(section, {}):
            raise reject("field", name, "is named twice")
        changes[section][leaf] = value
    if "epochs" in changes.get("optim", {}):
        changes["optim"].setdefault("iterations", None)  # iterations of the preset would take precedence over the requested epochs
    top = changes.pop("", {})
    # One `replace` per section, sections before the top level: checks between fields then see final values only.
    nested = {section: replace(getattr(spec, section), **changed) for section, changed in changes.items()}
    return replace(spec, **nested, **top)


def from_flat(values: Mapping[str, Any]) -> RunSpec:
    """Return the run that `RunSpec.flat` flattened. JSON (lists for tuples) and former names of fields are accepted.

    Raises:
        ConfigError: a name is unknown, or a field does not accept its value.
    """
    if not isinstance(values, Mapping):
        raise reject("RunSpec", values, "accepted: fields by their names")
    return override(RunSpec(), values)


def assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the values of `NAME=VALUE` arguments, by name as given.

    Args:
        option: name of the option, for messages.
        texts: arguments of the option.

    Raises:
        ConfigError: an argument has another form, or names an unknown field or a field that another argument names.
    """
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
    """Return `value` as the type of the field with this dotted name; raise ConfigError if the field does not accept it."""
    section, _, leaf = name.rpartition(".")
    return _SECTIONS.get(section, RunSpec).converted(leaf, value)


def takes_list(name: str) -> bool:
    """Return True if the field with this dotted name holds a list."""
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
    """Return the current dotted name of a field.

    Args:
        name: dotted name (`optim.lr`) or unambiguous last part (`lr`), current or former.

    Raises:
        ConfigError: no field, or several fields, have this name.
    """
    if not isinstance(name, str):  # a key from untrusted JSON
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
