"""`ConfigError`, and dataclasses that check and convert their fields."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from resnet_core.renamed_fields import current_value

MIN_SIMILARITY = 0.6
"""Least similarity of a name with one that is suggested for it, from 0 to 1, as `difflib` measures it."""
SIMILARITY_MARGIN = 0.1
"""Largest difference in similarity between the first suggested name and another one."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""Lone surrogates: undecodable bytes of a command line, or broken JSON. UTF-8 files cannot hold them."""
MAX_MESSAGE_CHARACTERS = 4000
"""Maximum length of an error message; the middle of a longer one is left out."""


class ConfigError(ValueError):
    """Error in a request: one line that names the field, its value and what is accepted."""

    exit_code = 2
    """Exit code of a command that ends with this error."""

    def __init__(self, message: str) -> None:
        message = printable(message)  # messages quote paths, options and other programs' messages
        half = MAX_MESSAGE_CHARACTERS // 2
        super().__init__(message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:half]} … {message[-half:]}")


def printable(text: str) -> str:
    """Return `text` as one line that is safe to print: control characters, line breaks and undecodable bytes are escaped.

    User names and passwords in URLs are removed.
    """
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in singular or plural: `1 run`, `2 runs`, `1,437 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def enumerated(names: Sequence[str], maximum: int, *, elsewhere: str = "") -> str:
    """Return the first names and the number of the others: `a, b, c and 5 more`.

    Args:
        names: all names.
        maximum: number of names to return.
        elsewhere: where to find all of them: `a, b, c and 5 more (ablations list)`.
    """
    left_out = len(names) - maximum
    more = f" and {left_out:,} more" if left_out > 0 else ""
    return ", ".join(names[:maximum]) + more + (f" ({elsewhere})" if more and elsewhere else "")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that are similar to `name`, without those that are clearly less similar than the first."""

    def similarity(each: str) -> float:
        return difflib.SequenceMatcher(None, each, name).ratio()  # in the order of `get_close_matches`, on which the ratio depends

    found = difflib.get_close_matches(name, known, n=3, cutoff=MIN_SIMILARITY)
    return [each for each in found if similarity(each) > similarity(found[0]) - SIMILARITY_MARGIN]


def reject(name: str, value: object, accepted: str) -> ConfigError:
    """Return the error for a value that is not accepted: `name=value: accepted`.

    Args:
        name: dotted name of a field, or an option.
        value: rejected value.
        accepted: accepted values, or the reason for the rejection.
    """
    return ConfigError(f"{name}={_shown(value)}: {accepted}")


def _shown(value: object) -> str:
    if isinstance(value, str) and value.isprintable():
        return value
    if value is None:
        return "None"  # as a study file and --set write it, not as JSON
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that JSON lacks, integers of thousands of digits, circular references
        return f"a value of type {type(value).__name__}"


class Checked:
    """Base of frozen dataclasses that check and convert their fields against the annotations on construction.

    Text, as from a command line, and JSON values are converted where they are unambiguous.

    Raises:
        ConfigError: a field does not accept its value, or fields contradict each other.
    """

    _section: ClassVar[str] = ""
    """Prefix of the fields' dotted names, such as `optim.`."""
    _hints: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        cls._hints = get_type_hints(cls)

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, f.name, self.converted(f.name, getattr(self, f.name)))
        self._check()

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        """Return `value` as the type of field `name`; former values of renamed fields become current ones.

        Raises:
            ConfigError: the field does not accept the value, whatever other fields hold.
        """
        dotted = f"{cls._section}{name}"
        return convert_value(dotted, current_value(dotted, value), cls._hints[name])

    def _check(self) -> None:
        """Raise ConfigError if a value is out of range or fields contradict each other."""

    def _reject(self, name: str, accepted: str) -> ConfigError:
        return reject(f"{self._section}{name}", getattr(self, name), accepted)

    def _at_least(self, minimum: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not minimum <= value < float("inf"):
                raise self._reject(name, f"accepted: finite and at least {minimum:g}")

    def _at_most(self, maximum: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value > maximum:
                raise self._reject(name, f"accepted: at most {maximum:,}")


def convert_value(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint`; raise ConfigError if text or a JSON value is not unambiguously of this type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return convert_value(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if value in args:
            return value
        shown = {str(each): each for each in args}
        if isinstance(value, str) and value in shown:  # a number of a command line
            return shown[value]
        raise reject(name, value, f"accepted: {', '.join(shown)}")
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.strip("()[] ").replace(" ", ",").split(",") if part]
        if not isinstance(value, (list, tuple)):
            raise reject(name, value, "accepted: a list such as 2,2,2")
        return tuple(convert_value(name, item, args[0]) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        raise reject(name, value, f"accepted: a {hint.__name__}")
    return _convert_scalar(name, value, hint)


def _convert_scalar(name: str, value: Any, hint: Any) -> Any:
    if hint is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in known:
            return known[value.lower()]
        raise reject(name, value, "accepted: true, false")
    if hint is str:
        if isinstance(value, str) and not SURROGATES.search(value):
            return value
        raise reject(name, value, "accepted: text")
    kind = {int: "a whole number", float: "a number"}[hint]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise reject(name, value, f"accepted: {kind}")
    try:
        number = float(value)
        if hint is int and (number != int(number) or (isinstance(value, str) and str(int(value)) != value.strip())):
            raise ValueError
    except (ValueError, OverflowError):
        raise reject(name, value, f"accepted: {kind}") from None
    return int(value) if hint is int else number
