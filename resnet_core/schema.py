"""Fields of a configuration by dotted name: names, types, conversion of text, and overrides.

A configuration is a frozen dataclass. A field that is a dataclass itself is a section: its fields have dotted names, `optim.lr`.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from resnet_core.fields import Checked, ConfigError, convert_value, nearest, reject

ACCEPTED_TYPES = "int, float, str, bool, Literal[…], tuple[type, ...], each also with None, or a frozen dataclass"
"""Types of fields that text can be converted to."""


@dataclass(frozen=True)
class _Field:
    """A field of a configuration."""

    path: tuple[str, ...]
    """Attributes that lead from the configuration to the value."""
    owner: type
    """Dataclass that declares the field."""
    name: str
    """Dotted name that error messages use."""

    def value(self, config: Any) -> Any:
        """Return the field's value in a configuration."""
        return functools.reduce(getattr, self.path, config)


class Schema:
    """The fields of a configuration class, with a default configuration.

    Args:
        default: configuration whose nested dataclasses are the sections.
        inline: name of a section whose fields have no prefix.

    Raises:
        ConfigError: a class is not a frozen dataclass, or a field lacks a type that text can be converted to.
    """

    synonyms: Mapping[str, str] = {}
    """Words by which other libraries call a field, in lower case, with the field's dotted name."""

    def __init__(self, default: Any, *, inline: str = "") -> None:
        self.default = default
        self._fields = dict(_walk(default, inline))
        by_leaf: dict[str, list[str]] = {}
        for name in self._fields:
            by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
        self._by_leaf = by_leaf

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted names of all fields, in order."""
        return tuple(self._fields)

    def field_name(self, name: str) -> str:
        """Return the dotted name of a field.

        Args:
            name: dotted name (`optim.lr`) or unambiguous last part (`lr`).

        Raises:
            ConfigError: no field, or several fields, have this name.
        """
        if not isinstance(name, str):  # a key from untrusted JSON
            raise reject("field", name, "accepted: a name")
        if name in self._fields:
            return name
        found = self._by_leaf.get(name, ())
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{name}: ambiguous; accepted: {', '.join(found)}")
        near = self._like(name)
        of_section = [each for each in self._fields if each.rpartition(".")[0] == name.rpartition(".")[0]] if "." in name else []
        hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(of_section or self._fields)}"
        raise ConfigError(f"{name}: no such field; {hint}")

    def _like(self, name: str) -> list[str]:
        """Return the field that another library calls so, otherwise up to three fields with a similar name."""
        leaf = name.rpartition(".")[2].lower().replace("-", "_")
        meant = self.synonyms.get(leaf, "")
        if meant in self._fields:
            return [meant]
        if len(found := self._by_leaf.get(leaf, [])) == 1:  # the right name in the wrong section, or in capitals
            return found
        # The last parts are compared, since all fields of a section have its name in common.
        near = nearest(leaf, self._by_leaf)
        if "." not in name:
            return near
        found = [dotted for each in near for dotted in self._by_leaf[each]]
        section = name.rpartition(".")[0]
        return [each for each in found if each.rpartition(".")[0] == section] or found

    def owner(self, name: str) -> type:
        """Return the dataclass that declares the field with this dotted name."""
        return self._fields[name].owner

    def hint(self, name: str) -> Any:
        """Return the type annotation of the field with this dotted name."""
        field = self._fields[name]
        return _hints(field.owner)[field.path[-1]]

    def convert(self, name: str, value: Any) -> Any:
        """Return `value` as the type of the field with this dotted name; raise ConfigError if the field does not accept it."""
        field = self._fields[name]
        if issubclass(field.owner, Checked):
            return field.owner.converted(field.path[-1], value)
        return convert_value(field.name, value, self.hint(name))

    def takes_list(self, name: str) -> bool:
        """Return True if the field with this dotted name holds a list."""
        hint = self.hint(name)
        return any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))

    def flat(self, config: Any) -> dict[str, Any]:
        """Return every field by its dotted name, in order."""
        return {name: field.value(config) for name, field in self._fields.items()}

    def converted(self, config: Any) -> Any:
        """Return a copy of `config` in which every value has the type of its field: 1.0 for a 1 in a field of type float.

        Raises:
            ConfigError: a field does not accept its value.
        """
        return _replaced(config, {each.path: self.convert(name, each.value(config)) for name, each in self._fields.items()})

    def override(self, config: Any, values: Mapping[str, Any]) -> Any:
        """Return a copy of `config` with the named fields replaced.

        Args:
            config: configuration to derive from.
            values: new values, by dotted name or unambiguous last part. Text is converted.

        Raises:
            ConfigError: a name is unknown, ambiguous or given twice, or the configuration does not accept its values.
        """
        changes: dict[str, Any] = {}
        for given, value in values.items():
            name = self.field_name(given)
            if name in changes:
                raise reject("field", given, "is named twice")
            changes[name] = self.convert(name, value)
        return _replaced(config, {self._fields[name].path: value for name, value in changes.items()})

    def assignments(self, option: str, texts: Iterable[str]) -> dict[str, str]:
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
            if self.field_name(name) in named:
                raise reject(option, text, "is named twice")
            named.add(self.field_name(name))
            pairs[name] = value
        return pairs


def check_config_class(config: Any) -> None:
    """Raise ConfigError if a class or its instance is not a frozen dataclass whose fields have convertible types."""
    cls = config if isinstance(config, type) else type(config)
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__name__}: is not a dataclass; accepted: a class with @dataclass(frozen=True, kw_only=True)")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{cls.__name__}: its instances can change; accepted: @dataclass(frozen=True, kw_only=True)")
    for name, value in vars(cls).items():
        untyped = not name.startswith("_") and not callable(value) and not hasattr(type(value), "__get__")
        if untyped and all(name not in getattr(base, "__annotations__", {}) for base in cls.__mro__):
            raise ConfigError(f"{cls.__name__}.{name}={value!r}: has no type; accepted: {name}: {type(value).__name__} = {value!r}")
    for each in dataclasses.fields(cls):
        if not each.init:
            raise ConfigError(f"{cls.__name__}.{each.name}: field(init=False) cannot be set; accepted: a property")
        hint = _hints(cls)[each.name]
        if not _convertible(hint):
            shown = getattr(hint, "__name__", str(hint))
            raise ConfigError(f"{cls.__name__}.{each.name}: text cannot become {shown}; accepted: {ACCEPTED_TYPES}")


def check_hashable(config: Any) -> None:
    """Raise ConfigError if a field of a configuration has a value that can change, such as a list."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        try:
            hash(value)
        except TypeError as error:
            shown = f"{type(config).__name__}.{each.name}={value!r}"
            raise ConfigError(f"{shown}: {error}; accepted: a value that cannot change, such as a tuple") from error


