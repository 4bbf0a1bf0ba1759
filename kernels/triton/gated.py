"""`rms_norm_gated`: groups of a row normalised and gated, one warp a group where a group is a head; and quantized."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import triton
import triton.language as tl
from serving_ops.kernels.launches import Plan, Quantized, RowGrid
from serving_ops.kernels.triton.arithmetic import columns_at, pairwise_sum, split_rows, tile_at, wait_for_kernel_before
from serving_ops.kernels.triton.epilogue import UE8M0, put_quantized_rows, put_rounded
from serving_ops.kernels.triton.finish import finish_gated, gate_of
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import constants_of, fields_of, quant_fields, quant_flags, starts_like
from serving_ops.kernels.triton.variant import Variant, flags_of, starts_aligned, unspecialized


@triton.jit
def gated_tile(
    x,  # rows, as for `row_start`
    z,  # likewise, or None
    weight_ptr,  # or None
    bias_ptr,  # or None
    num_rows,
    inner,
    eps,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    PAIRWISE: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's group of its rows, normalised and gated in fp32; their places, columns and mask."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_N)
    in_group = columns < GROUP
    mask = (rows < num_rows)[:, None] & in_group[None, :]
    group = tl.program_id(1) * GROUP + columns
    outer, row = split_rows(rows, inner, FLAT)
    weight_columns = columns_at(weight_ptr, group, ALIGNED)
    wait_for_kernel_before(PDL, OVERLAP)
    y = tl.load(tile_at(x, outer, row, group, ALIGNED), mask=mask, other=0.0).to(tl.float32)
    gate = None
    if z is not None:
        gate = gate_of(tl.load(tile_at(z, outer, row, group, ALIGNED), mask=mask, other=0.0), SIGMOID)
        if GATE_FIRST:
            y *= gate
            gate = None
    weight = None
    if weight_ptr is not None:
        weight = tl.load(weight_columns, mask=in_group, other=0.0).to(tl.float32)
    if PAIRWISE:
        squares = pairwise_sum(y * y, ROWS, BLOCK_N, LOG2_BLOCK_N)
    else:
        squares = tl.sum(y * y, axis=1)
    y *= tl.rsqrt(squares / GROUP + eps)[:, None]
    y = finish_gated(y, weight, bias_ptr, group, in_group, gate, ALIGNED)
    return y, outer, row, group, mask


@unspecialized
def gated_kernel(
    x_ptr,  # (num_rows, groups, GROUP)
    z_ptr,  # like x, if HAS_GATE
    weight_ptr,  # (groups, GROUP), if HAS_WEIGHT
    bias_ptr,  # (groups, GROUP), if HAS_BIAS
    out_ptr,  # like x, may be x
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    x_outer_stride: tl.int64,
    x_row_stride: tl.int64,
    z_outer_stride: tl.int64,
    z_row_stride: tl.int64,
    out_outer_stride: tl.int64,
    out_row_stride: tl.int64,
    eps: tl.float32,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every group starts on 16 bytes
    PAIRWISE: tl.constexpr,  # one warp a row: the sum is the tile kernels' tree
    HAS_GATE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    z = None
    if HAS_GATE:
        z = (z_ptr, z_outer_stride, z_row_stride)
    y, outer, row, group, mask = gated_tile(
        (x_ptr, x_outer_stride, x_row_stride), z, weight_ptr if HAS_WEIGHT else None, bias_ptr if HAS_BIAS else None,
        num_rows, inner, eps, GROUP, BLOCK_N, LOG2_BLOCK_N, ROWS, FLAT, ALIGNED, PAIRWISE,
        GATE_FIRST, SIGMOID, PDL, OVERLAP,
    )  # fmt: skip
    put_rounded(tile_at((out_ptr, out_outer_stride, out_row_stride), outer, row, group, ALIGNED), y, mask)


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
    z, normed = None, None
    if HAS_GATE:
        z = (z_ptr, z_outer_stride, z_row_stride)
    if HAS_NORMED:
        normed = (normed_ptr, normed_outer_stride, normed_row_stride)
    y, outer, row, group, mask = gated_tile(
        (x_ptr, x_outer_stride, x_row_stride), z, weight_ptr if HAS_WEIGHT else None, bias_ptr if HAS_BIAS else None,
        num_rows, inner, eps, GROUP, BLOCK_N, LOG2_BLOCK_N, ROWS, FLAT, ALIGNED, PAIRWISE,
        GATE_FIRST, SIGMOID, PDL, OVERLAP,
    )  # fmt: skip
    values = y.to(x_ptr.dtype.element_ty)
    before = tile_at(normed, outer, row, group, ALIGNED)
    Q_BYTES: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    q_ptrs = tile_at((q_ptr, q_outer_stride, q_row_stride), outer, row, group, ALIGNED, Q_BYTES)
    if SCALED > 0:
        first = tl.program_id(1).to(tl.int64) * (GROUP // SCALED)
        if FORM == UE8M0:
            first = first // 4
        scales_ptr += first * scales_group_stride
    put_quantized_rows(
        before, q_ptrs, values, mask, tl.program_id(0).to(tl.int64) * ROWS, num_rows,
        (scales_ptr, scales_row_stride, scales_group_stride), GROUP, SCALED, FORM,
    )  # fmt: skip


_launcher = Launcher(gated_kernel, enable_fp_fusion=False)  # as tiles of norms
_quantizing = Launcher(gated_quant_kernel, enable_fp_fusion=False)


def gated_call(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    *,
    flat: bool,
    aligned: bool,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return by name the flags and the arguments that all kernels of gated norms share."""
    flags = {
        "gated": 1,
        "second": z is not None,
        "gate_first": z is not None and not norm_before_gate,
        "sigmoid": z is not None and sigmoid,
        "flat": flat,
        "aligned": aligned,
    }
    arguments = {
        "weight_ptr": x if weight is None else weight,
        "bias_ptr": x if bias is None else bias,
        "eps": eps,
        "GROUP": group_size,
        "ALIGNED": aligned,
        "HAS_GATE": z is not None,
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
        "GATE_FIRST": flags["gate_first"],
        "SIGMOID": flags["sigmoid"],
    }
    return flags, arguments


