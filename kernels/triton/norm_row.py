"""`rms_norm` and `fused_add_rms_norm` for rows that fit one program's registers: read once, written once."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    prefetch_row,
    split_rows,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.epilogue import put_rounded
from serving_ops.kernels.triton.finish import finish


@triton.jit
def normed_row(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    inner,
    x_outer_stride,
    x_row_stride,
    residual_outer_stride,
    residual_row_stride,
    eps,
    weight_offset,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FLAT: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """This program's row, normalised and weighted in fp32, with x + residual written; its place, columns and mask."""
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    columns = tl.arange(0, BLOCK_N)
    mask = columns < N
    weight_columns = columns_at(weight_ptr, columns, ALIGNED)
    if HAS_WEIGHT:
        prefetch_row(weight_ptr, N, BLOCK_N, PDL, OVERLAP)
    wait_for_kernel_before(PDL, OVERLAP)
    x = tl.load(columns_at(x_ptr + outer * x_outer_stride + row * x_row_stride, columns, ALIGNED), mask=mask, other=0.0)
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        residual_offset = outer * residual_outer_stride + row * residual_row_stride
        residual = tl.load(columns_at(residual_ptr + residual_offset, columns, ALIGNED), mask=mask, other=0.0)
        s += residual.to(tl.float32)
    weight = None
    if HAS_WEIGHT:
        weight = tl.load(weight_columns, mask=mask, other=0.0)
    normed = s * tl.rsqrt(tl.sum(s * s, axis=0) / N + eps)
    if HAS_RESIDUAL:
        put_rounded(columns_at(total_ptr + residual_offset, columns, ALIGNED), s, mask)
    return finish(normed, weight, weight_offset, WEIGHT_IN_FP32, x.dtype), outer, row, columns, mask
