"""The gradient of `rms_norm` for rows too wide for registers, as long as the weight's gradient still fits them.

A program reads each of its rows twice, one block of columns at a time: first for the row's two sums, then for the
gradient. The work on one row may prefetch the next row to the L2, where that row's first pass finds it. The second pass
finds the row in registers or in the caches.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    fetch_row_to_l2,
    let_sum_start,
    sums_of_two,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.variant import unspecialized


@triton.jit
def _load(row_ptr, columns, N: tl.constexpr, ALIGNED: tl.constexpr, EVICTION: tl.constexpr):
    return tl.load(columns_at(row_ptr, columns, ALIGNED), mask=columns < N, other=0.0, eviction_policy=EVICTION)


@triton.jit
def _weighted(
    dout,
    weight_ptr,
    columns,
    weight_offset,
    N: tl.constexpr,
    ALIGNED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """The gradient of the normed row, in fp32, as `dout` is."""
    if HAS_WEIGHT:
        weight = _load(weight_ptr, columns, N, ALIGNED, EVICTION)
        dout = dout * (weight.to(tl.float32) + weight_offset)
    return dout


@unspecialized
def norm_backward_wide_kernel(
    dout_ptr,  # (num_rows, N)
    s_ptr,  # (num_rows, N): what was normed
    more_ptr,  # (num_rows, N): a gradient of s to add, if HAS_MORE
    weight_ptr,  # (N,), if HAS_WEIGHT
    ds_ptr,  # (num_rows, N), contiguous
    partial_ptr,  # (programs, N) of fp32, if HAS_WEIGHT
    num_rows: tl.int32,
    dout_row_stride: tl.int64,
    s_row_stride: tl.int64,
    more_row_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEPT: tl.constexpr,  # blocks that stay in registers between the passes: last in the first, first in the second
    FETCH: tl.constexpr,  # the next row, before this row's first pass
    FETCH_MORE: tl.constexpr,  # this row of `more`, before its first pass
    HINTS: tl.constexpr,  # keep the row in the first pass, drop it in the second
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_MORE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PDL: tl.constexpr,  # this kernel and the sum of its parts are launched with programmatic dependent launch
):
    wait_for_kernel_before(PDL, False)
    let_sum_start(PDL and HAS_WEIGHT)
    BLOCKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    KEEP: tl.constexpr = "evict_last" if HINTS else ""
    DROP: tl.constexpr = "evict_first" if HINTS else ""
    dtype = ds_ptr.dtype.element_ty
    BYTES: tl.constexpr = N * (dtype.primitive_bitwidth // 8)
    block = tl.arange(0, BLOCK_N)
    step = tl.num_programs(0)
    dweight = ()
    for _ in tl.static_range(BLOCKS):
        dweight += (tl.zeros((BLOCK_N,), tl.float32),)
    for row_number in range(tl.program_id(0), num_rows, step):
        row = tl.full((), row_number, tl.int64)
        s_row = s_ptr + row * s_row_stride
        dout_row = dout_ptr + row * dout_row_stride
        if FETCH:
            next_row = tl.where(row_number + step < num_rows, row + step, row)
            fetch_row_to_l2(s_ptr + next_row * s_row_stride, BYTES)
            fetch_row_to_l2(dout_ptr + next_row * dout_row_stride, BYTES)
        if FETCH_MORE:
            fetch_row_to_l2(more_ptr + row * more_row_stride, BYTES)
        squares = tl.zeros((BLOCK_N,), tl.float32)
        products = tl.zeros((BLOCK_N,), tl.float32)
        for i in tl.static_range(BLOCKS - KEPT):
            columns = (BLOCKS - 1 - i if KEPT else i) * BLOCK_N + block
            s = _load(s_row, columns, N, ALIGNED, KEEP).to(tl.float32)
            dout = _load(dout_row, columns, N, ALIGNED, KEEP).to(tl.float32)
            dn = _weighted(dout, weight_ptr, columns, weight_offset, N, ALIGNED, HAS_WEIGHT, KEEP)
            squares += s * s
            products += s * dn
        kept_s = ()
        kept_dout = ()
        for i in tl.static_range(KEPT):
            columns = (KEPT - 1 - i) * BLOCK_N + block
            kept_s += (_load(s_row, columns, N, ALIGNED, DROP),)
            kept_dout += (_load(dout_row, columns, N, ALIGNED, DROP),)
            s = kept_s[i].to(tl.float32)
            dout = kept_dout[i].to(tl.float32)
            dn = _weighted(dout, weight_ptr, columns, weight_offset, N, ALIGNED, HAS_WEIGHT, KEEP)
            squares += s * s
            products += s * dn
        row_squares, row_products = sums_of_two(squares[None, :], products[None, :])
        rstd = tl.rsqrt(tl.sum(row_squares, axis=0) / N + eps)
        along_n = tl.sum(row_products, axis=0) * rstd * rstd / N
        summed = ()
        for i in tl.static_range(BLOCKS):
            columns = i * BLOCK_N + block
            if i < KEPT:
                s = kept_s[KEPT - 1 - i].to(tl.float32)
                dout = kept_dout[KEPT - 1 - i].to(tl.float32)
            else:
                s = _load(s_row, columns, N, ALIGNED, DROP).to(tl.float32)
                dout = _load(dout_row, columns, N, ALIGNED, DROP).to(tl.float32)
            n = s * rstd
            dn = _weighted(dout, weight_ptr, columns, weight_offset, N, ALIGNED, HAS_WEIGHT, KEEP)
            ds = rstd * dn - n * along_n
            if HAS_MORE:
                ds += _load(more_ptr + row * more_row_stride, columns, N, ALIGNED, "evict_first").to(tl.float32)
            tl.store(
                columns_at(ds_ptr + row * N, columns, ALIGNED), ds.to(dtype), mask=columns < N, cache_modifier=".cs"
            )
            summed += (dweight[i] + dout * n,)
        dweight = summed
    if HAS_WEIGHT:
        partial = partial_ptr + tl.program_id(0).to(tl.int64) * N
        for i in tl.static_range(BLOCKS):
            columns = i * BLOCK_N + block
            tl.store(columns_at(partial, columns, ALIGNED), dweight[i], mask=columns < N)