def run_gated(
    x: Tensor,  # (..., N)
    z: Tensor | None,  # like x
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    out: Tensor,  # as for `run_norm`
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    rows: RowGrid,  # of x, z (or x again), `quantized.normed` (or x again) where the norm quantizes, and out
    plan: Plan,
    pdl: bool,
    quantized: Quantized | None = None,  # its scales are written by programs that have one group each
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1.

    A quantized result has the bits of a quantization that follows the plain norm with the same plan.
    """
    size, normed = x.shape[-1], out if quantized is None else quantized.normed
    aligned = starts_aligned((x, z, normed), (weight, bias), group_size)
    aligned = aligned and (quantized is None or starts_like(out, x, group_size))
    options = (eps, norm_before_gate, sigmoid, group_size)
    flags, arguments = gated_call(x, z, weight, bias, *options, flat=rows.inner == rows.num_rows, aligned=aligned)
    tensors = {"x": x, "z": x if z is None else z}
    arguments |= constants_of(plan, pdl)
    grid = (-(-rows.num_rows // plan.rows_per_program), size // group_size, 1)
    if quantized is None:
        arguments |= fields_of(rows, **tensors, out=out)
        _launcher(Variant(flags_of(x, weight, bias, **flags), size, group_size), plan, grid, arguments, pdl)
        return
    arguments |= fields_of(rows, **tensors, normed=x if normed is None else normed, q=out) | quant_fields(quantized)
    variant = Variant(flags_of(x, weight, bias, **flags, **quant_flags(quantized)), group_size, arguments["SCALED"])
    _quantizing(variant, plan, grid, arguments, pdl)
