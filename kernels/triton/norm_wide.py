"""`rms_norm` and `fused_add_rms_norm` for rows wider than a program's registers, in two passes.

The second pass reads from L2, which is what limits it. So the registers keep one part of the row from pass to pass, the
rest is read backwards, newest first, and results are stored as what will not be read again.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    split_rows,
    wait_for_kernel_before,
)
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
def _sum(x, residual, HAS_RESIDUAL: tl.constexpr):
    s = x.to(tl.float32)
    if HAS_RESIDUAL:
        s += residual.to(tl.float32)
    return s


@triton.jit
def _finished(
    s, rstd, weight_ptr, columns, mask, weight_offset, dtype: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_WEIGHT: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr,
):  # fmt: skip
    weight = None
    normed = s * rstd
    if HAS_WEIGHT:
        weight = _load(weight_ptr, columns, mask, ALIGNED, "evict_last")
    return finish(normed, weight, weight_offset, WEIGHT_IN_FP32, dtype)


@triton.jit
def _rows_at(
    x_ptr, residual_ptr, total_ptr, inner, x_outer_stride, x_row_stride, residual_outer_stride, residual_row_stride,
    FLAT: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Where this program's rows of x, residual and total start, and its place in another tensor's rows."""
    outer, row = split_rows(tl.program_id(0), inner, FLAT)
    x_row = x_ptr + outer * x_outer_stride + row * x_row_stride
    residual_row = x_row
    total_row = x_row
    if HAS_RESIDUAL:
        residual_offset = outer * residual_outer_stride + row * residual_row_stride
        residual_row = residual_ptr + residual_offset
        total_row = total_ptr + residual_offset
    return x_row, residual_row, total_row, outer, row


