"""Results against float64, and in place where the op works in place."""

from __future__ import annotations

import itertools

import pytest
import torch
from numerics import assert_no_less_accurate, exact_gated, rows

import serving_ops
from serving_ops import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EPS = 1e-6


GATED_OPTIONS = [
    {"norm_before_gate": before, "activation": activation, "group_size": group}
    for before, activation, group in itertools.product((True, False), ("silu", "swish", "sigmoid"), (None, 32))
]


@pytest.mark.parametrize("size", [64, 96, 128, 2048])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", GATED_OPTIONS, ids=str)
@pytest.mark.parametrize("parts", ["zwb", "zw", "z", "w", ""])
def test_rms_norm_gated_is_no_less_accurate_than_the_reference(
    device: torch.device, size: int, dtype: torch.dtype, options: dict[str, object], parts: str
) -> None:
    x = rows((3, 5, size), dtype, device, 1)
    z = rows((3, 5, size), dtype, device, 2) if "z" in parts else None
    weight = rows((size,), torch.float32, device, 3) if "w" in parts else None
    bias = rows((size,), dtype, device, 4) if "b" in parts else None
    exact = exact_gated(x, z, weight, EPS, bias=bias, **options)
    expected = reference.rms_norm_gated(x, z, weight, EPS, bias=bias, **options)
    result = serving_ops.rms_norm_gated(x, z, weight, EPS, bias=bias, **options)
    assert_no_less_accurate(result, expected, exact)


def test_the_unrounded_sum_is_normalised(device: torch.device) -> None:
    """1 + 2^-8 rounds to 1 in bf16; its square does not round away in the mean."""
    x = torch.full((1, 128), 2.0**-8, dtype=torch.bfloat16, device=device)
    residual = torch.ones(1, 128, dtype=torch.bfloat16, device=device)
    x[0, :64] = -4.0
    expected, _ = reference.fused_add_rms_norm(x.clone(), residual.clone(), None, 0.0)
    rounded = reference.rms_norm((x.float() + residual.float()).bfloat16(), None, 0.0)
    serving_ops.fused_add_rms_norm(x, residual, None, 0.0)
    assert torch.equal(x, expected)
    assert not torch.equal(x, rounded)


def test_one_dimension_is_one_row(device: torch.device) -> None:
    x = rows((128,), torch.bfloat16, device)
    assert torch.equal(serving_ops.rms_norm(x, None), serving_ops.rms_norm(x[None], None)[0])
