"""Find the statements of a module that given definitions depend on."""

import ast
import builtins
import functools
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any


def reachable(module: ModuleType, tree: ast.Module, names: Iterable[str]) -> ast.Module:
    """Return the statements of a module on which the definitions of `names` depend.

    Statements that do more than bind a name are kept too, since they may change what others compute. So are definitions that
    register themselves: with a decorator of the user's, or by `__init_subclass__` of a base class.
    """
    own = _names_from_ablations(tree)
    statements = [each for each in tree.body if not _is_entry_point(each, own)]
    bound = [set() if _registers_itself(each, module) else _bound_names(each) for each in statements]
    kept = {i for i, binds in enumerate(bound) if not binds}
    wanted, seen = set(names).union(*(_used_names(statements[i]) for i in kept)), set[str]()
    while new := wanted - seen:
        seen |= new
        reached = {i for i, binds in enumerate(bound) if binds & new} - kept
        wanted |= set().union(*(_used_names(statements[i]) for i in reached))
        kept |= reached
    return ast.Module(body=[statements[i] for i in sorted(kept)], type_ignores=[])


def _names_from_ablations(tree: ast.Module) -> set[str]:
    """Return the names that a module has for `ablations` and for what it imports from there."""
    names = {"print"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ablations":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "ablations"}
    return names


def _is_entry_point(statement: ast.stmt, own: set[str]) -> bool:
    """Return whether a statement only runs or shows the study: `main(STUDY)`, `if __name__ == "__main__": …`, or a docstring."""
    if isinstance(statement, ast.If):
        return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(statement.test))
    if not isinstance(statement, ast.Expr):
        return False
    called = (each.func for each in ast.walk(statement) if isinstance(each, ast.Call))
    return isinstance(statement.value, ast.Constant) or any(_first_name(each) in own for each in called)


def _first_name(expression: ast.expr) -> str:
    """Return `a` of `a`, `a.b` and `a.b(…)`."""
    while isinstance(expression, ast.Attribute | ast.Call):
        expression = expression.value if isinstance(expression, ast.Attribute) else expression.func
    return expression.id if isinstance(expression, ast.Name) else ""


def _registers_itself(statement: ast.stmt, module: ModuleType) -> bool:
    """Return whether a definition may be found by others without its name."""
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    decorators = (_first_name(each) for each in statement.decorator_list)
    if not all(_is_pure(getattr(module, name, getattr(builtins, name, None))) for name in decorators):
        return True
    found = getattr(module, statement.name, None)
    if not isinstance(found, type):
        return False
    return not _is_pure(type(found)) or any("__init_subclass__" in vars(base) and not _is_pure(base) for base in found.__mro__[1:])


def _is_pure(value: Any) -> bool:
    """Return whether a module, decorator or class is of Python, PyTorch or this project, assumed not to register definitions."""
    if isinstance(value, functools.partial):
        return _is_pure(value.func)
    if not isinstance(value, ModuleType | FunctionType | BuiltinFunctionType | type):
        return False  # a method of an object, such as `HOOKS.append`
    home = value.__name__ if isinstance(value, ModuleType) else value.__module__ or "builtins"
    return home.split(".")[0] in sys.stdlib_module_names | {"torch", "ablations", "resnet_core"}


def _bound_names(statement: ast.stmt) -> set[str]:
    """Return the names that a statement binds; empty if it does more than that, such as `x.y = 1` or a call."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        names = {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        kept = "*" in names or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
        return set() if kept else names
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        leaves = [leaf for target in targets for leaf in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]
        names = {leaf.id for leaf in leaves if isinstance(leaf, ast.Name)}
        return names if len(names) == len(leaves) and names != {"_"} else set()
    return set()


def _used_names(tree: ast.AST) -> set[str]:
    """Return the names that occur in a statement, also those in annotations that are text."""
    names = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            try:
                names |= {part.id for part in ast.walk(ast.parse(each.value.strip(), mode="eval")) if isinstance(part, ast.Name)}
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
    return names
