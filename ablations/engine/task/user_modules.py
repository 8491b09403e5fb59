"""Find the modules of the user: those with a source outside the installed packages and outside this project."""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import ablations
import resnet_core

_INSTALLED_FOLDERS = {"site-packages", "dist-packages"}
_STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_THIS_PROJECT = (*(Path(path).resolve() for path in resnet_core.__path__), Path(ablations.__path__[0]).resolve() / "engine")
"""Folders of this project, whose version is part of a run's identity in another way. Studies beside `engine` are not in them."""


def is_user_module(module: ModuleType) -> bool:
    """Return whether a module has a source and belongs to no installed package, nor to the standard library or this project."""
    file = getattr(module, "__file__", None) or ""
    return file.endswith(".py") and module is not ablations and _is_users(file)


def _is_users(file: str) -> bool:
    path = Path(file).resolve()
    others = (*_STANDARD_LIBRARY, *_THIS_PROJECT)
    return not _INSTALLED_FOLDERS & set(path.parts) and not any(path.is_relative_to(folder) for folder in others)


def is_beside(module: ModuleType, other: ModuleType) -> bool:
    """Return whether a module of the user belongs to the package of `other` or, if that has none, lies in its folder or below."""
    if package := (getattr(other, "__package__", None) or "").split(".")[0]:
        return module.__name__.split(".")[0] == package
    path, home = getattr(module, "__file__", None), getattr(other, "__file__", None)
    folder = Path(home).resolve().parent if home else Path.cwd()
    return bool(path) and Path(str(path)).resolve().is_relative_to(folder)


def imported_by(module: ModuleType, tree: ast.Module) -> Iterator[ModuleType]:
    """Yield the modules of the user that the code of a module may import, wherever in it."""
    for name in dict.fromkeys(_imported_names(module, tree)):
        found = _find_module(name)
        if found is not None and is_user_module(found):
            yield found


def _imported_names(module: ModuleType, tree: ast.Module) -> Iterator[str]:
    """Yield the absolute names of what a module may import. A package is imported before its modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                absolute = importlib.util.resolve_name(base, getattr(module, "__package__", None) or "")
            except ImportError:
                continue  # a relative import in a file without a package would fail when the file runs
            yield from _with_parents(absolute)
            yield from (f"{absolute}.{alias.name}" for alias in node.names)  # `from package import module`


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def _find_module(name: str) -> ModuleType | None:
    """Return a module by its absolute name; None if there is none with a source. Only packages of the user are imported for it."""
    if name in sys.modules:
        return sys.modules[name]
    parent, _, _ = name.rpartition(".")
    if parent and ((package := _find_module(parent)) is None or not _holds_user_modules(package)):
        return None
    try:
        spec = importlib.util.find_spec(name)  # imports the parent
    except Exception:  # whatever the user's package raises; the training will say it where it imports it
        return None
    is_folder = spec is not None and spec.origin is None and spec.submodule_search_locations  # without an __init__.py
    if spec is None or not (is_folder or (spec.origin or "").endswith(".py")):
        return None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = spec.origin
    return module


def _holds_user_modules(module: ModuleType) -> bool:
    """Return whether a module is a package of the user."""
    folders = getattr(module, "__path__", ())
    return is_user_module(module) if getattr(module, "__file__", None) and folders else any(map(_is_users, folders))
