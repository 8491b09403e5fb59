"""Checks that the installed Ray has the private parts that this project knows."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from types import CodeType
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

TRACING_PARAMETER = "_ray_trace_ctx"
"""Parameter that Ray adds to the methods of a class once the class is an actor."""


@dataclass(frozen=True)
class Part:
    """A private part of Ray, as this project knows it."""

    path: str
    """`module:name` or `module:Class.name`."""
    parameters: str | None = None
    """Parameters with their defaults, without annotations; None if the part is no Python function or is not called here."""
    caller: str = ""
    """Function of Ray that refers to this part by name, in the form of `path`. A replacement takes effect only if it still does."""
    attributes: str = ""
    """Names, separated by spaces, that the class at `path` defines or that its methods use."""

    def problem(self) -> str:
        """Return how the part in the installed Ray differs, such as "… is missing"; empty if it does not."""
        try:
            found = _resolve(self.path)
        except (ImportError, AttributeError):
            return f"{self._name} is missing"
        if self.parameters is not None and (parameters := _parameters(found)) != self.parameters:
            return f"{self._name} takes ({parameters}) instead of ({self.parameters})"
        for name in self.attributes.split():
            if not hasattr(found, name) and not any(name in _names_in(method) for method in vars(found).values()):
                return f"{self._name}.{name} is missing"
        if self.caller:
            try:
                called = _names_in(_resolve(self.caller))
            except (ImportError, AttributeError):
                called = set()
            if self.path.rpartition(".")[2].rpartition(":")[2] not in called:
                return f"{self._name} is not called by {self.caller.replace(':', '.')}"
        return ""

    @property
    def _name(self) -> str:
        return self.path.replace(":", ".")


@dataclass(frozen=True)
class Feature:
    """A behavior of this project that needs private parts of Ray, and that a study can do without."""

    name: str
    """Description for users, which follows "off:" in the line about a missing part."""
    parts: tuple[Part, ...]


_checked: dict[Feature, bool] = {}


def is_available(feature: Feature) -> bool:
    """Return whether the installed Ray has all parts of a feature; the first time it has not, print one line."""
    if feature not in _checked:
        problems = [problem for part in feature.parts if (problem := part.problem())]
        _checked[feature] = not problems
        if problems:
            print(f"Ray {version('ray')}: {problems[0]}; off: {feature.name}.", file=sys.stderr, flush=True)
    return _checked[feature]


def _resolve(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _parameters(function: Any) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "unknown"
    named = [each for name, each in signature.parameters.items() if name != TRACING_PARAMETER]
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in named]
    return str(inspect.Signature(bare))[1:-1]


def _names_in(function: Any) -> set[str]:
    """Return the global names, attributes and strings that a Python function uses, functions inside it included."""
    code: CodeType | None = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    found: set[str] = set()
    waiting = [code] if code else []
    while waiting:
        code = waiting.pop()
        found |= {*code.co_names, *(each for each in code.co_consts if isinstance(each, str))}
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
    return found


def needs(feature: Feature, *, otherwise: Any) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that makes a function return `otherwise` if its feature is off."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            return function(*arguments, **named) if is_available(feature) else otherwise

        return call

    return decorate
