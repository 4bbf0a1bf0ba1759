"""The sum of the programs' parts of a weight's gradient, in the order of the programs."""

import triton.language as tl
from serving_ops.kernels.triton.arithmetic import wait_for_kernel_before
from serving_ops.kernels.triton.variant import unspecialized


@unspecialized
def partial_sum_kernel(
    partial_ptr,  # (num_parts, size) of fp32
    out_ptr,  # (size,)
    num_parts: tl.int32,
    size: tl.int32,
    PARTS: tl.constexpr,  # at a time
    COLUMNS: tl.constexpr,  # a program
    PDL: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    wait_for_kernel_before(PDL, False)
    for first in tl.range(0, num_parts, PARTS, num_stages=1):
        parts = first + tl.arange(0, PARTS)
        mask = (parts < num_parts)[:, None] & (columns < size)[None, :]
        total += tl.load(partial_ptr + parts[:, None].to(tl.int64) * size + columns[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + columns, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=columns < size)
