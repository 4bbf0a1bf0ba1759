"""`rms_norm` and `fused_add_rms_norm` for narrow rows and heads: several rows a program, one warp a row at most."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    pairwise_sum,
    split_rows,
    tile_at,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def normed_tile(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    num_rows,
    inner,
    x_outer_stride,
    x_row_stride,
    residual_outer_stride,
    residual_row_stride,
    eps,
    weight_offset,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's rows, normalised and weighted in fp32, with x + residual written; their places and their mask."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_N)
    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    outer, row = split_rows(rows, inner, FLAT)
    weight_columns = columns_at(weight_ptr, columns, ALIGNED)
    wait_for_kernel_before(PDL, OVERLAP)
    x = tl.load(tile_at(x_ptr, outer, x_outer_stride, row, x_row_stride, columns, ALIGNED), mask=mask, other=0.0)
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        residual_tile = tile_at(residual_ptr, outer, residual_outer_stride, row, residual_row_stride, columns, ALIGNED)
        residual = tl.load(residual_tile, mask=mask, other=0.0)
        s += residual.to(tl.float32)
    weight = None
    if HAS_WEIGHT:
        weight = tl.load(weight_columns, mask=columns < N, other=0.0)[None, :]
    rstd = tl.rsqrt(pairwise_sum(s * s, ROWS, BLOCK_N, LOG2_BLOCK_N) / N + eps)
    normed = s * rstd[:, None]
    if HAS_RESIDUAL:
        total_tile = tile_at(total_ptr, outer, residual_outer_stride, row, residual_row_stride, columns, ALIGNED)
        put_rounded(total_tile, s, mask)
    return finish(normed, weight, weight_offset, WEIGHT_IN_FP32, x.dtype), outer, row, columns, mask
