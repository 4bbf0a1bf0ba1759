"""`rms_norm` and `fused_add_rms_norm` for rows that fit one program's registers: read once, written once."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    prefetch_row,
    split_rows,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.epilogue import put_quantized_rows, put_rounded
from serving_ops.kernels.triton.finish import finish
from serving_ops.kernels.triton.variant import unspecialized


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


@unspecialized
def norm_row_kernel(
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
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    normed, outer, row, columns, mask = normed_row(
        x_ptr, residual_ptr, weight_ptr, total_ptr, inner,
        x_outer_stride, x_row_stride, residual_outer_stride, residual_row_stride, eps, weight_offset,
        N, BLOCK_N, FLAT, ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32, PDL, OVERLAP,
    )  # fmt: skip
    put_rounded(columns_at(out_ptr + outer * out_outer_stride + row * out_row_stride, columns, ALIGNED), normed, mask)


@unspecialized
def norm_row_quant_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N), becomes x + residual; if HAS_RESIDUAL
    weight_ptr,  # (N,), if HAS_WEIGHT
    normed_ptr,  # (num_rows, N), the result before it is quantized, may be x; if HAS_NORMED
    q_ptr,  # (num_rows, N), of FP8 E4M3 or INT8
    scales_ptr,  # (num_rows, N // SCALED), written; (num_rows, 1) for WHOLE_ROW; one, read, for GIVEN
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    x_outer_stride: tl.int64,
    x_row_stride: tl.int64,
    residual_outer_stride: tl.int64,
    residual_row_stride: tl.int64,
    normed_outer_stride: tl.int64,
    normed_row_stride: tl.int64,
    q_outer_stride: tl.int64,
    q_row_stride: tl.int64,
    scales_row_stride: tl.int64,  # of rows in one leading dimension
    scales_group_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SCALED: tl.constexpr,  # columns of a scale, or GIVEN or WHOLE_ROW
    FORM: tl.constexpr,  # of a scale
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes; of q, on as many elements
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_NORMED: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    normed, outer, row, columns, mask = normed_row(
        x_ptr, residual_ptr, weight_ptr, residual_ptr, inner,
        x_outer_stride, x_row_stride, residual_outer_stride, residual_row_stride, eps, weight_offset,
        N, BLOCK_N, FLAT, ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32, PDL, OVERLAP,
    )  # fmt: skip
    values = normed.to(x_ptr.dtype.element_ty)
    normed_row_ptr = normed_ptr + outer * normed_outer_stride + row * normed_row_stride
    Q_BYTES: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    q_columns = columns_at(q_ptr + outer * q_outer_stride + row * q_row_stride, columns, ALIGNED, Q_BYTES)
    put_quantized_rows(
        columns_at(normed_row_ptr, columns, ALIGNED), q_columns, values, mask, tl.program_id(0).to(tl.int64), num_rows,
        scales_ptr, scales_row_stride, scales_group_stride, N, SCALED, FORM, HAS_NORMED,
    )  # fmt: skip
