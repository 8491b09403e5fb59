"""The public surface of `resnet_core` changes on purpose only, and every part of it is documented."""

import ast
import doctest
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import resnet_core
from resnet_core.config.reference import field_references, fields_page
from resnet_core.heartbeat import no_heartbeat
from tests.helpers.project import PROJECT

FUNCTIONS = {
    "build_model": "(config, *, checkpoint_activations=False)",
    "build_network": "(config, image_size, *, in_channels=None, num_classes=None, checkpoint_activations=False)",
    "fingerprint": "(spec, *, data_version, sources='')",
    "fit": "(spec, *, dataset=None, device='cpu', restore=None, heartbeat=no_heartbeat, replay=True)",
    "from_torchvision": "(source, *, depth)",
    "load_dataset": "(config, cache=None, *, reader=None, reader_code='', download=False, heartbeat=no_heartbeat)",
    "measure_cost": "(config, image_size, *, in_channels=None, num_classes=None)",
    "override": "(spec, values)",
    "preset": "(name)",
    "to_torchvision": "(net)",
}
CLASSES = {
    "ConfigError": "exit_code",
    "Cost": "activation_bytes flops parameters",
    "DataConfig": "converted crop evaluation_split streamed",
    "Dataset": "available changed changes classes crop described examples image_size in_channels mean name origin scored "
    "sizes skipped std subtracted summary test train version",
    "Diverged": "",
    "EpochResult": "checkpoint epoch last metrics state steps",
    "Images": "classes test train version",
    "ModelConfig": "converted layers_per_block library resolved",
    "Network": "build",
    "OptimConfig": "at_epoch converted total_epochs total_steps",
    "ResNet": "checkpoint_activations forward",
    "RunSpec": "converted data flat model optim probed_epochs",
}
"""Public attributes by class. docs/fields.md lists the fields of configurations with their defaults."""
RUN_AS_DOCTESTS = ("", ".data.datasets", ".model.cost", ".model.network", ".overrides", ".presets")


def public_functions() -> Iterator[tuple[str, Any]]:
    for name in resnet_core.__all__:
        value = getattr(resnet_core, name)
        if inspect.isfunction(value):
            yield name, value


def public_classes() -> Iterator[tuple[str, type]]:
    for name in resnet_core.__all__:
        value = getattr(resnet_core, name)
        if inspect.isclass(value):
            yield name, value


def signature(function: Any) -> str:
    """Return the parameters and their defaults, without types."""
    found = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    text = str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text.replace(repr(no_heartbeat), "no_heartbeat")


def own_names(cls: type) -> list[str]:
    """Return the public attributes of a class, without those of PyTorch, Python and configurations' fields."""
    own = [each for each in cls.__mro__ if each.__module__.startswith("resnet_core")]
    names = {name for each in own for name in {**vars(each), **getattr(each, "__annotations__", {})} if not name.startswith("_")}
    settings = (
        {each.name.rpartition(".")[2] for each in field_references()} if cls.__module__.startswith("resnet_core.config") else set()
    )
    return sorted(names - settings)


def test_the_public_surface_is_this() -> None:
    assert dict(public_functions()).keys() | dict(public_classes()).keys() | {"PRESETS"} == set(resnet_core.__all__)
    assert {name: signature(function) for name, function in public_functions()} == FUNCTIONS
    assert {name: own_names(cls) for name, cls in public_classes()} == {name: text.split() for name, text in CLASSES.items()}


def test_every_public_function_documents_each_parameter() -> None:
    for name, function in public_functions():
        documented = inspect.getdoc(function) or ""
        missing = [each for each in inspect.signature(function).parameters if f"\n    {each}: " not in documented]
        assert not missing, name


def test_every_attribute_of_a_public_class_is_documented() -> None:
    for name, cls in public_classes():
        assert cls.__doc__, name
        if not is_dataclass(cls):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        pairs = list(zip(body.body, body.body[1:], strict=False))
        documented = {ast.unparse(first.target) for first, text in pairs if isinstance(first, ast.AnnAssign) and is_text(text)}
        assert {each.name for each in fields(cls)} == documented & {each.name for each in fields(cls)}, name
        methods = [value for key, value in vars(cls).items() if not key.startswith("_") and callable(getattr(value, "fget", value))]
        assert all(inspect.getdoc(method) for method in methods if not isinstance(method, type)), name


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.slow
@pytest.mark.parametrize("module", RUN_AS_DOCTESTS)
def test_examples_in_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"resnet_core{module}"), extraglobs=names_for_examples(), verbose=False)
    assert found.attempted > 0
    assert found.failed == 0


def names_for_examples() -> dict[str, Any]:
    import torch

    return {"torch": torch, **{name: getattr(resnet_core, name) for name in resnet_core.__all__}}


def test_the_committed_page_of_fields_is_the_generated_one() -> None:
    assert (PROJECT / "docs/fields.md").read_text(encoding="utf-8") == fields_page(), (
        "python -m resnet_core.config > docs/fields.md"
    )


def test_the_page_lists_every_field_and_numbers_have_units_and_ranges() -> None:
    assert {each.name for each in field_references()} == set(resnet_core.RunSpec().flat())
    for each in field_references():
        assert each.description, each.name
        assert each.accepted, each.name
        assert bool(each.unit) == ("number" in each.type), each.name


@pytest.mark.parametrize("reference", field_references(), ids=lambda each: each.name)
def test_a_default_on_the_page_is_what_the_command_line_accepts(reference: Any) -> None:
    spec = resnet_core.RunSpec()
    assert resnet_core.override(spec, {reference.name: reference.default}).flat()[reference.name] == spec.flat()[reference.name]
