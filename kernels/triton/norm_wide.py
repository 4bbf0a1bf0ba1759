"""`rms_norm` and `fused_add_rms_norm` for rows wider than a program's registers, in two passes.

The second pass reads from L2, which is what limits it. So the registers keep one part of the row from pass to pass, the
rest is read backwards, newest first, and results are stored as what will not be read again.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import columns_at, row_start, split_rows, wait_for_kernel_before
from serving_ops.kernels.triton.epilogue import (
    GIVEN,
    UE8M0,
    WHOLE_ROW,
    larger,
    largest,
    put_quantized,
    put_rounded,
    put_scale,
    quantize_groups,
    scale_of,
    scaled,
    scaled_by_given,
)
from serving_ops.kernels.triton.finish import finish


@triton.jit
def _load(row_ptr, columns, mask, ALIGNED: tl.constexpr, EVICTION: tl.constexpr):
    return tl.load(columns_at(row_ptr, columns, ALIGNED), mask=mask, other=0.0, eviction_policy=EVICTION)


@triton.jit
def _sum(x, residual, earlier, HAS_RESIDUAL: tl.constexpr, HAS_EARLIER: tl.constexpr):
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        added = residual.to(tl.float32)
        if HAS_EARLIER:
            added += earlier.to(tl.float32)
        s += added
    return s


@triton.jit
def _load_sum(x_row, residual_row, earlier_row, columns, mask, ALIGNED: tl.constexpr, EVICTION: tl.constexpr):
    """x, the residual and what was added before (or x again), and their sum in fp32."""
    x = _load(x_row, columns, mask, ALIGNED, EVICTION)
    residual = x
    earlier = x
    if residual_row is not None:
        residual = _load(residual_row, columns, mask, ALIGNED, EVICTION)
    if earlier_row is not None:
        earlier = _load(earlier_row, columns, mask, ALIGNED, EVICTION)
    s = _sum(x, residual, earlier, residual_row is not None, earlier_row is not None)
    return x, residual, earlier, s


@triton.jit
def _finished(s, rstd, weight, columns, mask, dtype: tl.constexpr, ALIGNED: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr):
    normed = s * rstd
    if weight is not None:
        weight_ptr, weight_offset = weight
        weights = _load(weight_ptr, columns, mask, ALIGNED, "evict_last")
        normed = finish(normed, weights, weight_offset, WEIGHT_IN_FP32, dtype)
    return normed


@triton.jit
def _first_pass(
    x_row, residual_row, earlier_row, eps,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The row's rstd, and what is added of the columns that are kept."""
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(BLOCKS):
        columns = KEPT_N + block * BLOCK_N + tl.arange(0, BLOCK_N)
        _, _, _, s = _load_sum(x_row, residual_row, earlier_row, columns, columns < N, ALIGNED, "evict_last")
        squares += s * s
    kept = tl.arange(0, KEPT_N)
    kept_x, kept_residual, kept_earlier, s = _load_sum(
        x_row, residual_row, earlier_row, kept, kept < N, ALIGNED, "evict_first"
    )
    rstd = tl.rsqrt((tl.sum(squares, axis=0) + tl.sum(s * s, axis=0)) / N + eps)
    return rstd, kept_x, kept_residual, kept_earlier


@triton.jit
def _largest_of_row(
    kept_s, x_row, residual_row, rstd, weight, dtype: tl.constexpr,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
):  # fmt: skip
    """A pass over the row for the largest magnitude of its result, newest columns first."""
    kept = tl.arange(0, KEPT_N)
    amax = largest(_finished(kept_s, rstd, weight, kept, kept < N, dtype, ALIGNED, WEIGHT_IN_FP32).to(dtype), 0)
    magnitudes = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(BLOCKS):
        columns = KEPT_N + (BLOCKS - 1 - block) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = columns < N
        _, _, _, s = _load_sum(x_row, residual_row, None, columns, mask, ALIGNED, "evict_last")
        normed = _finished(s, rstd, weight, columns, mask, dtype, ALIGNED, WEIGHT_IN_FP32)
        magnitudes = larger(magnitudes, tl.abs(normed.to(dtype).to(tl.float32)))
    return larger(amax, largest(magnitudes, 0))


