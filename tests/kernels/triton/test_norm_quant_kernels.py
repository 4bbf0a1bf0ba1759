"""The kernels that norm and quantize against the unfused pair: our plain norm's result, quantized by the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import triton
import triton.language as tl
from numerics import rows
from torch import Tensor

from serving_ops import plan, reference
from serving_ops.kernels.launches import Quantized
from serving_ops.kernels.triton.epilogue import FP32, divided, scale_of
from serving_ops.kernels.triton.norm import run_norm
from serving_ops.layout import row_grid
from serving_ops.quant_format import QuantFormat

pytestmark = pytest.mark.usefixtures("gpu_conversions")

EPS = 1e-6
FP8, INT8 = torch.float8_e4m3fn, torch.int8


FORMATS = [
    QuantFormat(granularity="tensor"),
    QuantFormat(dtype=INT8, granularity="tensor"),
    QuantFormat(granularity="token"),
    QuantFormat(granularity="token", scale_format="fp32_power_of_2"),
    QuantFormat(dtype=INT8, granularity="token"),
    QuantFormat(),
    QuantFormat(group_size=64, scale_layout="column_major"),
    QuantFormat(scale_layout="tma_aligned", scale_format="fp32_power_of_2"),
    QuantFormat(scale_layout="tma_aligned", scale_format="ue8m0"),
    QuantFormat(dtype=INT8, group_size=64),
]
PLANS = {
    128: plan.Plan("tile", 128, 2, 1),
    384: plan.Plan("tile", 512, 4, 4),
    896: plan.plan_norm(896, 2, 1),
    4096: plan.plan_norm(4096, 2, 1),
    2560: plan.Plan("wide", 512, 1, 4, kept_n=1024),
}
"""Rows of 384, 896 and 2560 have groups of 128 that do not fill UE8M0's last word."""


def name_of(fmt: QuantFormat) -> str:
    return f"{fmt.dtype}-{fmt.granularity}-{fmt.group_size}-{fmt.scale_format}".removeprefix("torch.")


def saturated(values: Tensor) -> Tensor:
    """To FP8 as the GPU converts."""
    return values.clamp(-448, 448).to(FP8)


def empty_scales(fmt: QuantFormat, num_rows: int, size: int, device: torch.device) -> Tensor:
    """Where scales go, full of what no scale is; or the given one."""
    if fmt.granularity == "tensor":
        return torch.tensor([0.013], device=device)
    shape, dtype, strides = fmt.scales((num_rows, size))
    if strides is None:
        return torch.full(shape, -1, dtype=dtype, device=device)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).fill_(-1)


def quantized(y: Tensor, scales: Tensor, fmt: QuantFormat) -> tuple[Tensor, Tensor]:
    """y, and its scales, as the reference quantizes. scales: the given one, where it is given."""
    if fmt.granularity == "tensor":
        return reference.quantize(y, fmt, scales)[0], scales
    return reference.quantize(y, fmt)


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.itemsize]
    differing = (got.contiguous().view(bits) != want.contiguous().view(bits)).nonzero()
    if differing.numel():
        first = tuple(differing[0].tolist())
        raise AssertionError(f"{len(differing)} elements differ, at {first} {got[first]} is not {want[first]}")


@dataclass
class Results:
    q: Tensor
    scales: Tensor
    normed: Tensor
    residual: Tensor


def run(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, fmt: QuantFormat, chosen: plan.Plan, offset: float = 0.0
):
    """q, scales and normed of the kernel, with the residual written; `x` must stay."""
    before = x.clone()
    q, normed = torch.empty(x.shape, dtype=fmt.dtype, device=x.device), torch.empty_like(x)
    scales = empty_scales(fmt, x.shape[0], x.shape[1], x.device)
    grid = row_grid(x, x if residual is None else residual, normed, q)
    assert grid is not None
    run_norm(x, residual, weight, q, EPS, 0.0, grid, chosen, False, None, Quantized(fmt, scales, normed))
    assert_same_bits(x, before)
    return Results(q, scales, normed, x if residual is None else residual)


