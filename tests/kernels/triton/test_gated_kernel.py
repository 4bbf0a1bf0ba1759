"""The gated kernel over its options, in the interpreter or on the GPU, against float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from numerics import exact_gated, rows
from test_norm_kernels import EPS, check

from serving_ops import plan, reference
from serving_ops.kernels.triton.gated import run_gated
from serving_ops.layout import row_grid


def run(x: Any, z: Any, weight: Any, bias: Any, out: Any, before: bool, activation: str, group: int, **kw: int) -> None:
    chosen = plan.plan_gated(group, x.itemsize, 1)
    assert chosen is not None
    if kw:
        chosen = plan.Plan("tile", chosen.block_n, kw["tile_rows"], 4)
    grid = row_grid(x, x if z is None else z, out)
    run_gated(x, z, weight, bias, out, EPS, before, activation == "sigmoid", group, grid, chosen, False)


@pytest.mark.parametrize("size", [96, 128, 1024])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("groups", [1, 4])
def test_gated_kernel(
    kernel_device: torch.device, size: int, dtype: torch.dtype, before: bool, activation: str, groups: int
) -> None:
    for parts in ("zwb", "zw", "z", ""):
        x = rows((6, size), dtype, kernel_device, 1)
        z = rows((6, size), dtype, kernel_device, 2) if "z" in parts else None
        weight = rows((size,), torch.float32, kernel_device, 3) if "w" in parts else None
        bias = rows((size,), dtype, kernel_device, 4) if "b" in parts else None
        options = {
            "norm_before_gate": before,
            "activation": activation,
            "group_size": size // groups,
            "bias": bias,
        }
        exact = exact_gated(x, z, weight, EPS, **options)
        expected = reference.rms_norm_gated(x, z, weight, EPS, **options)
        run(x, z, weight, bias, x, before, activation, size // groups)
        check(x, expected, exact, kernel_device)


def test_strided_gate_of_heads(kernel_device: torch.device) -> None:
    """Qwen3.5: z is (num_tokens, heads, head_dim) inside a wider projection."""
    x = rows((5, 4, 128), torch.float16, kernel_device, 1)
    z = rows((5, 6144), torch.float16, kernel_device, 2)[:, 1024 : 1024 + 512].unflatten(1, (4, 128))
    weight = rows((128,), torch.float32, kernel_device, 3)
    expected = reference.rms_norm_gated(x, z, weight, EPS)
    run(x, z, weight, None, x, True, "silu", 128)
    assert torch.allclose(x.float(), expected.float(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("group", [64, 128, 512])
def test_a_heads_bits_do_not_depend_on_the_tile(kernel_device: torch.device, group: int) -> None:
    x, z = rows((40, 512), torch.float32, kernel_device, 1), rows((40, 512), torch.float32, kernel_device, 2)
    outs = []
    for tile_rows, before in itertools.product((1, 4, 32), (True,)):
        outs.append(torch.empty_like(x))
        run(x, z, None, None, outs[-1], before, "silu", group, tile_rows=tile_rows)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