@triton.jit
def _put(
    s, first, rstd, amax, scale, weight, total_row, normed_row, q_row, scales, dtype: tl.constexpr,
    N: tl.constexpr, SCALED: tl.constexpr, FORM: tl.constexpr, ALIGNED: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr,
):  # fmt: skip
    """Write the columns from `first` on of the rows that are not None, and the scales of their groups."""
    columns = first + tl.arange(0, s.shape[0])
    mask = columns < N
    values = _finished(s, rstd, weight, columns, mask, dtype, ALIGNED, WEIGHT_IN_FP32)
    if q_row is not None:
        values = values.to(dtype)  # what is quantized is rounded first
    if total_row is not None:
        put_rounded(columns_at(total_row, columns, ALIGNED), s, mask, ".cs")
    if normed_row is not None:
        put_rounded(columns_at(normed_row, columns, ALIGNED), values, mask, ".cs")
    if q_row is not None:
        q_dtype: tl.constexpr = q_row.dtype.element_ty
        q_columns = columns_at(q_row, columns, ALIGNED, 128 // dtype.primitive_bitwidth)
        if SCALED == GIVEN:
            put_quantized(q_columns, scaled_by_given(values, scale, q_dtype), mask, True, ".cs")
        elif SCALED == WHOLE_ROW:
            put_quantized(q_columns, scaled(values, amax, scale, q_dtype, WHOLE_ROW, FORM), mask, False, ".cs")
        else:
            GROUPS_A_PLACE: tl.constexpr = 4 if FORM == UE8M0 else 1
            scales_ptr, scales_row_stride, scales_group_stride = scales
            scales_ptr += first // (SCALED * GROUPS_A_PLACE) * scales_group_stride
            place = (scales_ptr, scales_row_stride, scales_group_stride)
            quantize_groups(q_columns, values, mask, 0, 1, place, N - first, SCALED, FORM, ".cs")


@triton.jit
def norm_wide(
    x, residual, earlier, total, weight, normed, q, scales, inner, eps,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, SCALED: tl.constexpr, FORM: tl.constexpr,
    FLAT: tl.constexpr, ALIGNED: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr, PDL: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Norm this program's row. Writes the sum into `total`, the result into `normed`, and its quantization into `q` and
    `scales` (a pointer, and the strides of rows and of groups), where these are not None. Where a row has one scale,
    `earlier` is None."""
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    x_row = row_start(x, outer, row)
    residual_row = row_start(residual, outer, row)
    earlier_row = row_start(earlier, outer, row)
    total_row = row_start(total, outer, row)
    normed_row = row_start(normed, outer, row)
    q_row = row_start(q, outer, row)
    dtype: tl.constexpr = x_row.dtype.element_ty
    BLOCKS: tl.constexpr = (N - KEPT_N + BLOCK_N - 1) // BLOCK_N
    wait_for_kernel_before(PDL, OVERLAP)
    rstd, kept_x, kept_residual, kept_earlier = _first_pass(
        x_row, residual_row, earlier_row, eps, N, BLOCK_N, KEPT_N, BLOCKS, ALIGNED
    )
    # The sum is computed anew: kept in fp32 it would take twice the registers, and the residual holds it rounded.
    kept_s = _sum(kept_x, kept_residual, kept_earlier, residual is not None, earlier is not None)
    amax, scale = rstd, rstd  # until they are known, if ever they are
    if q is not None:
        scales_ptr, scales_row_stride, scales_group_stride = scales
        if SCALED == GIVEN:
            scale = tl.load(scales_ptr)
        else:
            scales_ptr += tl.program_id(0).to(tl.int64) * scales_row_stride
            scales = (scales_ptr, 0, scales_group_stride)
        if SCALED == WHOLE_ROW:
            amax = _largest_of_row(
                kept_s, x_row, residual_row, rstd, weight, dtype, N, BLOCK_N, KEPT_N, BLOCKS, ALIGNED,
                WEIGHT_IN_FP32,
            )  # fmt: skip
            scale = scale_of(amax, q_row.dtype.element_ty, WHOLE_ROW, FORM)
            put_scale(scales_ptr, scale, FORM)
    _put(
        kept_s, 0, rstd, amax, scale, weight, total_row, normed_row, q_row, scales, dtype,
        N, SCALED, FORM, ALIGNED, WEIGHT_IN_FP32,
    )  # fmt: skip
    for block in range(BLOCKS):
        # Newest first: backwards after the first pass, forwards after the pass for the largest.
        first = KEPT_N + (block if SCALED == WHOLE_ROW else BLOCKS - 1 - block) * BLOCK_N
        columns = first + tl.arange(0, BLOCK_N)
        _, _, _, s = _load_sum(x_row, residual_row, earlier_row, columns, columns < N, ALIGNED, "evict_first")
        _put(
            s, first, rstd, amax, scale, weight, total_row, normed_row, q_row, scales, dtype,
            N, SCALED, FORM, ALIGNED, WEIGHT_IN_FP32,
        )  # fmt: skip
