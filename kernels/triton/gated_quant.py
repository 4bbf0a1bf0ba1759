"""`rms_norm_gated_quant`: the gated norm's groups, quantized where they were computed."""

from __future__ import annotations

from torch import Tensor

import triton.language as tl
from serving_ops.kernels.launches import Plan, RowGrid
from serving_ops.kernels.triton.arithmetic import tile_at
from serving_ops.kernels.triton.epilogue import (
    GIVEN,
    UE8M0,
    WHOLE_ROW,
    put_quantized,
    quantize_groups,
    scaled_by_given,
)
from serving_ops.kernels.triton.gated import gated_call, gated_tile
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import constants_of, fields_of
from serving_ops.kernels.triton.norm_quant import (
    QuantFormat,
    columns_of_a_scale,
    quant_arguments,
    quant_flags,
    starts_like,
)
from serving_ops.kernels.triton.variant import Variant, starts_aligned, unspecialized


@unspecialized
def gated_quant_kernel(
    x_ptr,  # (num_rows, groups, GROUP)
    z_ptr,  # like x, if HAS_GATE
    weight_ptr,  # (groups, GROUP), if HAS_WEIGHT
    bias_ptr,  # (groups, GROUP), if HAS_BIAS
    normed_ptr,  # like x, the result before it is quantized, may be x; if HAS_NORMED
    q_ptr,  # like x, of FP8 E4M3 or INT8
    scales_ptr,  # (num_rows, groups * GROUP // SCALED), written; (num_rows, 1) for WHOLE_ROW; one, read, for GIVEN
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    x_outer_stride: tl.int64,
    x_row_stride: tl.int64,
    z_outer_stride: tl.int64,
    z_row_stride: tl.int64,
    normed_outer_stride: tl.int64,
    normed_row_stride: tl.int64,
    q_outer_stride: tl.int64,
    q_row_stride: tl.int64,
    scales_row_stride: tl.int64,  # of rows in one leading dimension
    scales_group_stride: tl.int64,
    eps: tl.float32,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,  # columns of a scale, or GIVEN or WHOLE_ROW
    FORM: tl.constexpr,  # of a scale
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every group starts on 16 bytes; of q, on as many elements
    PAIRWISE: tl.constexpr,  # one warp a row: the sum is the tile kernels' tree
    HAS_GATE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORMED: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    y, outer, row, group, mask = gated_tile(
        x_ptr, z_ptr, weight_ptr, bias_ptr, num_rows, inner,
        x_outer_stride, x_row_stride, z_outer_stride, z_row_stride, eps,
        GROUP, BLOCK_N, LOG2_BLOCK_N, ROWS, FLAT, ALIGNED, PAIRWISE,
        HAS_GATE, HAS_WEIGHT, HAS_BIAS, GATE_FIRST, SIGMOID, PDL, OVERLAP,
    )  # fmt: skip
    values = y.to(x_ptr.dtype.element_ty)
    if HAS_NORMED:
        normed_tile = tile_at(normed_ptr, outer, normed_outer_stride, row, normed_row_stride, group, ALIGNED)
        tl.store(normed_tile, values, mask=mask)
    Q_BYTES: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    q_tile = tile_at(q_ptr, outer, q_outer_stride, row, q_row_stride, group, ALIGNED, Q_BYTES)
    if SCALED == GIVEN:
        put_quantized(q_tile, scaled_by_given(values, tl.load(scales_ptr), q_ptr.dtype.element_ty), mask, True)
    else:
        if SCALED != WHOLE_ROW:
            first = tl.program_id(1).to(tl.int64) * (GROUP // SCALED)
            if FORM == UE8M0:
                first = first // 4
            scales_ptr += first * scales_group_stride
        quantize_groups(
            q_tile, values, mask, tl.program_id(0).to(tl.int64) * ROWS, num_rows,
            scales_ptr, scales_row_stride, scales_group_stride, GROUP, SCALED, FORM,
        )  # fmt: skip


_launcher = Launcher(gated_quant_kernel, enable_fp_fusion=False)  # as `gated`


def why_not_scales(size: int, group_size: int, fmt: QuantFormat) -> str | None:
    """Why a program, which has one group of a row, cannot write the scales; None where it can."""
    if fmt.granularity == "token" and group_size != size:
        return "a scale a row of several gated groups"
    if fmt.granularity == "group" and group_size % fmt.group_size:
        return "groups of scales that do not divide the gated group"
    scales = group_size // fmt.group_size
    if fmt.granularity == "group" and fmt.scale_format == "ue8m0" and group_size != size and scales % 4:
        return "UE8M0 words that several gated groups share"
    return None


def run_gated_quant(
    x: Tensor,  # (..., N)
    z: Tensor | None,  # like x
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    normed: Tensor | None,  # like x; written, may be x
    q: Tensor,  # the shape of x, fmt.dtype; written
    scales: Tensor,  # as `run_norm_quant`
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    fmt: QuantFormat,
    rows: RowGrid,  # of x, z (or x again), normed (or x again) and q
    plan: Plan,
    pdl: bool,
) -> None:
    """Launch on x's device and its current stream; the result has the bits of a quantization that follows `run_gated`.

    The caller has checked the input, and that `why_not_scales` is None; num_rows is at least 1.
    """
    size = x.shape[-1]
    aligned = starts_aligned((x, z, normed), (weight, bias), group_size) and starts_like(q, x, group_size)
    options = (eps, norm_before_gate, sigmoid, group_size)
    flags, arguments = gated_call(x, z, weight, bias, *options, flat=rows.inner == rows.num_rows, aligned=aligned)
    flags |= quant_flags(fmt, normed=normed is not None)
    arguments |= fields_of(rows, x=x, z=x if z is None else z, normed=x if normed is None else normed, q=q)
    arguments |= quant_arguments(fmt, scales) | constants_of(plan, pdl) | {"HAS_NORMED": normed is not None}
    grid = (-(-rows.num_rows // plan.rows_per_program), size // group_size, 1)
    _launcher(Variant(flags, group_size, columns_of_a_scale(fmt)), plan, grid, arguments, pdl)
