"""What is written in place is no longer what autograd saved, so a backward that needs it must fail, as with `mul_`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from numerics import rows
from torch import Tensor

import serving_ops

Writes = Callable[[Tensor, Tensor, Tensor], object]


def into_x(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.rms_norm(other, weight, out=x)


def x_into_itself(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.rms_norm(x, weight, out=x)


def gated_into_x(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.rms_norm_gated(other, None, weight, out=x)


def into_its_gate(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.rms_norm_gated(other, x, weight, out=x)


def adds_two_to_the_other(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.fused_add_two_rms_norm(x, other, other.clone(), weight)


def becomes_the_sum_of_three(x: Tensor, other: Tensor, weight: Tensor) -> object:
    return serving_ops.fused_add_two_rms_norm(other, x, other.clone(), weight)


WRITES: dict[str, Writes] = {
    "x of fused_add_rms_norm": lambda x, other, weight: serving_ops.fused_add_rms_norm(x, other, weight),
    "residual of fused_add_rms_norm": lambda x, other, weight: serving_ops.fused_add_rms_norm(other, x, weight),
    "x of fused_add_two_rms_norm": adds_two_to_the_other,
    "residual of fused_add_two_rms_norm": becomes_the_sum_of_three,
    "out of rms_norm": into_x,
    "out of rms_norm that is x": x_into_itself,
    "out of rms_norm_gated": gated_into_x,
    "out of rms_norm_gated that is z": into_its_gate,
}
"""Public calls that write their first argument."""


def sample(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return rows((6, 128), dtype, device, 1), rows((6, 128), dtype, device, 2), rows((128,), dtype, device, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_backward_refuses_a_saved_tensor_that_was_overwritten_without_gradients(
    device: torch.device, write: Writes, dtype: torch.dtype
) -> None:
    x, other, weight = sample(device, dtype)
    h = x.requires_grad_() * 2
    loss = (h * h).sum()
    with torch.no_grad():
        write(h, other, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_backward_refuses_it_where_gradients_are_on_and_the_written_tensor_has_none(
    device: torch.device, write: Writes
) -> None:
    saved, other, weight = sample(device, torch.bfloat16)
    factor = torch.ones_like(saved).requires_grad_()
    loss = (factor * saved).sum()  # keeps `saved` for factor's gradient
    write(saved, other, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_write_to_a_view_counts_for_the_buffer(device: torch.device, write: Writes) -> None:
    buffer, (_, other, weight) = rows((6, 256), torch.bfloat16, device), sample(device, torch.bfloat16)
    write(buffer[:, 128:], other, weight)
    assert buffer._version > 0


def test_what_is_only_read_stays_saved(device: torch.device) -> None:
    x, z, weight = sample(device, torch.bfloat16)
    out = torch.empty_like(x)
    serving_ops.rms_norm(x, weight)
    serving_ops.rms_norm(x, weight, out=out)
    serving_ops.rms_norm_gated(x, z, weight, out=out)
    serving_ops.add_rms_norm(x, z, weight)
    assert [tensor._version for tensor in (x, z, weight)] == [0, 0, 0]


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_inference_tensors_which_have_no_version_are_written(device: torch.device, write: Writes) -> None:
    with torch.inference_mode():
        x, other, weight = sample(device, torch.bfloat16)
        before = x.clone()
        write(x, other, weight)
    assert not torch.equal(x, before)
    ordinary, _, weight = sample(device, torch.bfloat16)
    with torch.inference_mode():
        write(ordinary, other, weight)
    assert ordinary._version > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_compiled_calls_count_too(
    device: torch.device, write: Writes, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    torch._dynamo.reset()
    x, other, weight = sample(device, torch.bfloat16)
    with mode():
        torch.compile(write, fullgraph=True, backend="aot_eager")(x, other, weight)
    assert x._version > 0
