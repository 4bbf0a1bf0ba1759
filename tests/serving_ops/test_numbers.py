"""Results against float64, and in place where the op works in place."""

from __future__ import annotations

import itertools

import pytest
import torch
from numerics import assert_no_less_accurate, exact_gated, exact_norm, rows

import serving_ops
from serving_ops import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = (1, 7, 64, 100, 128, 512, 896, 1001, 2048, 4096, 5125, 40000)
EPS = 1e-6


def weight_of(kind: str, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    if kind == "none":
        return None
    return rows((size,), torch.float32 if kind == "fp32" else dtype, device, seed=3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_kind", ["same", "fp32", "none"])
@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
def test_fused_add_rms_norm_is_no_less_accurate_than_the_reference(
    device: torch.device, size: int, dtype: torch.dtype, weight_kind: str, weight_offset: float
) -> None:
    x, residual = rows((13, size), dtype, device, 1), rows((13, size), dtype, device, 2)
    weight = weight_of(weight_kind, size, dtype, device)
    exact = exact_norm(x, residual, weight, EPS, weight_offset)
    expected_x, expected_residual = reference.fused_add_rms_norm(
        x.clone(), residual.clone(), weight, EPS, weight_offset=weight_offset
    )
    returned = serving_ops.fused_add_rms_norm(x, residual, weight, EPS, weight_offset=weight_offset)
    assert returned[0] is x
    assert returned[1] is residual
    assert torch.equal(residual, expected_residual)
    assert_no_less_accurate(x, expected_x, exact)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_kind", ["same", "fp32", "none"])
@pytest.mark.parametrize("target", ["new", "given", "x"])
def test_rms_norm_is_no_less_accurate_than_the_reference(
    device: torch.device, size: int, dtype: torch.dtype, weight_kind: str, target: str
) -> None:
    x = rows((13, size), dtype, device, 1)
    weight = weight_of(weight_kind, size, dtype, device)
    exact, expected = exact_norm(x, None, weight, EPS, 0.0), reference.rms_norm(x, weight, EPS)
    before = x.clone()
    out = {"new": None, "given": torch.full_like(x, float("nan")), "x": x}[target]
    result = serving_ops.rms_norm(x, weight, EPS, out=out)
    assert out is None or result is out
    assert target == "x" or torch.equal(x, before)
    assert_no_less_accurate(result, expected, exact)


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


def test_rms_norm_gated_may_write_into_x_or_z(device: torch.device) -> None:
    x, z = rows((6, 128), torch.bfloat16, device, 1), rows((6, 128), torch.bfloat16, device, 2)
    weight = rows((128,), torch.float32, device, 3)
    expected = serving_ops.rms_norm_gated(x, z, weight)
    assert torch.equal(serving_ops.rms_norm_gated(x.clone(), z, weight), expected)
    for name in ("x", "z"):
        tensors = {"x": x.clone(), "z": z.clone()}
        result = serving_ops.rms_norm_gated(tensors["x"], tensors["z"], weight, out=tensors[name])
        assert result is tensors[name]
        assert torch.equal(result, expected)


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


@pytest.mark.parametrize("op", ["fused", "plain", "gated"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_go_through_as_in_the_reference(device: torch.device, op: str, bad: float) -> None:
    x, other = rows((4, 96), torch.bfloat16, device, 1), rows((4, 96), torch.bfloat16, device, 2)
    x[1, 5] = bad
    other[2, 95] = bad
    weight = rows((96,), torch.bfloat16, device, 3)
    if op == "fused":
        expected, _ = reference.fused_add_rms_norm(x.clone(), other.clone(), weight)
        result, _ = serving_ops.fused_add_rms_norm(x, other, weight)
    elif op == "plain":
        expected, result = reference.rms_norm(x, weight), serving_ops.rms_norm(x, weight)
    else:
        expected, result = (
            reference.rms_norm_gated(x, other, weight),
            serving_ops.rms_norm_gated(x, other, weight),
        )
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isinf(), expected.isinf())
    assert torch.allclose(result[[0, 3]].float(), expected[[0, 3]].float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 128), (3, 0, 128)])
def test_zero_rows_are_fine(device: torch.device, shape: tuple[int, ...]) -> None:
    x, residual = rows(shape, torch.bfloat16, device), rows(shape, torch.bfloat16, device)
    serving_ops.fused_add_rms_norm(x, residual, None)
    assert serving_ops.rms_norm(x, None).shape == shape
    assert serving_ops.rms_norm_gated(x, residual, None).shape == shape


def test_one_dimension_is_one_row(device: torch.device) -> None:
    x = rows((128,), torch.bfloat16, device)
    assert torch.equal(serving_ops.rms_norm(x, None), serving_ops.rms_norm(x[None], None)[0])
