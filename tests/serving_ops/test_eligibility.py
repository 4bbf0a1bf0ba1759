"""The test of C++ is of the same mind as the checks of Python: what it takes, they find right.

A call that it took though they refuse it would be computed from, or written to, memory that is not its tensors'.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_calls import OPS, make, specs
from torch import Tensor

import serving_ops
from serving_ops import support
from serving_ops.ops.description import NormOp

CPU = torch.device("cpu")
BUFFER = torch.zeros(1 << 14, dtype=torch.uint8)
SIZES = (8, 64, 128)
INTEGERS = (0, -1, 1, 3, 32, 64, 2**32, 2**58 + 2, 2**62 + 64, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1e-50, -1.0, 1e39, float("inf"), float("nan"))


@st.composite
def views(draw: st.DrawFn, like: Tensor) -> Tensor:
    """Of its shape and dtype, somewhere in a buffer that all of them share; its elements may lie on each other."""
    flat, strides, reach = BUFFER.view(like.dtype), [], 1
    for size in reversed(like.shape):
        apart = reach + draw(st.sampled_from((1, 8)))
        strides.insert(0, draw(st.sampled_from((reach, reach, apart, 2 * reach, 0, 1, like.shape[-1]))))
        reach = max(reach, strides[0] * size)
    if like.dim():
        strides[-1] = draw(st.sampled_from((1, 1, 1, strides[-1])))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, strides, strict=True))
    room = flat.numel() - extent
    return like if room < 0 else flat.as_strided(like.shape, strides, draw(st.integers(0, min(room, 3 * extent))))


@st.composite
def calls(draw: st.DrawFn, op: NormOp) -> dict[str, Any]:
    """With some tensors in one buffer, and perhaps a number that is none for it."""
    spec = draw(st.sampled_from(specs(op, size=draw(st.sampled_from(SIZES)))))
    call = make(spec, CPU, num_tokens=draw(st.sampled_from((1, 2, 3))))
    call |= op.empty_results(call)
    tensors = [name for name, value in call.items() if isinstance(value, Tensor) and value.numel()]
    for name in draw(st.lists(st.sampled_from(tensors), max_size=3, unique=True)):
        call[name] = draw(views(call[name]))
    numbers = {int: INTEGERS, float: FLOATS}
    names = [name for name, value in call.items() if type(value) in numbers]
    if draw(st.booleans()):
        name = draw(st.sampled_from(names))
        call[name] = draw(st.sampled_from(numbers[type(call[name])]))
    return call


@pytest.mark.parametrize("op", [op for op in OPS if "cpu" in op.in_cpp], ids=lambda op: op.name)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_cpp_takes_is_right(op: NormOp, data: st.DataObject) -> None:
    if serving_ops.cpp_library() is None:
        pytest.skip("the C++ library was not built")
    call = data.draw(calls(op))
    if not support.why_not_cpu(op.name, *op.unbind(call).values()):
        op.check(call)
