"""Detect files that changed after Python imported them."""

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

from resnet_core.fields import ConfigError

_SCALARS = (int, float, complex, str, bytes, bool)


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
    pairs = list(zip(one.co_consts, other.co_consts, strict=True))
    if pairs and all(isinstance(each, str) for each in pairs[0]):  # docstrings
        pairs = pairs[1:]
    return all(_same_constant(a, b) for a, b in pairs)


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same(one, other)
    if isinstance(one, frozenset):  # of `x in {"a", "b"}`; its order depends on where it was read from
        return bool(one == other)
    return (type(one), repr(one)) == (type(other), repr(other))


def _changed_constants(body: Sequence[ast.stmt], namespace: Mapping[str, Any]) -> list[str]:
    """Return the names that these statements bind once, to a number or text, and that have another one in memory."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    times = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    changed = []
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [each.id for each in targets if isinstance(each, ast.Name) and times[each.id] == 1]
            known = {name: namespace[name] for name in names if type(namespace.get(name)) in _SCALARS}
            in_file = statement.value.value
            changed += [name for name, now in known.items() if (type(now), now) != (type(in_file), in_file)]
        elif isinstance(statement, ast.ClassDef) and isinstance(cls := namespace.get(statement.name), type):
            changed += [f"{statement.name}.{name}" for name in _changed_constants(statement.body, vars(cls))]
    return changed
