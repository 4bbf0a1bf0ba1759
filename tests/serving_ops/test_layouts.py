"""Views: read and written where they lie, never through a copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numerics import rows
from torch import Tensor

import serving_ops
from serving_ops import reference

View = Callable[[torch.device, int], tuple[Tensor, Tensor]]


def columns(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((10, 3 * 128), torch.bfloat16, device, seed)
    return buffer, buffer[:, 128:256]


def heads(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((10, 6 * 128), torch.bfloat16, device, seed)
    return buffer, buffer[:, 256:].unflatten(1, (4, 128))


def every_other_row(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((20, 128), torch.bfloat16, device, seed)
    return buffer, buffer[::2]


def transposed_leading(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((4, 10, 128), torch.bfloat16, device, seed)
    return buffer, buffer.transpose(0, 1)


def test_a_views_bits_are_those_of_its_contiguous_copy(device: torch.device) -> None:
    for view in (columns, heads, every_other_row, transposed_leading):
        _, x = view(device, 1)
        weight = rows((128,), torch.bfloat16, device, 3)
        assert torch.equal(serving_ops.rms_norm(x, weight), serving_ops.rms_norm(x.contiguous(), weight))


def test_two_column_slices_of_one_buffer_are_not_an_overlap(device: torch.device) -> None:
    buffer = rows((64, 256), torch.bfloat16, device)
    x, residual = buffer[:, :128], buffer[:, 128:]
    dense = reference.fused_add_rms_norm(x.contiguous(), residual.contiguous(), None)
    serving_ops.fused_add_rms_norm(x, residual, None)
    assert torch.equal(residual, dense[1])
    assert torch.allclose(x.float(), dense[0].float(), rtol=2**-7, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["fused", "plain", "gated"])
def test_offsets_past_2_31_elements(op: str) -> None:
    num_rows = 2**31 // 2048 + 3
    x = torch.ones(num_rows, 2048, dtype=torch.bfloat16, device="cuda")
    x[-1] = rows((2048,), torch.bfloat16, "cuda", 1)
    last = x[-1].clone()
    if op == "fused":
        residual = torch.zeros_like(x)
        serving_ops.fused_add_rms_norm(x, residual, None)
        assert torch.equal(residual[-1], last)
        result = x
    elif op == "plain":
        result = serving_ops.rms_norm(x, None)
    else:
        result = serving_ops.rms_norm_gated(x, None, None, group_size=128)
    group = 128 if op == "gated" else None
    expected = reference.rms_norm_gated(last, None, None, group_size=group)
    assert torch.allclose(result[-1].float(), expected.float(), rtol=2**-7, atol=1e-6)
    assert torch.equal(result[num_rows // 2], torch.ones_like(last))