def run_quantized(x: Tensor, weight: Tensor, fmt: QuantFormat, chosen: plan.Plan) -> Results:
    """As `run`, for input that NaN keeps from being compared."""
    q, scales = torch.empty(x.shape, dtype=fmt.dtype, device=x.device), empty_scales(fmt, *x.shape, x.device)
    run_norm(x, None, weight, q, EPS, 0.0, row_grid(x, x, x, q), chosen, False, None, Quantized(fmt, scales, None))
    return Results(q, scales, x, x)


def check_as_the_pair(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, fmt: QuantFormat, chosen: plan.Plan
) -> None:
    total, y = None if residual is None else residual.clone(), torch.empty_like(x)
    run_norm(x, total, weight, y, EPS, 0.0, row_grid(x, x if total is None else total, y), chosen, False, None)
    got = run(x, residual, weight, fmt, chosen)
    assert_same_bits(got.normed, y)
    if residual is not None:
        assert_same_bits(residual, total)
    q, scales = quantized(y, got.scales, fmt)
    assert_same_bits(got.scales, scales)
    assert_same_bits(got.q, q)


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
@pytest.mark.parametrize("size", PLANS)
@pytest.mark.parametrize("fused", [True, False])
def test_the_result_has_the_bits_of_a_norm_and_a_quantization(
    kernel_device: torch.device, size: int, fmt: QuantFormat, fused: bool
) -> None:
    for dtype, weight_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        x, residual = rows((3, size), dtype, kernel_device, 1), rows((3, size), dtype, kernel_device, 2)
        x[1] *= torch.logspace(-6, 4, size).to(dtype)  # groups of other magnitudes, and results at the floor
        weight = rows((size,), weight_dtype, kernel_device, 3)
        fmt = replace(fmt, group_size=64) if size % fmt.group_size else fmt
        check_as_the_pair(x, residual if fused else None, weight, fmt, PLANS[size])


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
@pytest.mark.parametrize("size", [128, 4096])
def test_rows_of_zeros_get_the_smallest_scale(kernel_device: torch.device, size: int, fmt: QuantFormat) -> None:
    check_as_the_pair(torch.zeros(2, size, dtype=torch.bfloat16, device=kernel_device), None, None, fmt, PLANS[size])


def test_strided_rows_and_a_normed_result_in_place(kernel_device: torch.device) -> None:
    """x, residual, normed and q are views of wider buffers, in two leading dimensions; normed is x."""
    fmt = QuantFormat(dtype=INT8)

    def view(dtype: torch.dtype, seed: int) -> Tensor:
        buffer = rows((2, 3, 1280), torch.float32, kernel_device, seed).to(dtype)
        return buffer[:, :2, 128 : 128 + 1024]

    x, residual, q = view(torch.bfloat16, 1), view(torch.bfloat16, 2), view(INT8, 3)
    y, total = torch.empty(4, 1024, dtype=x.dtype, device=x.device), residual.reshape(4, 1024).clone()
    chosen = plan.plan_norm(1024, 2, 4)
    run_norm(x.reshape(4, 1024), total, None, y, EPS, 0.0, row_grid(y, total, y), chosen, False)
    scales = empty_scales(fmt, 4, 1024, kernel_device)
    grid = row_grid(x, residual, x, q)
    assert grid is not None
    assert grid.inner != grid.num_rows
    run_norm(x, residual, None, q, EPS, 0.0, grid, chosen, False, None, Quantized(fmt, scales, x))
    expected, expected_scales = quantized(y, scales, fmt)
    assert_same_bits(x.reshape(4, 1024), y)
    assert_same_bits(residual.reshape(4, 1024), total)
    assert_same_bits(scales, expected_scales)
    assert_same_bits(q.reshape(4, 1024), expected)


