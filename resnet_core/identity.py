"""Identity of a run: a hash of its configuration, its data and the version of the training."""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnet_core.config import ModelConfig, RunSpec
from resnet_core.renamed_fields import identity_name, identity_value

TRAINING_VERSION = 1
"""Version of the training's results. It is part of every fingerprint, so that a new version trains every run again.

Raise it, and add a line to the log below, with every change that moves the numbers of an existing configuration.
`tests/resnet_core/trainings.json` records short trainings and the defaults of `RunSpec`, and `test_recorded_trainings.py` beside it
fails if they move without a new version. Three kinds of change keep the version: a refactoring, a faster implementation of the same
computation, and a new field whose default leaves results unchanged. A renamed field goes into `resnet_core.renamed_fields`.

1 (2026-11-27): the version replaces a hash of the sources in the fingerprint. `precision=fp32` no longer uses TF32 on GPUs.
"""

NOT_IDENTITY = ("data.root", "data.decode_workers")
"""Fields that do not affect a run's result, such as where its images are stored."""

IN_DATA_VERSION = ("data.train_examples", "data.test_examples")
"""Fields that select images. Fingerprints hold a hash of the selected images instead. A limit that selects all images is
therefore the same run as no limit."""

NOT_TRAINING = (
    "command.py",
    "config/__main__.py",
    "config/reference.py",
    "data/__main__.py",
    "data/picture.py",
    "model/__main__.py",
    "model/summary.py",
    "model/torchvision.py",
    "streams.py",
)
"""Modules of this package that no training imports: commands, displays and conversions."""


def fingerprint(spec: RunSpec, *, data_version: str, sources: str = "") -> str:
    """Return the identity of a run: a hash of its configuration, its data and `TRAINING_VERSION`.

    A network of torchvision or timm adds the version of the library, which must be installed. A network of one's own adds the name
    of its class, all its fields and its sources: nothing tells whether a default has changed.

    Args:
        spec: resolved run, without fields left to the data set.
        data_version: content hash of the data set, `Dataset.version`.
        sources: hash of the modules that define a network of one's own; ignored for the networks of He et al.

    Returns:
        20 hexadecimal digits, equal on every machine and Python version.
    """
    values = {name: value for name, value in spec.flat().items() if name not in IN_DATA_VERSION}
    own: list[Any] = []
    if isinstance(spec.model, ModelConfig) and spec.model.library:
        own = [spec.model.library, version(spec.model.library).partition("+")[0]]  # without the kind of build, such as +cpu
    if not isinstance(spec.model, ModelConfig):
        names = [name for name in values if name.startswith("model.")]
        own = [type(spec.model).__qualname__, {name: values.pop(name) for name in names}, sources]
    return _digest(json.dumps([deviations(values), data_version, TRAINING_VERSION, *own], sort_keys=True))


def deviations(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `values` that differ from the defaults and are part of a run's identity.

    Identities hold only deviations, so that a new field changes no identity of runs that leave it at its default. Renamed fields
    have their former names and values, for the same reason. Fields that `RunSpec` lacks by default, those of a network of one's
    own, always deviate.

    Args:
        values: fields by dotted name, as in `RunSpec.flat`.
    """
    defaults = _defaults()
    different = {
        name: value
        for name, value in values.items()
        if name not in NOT_IDENTITY and (name not in defaults or value != defaults[name])
    }
    return {identity_name(name): identity_value(name, value) for name, value in different.items()}


@functools.cache
def _defaults() -> dict[str, Any]:
    return RunSpec().flat()


@functools.cache
def code_version() -> str:
    """Return a hash of the modules that take part in training, recorded with every run beside `TRAINING_VERSION`.

    It ignores comments, docstrings and layout, and is equal for all Python versions.
    """
    root = Path(__file__).parent
    sources = {path.relative_to(root).as_posix(): path for path in root.glob("**/*.py")}
    trained = [name for name in sorted(sources) if name not in NOT_TRAINING]
    return _digest("\n".join(f"{name}\n{normalized_source(sources[name].read_text(encoding='utf-8'))}" for name in trained))


def normalized_source(source: str) -> str:
    """Return the syntax tree of Python source as text, without comments, docstrings and layout."""
    return normalized_tree(ast.parse(source))


def normalized_tree(tree: ast.AST) -> str:
    """Return a syntax tree as text, without docstrings, equal for all Python versions."""
    return json.dumps(_tree(tree))


def _tree(node: Any) -> Any:
    """Return a syntax tree as plain lists and dicts that are equal for all Python versions.

    The outputs of `ast.unparse` and `ast.dump` differ between versions. Empty fields, such as the newer `type_params`, are left
    out.
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
