"""`rms_norm` and `fused_add_rms_norm` for narrow rows and heads: several rows a program, one warp a row at most."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import pairwise_sum, wait_for_kernel_before, warm_cache, weighted


@triton.jit(do_not_specialize=["num_rows", "inner"])
def norm_tile_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N), read and written, if HAS_RESIDUAL
    weight_ptr,  # (N,), if HAS_WEIGHT
    out_ptr,  # (num_rows, N), may be x
    num_rows,
    inner,  # rows in the inner of two leading dimensions
    x_outer_stride,
    x_row_stride,
    residual_outer_stride,
    residual_row_stride,
    out_outer_stride,
    out_row_stride,
    eps,
    weight_offset,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_N)
    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    outer = rows * 0
    if not FLAT:
        outer = rows // inner
        rows = rows % inner
    if HAS_WEIGHT:
        warm_cache(weight_ptr, columns, columns < N, PDL)
    wait_for_kernel_before(PDL)
    x_rows = x_ptr + (outer * x_outer_stride + rows * x_row_stride)[:, None] + columns[None, :]
    x = tl.load(x_rows, mask=mask, other=0.0)
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        residual_offsets = outer * residual_outer_stride + rows * residual_row_stride
        residual_rows = residual_ptr + residual_offsets[:, None] + columns[None, :]
        residual = tl.load(residual_rows, mask=mask, other=0.0)
        s += residual.to(tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=columns < N, other=0.0)[None, :]
    rstd = tl.rsqrt(pairwise_sum(s * s, ROWS, BLOCK_N, LOG2_BLOCK_N) / N + eps)
    normed = s * rstd[:, None]
    if HAS_RESIDUAL:
        tl.store(residual_rows, s.to(residual.dtype), mask=mask)
    if HAS_WEIGHT:
        normed = weighted(normed, weight, weight_offset, WEIGHT_IN_FP32, x.dtype)
    out_rows = out_ptr + (outer * out_outer_stride + rows * out_row_stride)[:, None] + columns[None, :]
    tl.store(out_rows, normed.to(x.dtype), mask=mask)
