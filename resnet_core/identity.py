"""The identity of a run: what it is, on which data, with which code."""

import ast
import functools
import hashlib
import json
from pathlib import Path

from resnet_core.config import RunSpec

NOT_IDENTITY = ("data.root", "data.decode_workers")
"""Fields that say where something is or who makes it, not what it is: they do not change a run's result."""

NOT_TRAINING = ("command.py", "summary.py", "exchange.py", "picture.py", "__main__.py")
"""Files of this package that show or convert, and that no training runs."""


def fingerprint(spec: RunSpec, *, data_version: str) -> str:
    """The identity of a run: a hash of its resolved spec, the data's content and the code of this package.

    Args:
        spec: a resolved spec (no field left to the data set).
        data_version: content hash of the data set.

    Returns:
        20 hexadecimal digits.
    """
    flat = {k: v for k, v in spec.flat().items() if k not in NOT_IDENTITY}
    return _digest(json.dumps([flat, data_version, code_version()], sort_keys=True))


@functools.cache
def code_version() -> str:
    """A hash of the syntax trees of what trains: comments, docstrings and layout do not count, everything else does."""
    sources = sorted(path for path in Path(__file__).parent.glob("**/*.py") if path.name not in NOT_TRAINING)
    return _digest("\n".join(f"{p.name}\n{normalised_source(p.read_text(encoding='utf-8'))}" for p in sources))


def normalised_source(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            # Attribute docstrings too: any expression statement that is only a string does nothing.
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
