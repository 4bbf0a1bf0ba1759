"""The gradient of `rms_norm` for rows that fit one program's registers: read once, written once.

A grid of as many programs as run at once goes over the rows; each sums its part of the weight's gradient in registers
and writes it once, to be added up by `partial_sum`. No atomics: the same bits every run.
"""

import triton.language as tl
from serving_ops.kernels.triton.arithmetic import (
    columns_at,
    let_sum_start,
    split_rows,
    sums_of_two,
    tile_at,
    wait_for_kernel_before,
)
from serving_ops.kernels.triton.variant import unspecialized


@unspecialized
def norm_backward_kernel(
    dout_ptr,  # (num_rows, N)
    s_ptr,  # (num_rows, N): what was normed
    more_ptr,  # (num_rows, N): a gradient of s to add, if HAS_MORE
    weight_ptr,  # (N,), if HAS_WEIGHT
    ds_ptr,  # (num_rows, N), contiguous
    partial_ptr,  # (programs, N) of fp32, if HAS_WEIGHT
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    dout_outer_stride: tl.int64,
    dout_row_stride: tl.int64,
    s_outer_stride: tl.int64,
    s_row_stride: tl.int64,
    more_outer_stride: tl.int64,
    more_row_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,  # of rows in flight
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_MORE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PDL: tl.constexpr,  # this kernel and the sum of its parts are launched with programmatic dependent launch
):
    wait_for_kernel_before(PDL, False)
    let_sum_start(PDL and HAS_WEIGHT)
    columns = tl.arange(0, BLOCK_N)
    in_row = columns < N
    dweight = tl.zeros((ROWS, BLOCK_N), tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(columns_at(weight_ptr, columns, ALIGNED), mask=in_row, other=0.0)[None, :]
    s_rows, dout_rows = (s_ptr, s_outer_stride, s_row_stride), (dout_ptr, dout_outer_stride, dout_row_stride)
    more_rows, ds_rows = (more_ptr, more_outer_stride, more_row_stride), (ds_ptr, inner.to(tl.int64) * N, N)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, num_rows, step, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & in_row[None, :]
        outer, row = split_rows(rows, inner, FLAT)
        s = tl.load(tile_at(s_rows, outer, row, columns, ALIGNED), mask=mask, other=0.0)
        dout = tl.load(tile_at(dout_rows, outer, row, columns, ALIGNED), mask=mask, other=0.0)
        if HAS_MORE:
            more = tl.load(tile_at(more_rows, outer, row, columns, ALIGNED), mask=mask, other=0.0)
        dtype = s.dtype
        s = s.to(tl.float32)
        dout = dout.to(tl.float32)
        dn = dout
        if HAS_WEIGHT:
            dn = dout * (weight.to(tl.float32) + weight_offset)
        squares, products = sums_of_two(s * s, s * dn)
        rstd = tl.where(rows < num_rows, tl.rsqrt(squares / N + eps), 0.0)  # eps 0: no NaN from rows that are not
        n = s * rstd[:, None]
        ds = rstd[:, None] * dn - n * (products * rstd * rstd / N)[:, None]
        if HAS_MORE:
            ds += more.to(tl.float32)
        if HAS_WEIGHT:
            dweight += dout * n
        tl.store(tile_at(ds_rows, outer, row, columns, ALIGNED), ds.to(dtype), mask=mask)
    if HAS_WEIGHT:
        partial = partial_ptr + tl.program_id(0).to(tl.int64) * N
        tl.store(columns_at(partial, columns, ALIGNED), tl.sum(dweight, axis=0), mask=in_row)