@triton.jit
def _load_sum(
    x_row, residual_row, columns, mask,
    ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """x and the residual (or x again), and their sum in fp32."""
    x = _load(x_row, columns, mask, ALIGNED, EVICTION)
    residual = x
    if HAS_RESIDUAL:
        residual = _load(residual_row, columns, mask, ALIGNED, EVICTION)
    return x, residual, _sum(x, residual, HAS_RESIDUAL)


@triton.jit
def _first_pass(
    x_row, residual_row, eps,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The row's rstd, and x and the residual of the columns that are kept."""
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(BLOCKS):
        columns = KEPT_N + block * BLOCK_N + tl.arange(0, BLOCK_N)
        _, _, s = _load_sum(x_row, residual_row, columns, columns < N, ALIGNED, HAS_RESIDUAL, "evict_last")
        squares += s * s
    kept = tl.arange(0, KEPT_N)
    kept_x, kept_residual, s = _load_sum(x_row, residual_row, kept, kept < N, ALIGNED, HAS_RESIDUAL, "evict_first")
    return tl.rsqrt((tl.sum(squares, axis=0) + tl.sum(s * s, axis=0)) / N + eps), kept_x, kept_residual


@triton.jit
def _store(
    s, rstd, total_row, weight_ptr, out_row, columns, mask, weight_offset,
    ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr,
):  # fmt: skip
    normed = _finished(
        s, rstd, weight_ptr, columns, mask, weight_offset, out_row.dtype.element_ty,
        ALIGNED, HAS_WEIGHT, WEIGHT_IN_FP32,
    )  # fmt: skip
    if HAS_RESIDUAL:
        put_rounded(columns_at(total_row, columns, ALIGNED), s, mask, ".cs")
    put_rounded(columns_at(out_row, columns, ALIGNED), normed, mask, ".cs")


@triton.jit
def norm_wide(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, inner, x_outer_stride, x_row_stride,
    residual_outer_stride, residual_row_stride, out_outer_stride, out_row_stride, eps, weight_offset,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, FLAT: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr, PDL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Norm this program's row, with x + residual written."""
    x_row, residual_row, total_row, outer, row = _rows_at(
        x_ptr, residual_ptr, total_ptr, inner, x_outer_stride, x_row_stride, residual_outer_stride, residual_row_stride,
        FLAT, HAS_RESIDUAL,
    )  # fmt: skip
    out_row = out_ptr + outer * out_outer_stride + row * out_row_stride
    BLOCKS: tl.constexpr = (N - KEPT_N + BLOCK_N - 1) // BLOCK_N
    wait_for_kernel_before(PDL, OVERLAP)
    rstd, kept_x, kept_residual = _first_pass(
        x_row, residual_row, eps, N, BLOCK_N, KEPT_N, BLOCKS, ALIGNED, HAS_RESIDUAL
    )
    kept = tl.arange(0, KEPT_N)
    # The sum is computed anew: kept in fp32 it would take twice the registers, and the residual holds it rounded.
    kept_s = _sum(kept_x, kept_residual, HAS_RESIDUAL)
    _store(
        kept_s, rstd, total_row, weight_ptr, out_row, kept, kept < N, weight_offset,
        ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32,
    )  # fmt: skip
    for block in range(BLOCKS):
        columns = KEPT_N + (BLOCKS - 1 - block) * BLOCK_N + tl.arange(0, BLOCK_N)
        _, _, s = _load_sum(x_row, residual_row, columns, columns < N, ALIGNED, HAS_RESIDUAL, "evict_first")
        _store(
            s, rstd, total_row, weight_ptr, out_row, columns, columns < N, weight_offset,
            ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32,
        )  # fmt: skip


@triton.jit
def _largest_of_row(
    kept_x, kept_residual, x_row, residual_row, rstd, weight_ptr, weight_offset, dtype: tl.constexpr,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, BLOCKS: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr,
):  # fmt: skip
    """A pass over the row for the largest magnitude of its result, newest columns first."""
    kept = tl.arange(0, KEPT_N)
    kept_s = _sum(kept_x, kept_residual, HAS_RESIDUAL)
    kept_normed = _finished(
        kept_s, rstd, weight_ptr, kept, kept < N, weight_offset, dtype, ALIGNED, HAS_WEIGHT, WEIGHT_IN_FP32
    )  # fmt: skip
    amax = largest(kept_normed.to(dtype), 0)
    magnitudes = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(BLOCKS):
        columns = KEPT_N + (BLOCKS - 1 - block) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = columns < N
        _, _, s = _load_sum(x_row, residual_row, columns, mask, ALIGNED, HAS_RESIDUAL, "evict_last")
        normed = _finished(
            s, rstd, weight_ptr, columns, mask, weight_offset, dtype, ALIGNED, HAS_WEIGHT, WEIGHT_IN_FP32
        )  # fmt: skip
        magnitudes = larger(magnitudes, tl.abs(normed.to(dtype).to(tl.float32)))
    return larger(amax, largest(magnitudes, 0))


@triton.jit
def _quantize(
    s, rstd, amax, scale, residual_row, weight_ptr, normed_row, q_row, first, mask, scales_ptr, scales_group_stride,
    weight_offset, dtype: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
    SCALED: tl.constexpr, FORM: tl.constexpr, ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_NORMED: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr, Q_BYTES: tl.constexpr,
):  # fmt: skip
    """Write WIDTH columns from `first` on: the sum, the result, its quantization and, of groups, the scales."""
    columns = first + tl.arange(0, WIDTH)
    normed = _finished(
        s, rstd, weight_ptr, columns, mask, weight_offset, dtype, ALIGNED, HAS_WEIGHT, WEIGHT_IN_FP32
    )  # fmt: skip
    values = normed.to(dtype)
    if HAS_RESIDUAL:
        put_rounded(columns_at(residual_row, columns, ALIGNED), s, mask, ".cs")
    if HAS_NORMED:
        tl.store(columns_at(normed_row, columns, ALIGNED), values, mask=mask, cache_modifier=".cs")
    q_columns = columns_at(q_row, columns, ALIGNED, Q_BYTES)
    if SCALED == GIVEN:
        put_quantized(q_columns, scaled_by_given(values, scale, q_row.dtype.element_ty), mask, True, ".cs")
    elif SCALED == WHOLE_ROW:
        quotients = scaled(values, amax, scale, q_row.dtype.element_ty, WHOLE_ROW, FORM)
        put_quantized(q_columns, quotients, mask, False, ".cs")
    else:
        GROUPS_A_PLACE: tl.constexpr = 4 if FORM == UE8M0 else 1
        first_place = first // (SCALED * GROUPS_A_PLACE)
        quantize_groups(
            q_columns, values, mask, 0, 1, scales_ptr + first_place * scales_group_stride, 0, scales_group_stride,
            N - first, SCALED, FORM, ".cs",
        )  # fmt: skip


@triton.jit
def norm_wide_quant(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, q_ptr, scales_ptr, inner, x_outer_stride, x_row_stride,
    residual_outer_stride, residual_row_stride, normed_outer_stride, normed_row_stride, q_outer_stride,
    q_row_stride, scales_row_stride, scales_group_stride, eps, weight_offset,
    N: tl.constexpr, BLOCK_N: tl.constexpr, KEPT_N: tl.constexpr, SCALED: tl.constexpr, FORM: tl.constexpr,
    FLAT: tl.constexpr, ALIGNED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_NORMED: tl.constexpr, WEIGHT_IN_FP32: tl.constexpr, PDL: tl.constexpr, OVERLAP: tl.constexpr,
    Q_BYTES: tl.constexpr,
):  # fmt: skip
    """Norm and quantize this program's row, with x + residual written."""
    x_row, residual_row, _total_row, outer, row = _rows_at(
        x_ptr, residual_ptr, residual_ptr, inner,
        x_outer_stride, x_row_stride, residual_outer_stride, residual_row_stride, FLAT, HAS_RESIDUAL,
    )  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    normed_row = normed_ptr + outer * normed_outer_stride + row * normed_row_stride
    q_row = q_ptr + outer * q_outer_stride + row * q_row_stride
    BLOCKS: tl.constexpr = (N - KEPT_N + BLOCK_N - 1) // BLOCK_N
    wait_for_kernel_before(PDL, OVERLAP)
    rstd, kept_x, kept_residual = _first_pass(
        x_row, residual_row, eps, N, BLOCK_N, KEPT_N, BLOCKS, ALIGNED, HAS_RESIDUAL
    )
    amax, scale = rstd, rstd  # until they are known, if ever they are
    if SCALED == GIVEN:
        scale = tl.load(scales_ptr)
    else:
        scales_ptr += tl.program_id(0).to(tl.int64) * scales_row_stride
    if SCALED == WHOLE_ROW:
        amax = _largest_of_row(
            kept_x, kept_residual, x_row, residual_row, rstd, weight_ptr, weight_offset, dtype,
            N, BLOCK_N, KEPT_N, BLOCKS, ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, WEIGHT_IN_FP32,
        )  # fmt: skip
        scale = scale_of(amax, q_ptr.dtype.element_ty, WHOLE_ROW, FORM)
        put_scale(scales_ptr, scale, FORM)
    kept_s = _sum(kept_x, kept_residual, HAS_RESIDUAL)
    _quantize(
        kept_s, rstd, amax, scale, residual_row, weight_ptr, normed_row, q_row, 0, tl.arange(0, KEPT_N) < N,
        scales_ptr, scales_group_stride, weight_offset, dtype, KEPT_N, N,
        SCALED, FORM, ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, HAS_NORMED, WEIGHT_IN_FP32, Q_BYTES,
    )  # fmt: skip
    for block in range(BLOCKS):
        # Newest first: backwards after the first pass, forwards after the pass for the largest.
        first = KEPT_N + (block if SCALED == WHOLE_ROW else BLOCKS - 1 - block) * BLOCK_N
        mask = first + tl.arange(0, BLOCK_N) < N
        _, _, s = _load_sum(
            x_row, residual_row, first + tl.arange(0, BLOCK_N), mask, ALIGNED, HAS_RESIDUAL, "evict_first"
        )  # fmt: skip
        _quantize(
            s, rstd, amax, scale, residual_row, weight_ptr, normed_row, q_row, first, mask,
            scales_ptr, scales_group_stride, weight_offset, dtype, BLOCK_N, N,
            SCALED, FORM, ALIGNED, HAS_RESIDUAL, HAS_WEIGHT, HAS_NORMED, WEIGHT_IN_FP32, Q_BYTES,
        )  # fmt: skip
