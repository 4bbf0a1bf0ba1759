"""The gradient of `rms_norm` for rows so wide that not even the weight's gradient fits registers: two kernels.

The first has a row a program and keeps the row's two sums; the second has a block of columns a program, for some rows.
Few programs share the rows, so each adds up hundreds. It adds to a row what the sum before it lost in rounding (Kahan's
compensated sum), so the error of the weight's gradient does not grow with the number of rows.
"""

import triton.language as tl
from serving_ops.kernels.triton.arithmetic import columns_at, let_sum_start, sums_of_two
from serving_ops.kernels.triton.variant import unspecialized


@unspecialized
def row_moments_kernel(
    dout_ptr,  # (num_rows, N)
    s_ptr,  # (num_rows, N): what was normed
    weight_ptr,  # (N,), if HAS_WEIGHT
    moments_ptr,  # (num_rows, 2) of fp32: rstd, and how much of the normed row to take away
    dout_row_stride: tl.int64,
    s_row_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_WEIGHT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    products = tl.zeros((BLOCK_N,), tl.float32)
    for first in tl.range(0, N, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        mask = columns < N
        s = tl.load(columns_at(s_ptr + row * s_row_stride, columns, ALIGNED), mask=mask, other=0.0).to(tl.float32)
        dn = tl.load(columns_at(dout_ptr + row * dout_row_stride, columns, ALIGNED), mask=mask, other=0.0)
        dn = dn.to(tl.float32)
        if HAS_WEIGHT:
            weight = tl.load(columns_at(weight_ptr, columns, ALIGNED), mask=mask, other=0.0)
            dn *= weight.to(tl.float32) + weight_offset
        squares += s * s
        products += s * dn
    row_squares, row_products = sums_of_two(squares[None, :], products[None, :])
    rstd = tl.rsqrt(tl.sum(row_squares, axis=0) / N + eps)
    tl.store(moments_ptr + row * 2, rstd)
    tl.store(moments_ptr + row * 2 + 1, tl.sum(row_products, axis=0) * rstd * rstd / N)


@unspecialized
def norm_backward_columns_kernel(
    dout_ptr,  # (num_rows, N)
    s_ptr,  # (num_rows, N): what was normed
    more_ptr,  # (num_rows, N): a gradient of s to add, if HAS_MORE
    weight_ptr,  # (N,), if HAS_WEIGHT
    moments_ptr,  # (num_rows, 2) of fp32, from `row_moments_kernel`
    ds_ptr,  # (num_rows, N), contiguous
    partial_ptr,  # (programs, N) of fp32, if HAS_WEIGHT
    num_rows: tl.int32,
    dout_row_stride: tl.int64,
    s_row_stride: tl.int64,
    more_row_stride: tl.int64,
    weight_offset: tl.float32,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,  # of rows in flight
    ALIGNED: tl.constexpr,  # every row starts on 16 bytes
    HAS_MORE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PDL: tl.constexpr,  # the sum of the parts is launched with programmatic dependent launch
):
    let_sum_start(PDL and HAS_WEIGHT)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = columns < N
    dweight = tl.zeros((BLOCK_N,), tl.float32)
    excess = tl.zeros((BLOCK_N,), tl.float32)  # by which rounding made dweight too large
    if HAS_WEIGHT:
        weight = tl.load(columns_at(weight_ptr, columns, ALIGNED), mask=mask, other=0.0)
        weight = weight.to(tl.float32) + weight_offset
    for row_number in tl.range(tl.program_id(0), num_rows, tl.num_programs(0), num_stages=STAGES):
        row = tl.full((), row_number, tl.int64)
        s = tl.load(columns_at(s_ptr + row * s_row_stride, columns, ALIGNED), mask=mask, other=0.0)
        dout = tl.load(columns_at(dout_ptr + row * dout_row_stride, columns, ALIGNED), mask=mask, other=0.0)
        rstd = tl.load(moments_ptr + row * 2)
        n = s.to(tl.float32) * rstd
        dout = dout.to(tl.float32)
        dn = dout
        if HAS_WEIGHT:
            dn = dout * weight
            addend = dout * n - excess
            total = dweight + addend
            excess = (total - dweight) - addend
            excess = tl.where(excess == excess, excess, 0.0)  # an infinite sum stays infinite
            dweight = total
        ds = rstd * dn - n * tl.load(moments_ptr + row * 2 + 1)
        if HAS_MORE:
            more = tl.load(columns_at(more_ptr + row * more_row_stride, columns, ALIGNED), mask=mask, other=0.0)
            ds += more.to(tl.float32)
        tl.store(columns_at(ds_ptr + row * N, columns, ALIGNED), ds.to(s.dtype), mask=mask)
    if HAS_WEIGHT:
        partial = partial_ptr + tl.program_id(0).to(tl.int64) * N
        tl.store(columns_at(partial, columns, ALIGNED), dweight, mask=mask)
