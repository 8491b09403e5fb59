"""Identity of the code that a user brings: a hash of what defines it, and the code itself, to be sent to other processes.

The hash covers the definitions that a class or function rests on: those of its own module and, in whole, the modules that these
import and that belong to its package or are not installed. It leaves out comments, docstrings, layout and definitions that nothing
reaches, so that another level in a study's file trains no run again. Other installed packages are not part of it.
"""

import ast
import hashlib
import importlib.util
import os
import pickle
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from ablations.engine.task.entered_code import entered_source
from resnet_core.fields import ConfigError
from resnet_core.identity import normalized_tree

OWN_PACKAGES = ("ablations", "ablations.engine", "resnet_core")
"""Packages of this project, whose version is part of a run's identity in another way."""
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def digest(roots: Sequence[Any]) -> str:
    """Return a hash of the code that defines these classes, functions and modules; 20 hexadecimal digits.

    Raises:
        ConfigError: the source of one cannot be found, as for a function that `exec` made.
    """
    parts: dict[str, str] = {}
    for module, names in _by_module(roots).items():
        tree = ast.parse(_source(module))
        kept = tree if names is None else _reachable(tree, names)
        parts[_label(module, module)] = normalized_tree(kept)
        for other in _imported_beside(module, kept):
            parts.setdefault(_label(other, module), normalized_tree(ast.parse(_source(other))))
    text = "\n".join(f"{name}\n{source}" for name, source in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def pickled(value: Any, roots: Sequence[Any]) -> bytes:
    """Return a value as bytes that another process can load without the files of the modules that `digest` covers.

    Raises:
        ConfigError: a global variable that the code uses cannot be sent to another process.
    """
    modules = [each for module in _by_module(roots) for each in (module, *_imported_beside(module, ast.parse(_source(module))))]
    with _by_value(modules):
        try:
            content: bytes = cloudpickle.dumps(value)
            return content
        except (pickle.PicklingError, TypeError, ValueError) as error:
            name = getattr(roots[0], "__name__", str(roots[0]))
            raise ConfigError(
                f"{name}: cannot be sent to other processes: {error}; accepted: create such objects inside it"
            ) from error


@contextmanager
def _by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Pickle what these modules define together with its code. The code of the program itself is always pickled so."""
    known = {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    loaded = [module for module in dict.fromkeys(modules) if sys.modules.get(module.__name__) is module]
    registered = [module for module in loaded if module.__name__ not in known]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _by_module(roots: Sequence[Any]) -> dict[ModuleType, set[str] | None]:
    """Return the names to start from in each module; None for a whole module."""
    found: dict[ModuleType, set[str] | None] = {}
    for root in roots:
        if isinstance(root, ModuleType):
            found[root] = None
            continue
        name = getattr(root, "__qualname__", None) or type(root).__qualname__
        module = sys.modules.get(getattr(root, "__module__", None) or type(root).__module__)
        if module is None or "<" in name:
            raise ConfigError(f"{name}: is defined inside a function; accepted: a class or function at the top level of a file")
        if (names := found.setdefault(module, set())) is not None:
            names.add(name.split(".")[0])
    return found


def _source(module: ModuleType) -> str:
    """Return the source of a module, or of what was entered in a notebook."""
    path = getattr(module, "__file__", None)
    if path is None:
        return entered_source(module, is_library)
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{module.__name__}: its source cannot be read: {error}") from error


def _label(module: ModuleType, root: ModuleType) -> str:
    """Return a module's place relative to another one, which does not depend on whether that one is run or imported.

    A module that lies elsewhere has its name, since its place may differ between machines.
    """
    path, start = (getattr(each, "__file__", None) or "notebook" for each in (module, root))
    place = Path(os.path.relpath(path, Path(start).parent)).as_posix()
    return module.__name__ if place.startswith("..") and not _same_package(module, root) else place


def _reachable(tree: ast.Module, names: Iterable[str]) -> ast.Module:
    """Return the statements of a module on which the definitions of `names` rest.

    Statements that do more than bind a name are kept too, since they may change what others compute.
    """
    own = _names_from_ablations(tree)
    statements = [each for each in tree.body if not _is_entry_point(each, own)]
    bound = [_bound_names(each) for each in statements]
    kept = {i for i, binds in enumerate(bound) if not binds}
    wanted, seen = set(names).union(*(_used_names(statements[i]) for i in kept)), set[str]()
    while new := wanted - seen:
        seen |= new
        reached = {i for i, binds in enumerate(bound) if binds & new} - kept
        wanted |= set().union(*(_used_names(statements[i]) for i in reached))
        kept |= reached
    return ast.Module(body=[statements[i] for i in sorted(kept)], type_ignores=[])


def _names_from_ablations(tree: ast.Module) -> set[str]:
    imports = (each for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) and each.module == "ablations")
    return {"ablations", *(alias.asname or alias.name for each in imports for alias in each.names)}


def _is_entry_point(statement: ast.stmt, own: set[str]) -> bool:
    """Return whether a statement only runs the study: `main(STUDY)`, `if __name__ == "__main__": …`, or a docstring."""
    if isinstance(statement, ast.If):
        return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(statement.test))
    if not isinstance(statement, ast.Expr):
        return False
    called = statement.value.func if isinstance(statement.value, ast.Call) else None
    called = called.value if isinstance(called, ast.Attribute) else called
    return isinstance(statement.value, ast.Constant) or (isinstance(called, ast.Name) and called.id in own)


def _bound_names(statement: ast.stmt) -> set[str]:
    """Return the names that a statement binds; empty if it does more than that, such as `x.y = 1` or a call."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        names = {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        return set() if "*" in names else names
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        leaves = [leaf for target in targets for leaf in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]
        names = {leaf.id for leaf in leaves if isinstance(leaf, ast.Name)}
        return names if len(names) == len(leaves) else set()
    return set()


def _used_names(statement: ast.stmt) -> set[str]:
    """Return the names that occur in a statement, also those in annotations that are text."""
    names = {each.id for each in ast.walk(statement) if isinstance(each, ast.Name)}
    texts = (each.value for each in ast.walk(statement) if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return names | {text for text in texts if text.isidentifier()}


def _imported_beside(module: ModuleType, tree: ast.Module) -> list[ModuleType]:
    """Return the modules of the same package or folder that a module imports, directly or through another one of them."""
    found: dict[str, ModuleType] = {}
    queue = [(module, tree)]
    while queue:
        importer, of_importer = queue.pop()
        for name in _imported_names(importer, of_importer):
            other = None if name in found or name in OWN_PACKAGES else _find_module(name)
            if other is not None and _is_beside(other, module):
                found[name] = other
                queue.append((other, ast.parse(_source(other))))
    return list(found.values())


def _imported_names(module: ModuleType, tree: ast.Module) -> Iterator[str]:
    """Yield the absolute names of what a module may import, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                absolute = importlib.util.resolve_name(base, module.__package__ or "")
            except ImportError:
                continue  # a relative import in a file without a package would fail when the file runs
            yield absolute
            yield from (f"{absolute}.{alias.name}" for alias in node.names)  # `from package import module`


def _find_module(name: str) -> ModuleType | None:
    """Return a module by its absolute name, without importing it; None if there is no such module with a source."""
    if name in sys.modules:
        return sys.modules[name]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = spec.origin
    return module


def _is_beside(other: ModuleType, module: ModuleType) -> bool:
    """Return whether a module belongs to the package of `module` or is the user's in another way: a file that is not installed."""
    path, own = getattr(other, "__file__", None), getattr(module, "__file__", None)
    if other is module or not path or not path.endswith(".py") or (own and Path(path) == Path(own)):
        return False
    if any(other.__name__.startswith(f"{package}.") for package in OWN_PACKAGES[1:]):
        return False
    if _same_package(other, module):
        return True
    if other.__name__.split(".")[0] in OWN_PACKAGES:  # a study of this repository may import another one
        below = bool(own) and Path(path).resolve().is_relative_to(Path(str(own)).resolve().parent)
        return below and not module.__package__ and not _in_installed_folder(path)
    return not is_library(other)


def _same_package(other: ModuleType, module: ModuleType) -> bool:
    package = (module.__package__ or "").split(".")[0]
    return bool(package) and other.__name__.split(".")[0] == package


def is_library(module: ModuleType) -> bool:
    """Return whether a module belongs to Python, to this project, or to a package that is installed other than in editable mode."""
    path = getattr(module, "__file__", None)
    return not path or module.__name__.split(".")[0] in OWN_PACKAGES or _in_installed_folder(path)


def _in_installed_folder(path: str) -> bool:
    resolved = Path(path).resolve()
    in_site = not {"site-packages", "dist-packages"}.isdisjoint(resolved.parts)
    return in_site or any(resolved.is_relative_to(folder) for folder in _INSTALLED)
