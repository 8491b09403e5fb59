"""A state comes back as it was packed, to the last bit and stride, in few tensors meanwhile."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablations.engine.packing import LARGE, pack, unpack
from resnet_core import override, preset
from resnet_core.training import init_state

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    tensor = torch.randint(0, 2**20, shape).to(draw(TYPES))
    if len(shape) == 4 and draw(st.booleans()):
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor.transpose(0, 1)[::2] if len(shape) > 1 and draw(st.booleans()) else tensor


STATES = st.dictionaries(
    st.text(),
    st.recursive(
        PLAIN | tensors(),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.integers(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def written_and_read(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=True)
    return read


@given(STATES)
def test_what_is_packed_comes_back(state: dict[str, Any]) -> None:
    assert same(unpack(written_and_read(pack(state))), state)


@given(STATES)
def test_what_was_written_without_packing_is_read_as_it_is(state: dict[str, Any]) -> None:
    assert same(unpack(state), state)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_and_its_momentum_come_back_in_the_same_memory_format_each_in_memory_of_its_own(channels_last: bool) -> None:
    state = init_state(override(preset("smoke"), {"channels_last": channels_last}), torch.device("cpu"))
    for parameter in state.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    saved = state.save()
    packed = pack(saved)
    assert len(packed[LARGE]) == 2  # float32, and the counters of batches
    back = unpack(packed)
    assert same(back, saved)
    moved = saved["optimizer"]["state"], back["optimizer"]["state"]
    pairs = [(saved["model"][name], tensor) for name, tensor in back["model"].items()]
    pairs += [(moved[0][i]["momentum_buffer"], moved[1][i]["momentum_buffer"]) for i in moved[0]]
    assert all(one.stride() == other.stride() for one, other in pairs)
    assert any(not tensor.is_contiguous() for _, tensor in pairs) is channels_last
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for _, tensor in pairs)
