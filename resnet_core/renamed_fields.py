"""Former names and values of `RunSpec` fields.

Stored configurations (MLflow parameters, designs, jobs) and command lines may use them. Fingerprints hash the former names and
values forever, so that a renamed field changes no run's identity.
"""

from collections.abc import Mapping
from typing import Any

NAMES = {
    "data.colour": "data.color_augmentation",
    "data.normalise": "data.normalize",
    "optim.velocity": "optim.momentum_form",
    "optim.bn_statistics": "optim.bn_recalibration",
}
"""Current name of each renamed field, by its former name. Renamed on 2026-11-27."""
VALUES: dict[str, dict[Any, Any]] = {
    "optim.momentum_form": {"gradients": "pytorch", "updates": "caffe"},
    "optim.bn_recalibration": {"running": False, "averaged": True},
}
"""Current value of each renamed value, by the current name of its field and by the former value."""

_FORMER_NAMES = {current: former for former, current in NAMES.items()}
_FORMER_VALUES = {name: {current: former for former, current in of_field.items()} for name, of_field in VALUES.items()}
_CURRENT_VALUES = {**VALUES, **{name.rpartition(".")[2]: of_field for name, of_field in VALUES.items()}}
_LEAVES = {former.rpartition(".")[2]: current.rpartition(".")[2] for former, current in NAMES.items()}


def current_name(name: str) -> str:
    """Return the current name of a field, given in full (`optim.velocity`) or by its last part (`velocity`)."""
    return NAMES.get(name) or _LEAVES.get(name, name)


def current_value(name: str, value: Any) -> Any:
    """Return the current form of a value.

    Args:
        name: current name of the field, in full or its last part.
        value: current or former value of the field.
    """
    return _CURRENT_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def current_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values by field, such as MLflow parameters or a stored `RunSpec.flat`, under current names and values.

    Names that are not renamed fields are kept, with their values.
    """
    return {current_name(name): current_value(current_name(name), value) for name, value in values.items()}


def identity_name(name: str) -> str:
    """Return the dotted name that fingerprints hash for the field with the current dotted name `name`."""
    return _FORMER_NAMES.get(name, name)


def identity_value(name: str, value: Any) -> Any:
    """Return the form of `value` that fingerprints hash for the field with the current dotted name `name`."""
    return _FORMER_VALUES[name].get(value, value) if name in _FORMER_VALUES else value
