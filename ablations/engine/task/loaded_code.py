"""Whether the code in memory is that of its file, which a long session may have changed since."""

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

from resnet_core.fields import ConfigError


def check_unchanged(module: ModuleType, tree: ast.Module) -> None:
    """Raise ConfigError if functions or constants of a loaded module differ from these statements of its file.

    Otherwise, the results of the code in memory would be recorded as those of the file.
    """
    loaded = sys.modules.get(module.__name__) is module and type(getattr(module, "__loader__", None)) is SourceFileLoader
    file = getattr(module, "__file__", None)
    if not loaded or not file:
        return  # not loaded yet; or its loader changes the code, as that of pytest does
    in_file: dict[str, list[CodeType]] = {}
    for code in _codes(compile(tree, file, "exec", dont_inherit=True)):
        in_file.setdefault(code.co_qualname, []).append(code)
    in_memory = {code.co_qualname: code for code in _codes_of(vars(module), module)}
    changed = [name for name, code in in_memory.items() if not any(_same(code, each) for each in in_file.get(name, [code]))]
    changed += _changed_constants(tree.body, vars(module))
    if changed:
        raise ConfigError(f"{changed[0]}: {file} has changed since it was imported; accepted: import it again, or restart Python")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _codes_of(namespace: Mapping[str, Any], module: ModuleType) -> Iterator[CodeType]:
    """Yield the code of the functions that a module defines, and of the methods of its classes."""
    for value in namespace.values():
        if isinstance(value, type) and value.__module__ == module.__name__ and vars(value) is not namespace:
            yield from _codes_of(vars(value), module)
            continue
        found = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
        found = inspect.unwrap(found) if callable(found) and not isinstance(found, type) else found
        if isinstance(found, FunctionType) and found.__code__.co_filename == module.__file__:
            yield found.__code__


def _same(one: CodeType, other: CodeType) -> bool:
    """Return whether two functions are equal apart from their place in the file."""
    if (one.co_code, one.co_names, one.co_varnames) != (other.co_code, other.co_names, other.co_varnames):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else (type(a), repr(a)) == (type(b), repr(b))
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _changed_constants(body: Sequence[ast.stmt], namespace: Mapping[str, Any]) -> list[str]:
    """Return the names that these statements bind to one number or text, and that have another value in memory."""
    found: dict[str, list[ast.expr]] = {}
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                found.setdefault(getattr(target, "id", ""), []).append(statement.value)
    changed = []
    for name, values in found.items():
        if len(values) == 1 and isinstance(values[0], ast.Constant) and name in namespace:
            now, in_file = namespace[name], values[0].value
            changed += [name] if (type(now), now) != (type(in_file), in_file) else []
    for statement in body:
        cls = namespace.get(statement.name) if isinstance(statement, ast.ClassDef) else None
        if isinstance(statement, ast.ClassDef) and isinstance(cls, type):
            changed += [f"{statement.name}.{name}" for name in _changed_constants(statement.body, vars(cls))]
    return changed
