"""Reference of every field of a run, from the types and docstrings of the configuration classes."""

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from resnet_core.config import DataConfig, ModelConfig, OptimConfig, RunSpec
from resnet_core.fields import Checked
from resnet_core.schema import Schema

GROUPS: dict[str, type[Checked]] = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "": RunSpec}
"""Configuration classes, by the first part of their fields' dotted names."""
LABELS = ("Unit", "Accepted", "Source")
"""Labels of the last lines of a field's docstring."""
INTRODUCTION = """# Fields of a run

Every field of a [`RunSpec`](../resnet_core/config/run.py), by its dotted name. Set one with `--set optim.lr=0.05` on the command
line of a study, vary one with `--levels depth=20,56`, or pass either to `resnet_core.override`. The last part of a name is enough
where it is unambiguous: `lr` is `optim.lr`. Sections, tables and figures without another source are those of He et al. 2015,
[arXiv:1512.03385](https://arxiv.org/abs/1512.03385).

This page is generated from the code: `python -m resnet_core.config > docs/fields.md`.
"""


@dataclass(frozen=True)
class FieldReference:
    """Reference entry of one field."""

    name: str
    """Dotted name."""
    type: str
    """Type in words: `whole number`, `text or none`."""
    default: str
    """Default value, as `--set` accepts it."""
    description: str
    """Prose of the field's docstring."""
    unit: str
    """Unit of a number; empty for other types."""
    accepted: str
    """Accepted values."""
    source: str
    """Publication or program that the field comes from; empty if there is none."""


def field_references() -> list[FieldReference]:
    """Return the reference entries of all fields, in the order of the page."""
    return [each for group in GROUPS for each in _references(group)]


def describe_fields(schema: Schema) -> list[FieldReference]:
    """Return the entries of the fields of any schema, in its order, with the values of its default configuration.

    The docstrings of a class whose source is not known are empty.
    """
    docstrings = {owner: dict(_docstrings_of(owner)) for owner in {schema.owner(name): None for name in schema.names}}
    values = schema.flat(schema.default)
    return [
        _reference(name, schema.hint(name), values[name], docstrings[schema.owner(name)].get(name.rpartition(".")[2], ""))
        for name in schema.names
    ]


def fields_page() -> str:
    """Return docs/fields.md as text."""
    parts = [INTRODUCTION]
    for group, config in GROUPS.items():
        title = f"`{group}.*`" if group else "Fields without a group"
        summary = (config.__doc__ or "").splitlines()[0]
        parts.append(f"## {title}\n\n{summary}\n")
        parts += [_entry(each) for each in _references(group)]
    return "\n".join(parts)


def _entry(reference: FieldReference) -> str:
    facts = {"Type": reference.type, "Default": f"`{reference.default}`", "Unit": reference.unit}
    facts |= {"Accepted": reference.accepted, "Source": reference.source}
    listed = " · ".join(f"{label}: {text}" for label, text in facts.items() if text)
    return f"### `{reference.name}`\n\n{reference.description}\n\n{listed}\n"


def _references(group: str) -> Iterator[FieldReference]:
    config = GROUPS[group]
    docstrings = dict(_docstrings(config))
    for each in fields(config):  # type: ignore[arg-type]
        if each.name in GROUPS:
            continue
        name = f"{group}.{each.name}" if group else each.name
        yield _reference(name, config._hints[each.name], each.default, docstrings[each.name])


def _reference(name: str, hint: Any, default: Any, docstring: str) -> FieldReference:
    description, *labeled = docstring.split("\n\n")
    facts = _facts(labeled[0]) if labeled else {}
    return FieldReference(
        name=name,
        type=_type(hint),
        default=_text(default),
        description=" ".join(description.split()),
        unit=facts.get("Unit", ""),
        accepted=facts.get("Accepted") or _choices(hint),
        source=facts.get("Source", ""),
    )


def _facts(text: str) -> dict[str, str]:
    """Return the labeled lines of a docstring by label; an unlabeled line continues the one before it."""
    facts: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        start, _, rest = line.strip().partition(": ")
        label, words = (start, rest) if start in LABELS else (label, line.strip())
        facts[label] = f"{facts.get(label, '')} {words}".strip()
    return {label: words.removesuffix(".") for label, words in facts.items()}


def _docstrings_of(owner: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each field of a class and its bases, as far as their source is known."""
    for base in reversed(owner.__mro__):
        with suppress(OSError, TypeError, SyntaxError, ValueError):
            yield from _docstrings(base)


def _docstrings(config: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, inspect.cleandoc(str(text.value.value))


def _type(hint: Any) -> str:
    """Return a type in words."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return f"{_type(next(each for each in get_args(hint) if each is not type(None)))} or none"
    if get_origin(hint) is tuple:
        inner = _type(get_args(hint)[0])
        return f"list of {inner if inner == 'text' else f'{inner}s'}"
    if get_origin(hint) is Literal:
        return "choice"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[hint]


def _choices(hint: Any) -> str:
    """Return the values that a type accepts by itself; empty for numbers and text."""
    for each in (hint, *get_args(hint)):
        if get_origin(each) is Literal:
            none = ", `none`" if type(None) in get_args(hint) else ""
            return ", ".join(f"`{value}`" for value in get_args(each)) + none
    return "`true`, `false`" if hint is bool else ""


def _text(value: Any) -> str:
    """Return a default value as `--set` accepts it."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value}"


def main() -> int:
    """Print the page and return exit code 0."""
    print(fields_page(), end="")
    return 0
