"""`rms_norm_gated`: groups of a row normalised and gated, one warp a group where a group is a head."""

from __future__ import annotations

from torch import Tensor

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import gate, pairwise_sum, wait_for_kernel_before, warm_cache
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import NormPlan, Rows


@triton.jit(do_not_specialize=["num_rows", "inner"])
def gated_kernel(
    x_ptr,  # (num_rows, groups, GROUP)
    z_ptr,  # like x, if HAS_GATE
    weight_ptr,  # (groups, GROUP), if HAS_WEIGHT
    bias_ptr,  # (groups, GROUP), if HAS_BIAS
    out_ptr,  # like x, may be x
    num_rows,
    inner,  # rows in the inner of two leading dimensions
    x_outer_stride,
    x_row_stride,
    z_outer_stride,
    z_row_stride,
    out_outer_stride,
    out_row_stride,
    eps,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    PAIRWISE: tl.constexpr,  # one warp a row: the sum is the tile kernels' tree
    HAS_GATE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_N)
    in_group = columns < GROUP
    mask = (rows < num_rows)[:, None] & in_group[None, :]
    group = tl.program_id(1) * GROUP + columns
    outer = rows * 0
    if not FLAT:
        outer = rows // inner
        rows = rows % inner
    if HAS_WEIGHT:
        warm_cache(weight_ptr, group, in_group, PDL)
    wait_for_kernel_before(PDL)
    x = tl.load(x_ptr + (outer * x_outer_stride + rows * x_row_stride)[:, None] + group[None, :], mask=mask, other=0.0)
    dtype = x.dtype
    y = x.to(tl.float32)
    if HAS_GATE:
        z_rows = z_ptr + (outer * z_outer_stride + rows * z_row_stride)[:, None] + group[None, :]
        g = gate(tl.load(z_rows, mask=mask, other=0.0), SIGMOID)
        if GATE_FIRST:
            y *= g
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + group, mask=in_group, other=0.0).to(tl.float32)
    if PAIRWISE:
        squares = pairwise_sum(y * y, ROWS, BLOCK_N, LOG2_BLOCK_N)
    else:
        squares = tl.sum(y * y, axis=1)
    y *= tl.rsqrt(squares / GROUP + eps)[:, None]
    if HAS_WEIGHT:
        y *= weight[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + group, mask=in_group, other=0.0).to(tl.float32)[None, :]
    if HAS_GATE and not GATE_FIRST:
        y *= g
    out_rows = out_ptr + (outer * out_outer_stride + rows * out_row_stride)[:, None] + group[None, :]
    tl.store(out_rows, y.to(dtype), mask=mask)


_launcher = Launcher(gated_kernel, enable_fp_fusion=False)  # a fused multiply-add would tie bits to the layout


def run_gated(
    x: Tensor,  # (..., N)
    z: Tensor | None,  # like x
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    out: Tensor,  # like x; written, may be x
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    rows: Rows,  # of x, z (or x again) and out
    plan: NormPlan,
    pdl: bool,
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    flat = rows.inner == rows.num_rows
    strides = [s for pair in zip(rows.outer_strides, rows.inner_strides, strict=True) for s in pair]
    pairwise = plan.kernel == "tile"
    options = (z is not None, weight is not None, bias is not None, not norm_before_gate, sigmoid)
    constants = (
        group_size,
        plan.block_n,
        plan.block_n.bit_length() - 1,
        plan.rows_per_program,
        flat,
        pairwise,
        *options,
        pdl,
    )
    dtypes = (x.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype)
    programs = -(-rows.num_rows // plan.rows_per_program)
    _launcher(
        (dtypes, constants, plan.num_warps, *strides),
        x.get_device(),
        (programs, x.shape[-1] // group_size, 1),
        (x, z, weight, bias, out),
        (rows.num_rows, rows.inner, *strides, eps),
        constants,
        plan.num_warps,
        pdl,
    )
