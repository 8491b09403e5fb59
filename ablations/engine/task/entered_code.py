"""Source of what a user defined in a notebook, where no file holds it."""

import ast
import functools
import hashlib
import inspect
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

from ablations.engine.task.user_modules import is_user_module
from resnet_core.fields import ConfigError


def entered_source(module: ModuleType, names: Iterable[str]) -> str:
    """Return the source of definitions in a module without a file, and of all that they use there, with their current values.

    Jupyter and IPython keep the text of every cell for tracebacks; other prompts do not.

    Raises:
        ConfigError: the text is not kept.
    """
    statements: dict[str, str] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name not in statements and name in vars(module):
            statements[name] = _statement(name, vars(module)[name], module)
            wanted += _names(statements[name])
    return "\n".join(statements[name] for name in sorted(statements))


def _names(text: str) -> list[str]:
    """Return the names that a source uses."""
    return [each.id for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)]


def _statement(name: str, value: Any, module: ModuleType) -> str:
    """Return a statement that binds a name to a value."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    if not isinstance(value, FunctionType | type):
        return f"{name} = {describe(value, module)}"
    if value.__module__ != module.__name__:
        return f"from {value.__module__} import {value.__qualname__.split('.')[0]} as {name}  # {value.__qualname__}"
    return _definition(value) if value.__name__ == name else f"{name} = {describe(value, module)}"


def describe(value: Any, module: ModuleType | None = None) -> str:
    """Return an expression that differs where two values do. It uses the names of definitions in `module`.

    It may differ between equal values of unknown classes, whose runs are then trained again.
    """
    inner = functools.partial(describe, module=module)
    if isinstance(value, FunctionType | type):
        if module is None or value.__module__ != module.__name__:
            home = sys.modules.get(value.__module__)
            of_user = value.__module__ == "__main__" or (home is not None and is_user_module(home))
            return repr(value.__qualname__ if of_user else f"{value.__module__}.{value.__qualname__}")
        name: str = value.__name__
        if vars(module).get(name) is value:
            return name
        text = _definition(value)
        return f"({text!r}, {', '.join(sorted(set(_names(text)) & set(vars(module))))})"
    if isinstance(value, ModuleType):
        return repr(value.__name__)
    if isinstance(value, Enum):
        return f"({inner(type(value))}, {value.name!r})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(key)}: {inner(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(map(inner, value)) if isinstance(value, set | frozenset) else map(inner, value)
        return f"({type(value).__name__!r}, {', '.join(items)})"
    if isinstance(value, functools.partial):
        return f"('partial', {inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if value is None or isinstance(value, int | float | complex | str | bytes):
        return repr(value) if type(value).__module__ == "builtins" else repr(repr(value))
    if callable(getattr(value, "numpy", None)) and callable(getattr(value, "detach", None)):  # the pickle of a tensor varies
        value = value.detach().cpu().numpy()
    try:
        return repr(hashlib.sha256(cloudpickle.dumps(value)).hexdigest())
    except Exception:  # it cannot be sent to other processes either, which `sources.pickled` says
        return repr(type(value).__qualname__)


def _definition(value: FunctionType | type) -> str:
    """Return the text that defines a function or class."""
    for function in _functions(value):
        text = "".join(linecache.getlines(function.__code__.co_filename))
        for statement in ast.parse(text).body if text else ():
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and statement.name == value.__name__:
                return ast.unparse(statement)
            line = function.__code__.co_firstlineno
            if function.__name__ == "<lambda>" and statement.lineno <= line <= (statement.end_lineno or line):
                return ast.unparse(statement)
    if isinstance(value, type) and not any(True for _ in _functions(value)):  # nothing leads to its cell; its attributes say all
        if issubclass(value, Enum):
            return f"{value.__name__} = {describe([value.__bases__, {each.name: each.value for each in value}])}"
        own = {name: each for name, each in vars(value).items() if not name.startswith("__") or name == "__annotations__"}
        factories = [each.default_factory for each in vars(value).get("__dataclass_fields__", {}).values()]
        return f"{value.__name__} = {describe([value.__bases__, own, factories])}"
    raise ConfigError(f"{value.__name__}: its source cannot be found; accepted: code in a file or in a notebook")


def _functions(value: FunctionType | type) -> Iterator[FunctionType]:
    """Yield a function, or the methods of a class, without those that `dataclass` generates."""
    for each in (value, *vars(value).values()) if isinstance(value, type) else (value,):
        found = getattr(each, "fget", None) or getattr(each, "__func__", None) or each
        found = inspect.unwrap(found) if callable(found) else found
        generated = isinstance(found, FunctionType) and found.__code__.co_filename == "<string>"
        if isinstance(found, FunctionType) and found.__module__ == value.__module__ and not generated:
            yield found
