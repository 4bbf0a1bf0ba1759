"""`rms_norm` and `fused_add_rms_norm` for narrow rows and heads: several rows a program, one warp a row at most."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import columns_at, pairwise_sum, split_rows, tile_at, wait_for_kernel_before
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def normed_tile(
    x,  # rows, as the next two
    residual,
    total,
    weight,  # a pointer, and what is added to its values
    num_rows,
    inner,
    eps,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's rows, normalised and weighted in fp32, with x + residual written; their places and their mask."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_N)
    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    outer, row = split_rows(rows, inner, FLAT)
    if weight is not None:
        weight_ptr, weight_offset = weight
        weight_columns = columns_at(weight_ptr, columns, ALIGNED)
    wait_for_kernel_before(PDL, OVERLAP)
    x_tile = tl.load(tile_at(x, outer, row, columns, ALIGNED), mask=mask, other=0.0)
    s = x_tile.to(tl.float32)
    if residual is not None:
        s += tl.load(tile_at(residual, outer, row, columns, ALIGNED), mask=mask, other=0.0).to(tl.float32)
    if weight is not None:
        weights = tl.load(weight_columns, mask=columns < N, other=0.0)[None, :]
    rstd = tl.rsqrt(pairwise_sum(s * s, ROWS, BLOCK_N, LOG2_BLOCK_N) / N + eps)
    normed = s * rstd[:, None]
    if total is not None:
        put_rounded(tile_at(total, outer, row, columns, ALIGNED), s, mask)
    if weight is not None:
        normed = finish(normed, weights, weight_offset, WEIGHT_IN_FP32, x_tile.dtype)
    return normed, outer, row, columns, mask
