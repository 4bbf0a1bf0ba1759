"""What the kernels share: the addresses of rows, their sums, and the wait for the previous kernel."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_kernel_before(PDL: tl.constexpr, OVERLAP: tl.constexpr):
    """Wait until the previous kernel has ended (programmatic dependent launch).

    This kernel may start while the previous one runs, so read nothing that another kernel may have written before this
    call. Dependents may start only after the wait, when all earlier kernels are complete. So the kernel after the next
    one never starts while this kernel's inputs are still being written. They may start early only if the grid leaves
    room on the SMs (OVERLAP); otherwise they would displace this grid's own programs."""
    if PDL:
        gdc_wait()
        if OVERLAP:
            gdc_launch_dependents()


@triton.jit
def let_sum_start(PDL: tl.constexpr):
    """Let the sum kernel (`partial_sum`), which is launched next, start while this kernel runs.

    The sum kernel waits for the end of this kernel before it reads. Use only when the whole grid is resident: the sum
    kernel then starts after the last program has started, and cannot displace one.
    """
    if PDL:
        gdc_launch_dependents()


@triton.jit
def prefetch_row(ptr, N: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr, OVERLAP: tl.constexpr):
    """Fetch a weight to L2 while the kernel before still runs. Its values are read after the wait, since that kernel
    may be the one that writes them (`weight.float() + 1`). All SMs write through the L2, so a prefetch to there cannot
    make a stale value visible; one to the L1 could. One program does it for all. A load whose result is dropped costs
    0.3 us between two products: it holds a register."""
    if PDL and OVERLAP:
        LINE: tl.constexpr = 128 // (ptr.dtype.element_ty.primitive_bitwidth // 8)
        if tl.program_id(0) == 0:
            lines = ptr + tl.minimum(tl.arange(0, BLOCK_N // LINE) * LINE, N - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                "=r,l",
                [lines.to(tl.int64)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def fetch_row_to_l2(row_ptr, BYTES: tl.constexpr):
    """Fetch a row to the L2 with one instruction of one thread; BYTES is a multiple of 16, and so is the address."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 thread; mov.u32 thread, %tid.x; setp.eq.u32 p, thread, 0; "
        f"@p cp.async.bulk.prefetch.L2.global [$1], {BYTES}; mov.u32 $0, 0; }}",
        "=r,l",
        [row_ptr.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def split_rows(rows, inner, FLAT: tl.constexpr):
    """Split row numbers into (outer, inner). The division has 32 bits: with 64 a prefill took 15% longer."""
    outer = rows * 0
    if not FLAT:
        outer = rows // inner
        rows = rows - outer * inner
    return outer.to(tl.int64), rows.to(tl.int64)


@triton.jit
def columns_at(start_ptr, columns, ALIGNED: tl.constexpr, BYTES: tl.constexpr = 16):
    """Pointers to the columns of a row, or of a parameter, that starts at `start_ptr`; None for None.

    BYTES: the alignment. For results of one byte it is the number of elements that a thread reads at a time. Elements
    then lie in registers as in a plain norm, and are summed in the same order.
    """
    ptrs = None
    if start_ptr is not None:
        ptrs = start_ptr + columns
        if ALIGNED:
            ptrs = tl.multiple_of(ptrs, BYTES)
    return ptrs


@triton.jit
def row_start(rows, outer, row):
    """The pointer to a row; None for None. rows: a pointer, and the strides of outer and of inner rows."""
    start = None
    if rows is not None:
        ptr, outer_stride, row_stride = rows
        start = ptr + outer * outer_stride + row * row_stride
    return start


@triton.jit
def row_at(rows, outer, row, columns, ALIGNED: tl.constexpr, BYTES: tl.constexpr = 16):
    """Pointers to the columns of one row; None for None. rows: as for `row_start`."""
    return columns_at(row_start(rows, outer, row), columns, ALIGNED, BYTES)


@triton.jit
def tile_at(rows, outer, row, columns, ALIGNED: tl.constexpr, BYTES: tl.constexpr = 16):
    """The same for several rows, whose places are vectors."""
    ptrs = None
    if rows is not None:
        ptr, outer_stride, row_stride = rows
        ptrs = ptr + (outer * outer_stride + row * row_stride)[:, None] + columns[None, :]
        if ALIGNED:
            ptrs = tl.multiple_of(ptrs, [1, BYTES])
    return ptrs


@triton.jit
def pairwise_sum(values, ROWS: tl.constexpr, WIDTH: tl.constexpr, LOG2_WIDTH: tl.constexpr):
    """Row sums of (ROWS, WIDTH), as a binary tree over neighbours: the same bits in every layout, tile and warp."""
    for level in tl.static_range(LOG2_WIDTH):
        values = tl.sum(tl.reshape(values, (ROWS, WIDTH >> (level + 1), 2)), axis=2)
    return tl.reshape(values, (ROWS,))


@triton.jit
def _add_both(a, b, other_a, other_b):
    return a + other_a, b + other_b


@triton.jit
def sums_of_two(a, b):
    """The row sums of two tiles, with one wait for the other warps instead of two."""
    return tl.reduce((a, b), 1, _add_both)