@pytest.mark.parametrize("fmt", [QuantFormat(), QuantFormat(granularity="token")], ids=name_of)
@pytest.mark.parametrize("size", [512, 896, 40064])
def test_a_rows_bits_do_not_depend_on_its_batch(kernel_device: torch.device, fmt: QuantFormat, size: int) -> None:
    x = rows((5, size), torch.bfloat16, kernel_device, 1)
    together = run(x, None, None, fmt, plan.plan_norm(size, 2, 5))
    for row in range(5):
        alone = run(x[row : row + 1], None, None, fmt, plan.plan_norm(size, 2, 1))
        assert_same_bits(alone.q[0], together.q[row])
        assert_same_bits(alone.scales[0], together.scales[row])


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_nan_and_infinity_stay_as_in_the_pair(kernel_device: torch.device, fmt: QuantFormat) -> None:
    size = 1024
    x = rows((3, size), torch.bfloat16, kernel_device, 1)
    x[0, 5] = float("nan")
    weight = torch.ones(size, dtype=torch.bfloat16, device=kernel_device)
    weight[700] = float("inf")
    y = torch.empty_like(x)
    chosen = plan.plan_norm(size, 2, 3)
    run_norm(x, None, weight, y, EPS, 0.0, row_grid(x, x, y), chosen, False)
    fmt = replace(fmt, scale_format="fp32") if fmt.scale_format == "ue8m0" else fmt  # that has no infinity
    got = run_quantized(x, weight, fmt, chosen)
    q, scales = quantized(y, got.scales, fmt)
    assert torch.equal(got.scales.isnan(), scales.isnan())
    assert torch.equal(got.scales.nan_to_num(), scales.nan_to_num())
    assert torch.equal(got.q.float().isnan(), q.float().isnan())
    assert torch.equal(got.q.float().nan_to_num(), q.float().nan_to_num())


def test_ue8m0_says_nan_for_what_is_not_finite(kernel_device: torch.device) -> None:
    x = torch.ones(2, 1024, dtype=torch.bfloat16, device=kernel_device)
    weight = torch.ones(1024, dtype=torch.bfloat16, device=kernel_device)
    x[0, 5], weight[700] = float("nan"), float("inf")
    got = run_quantized(x, weight, QuantFormat(scale_format="ue8m0"), plan.plan_norm(1024, 2, 2))
    exponents = got.scales.contiguous().view(torch.uint8).view(2, 8)
    assert exponents[0].eq(255).all()
    assert (exponents[1] == 255).tolist() == [group == 5 for group in range(8)]


def test_divisions_are_rounded_correctly(kernel_device: torch.device) -> None:
    """Every bf16 amax by 448 and by 127, and values by such scales, against a division in float64."""
    import triton.language as tl

    @triton.jit
    def kernel(amax_ptr, values_ptr, fp8_ptr, int8_ptr, quotients_ptr, COUNT: tl.constexpr):
        place = tl.arange(0, COUNT)
        amax = tl.load(amax_ptr + place)
        scale = scale_of(amax, tl.float8e4nv, 128, FP32)
        tl.store(fp8_ptr + place, scale)
        tl.store(int8_ptr + place, scale_of(amax, tl.int8, 128, FP32))
        tl.store(quotients_ptr + place, divided(tl.load(values_ptr + place), scale, FP32))

    amax = torch.arange(2**15, dtype=torch.int32, device=kernel_device).to(torch.int16).view(torch.bfloat16).float()
    amax = torch.where(amax.isfinite(), amax, 1.0)
    generator = torch.Generator().manual_seed(0)
    part = torch.randint(-256, 257, (2**15,), generator=generator).to(kernel_device) / 256
    values = (amax * part).bfloat16().float()
    fp8, int8, quotients = (torch.empty_like(amax) for _ in range(3))
    kernel[(1,)](amax, values, fp8, int8, quotients, 2**15)
    floored = amax.clamp(min=1e-10)
    assert_same_bits(fp8, (floored.double() / 448).float())
    assert_same_bits(int8, (floored.double() / 127).float())
    normal = (values.abs() > 1e-9) | (values == 0)
    assert_same_bits(quotients[normal], (values.double() / fp8.double()).float()[normal])
