"""`rms_norm` and `fused_add_rms_norm` for rows that fit one program's registers: read once, written once."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import wait_for_kernel_before, warm_cache, weighted


@triton.jit(do_not_specialize=["inner"])
def norm_row_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N), read and written, if HAS_RESIDUAL
    weight_ptr,  # (N,), if HAS_WEIGHT
    out_ptr,  # (num_rows, N), may be x
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
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    outer = row * 0
    if not FLAT:
        outer = row // inner
        row = row % inner
    columns = tl.arange(0, BLOCK_N)
    mask = columns < N
    if HAS_WEIGHT:
        warm_cache(weight_ptr, columns, mask, PDL)
    wait_for_kernel_before(PDL)
    x = tl.load(x_ptr + outer * x_outer_stride + row * x_row_stride + columns, mask=mask, other=0.0)
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        residual_row = residual_ptr + outer * residual_outer_stride + row * residual_row_stride + columns
        residual = tl.load(residual_row, mask=mask, other=0.0)
        s += residual.to(tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    normed = s * tl.rsqrt(tl.sum(s * s, axis=0) / N + eps)
    if HAS_RESIDUAL:
        tl.store(residual_row, s.to(residual.dtype), mask=mask)
    if HAS_WEIGHT:
        normed = weighted(normed, weight, weight_offset, WEIGHT_IN_FP32, x.dtype)
    tl.store(out_ptr + outer * out_outer_stride + row * out_row_stride + columns, normed.to(x.dtype), mask=mask)
