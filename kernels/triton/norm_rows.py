"""`rms_norm` and `fused_add_rms_norm` for rows that fit one program's registers: read once, written once.

A program has a tile of several narrow rows or heads, one warp a row at most, or one wider row.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    pairwise_sum,
    prefetch_row,
    row_at,
    split_rows,
    tile_at,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def rows_at(rows, outer, row, columns, ALIGNED: tl.constexpr, TILE: tl.constexpr, BYTES: tl.constexpr = 16):
    """Pointers to the columns of this program's rows; None for None. rows: as for `row_start`."""
    if TILE:
        ptrs = tile_at(rows, outer, row, columns, ALIGNED, BYTES)
    else:
        ptrs = row_at(rows, outer, row, columns, ALIGNED, BYTES)
    return ptrs


@triton.jit
def normed_rows(
    x,  # rows, as the next three
    residual,
    earlier,  # what was added to the residual before, only with a residual
    total,
    weight,  # a pointer, and what is added to its values
    num_rows,
    inner,
    eps,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    TILE: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's rows, normalised and weighted in fp32, with their sum written; their places and their mask."""
    rows = tl.program_id(0)
    if TILE:
        rows = rows * ROWS + tl.arange(0, ROWS)
        columns = tl.arange(0, BLOCK_N)
        mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
        outer, row = split_rows(rows, inner, FLAT)
    else:
        outer, row = split_rows(rows, inner, FLAT)
        columns = tl.arange(0, BLOCK_N)
        mask = columns < N
    if weight is not None:
        weight_ptr, weight_offset = weight
        weight_columns = columns_at(weight_ptr, columns, ALIGNED)
        if not TILE:
            prefetch_row(weight_ptr, N, BLOCK_N, PDL, OVERLAP)
    if TILE:  # whose addresses are vectors: before the wait they gain nothing, and 1024 x 128 takes 1% longer
        wait_for_kernel_before(PDL, OVERLAP)
    x_ptrs = rows_at(x, outer, row, columns, ALIGNED, TILE)
    residual_ptrs = rows_at(residual, outer, row, columns, ALIGNED, TILE)
    earlier_ptrs = rows_at(earlier, outer, row, columns, ALIGNED, TILE)
    if not TILE:
        wait_for_kernel_before(PDL, OVERLAP)
    x_rows = tl.load(x_ptrs, mask=mask, other=0.0)
    s = x_rows.to(tl.float32)
    if residual is not None:
        added = tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
        if earlier is not None:
            added += tl.load(earlier_ptrs, mask=mask, other=0.0).to(tl.float32)
        s += added
    if weight is not None:
        weights = tl.load(weight_columns, mask=columns < N, other=0.0)
        if TILE:
            weights = weights[None, :]
    SUM_FIRST: tl.constexpr = OVERLAP and not TILE  # few rows end sooner
    if total is not None and SUM_FIRST:
        put_rounded(rows_at(total, outer, row, columns, ALIGNED, TILE), s, mask)
    if TILE:
        normed = s * tl.rsqrt(pairwise_sum(s * s, ROWS, BLOCK_N, LOG2_BLOCK_N) / N + eps)[:, None]
    else:
        normed = s * tl.rsqrt(tl.sum(s * s, axis=0) / N + eps)
    if total is not None and not SUM_FIRST:
        put_rounded(rows_at(total, outer, row, columns, ALIGNED, TILE), s, mask)
    if weight is not None:
        normed = finish(normed, weights, weight_offset, WEIGHT_IN_FP32, x_rows.dtype)
    return normed, outer, row, columns, mask
