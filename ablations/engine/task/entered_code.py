"""Source of what a user defined in a notebook, where no file holds it."""

import ast
import dataclasses
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from resnet_core.fields import ConfigError


def entered_source(module: ModuleType, is_library: Callable[[ModuleType], bool]) -> str:
    """Return the current definitions of a module without a file, as source: imports, values, classes and functions.

    Jupyter and IPython keep the text of every cell for tracebacks; other prompts do not.

    Raises:
        ConfigError: the text is not kept.
    """
    statements = [f"import {value.__name__} as {name}" for name, value in vars(module).items() if _is_module(name, value)]
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, FunctionType | type) and value.__module__ == module.__name__:
            statements.append(_definition(name, value))
        elif isinstance(value, FunctionType | type) and _is_from_the_users_file(value, is_library):
            statements.append(f"from {value.__module__} import {value.__name__} as {name}")
        elif _is_literal(value):
            statements.append(f"{name} = {value!r}")
    return "\n".join(statements)


def _is_module(name: str, value: Any) -> bool:
    return isinstance(value, ModuleType) and not name.startswith("_")


def _is_from_the_users_file(value: FunctionType | type, is_library: Callable[[ModuleType], bool]) -> bool:
    module = sys.modules.get(value.__module__)
    return module is not None and not is_library(module)


def _is_literal(value: Any) -> bool:
    """Return whether a value's text is an expression that gives it back."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _definition(name: str, value: FunctionType | type) -> str:
    """Return the text that defines a function or class."""
    for code_file in dict.fromkeys(_code_files(value)):
        text = "".join(linecache.getlines(code_file))
        for statement in ast.parse(text).body if text else ():
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and statement.name == value.__name__:
                return ast.unparse(statement)
    if dataclasses.is_dataclass(value):  # without methods of its own, nothing leads to its cell; its fields say all
        described = [f"{each.name}: {each.type} = {each.default!r}" for each in dataclasses.fields(value)]
        return f"{name} = {'; '.join(described)!r}"
    raise ConfigError(f"{name}: its source cannot be found; accepted: code in a file or in a notebook")


def _code_files(value: FunctionType | type) -> Iterator[str]:
    """Yield the names under which `linecache` may hold the text of a definition."""
    for each in (value, *vars(value).values()) if isinstance(value, type) else (value,):
        function = (
            inspect.unwrap(getattr(each, "fget", None) or getattr(each, "__func__", None) or each) if callable(each) else each
        )
        if isinstance(function, FunctionType):
            yield function.__code__.co_filename
