"""The gradient of `rms_norm_gated`, in one pass; sums of rows as in `norm_backward`."""

import triton
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


@triton.jit
def _gate_and_slope(z, SIGMOID: tl.constexpr):
    """The gate and its derivative."""
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    if SIGMOID:
        return sigmoid, sigmoid * (1.0 - sigmoid)
    return z * sigmoid, sigmoid * (1.0 + z * (1.0 - sigmoid))


@unspecialized
def gated_backward_kernel(
    dout_ptr,  # (num_rows, groups, GROUP)
    x_ptr,  # like dout
    z_ptr,  # like dout, if HAS_GATE
    weight_ptr,  # (groups, GROUP), if HAS_WEIGHT
    bias_ptr,  # (groups, GROUP), if HAS_BIAS
    dx_ptr,  # like dout, contiguous
    dz_ptr,  # like dout, contiguous, if HAS_GATE
    partial_ptr,  # (2, programs, groups, GROUP) of fp32: of weight, if HAS_WEIGHT, and of bias, if HAS_BIAS
    num_rows: tl.int32,
    inner: tl.int32,  # rows in the inner of two leading dimensions
    dout_outer_stride: tl.int64,
    dout_row_stride: tl.int64,
    x_outer_stride: tl.int64,
    x_row_stride: tl.int64,
    z_outer_stride: tl.int64,
    z_row_stride: tl.int64,
    eps: tl.float32,
    N: tl.constexpr,  # groups * GROUP
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,  # of rows in flight
    FLAT: tl.constexpr,  # one leading dimension: rows need no division
    ALIGNED: tl.constexpr,  # every group starts on 16 bytes
    HAS_GATE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    SIGMOID: tl.constexpr,
    PDL: tl.constexpr,  # the sum of the parts is launched with programmatic dependent launch, and this kernel may be
):
    wait_for_kernel_before(PDL, False)
    let_sum_start(PDL and (HAS_WEIGHT or HAS_BIAS))
    columns = tl.arange(0, BLOCK_N)
    in_group = columns < GROUP
    group = tl.program_id(1) * GROUP + columns
    dweight = tl.zeros((ROWS, BLOCK_N), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK_N), tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(columns_at(weight_ptr, group, ALIGNED), mask=in_group, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        bias = tl.load(columns_at(bias_ptr, group, ALIGNED), mask=in_group, other=0.0).to(tl.float32)[None, :]
    new_outer_stride = inner.to(tl.int64) * N
    x_rows, dout_rows = (x_ptr, x_outer_stride, x_row_stride), (dout_ptr, dout_outer_stride, dout_row_stride)
    z_rows = (z_ptr, z_outer_stride, z_row_stride)
    dx_rows, dz_rows = (dx_ptr, new_outer_stride, N), (dz_ptr, new_outer_stride, N)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, num_rows, step, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < num_rows)[:, None] & in_group[None, :]
        outer, row = split_rows(rows, inner, FLAT)
        x = tl.load(tile_at(x_rows, outer, row, group, ALIGNED), mask=mask, other=0.0)
        dout = tl.load(tile_at(dout_rows, outer, row, group, ALIGNED), mask=mask, other=0.0)
        dtype = x.dtype
        x = x.to(tl.float32)
        dy = dout.to(tl.float32)
        s = x
        if HAS_GATE:
            z = tl.load(tile_at(z_rows, outer, row, group, ALIGNED), mask=mask, other=0.0)
            gate, slope = _gate_and_slope(z.to(tl.float32), SIGMOID)
            if GATE_FIRST:
                s = x * gate
            else:
                dgate = dy
                dy *= gate
        dn = dy
        if HAS_WEIGHT:
            dn = dy * weight
        squares, products = sums_of_two(s * s, s * dn)
        rstd = tl.where(
            rows < num_rows, tl.rsqrt(squares / GROUP + eps), 0.0
        )  # with eps 0 no NaN from rows that are not
        n = s * rstd[:, None]
        ds = rstd[:, None] * dn - n * (products * rstd * rstd / GROUP)[:, None]
        if HAS_WEIGHT:
            dweight += dy * n
        if HAS_BIAS:
            dbias += dy
        if HAS_GATE:
            if GATE_FIRST:
                dgate = ds * x
                ds *= gate
            else:
                y = n
                if HAS_WEIGHT:
                    y *= weight
                if HAS_BIAS:
                    y += bias
                dgate *= y
            dz = (dgate * slope).to(dtype)
            tl.store(tile_at(dz_rows, outer, row, group, ALIGNED), dz, mask=mask)
        tl.store(tile_at(dx_rows, outer, row, group, ALIGNED), ds.to(dtype), mask=mask)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * N
    if HAS_WEIGHT:
        tl.store(columns_at(partial, group, ALIGNED), tl.sum(dweight, axis=0), mask=in_group)
    if HAS_BIAS:
        partial += tl.num_programs(0).to(tl.int64) * N
        tl.store(columns_at(partial, group, ALIGNED), tl.sum(dbias, axis=0), mask=in_group)
