"""`rms_norm` and `fused_add_rms_norm` for rows wider than a program's registers: two passes, the second from L2."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import RUN_TIME, columns_at, split_rows, wait_for_kernel_before, weighted


@triton.jit
def _load_sum(x_row, residual_row, columns, mask, ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr):
    s = tl.load(columns_at(x_row, columns, ALIGNED), mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(columns_at(residual_row, columns, ALIGNED), mask=mask, other=0.0).to(tl.float32)
    return s


@triton.jit(do_not_specialize=RUN_TIME)
def norm_wide_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N), read and written, if HAS_RESIDUAL
    weight_ptr,  # (N,), if HAS_WEIGHT
    out_ptr,  # (num_rows, N), may be x
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
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    x_row = x_ptr + outer * x_outer_stride + row * x_row_stride
    residual_row = x_row
    if HAS_RESIDUAL:
        residual_row = residual_ptr + outer * residual_outer_stride + row * residual_row_stride
    out_row = out_ptr + outer * out_outer_stride + row * out_row_stride
    wait_for_kernel_before(PDL)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, N, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        s = _load_sum(x_row, residual_row, columns, columns < N, ALIGNED, HAS_RESIDUAL)
        squares += s * s
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / N + eps)
    dtype = x_ptr.dtype.element_ty
    # The sum is computed anew: the residual holds it rounded only once it is written.
    for start in range(0, N, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        mask = columns < N
        s = _load_sum(x_row, residual_row, columns, mask, ALIGNED, HAS_RESIDUAL)
        normed = s * rstd
        if HAS_WEIGHT:
            weight = tl.load(columns_at(weight_ptr, columns, ALIGNED), mask=mask, other=0.0)
            normed = weighted(normed, weight, weight_offset, WEIGHT_IN_FP32, dtype)
        if HAS_RESIDUAL:
            tl.store(columns_at(residual_row, columns, ALIGNED), s.to(dtype), mask=mask)
        tl.store(columns_at(out_row, columns, ALIGNED), normed.to(dtype), mask=mask)