def _walk(config: Any, inline: str, path: tuple[str, ...] = (), prefix: str = "") -> Iterator[tuple[str, _Field]]:
    if not inline:  # otherwise the inline section is the user's
        check_config_class(config)
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        name = f"{prefix}{each.name}"
        if dataclasses.is_dataclass(value):
            yield from _walk(value, "", (*path, each.name), prefix if not path and each.name == inline else f"{name}.")
        else:
            yield name, _Field((*path, each.name), type(config), name)


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields. They are kept with the class: where it arrives by value, its module may be unknown."""
    if "_field_types" not in vars(cls):
        try:
            cls._field_types = typing.get_type_hints(cls)  # type: ignore[attr-defined]
        except NameError as error:
            raise ConfigError(f"{cls.__name__}: a type is unknown where the class is defined: {error}") from error
    found: dict[str, Any] = vars(cls)["_field_types"]
    return found


def _convertible(hint: Any) -> bool:
    if get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return (len(kinds) == 1 and _convertible(kinds[0])) or all(map(_is_section, kinds))
    if get_origin(hint) is Literal:
        return all(type(each) in (str, int, bool, type(None)) for each in get_args(hint))  # members of an Enum are none of these
    if get_origin(hint) is tuple:
        args = get_args(hint)
        return len(args) == 2 and args[1] is ... and _convertible(args[0])
    return hint in (int, float, str, bool) or _is_section(hint)


def _is_section(hint: Any) -> bool:
    """Return True for a dataclass, and for a protocol that dataclasses of users follow."""
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or getattr(hint, "_is_protocol", False))


def _replaced(config: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """Return a copy with the values at these paths replaced.

    One `replace` per section, sections before the top level: checks between fields then see final values only.
    """
    sections: dict[str, dict[tuple[str, ...], Any]] = {}
    own: dict[str, Any] = {}
    for (first, *rest), value in changes.items():
        if rest:
            sections.setdefault(first, {})[tuple(rest)] = value
        else:
            own[first] = value
    nested = {name: _replaced(getattr(config, name), of_section) for name, of_section in sections.items()}
    try:
        return replace(config, **nested, **own)
    except ConfigError:
        raise
    except Exception as error:  # a check in a user's `__post_init__` may raise anything
        shown = ", ".join(f"{name}={value!r}" for name, value in own.items()) or ", ".join(sections)
        raise ConfigError(f"{type(config).__name__}: {shown}: {type(error).__name__}: {error}") from error
