"""`rms_norm` and `fused_add_rms_norm` for rows that fit one program's registers: read once, written once."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import columns_at, prefetch_row, row_at, split_rows, wait_for_kernel_before
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def normed_row(
    x,  # rows, as the next two
    residual,
    total,
    weight,  # a pointer, and what is added to its values
    inner,
    eps,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's row, normalised and weighted in fp32, with x + residual written; its place, columns and mask."""
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    columns = tl.arange(0, BLOCK_N)
    mask = columns < N
    if weight is not None:
        weight_ptr, weight_offset = weight
        weight_columns = columns_at(weight_ptr, columns, ALIGNED)
        prefetch_row(weight_ptr, N, BLOCK_N, PDL, OVERLAP)
    wait_for_kernel_before(PDL, OVERLAP)
    x_row = tl.load(row_at(x, outer, row, columns, ALIGNED), mask=mask, other=0.0)
    s = x_row.to(tl.float32)
    if residual is not None:
        s += tl.load(row_at(residual, outer, row, columns, ALIGNED), mask=mask, other=0.0).to(tl.float32)
    if weight is not None:
        weights = tl.load(weight_columns, mask=mask, other=0.0)
    normed = s * tl.rsqrt(tl.sum(s * s, axis=0) / N + eps)
    if total is not None:
        put_rounded(row_at(total, outer, row, columns, ALIGNED), s, mask)
    if weight is not None:
        normed = finish(normed, weights, weight_offset, WEIGHT_IN_FP32, x_row.dtype)
    return normed, outer, row, columns, mask
