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


def three_leading(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((2, 6, 3, 256), torch.bfloat16, device, seed)
    return buffer, buffer.permute(1, 2, 0, 3)[:, :2, :, :128]


def misaligned(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((10, 131), torch.bfloat16, device, seed)
    return buffer, buffer[:, 3:]


def last_stride_2(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((10, 256), torch.bfloat16, device, seed)
    return buffer, buffer[:, ::2]


def last_dimension_first(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    buffer = rows((128, 10), torch.bfloat16, device, seed)
    return buffer, buffer.T


VIEWS = [
    columns,
    heads,
    every_other_row,
    transposed_leading,
    three_leading,
    misaligned,
    last_stride_2,
    last_dimension_first,
]


@pytest.mark.parametrize("view", VIEWS)
def test_fused_add_writes_the_views_and_nothing_beside_them(device: torch.device, view: View) -> None:
    (x_buffer, x), (residual_buffer, residual) = view(device, 1), view(device, 2)
    weight = rows((128,), torch.bfloat16, device, 3)
    dense_x, dense_residual = x.contiguous(), residual.contiguous()
    beside_x, beside_residual = _outside(x_buffer, x), _outside(residual_buffer, residual)
    reference.fused_add_rms_norm(dense_x, dense_residual, weight)
    serving_ops.fused_add_rms_norm(x, residual, weight)
    assert torch.equal(residual, dense_residual)
    assert torch.allclose(x.float(), dense_x.float(), rtol=2**-7, atol=1e-6)
    assert torch.equal(_outside(x_buffer, x), beside_x)
    assert torch.equal(_outside(residual_buffer, residual), beside_residual)


def _outside(buffer: Tensor, view: Tensor) -> Tensor:
    """The buffer's elements that the view does not show."""
    shown = torch.zeros(buffer.numel(), dtype=torch.bool, device=buffer.device)
    shown.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    return buffer.flatten()[~shown]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", ["plain", "gated"])
def test_norms_read_and_write_views(device: torch.device, view: View, op: str) -> None:
    (_, x), (_, z), (_, out) = view(device, 1), view(device, 2), view(device, 3)
    weight = rows((128,), torch.float32, device, 4)
    if op == "plain":
        expected = reference.rms_norm(x, weight)
        results = [serving_ops.rms_norm(x, weight), serving_ops.rms_norm(x, weight, out=out)]
    else:
        expected = reference.rms_norm_gated(x, z, weight)
        results = [
            serving_ops.rms_norm_gated(x, z, weight),
            serving_ops.rms_norm_gated(x, z, weight, out=out),
        ]
    assert results[0].is_contiguous()
    assert results[1] is out
    for result in results:
        assert torch.allclose(result.float(), expected.float(), rtol=2**-7, atol=1e-6)


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
