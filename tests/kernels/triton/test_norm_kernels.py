"""Every norm kernel over shapes, dtypes and strides, in the interpreter or on the GPU, against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_no_less_accurate, exact_norm, rows
from torch import Tensor

from serving_ops import plan, reference
from serving_ops.kernels.triton.norm import run_norm
from serving_ops.layout import row_grid

EPS = 1e-6
PLANS = [
    *(pytest.param(size, plan.Plan("tile", plan.next_power_of_2(size), r, w), id=f"tile{r}x{size}")
      for size in (1, 64, 100, 128, 512) for r, w in ((1, 1), (4, 4))),
    *(pytest.param(size, plan.plan_norm(size, 2, 1), id=f"row{size}") for size in (513, 896, 2048, 4095)),
    *(pytest.param(size, plan.Plan("wide", 1024, 1, 4, kept_n=512), id=f"wide{size}") for size in (1024, 2500)),
]  # fmt: skip


def check(result: Tensor, expected: Tensor, exact: Tensor, device: torch.device) -> None:
    if result.dtype == torch.bfloat16 and device.type == "cpu":
        # Triton's interpreter truncates fp32 to bf16, where the GPU rounds: at most one unit in the last place apart.
        assert torch.allclose(result.float(), expected.float(), rtol=2**-6, atol=1e-6)
        return
    assert_no_less_accurate(result, expected, exact)


@pytest.mark.parametrize(("size", "chosen"), PLANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("weight_kind", ["same", "fp32", "none", "gemma"])
@pytest.mark.parametrize("fused", [True, False])
def test_norm_kernel(
    kernel_device: torch.device,
    size: int,
    chosen: plan.Plan,
    dtype: torch.dtype,
    weight_kind: str,
    fused: bool,
) -> None:
    x, residual = rows((7, size), dtype, kernel_device, 1), rows((7, size), dtype, kernel_device, 2)
    weight = None if weight_kind == "none" else rows((size,), dtype, kernel_device, 3)
    if weight is not None and weight_kind == "fp32":
        weight = weight.float()
    offset = 1.0 if weight_kind == "gemma" else 0.0
    exact = exact_norm(x, residual if fused else None, weight, EPS, offset)
    if fused:
        expected, sums = reference.fused_add_rms_norm(x.clone(), residual.clone(), weight, EPS, weight_offset=offset)
        run_norm(x, residual, weight, x, EPS, offset, row_grid(x, residual, x), chosen, False)
        check(residual, sums, sums.double(), kernel_device)
        check(x, expected, exact, kernel_device)
    else:
        expected, out = (
            reference.rms_norm(x, weight, EPS, weight_offset=offset),
            torch.full_like(x, float("nan")),
        )
        run_norm(x, None, weight, out, EPS, offset, row_grid(x, x, out), chosen, False)
        check(out, expected, exact, kernel_device)


@pytest.mark.parametrize("size", [128, 896])
def test_norm_kernels_read_and_write_strided_rows(kernel_device: torch.device, size: int) -> None:
    x = rows((5, 3, 4 * size), torch.float16, kernel_device, 1)[:, :, size : 2 * size]
    out = torch.zeros(3, 5, size + 8, dtype=torch.float16, device=kernel_device)
    target = out.transpose(0, 1)[:, :, :size]
    grid = row_grid(x, x, target)
    assert grid is not None
    assert grid.inner != grid.num_rows
    run_norm(x, None, None, target, EPS, 0.0, grid, plan.plan_norm(size, 2, 15), False)
    assert torch.allclose(target.float(), reference.rms_norm(x, None, EPS).float(), rtol=2e-3, atol=1e-6)
    assert not out[:, :, size:].any()


@pytest.mark.parametrize("size", [64, 100, 128, 512])
def test_a_rows_bits_do_not_depend_on_the_tile(kernel_device: torch.device, size: int) -> None:
    x = rows((33, size), torch.float32, kernel_device, 1) * 3
    results = []
    for tile_rows, warps in ((1, 1), (2, 1), (8, 4), (32, 4)):
        out = torch.empty_like(x)
        chosen = plan.Plan("tile", plan.next_power_of_2(size), tile_rows, warps)
        run_norm(x, None, None, out, EPS, 0.0, row_grid(x, x, out), chosen, False)
        results.append(out)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("size", [64, 128, 512, 896, 4096, 40000])
def test_a_rows_bits_do_not_depend_on_batch_or_place(kernel_device: torch.device, size: int) -> None:
    x = rows((9, size), torch.float32, kernel_device, 1) * 3

    def run(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        run_norm(x, None, None, out, EPS, 0.0, row_grid(x, x, out), plan.plan_norm(size, 4, x.shape[0]), False)
        return out

    together = run(x)
    for row in range(9):
        assert torch.equal(run(x[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize("size", [128, 896, 70000])
def test_the_sum_may_go_elsewhere_and_the_residual_stay(kernel_device: torch.device, size: int) -> None:
    x, residual = rows((3, size), torch.float32, kernel_device, 1), rows((3, 2 * size), torch.float32, kernel_device, 2)
    residual = residual[:, :size]
    total, out = residual.new_zeros(3, 2 * size)[:, :size], torch.empty_like(x)
    in_place = x.clone(), residual.clone()
    grid, chosen = row_grid(x, residual, out), plan.plan_norm(size, 4, 3)
    before = x.clone(), residual.clone()
    run_norm(x, residual, None, out, EPS, 0.0, grid, chosen, False, total)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    run_norm(*in_place, None, in_place[0], EPS, 0.0, row_grid(*in_place, in_place[0]), chosen, False)
    assert torch.equal(out, in_place[0])
    assert torch.equal(total, in_place[1])


@pytest.mark.parametrize(("size", "chosen"), PLANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_sum_of_an_fp32_residual_is_not_rounded(
    kernel_device: torch.device, size: int, chosen: plan.Plan, dtype: torch.dtype
) -> None:
    x, weight = rows((7, size), dtype, kernel_device, 1), rows((size,), dtype, kernel_device, 3)
    residual = rows((7, size), torch.float32, kernel_device, 2)
    exact, total = exact_norm(x, residual, weight, EPS, 0.0), x.float() + residual
    expected, _ = reference.add_rms_norm(x, residual, weight, EPS)
    run_norm(x, residual, weight, x, EPS, 0.0, row_grid(x, residual, x), chosen, False)
    assert torch.equal(residual, total)
    check(x, expected, exact, kernel_device)


@pytest.mark.parametrize(("size", "chosen"), PLANS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_two_norms_in_a_pair(
    kernel_device: torch.device, size: int, chosen: plan.Plan, dtype: torch.dtype, offset: float
) -> None:
    """The first writes no sum, and the second adds what the first one added."""
    x, residual, later = (rows((7, size), dtype, kernel_device, seed) for seed in (1, 2, 3))
    weight, options = rows((size,), dtype, kernel_device, 4), {"weight_offset": offset}
    before, out = (x.clone(), residual.clone()), torch.full_like(x, float("nan"))
    run_norm(x, residual, weight, out, EPS, offset, row_grid(x, residual, out), chosen, False, drops_sum=True)
    expected, _ = reference.add_rms_norm(x, residual, weight, EPS, **options)
    check(out, expected, exact_norm(x, residual, weight, EPS, offset), kernel_device)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])

    total = later.double() + x.double() + residual.double()
    exact = exact_norm(total, None, weight, EPS, offset)
    expected, sums = reference.fused_add_two_rms_norm(later.clone(), residual.clone(), x, weight, EPS, **options)
    run_norm(later, residual, weight, later, EPS, offset, row_grid(later, residual, later), chosen, False, earlier=x)
    check(residual, sums, total, kernel_device)
    check(later, expected, exact, kernel_device)
    assert torch.equal(x, before[0])


def test_the_norms_of_a_pair_have_the_bits_of_norms_that_keep_an_fp32_sum(kernel_device: torch.device) -> None:
    x, residual, later = (rows((5, 896), torch.float16, kernel_device, seed) for seed in (1, 2, 3))
    total, wide = later.clone(), residual.float()
    grid, chosen = row_grid(x, residual, x), plan.plan_norm(896, 2, 5)
    run_norm(later, residual, None, later, EPS, 0.0, grid, chosen, False, earlier=x)
    run_norm(x, wide, None, x, EPS, 0.0, grid, chosen, False)
    run_norm(total, wide, None, total, EPS, 0.0, grid, chosen, False)
    assert torch.equal(later, total)
    assert torch.equal(residual, wide.half())
