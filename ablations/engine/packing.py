"""Many small tensors as one large one of each type: `torch.save` takes some 30 µs for every tensor, whatever its size, and a
checkpoint of ResNet-56 has 499."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

LARGE = "\0tensors"
"""Key of the large ones."""
PLACE = "\0tensor"
"""Begins the string that stands for a tensor: its type, and where in the large one of that type it lies."""


def pack(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same state, on the CPU, its tensors in a large one of each type; otherwise plain values, if it holds nothing else."""
    parts: dict[str, list[Tensor]] = {}
    ends: dict[str, int] = {}

    def place(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        dense = value.detach()
        if not (dense.is_contiguous() or (dense.dim() == 4 and dense.is_contiguous(memory_format=torch.channels_last))):
            dense = dense.contiguous()
        kind = str(dense.dtype)
        begin = ends.get(kind, 0)
        ends[kind] = begin + dense.numel()
        parts.setdefault(kind, []).append(dense.as_strided((dense.numel(),), (1,)))
        return f"{PLACE} {kind} {begin} {_joined(dense.shape)} {_joined(dense.stride())}"

    structure = _replaced(state, place)
    return {**structure, LARGE: {kind: torch.cat(each).cpu() for kind, each in parts.items()}}


def unpack(packed: Mapping[str, Any]) -> dict[str, Any]:
    """What `pack` was given, with the same strides and each tensor in memory of its own. What was never packed stays as it is."""

    def take(value: object) -> object:
        if not (isinstance(value, str) and value.startswith(PLACE)):
            return value
        _, kind, begin, shape, stride = value.split(" ")
        tensor: Tensor = packed[LARGE][kind]
        return tensor.as_strided(_numbers(shape), _numbers(stride), int(begin)).clone()

    return {key: _replaced(value, take) for key, value in packed.items() if key != LARGE}


def _replaced(value: Any, change: Callable[[object], object]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, change) for each in value)
    return change(value)


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _numbers(joined: str) -> list[int]:
    return [int(number) for number in joined.split(",") if number]
