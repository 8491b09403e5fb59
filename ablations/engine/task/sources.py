"""Identity of the code that a user brings: a hash of what defines it, and the code itself, to be sent to other processes.

The hash covers the definitions that a class or function depends on: those of its own module and, in whole, the user's modules that
these import. It leaves out comments, docstrings, layout and definitions that nothing reaches, so that adding a level to a study's
file retrains no finished run. Installed packages are not part of it.
"""

import ast
import functools
import hashlib
import os
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle

from ablations.engine.task.entered_code import describe, entered_source
from ablations.engine.task.loaded_code import check_unchanged
from ablations.engine.task.reachability import reachable
from ablations.engine.task.user_modules import imported_by, is_beside, is_user_module
from resnet_core.fields import ConfigError
from resnet_core.identity import normalized_tree


def digest(roots: Sequence[Any]) -> str:
    """Return a hash of the code that defines these classes, functions and modules; 20 hexadecimal digits.

    Raises:
        ConfigError: the source of one cannot be found, as for a function that `exec` made, or has changed since it was loaded.
    """
    definitions, arguments = _definitions(roots)
    trees = _trees(definitions)
    for module, tree in trees.items():
        check_unchanged(module, tree)
    files = {module: _file(module) for module in trees}
    common = os.path.commonpath([path.parent for path in files.values()])
    parts = {path.relative_to(common).as_posix(): normalized_tree(trees[module]) for module, path in files.items()}
    text = "\n".join([*(f"{name}\n{source}" for name, source in sorted(parts.items())), *arguments])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def pickled(value: Any, roots: Sequence[Any]) -> bytes:
    """Return a value as bytes that embed the code of the roots' modules and of those in their folders or packages.

    Raises:
        ConfigError: a global variable that the code uses cannot be sent to another process.
    """
    definitions, _ = _definitions(roots)
    homes = _names_by_module(definitions)
    modules = [module for module in _trees(definitions) if module in homes or any(is_beside(module, home) for home in homes)]
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
    """Embed the code of these modules in pickles. cloudpickle always embeds that of the program itself."""
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


def _definitions(roots: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Return the classes, functions and modules in these roots, and descriptions of the arguments of partial functions."""
    found: list[Any] = []
    arguments: list[str] = []
    for root in roots:
        if isinstance(root, functools.partial):
            inner = _definitions([root.func, *_user_code([*root.args, *root.keywords.values()])])
            found += inner[0]
            arguments += [*inner[1], describe([root.args, root.keywords])]
            continue
        name = getattr(root, "__qualname__", None)
        if isinstance(root, MethodType) or (name is None and not isinstance(root, ModuleType)):
            kind = type(root).__name__
            raise ConfigError(
                f"{name or repr(root)}: is a {kind}; accepted: a class, function or module at the top level of a file"
            )
        found.append(root)
    return found, arguments


def _user_code(value: Any) -> Iterator[Any]:
    """Yield the classes, functions and partial functions of the user in a value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _user_code(each)
    elif isinstance(value, functools.partial):
        yield value
    else:
        definition = value if isinstance(value, type | FunctionType) else type(value)
        home = sys.modules.get(definition.__module__)
        if home is not None and (is_user_module(home) or (home.__name__ == "__main__" and not hasattr(home, "__file__"))):
            yield definition


def _names_by_module(definitions: Sequence[Any]) -> dict[ModuleType, set[str] | None]:
    """Return the names to start from in each module; None for a whole module."""
    found: dict[ModuleType, set[str] | None] = {}
    for each in definitions:
        if isinstance(each, ModuleType):
            found[each] = None
            continue
        module, name = sys.modules.get(each.__module__), each.__qualname__
        if name.endswith("<lambda>"):
            raise ConfigError(f"{name}: has no name; accepted: a class or function with a name at the top level of a file")
        if module is None or "<" in name:
            raise ConfigError(f"{name}: is defined inside a function; accepted: a class or function at the top level of a file")
        current = vars(module).get(name)
        if current is not each and type(current) is type(each):
            raise ConfigError(f"{name}: was redefined; accepted: run the code that defines the study again")
        if (names := found.setdefault(module, set())) is not None:
            names.add(name.split(".")[0])
    return found


def _trees(definitions: Sequence[Any]) -> dict[ModuleType, ast.Module]:
    """Return what of each module of the user these definitions rest on; of imported modules, everything."""
    trees: dict[ModuleType, ast.Module] = {}
    whole: set[Path] = set()
    for module, names in _names_by_module(definitions).items():
        trees[module] = _tree(module, names)
        whole |= {_file(module)} if names is None else set()
    queue = list(trees.items())
    known = {_file(module): module for module in trees}
    while queue:
        for other in imported_by(*queue.pop()):
            path = _file(other)
            if path not in whole:
                whole.add(path)
                module = known.setdefault(path, other)  # the program itself may be imported under its name, too
                trees[module] = _tree(module, None)
                queue.append((module, trees[module]))
    return trees


def _tree(module: ModuleType, names: set[str] | None) -> ast.Module:
    """Return the syntax tree of a module, reduced to what these names rest on; None keeps all of it."""
    path = getattr(module, "__file__", None)
    if path is None:
        return ast.parse(entered_source(module, names or ()))
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise ConfigError(f"{module.__name__}: its source cannot be read: {error}") from error
    return tree if names is None else reachable(module, tree, names)


def _file(module: ModuleType) -> Path:
    """Return the path of a module; of a notebook, one in the current folder."""
    return Path(getattr(module, "__file__", None) or Path.cwd() / "notebook").resolve()
