"""`rms_norm` and `fused_add_rms_norm` for rows wider than a program's registers, in two passes.

The second pass reads from L2, which is what limits it. So the registers keep one part of the row from pass to pass, the
rest is read backwards, newest first, and results are stored as what will not be read again.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    RUN_TIME,
    columns_at,
    split_rows,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def _load(row_ptr, columns, mask, ALIGNED: tl.constexpr, EVICTION: tl.constexpr):
    return tl.load(columns_at(row_ptr, columns, ALIGNED), mask=mask, other=0.0, eviction_policy=EVICTION)


@triton.jit
def _sum(x, residual, HAS_RESIDUAL: tl.constexpr):
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        s += residual.to(tl.float32)
    return s


@triton.jit
def _store(
    s,
    rstd,
    total_row,
    weight_ptr,
    out_row,
    columns,
    mask,
    weight_offset,
    ALIGNED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
):
    weight = None
    normed = s * rstd
    if HAS_WEIGHT:
        weight = _load(weight_ptr, columns, mask, ALIGNED, "evict_last")
    normed = finish(normed, weight, weight_offset, WEIGHT_IN_FP32, out_row.dtype.element_ty)
    if HAS_RESIDUAL:
        put_rounded(columns_at(total_row, columns, ALIGNED), s, mask, ".cs")
    put_rounded(columns_at(out_row, columns, ALIGNED), normed, mask, ".cs")


@triton.jit(do_not_specialize=RUN_TIME)
def norm_wide_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N), if HAS_RESIDUAL
    weight_ptr,  # (N,), if HAS_WEIGHT
    out_ptr,  # (num_rows, N), may be x
    total_ptr,  # (num_rows, N), x + residual in the strides of residual, which it may be; if HAS_RESIDUAL
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    x_outer_stride: tl.int64,
    x_row_stride: tl.int64,
    residual_outer_stride: tl.int64,
    residual_row_stride: tl.int64,
    out_outer_stride: tl.int64,
    out_row_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEPT_N: tl.constexpr,  # columns kept in registers, at most N
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    x_row = x_ptr + outer * x_outer_stride + row * x_row_stride
    residual_row = x_row
    total_row = x_row
    if HAS_RESIDUAL:
        residual_offset = outer * residual_outer_stride + row * residual_row_stride
        residual_row = residual_ptr + residual_offset
        total_row = total_ptr + residual_offset
    out_row = out_ptr + outer * out_outer_stride + row * out_row_stride
    BLOCKS: tl.constexpr = (N - KEPT_N + BLOCK_N - 1) // BLOCK_N
    wait_for_kernel_before(PDL, OVERLAP)

    squares = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(BLOCKS):
        columns = KEPT_N + block * BLOCK_N + tl.arange(0, BLOCK_N)
        x = _load(x_row, columns, columns < N, ALIGNED, "evict_last")
        residual = x
        if HAS_RESIDUAL:
            residual = _load(residual_row, columns, columns < N, ALIGNED, "evict_last")
        s = _sum(x, residual, HAS_RESIDUAL)
        squares += s * s
    kept = tl.arange(0, KEPT_N)
    kept_x = _load(x_row, kept, kept < N, ALIGNED, "evict_first")
    kept_residual = kept_x
    if HAS_RESIDUAL:
        kept_residual = _load(residual_row, kept, kept < N, ALIGNED, "evict_first")
    kept_s = _sum(kept_x, kept_residual, HAS_RESIDUAL)
    rstd = tl.rsqrt((tl.sum(squares, axis=0) + tl.sum(kept_s * kept_s, axis=0)) / N + eps)

    # The sum is computed anew: kept in fp32 it would take twice the registers, and the residual holds it rounded.
    kept_s = _sum(kept_x, kept_residual, HAS_RESIDUAL)
    _store(
        kept_s, rstd, total_row, weight_ptr, out_row, kept, kept < N, weight_offset,
        ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32,
    )  # fmt: skip
    for block in range(BLOCKS):
        columns = KEPT_N + (BLOCKS - 1 - block) * BLOCK_N + tl.arange(0, BLOCK_N)
        x = _load(x_row, columns, columns < N, ALIGNED, "evict_first")
        residual = x
        if HAS_RESIDUAL:
            residual = _load(residual_row, columns, columns < N, ALIGNED, "evict_first")
        s = _sum(x, residual, HAS_RESIDUAL)
        _store(
            s, rstd, total_row, weight_ptr, out_row, columns, columns < N, weight_offset,
            ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32,
        )  # fmt: skip
