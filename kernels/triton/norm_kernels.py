"""The kernels of `rms_norm` and `fused_add_rms_norm`, plain, quantized and in pairs, for rows of any size.

KERNEL says how rows are loaded and summed, and so which of `norm_rows` and `norm_wide` is compiled. These take the rows
of a tensor as `row_start` does, and a weight with its offset; what is absent is None. Constants are not in these
tuples: Triton keeps no constant that a loop finds in a tuple.
"""

import triton.language as tl
from serving_ops.kernels.triton.epilogue import put_quantized_rows, put_rounded
from serving_ops.kernels.triton.norm_rows import normed_rows, rows_at
from serving_ops.kernels.triton.norm_wide import norm_wide
from serving_ops.kernels.triton.variant import unspecialized


@unspecialized
def norm_rows_kernel(
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
    KERNEL: tl.constexpr,  # "tile", "row" or "wide"
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,  # of a program, for "tile"
    KEPT_N: tl.constexpr,  # columns kept in registers, at most N, for "wide"
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    x, out = (x_ptr, x_outer_stride, x_row_stride), (out_ptr, out_outer_stride, out_row_stride)
    residual, total, weight = None, None, None
    if HAS_RESIDUAL:
        residual = (residual_ptr, residual_outer_stride, residual_row_stride)
        total = (total_ptr, residual_outer_stride, residual_row_stride)
    if HAS_WEIGHT:
        weight = (weight_ptr, weight_offset)
    if KERNEL == "wide":
        norm_wide(
            x, residual, None, total, weight, out, None, None, inner, eps,
            N, BLOCK_N, KEPT_N, None, None, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
    else:
        TILE: tl.constexpr = KERNEL == "tile"
        normed, outer, row, columns, mask = normed_rows(
            x, residual, None, total, weight, num_rows, inner, eps,
            N, BLOCK_N, LOG2_BLOCK_N, ROWS, TILE, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
        put_rounded(rows_at(out, outer, row, columns, ALIGNED, TILE), normed, mask)


@unspecialized
def norm_rows_quant_kernel(
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
    KERNEL: tl.constexpr,  # "tile", "row" or "wide"
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,  # of a program, for "tile"
    KEPT_N: tl.constexpr,  # columns kept in registers, at most N, for "wide"
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
    x, q = (x_ptr, x_outer_stride, x_row_stride), (q_ptr, q_outer_stride, q_row_stride)
    residual, normed, weight = None, None, None
    if HAS_RESIDUAL:
        residual = (residual_ptr, residual_outer_stride, residual_row_stride)
    if HAS_NORMED:
        normed = (normed_ptr, normed_outer_stride, normed_row_stride)
    if HAS_WEIGHT:
        weight = (weight_ptr, weight_offset)
    scales = (scales_ptr, scales_row_stride, scales_group_stride)
    Q_BYTES: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    if KERNEL == "wide":
        norm_wide(
            x, residual, None, residual, weight, normed, q, scales, inner, eps,
            N, BLOCK_N, KEPT_N, SCALED, FORM, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
    else:
        TILE: tl.constexpr = KERNEL == "tile"
        y, outer, row, columns, mask = normed_rows(
            x, residual, None, residual, weight, num_rows, inner, eps,
            N, BLOCK_N, LOG2_BLOCK_N, ROWS, TILE, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
        values = y.to(x_ptr.dtype.element_ty)
        normed_ptrs = rows_at(normed, outer, row, columns, ALIGNED, TILE)
        q_ptrs = rows_at(q, outer, row, columns, ALIGNED, TILE, Q_BYTES)
        first_row = tl.program_id(0).to(tl.int64) * ROWS
        put_quantized_rows(normed_ptrs, q_ptrs, values, mask, first_row, num_rows, scales, N, SCALED, FORM)


@unspecialized
def norm_pair_kernel(
    x_ptr,  # (num_rows, N)
    residual_ptr,  # (num_rows, N); if HAS_EARLIER, becomes residual + earlier + x
    earlier_ptr,  # (num_rows, N) in the strides of residual, if HAS_EARLIER
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
    KERNEL: tl.constexpr,  # "tile", "row" or "wide"
    LOG2_BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,  # of a program, for "tile"
    KEPT_N: tl.constexpr,  # columns kept in registers, at most N, for "wide"
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_EARLIER: tl.constexpr,  # the second norm of a pair; the first one writes no sum
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    x, out = (x_ptr, x_outer_stride, x_row_stride), (out_ptr, out_outer_stride, out_row_stride)
    residual = (residual_ptr, residual_outer_stride, residual_row_stride)
    earlier, total, weight = None, None, None
    if HAS_EARLIER:
        earlier = (earlier_ptr, residual_outer_stride, residual_row_stride)
        total = residual
    if HAS_WEIGHT:
        weight = (weight_ptr, weight_offset)
    if KERNEL == "wide":
        norm_wide(
            x, residual, earlier, total, weight, out, None, None, inner, eps,
            N, BLOCK_N, KEPT_N, None, None, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
    else:
        TILE: tl.constexpr = KERNEL == "tile"
        normed, outer, row, columns, mask = normed_rows(
            x, residual, earlier, total, weight, num_rows, inner, eps,
            N, BLOCK_N, LOG2_BLOCK_N, ROWS, TILE, FLAT, ALIGNED, WEIGHT_IN_FP32, PDL, OVERLAP,
        )  # fmt: skip
        put_rounded(rows_at(out, outer, row, columns, ALIGNED, TILE), normed, mask)
