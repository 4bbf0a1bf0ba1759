"""The gated norm that quantizes against the unfused pair: our gated norm's result, quantized by the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from numerics import rows
from test_norm_quant_kernels import (
    EPS,
    FORMATS,
    INT8,
    assert_same_bits,
    empty_scales,
    name_of,
    quantized,
)

from serving_ops import plan
from serving_ops.cuda import why_not_scales
from serving_ops.kernels.launches import Quantized
from serving_ops.kernels.triton.gated import run_gated
from serving_ops.layout import row_grid
from serving_ops.quant_format import QuantFormat

pytestmark = pytest.mark.usefixtures("gpu_conversions")

SHAPES = [(4, 128), (1, 1024), (2, 640)]
"""Groups a row, and their sizes."""

CASES = [
    pytest.param(groups, group, fmt, id=f"{groups}x{group}-{name_of(fmt)}")
    for groups, group in SHAPES
    for fmt in FORMATS
    if why_not_scales(groups * group, group, fmt) is None
]


@pytest.mark.parametrize(("groups", "group", "fmt"), CASES)
@pytest.mark.parametrize("before", [True, False])
def test_the_result_has_the_bits_of_a_gated_norm_and_a_quantization(
    kernel_device: torch.device, groups: int, group: int, before: bool, fmt: QuantFormat
) -> None:
    size = groups * group
    x, z = (rows((5, size), torch.bfloat16, kernel_device, seed) for seed in (1, 2))
    weight, bias = rows((size,), torch.float32, kernel_device, 3), rows((size,), torch.bfloat16, kernel_device, 4)
    chosen = plan.plan_gated(group, 2, 3000, quantized=True)  # several rows a program where it has so many
    assert chosen is not None
    y, normed, q = torch.empty_like(x), torch.empty_like(x), torch.empty(5, size, dtype=fmt.dtype, device=x.device)
    run_gated(x, z, weight, bias, y, EPS, before, False, group, row_grid(x, z, y), chosen, False)
    scales = empty_scales(fmt, 5, size, kernel_device)
    grid = row_grid(x, z, normed, q)
    assert grid is not None
    quantized_to = Quantized(fmt, scales, normed)
    run_gated(x, z, weight, bias, q, EPS, before, False, group, grid, chosen, False, quantized_to)
    expected, expected_scales = quantized(y, scales, fmt)
    assert_same_bits(normed, y)
    assert_same_bits(scales, expected_scales)
    assert_same_bits(q, expected)


def test_scales_that_programs_would_share_are_refused_with_the_reason() -> None:
    assert why_not_scales(512, 128, QuantFormat(granularity="token")) == "a scale a row of several gated groups"
    assert why_not_scales(512, 64, QuantFormat()) == "groups of scales that do not divide the gated group"
    packed = QuantFormat(scale_format="ue8m0")
    assert why_not_scales(512, 128, packed) == "UE8M0 words that several gated groups share"
    assert why_not_scales(1024, 512, packed) is None
    assert why_not_scales(640, 640, packed) is None
    assert why_not_scales(512, 128, replace(packed, dtype=INT8, scale_format="fp32")) is None
