"""The identity of a run: its configuration, its data and the version of the training."""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_core.config import RunSpec

TRAINING_VERSION = 1
"""Version of what a training computes. It is part of every fingerprint, so that a new version trains every run again.

Raise it, and add a line to the log below, with every change that moves the numbers of an existing configuration.
`tests/resnet_core/trainings.json` records short trainings and the defaults of `RunSpec`, and `test_recorded_trainings.py` beside it
fails when they move without a new version. A refactoring, a faster implementation of the same computation and a new field whose
default leaves everything as it was keep the version.

1 (2026-11-27): the version replaces a hash of the sources in the fingerprint. `precision=fp32` no longer uses TF32 on GPUs.
"""

NOT_IDENTITY = ("data.root", "data.decode_workers")
"""Fields that say where something is or who makes it, not what it is: they do not change a run's result."""

IN_DATA_VERSION = ("data.train_examples", "data.test_examples")
"""Fields that choose images. In a fingerprint the version of the data, a hash of the chosen images, stands for them: so a number
of images that is all of them, or more, is the same run as no number."""

NOT_TRAINING = ("command.py", "streams.py", "summary.py", "exchange.py", "picture.py", "__main__.py")
"""Files of this package that show or convert, and that no training runs."""


def fingerprint(spec: RunSpec, *, data_version: str) -> str:
    """Return the identity of a run: a hash of its configuration, the data's content and `TRAINING_VERSION`.

    Args:
        spec: a resolved spec (no field left to the data set).
        data_version: content hash of the data set.

    Returns:
        20 hexadecimal digits.
    """
    values = {name: value for name, value in spec.flat().items() if name not in IN_DATA_VERSION}
    return _digest(json.dumps([deviations(values), data_version, TRAINING_VERSION], sort_keys=True))


def deviations(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `values` (as in `RunSpec.flat`) that differ from the defaults and are part of a run's identity.

    Identities hold only these, so that a field added later leaves all runs that do not use it as they are.
    """
    defaults = _defaults()
    return {name: value for name, value in values.items() if name not in NOT_IDENTITY and value != defaults[name]}


@functools.cache
def _defaults() -> dict[str, Any]:
    return RunSpec().flat()


@functools.cache
def code_version() -> str:
    """Return a hash of the sources that train, recorded with every run beside `TRAINING_VERSION`.

    Comments, docstrings and layout do not count, and every Python version gives the same hash.
    """
    sources = sorted(path for path in Path(__file__).parent.glob("**/*.py") if path.name not in NOT_TRAINING)
    return _digest("\n".join(f"{p.name}\n{normalised_source(p.read_text(encoding='utf-8'))}" for p in sources))


def normalised_source(source: str) -> str:
    """Return the syntax tree of Python source as text, without comments, docstrings and layout."""
    return json.dumps(_tree(ast.parse(source)))


def _tree(node: Any) -> Any:
    """Return a syntax tree as plain lists and dicts, the same from every Python version.

    `ast.unparse` and `ast.dump` are not. Fields that are empty, or that only newer versions have (`type_params`), are left out.
    """
    if isinstance(node, ast.AST):
        parts = {name: _tree(value) for name, value in ast.iter_fields(node) if value is not None}
        if isinstance(node, ast.JoinedStr):
            # Python 3.12 adds empty pieces to some f-strings.
            parts["values"] = [_tree(part) for part in node.values if getattr(part, "value", None) != ""]
        return [type(node).__name__, {name: part for name, part in parts.items() if part != []}]
    if isinstance(node, list):
        # Attribute docstrings too: any expression statement that is only a string does nothing.
        return [_tree(each) for each in node if not _is_text(each)]
    return repr(node)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
