"""How a gradient of one size runs on CUDA, as `serving_ops.plan` says it for the norms themselves.

Measurements: one H200, torch 2.11, Triton 3.6, bf16 unless said, the gradients of x and weight, device time per call in
a CUDA graph of calls that alternate between a few sets of tensors, 2026-11-21. They come from sweeps that are not kept;
`training-h200*.json` have our figures beside those of other libraries.
"""

from __future__ import annotations

from serving_ops.kernels.launches import BackwardPlan, Block
from serving_ops.plan import next_power_of_2

NARROW_N = 2048
NARROW_TILE_BYTES = 8192
NARROW_WARPS = 4
NARROW_PROGRAMS = 2
"""Elements per row, at most; bytes of x that a program holds at a time, from several rows; warps; programs per SM.
32768 x 128 took 13.6 us, and 15.7 us with two stages of loads. 4096 x 1024 took 12.2 us, and 14.3 us or more with one
row per program. Both were measured before the sum of the parts started early. In fp32 32768 x 512 takes 51.6 us, and
56.9 us with twice the rows."""

TILE_N = 8192
TILE_BYTES = 16384
TILE_WARPS = 8
TILE_PROGRAMS = 1
"""The same for wider rows: 32768 x 4096 takes 196 us, one row at a time 200 or more; 4096 x 8192 takes 55 us."""

STAGES = 3
"""Stages of loads in flight: 4096 x 8192 takes 55 us with 3, 59 us with 4, 68 us or more with 1."""

STAGED_ROW_BYTES = 16384
"""Bytes of x in a row, at most, for staged loads: 4096 x 8192 in fp32 takes 104 us without, 108 to 110 with 3."""

MAX_N = 32768
"""Elements per row, at most, for which one program's registers hold the weight's gradient in fp32."""

WIDE_WARPS = 16

WIDE_BLOCK = 2048
"""Elements at a time: 16384 x 32768 spills with 4096 and takes 1160 us or more."""

KEPT_MAX_N = 16384
"""Elements per row, at most, for which the whole row stays in registers between the two passes, except with
WIDE_BLOCK_ADDED. 4096 x 16384 takes 106 us, and 110 us if the row is read twice; in fp32 202 and 242 us."""

FETCH_ROW_BYTES = 32768
"""Bytes of x in such a row, at most, for which the next row is fetched to the L2 before the first pass. 4096 x 16384
takes 106 us with the fetch and 115 us without; in fp32 216 us or more with it and 202 us without."""

WIDE_BLOCK_ADDED = 4096
"""Elements per block of rows of at most FETCH_ROW_BYTES that have a gradient to add. These rows are read twice: 4096 x
16384 takes 144 us, and 152 us with the whole row kept; in fp32 299 us, and 272 us with the row kept."""

WIDE_FETCH_ROW_BYTES = 65536
"""Bytes of x in a row of more than KEPT_MAX_N elements, at most, for which the next row is fetched, with hints for the
caches. 16384 x 32768 takes 898 us in bf16 and 884 us in fp16; 945 and 934 us without the fetch, 1450 us in bf16 without
hints. With a gradient to add, its row is fetched at once and the next row is not: 1147 us, and 1262 us or more if the
next row is fetched too, because two rows per SM of all operands do not fit the L2."""

WIDE_KEPT = 4
"""Blocks that stay in registers, for rows of more than WIDE_FETCH_ROW_BYTES. In fp32 16384 x 32768 takes 2166 us, 2293
us or more with none kept, and 2490 us with the next row fetched. With a gradient to add it takes 2484 us, and 2501 us
with that row fetched. 16-bit rows are read twice: kept blocks took 880 instead of 898 us in bf16, but 952 instead of
884 us in fp16."""

GATED_TILE = 1024
GATED_WARPS = 2
GATED_PROGRAMS = 4
"""Elements that a program holds at a time, warps, and programs per SM, for gated groups. 200000 heads of 128 take 66.3
us and 49152 heads 20.3 us; with twice the elements, twice the warps and half the programs 67.7 and 21.1 us."""

GATED_FEW = ((4096, 256, 1, 2), (2**20, 1024, 2, 2))
"""Elements in all, at most -> elements that a program holds at a time, its warps, and programs per SM. 24 heads of 128
take 2.4 us, 768 heads 3.1 us, 6144 heads 6.9 us."""

GATED_WIDE = ((2048, 4, 2), (8192, 16, 1))
"""Elements per group, at most -> warps, and programs per SM, for groups wider than GATED_TILE. A program holds one
group at a time. No other values were measured."""

GATED_MAX_N = GATED_WIDE[-1][0]
"""Elements of the widest gated group that a kernel takes."""

MAX_ROWS = 2**30
"""Rows per call: the kernels count rows in 32 bits, to one step beyond the last row."""

SUM_NARROW_N = 512
SUM_NARROW = Block(128, 4, 4)
SUM_WIDE = Block(64, 8, 4)
"""The sum kernel adds the parts of a weight's gradient, one part per program of the gradient's kernel. SUM_NARROW is
for at most SUM_NARROW_N elements. 4096 x 1024 takes 10.8 us, and 11.2 us with 16 columns at a time."""


def sum_block(size: int) -> Block:
    """For the gradient of a weight of `size` elements."""
    return SUM_NARROW if size <= SUM_NARROW_N else SUM_WIDE


def gated_may_start_early(num_programs: int, num_sms: int) -> bool:
    """Return whether a gated gradient's kernel may start while the previous kernel runs (programmatic dependent
    launch).

    It may, unless the two kernels would share SMs. 6144 heads, forward and backward, take 12.5 us with an early start
    and 9.8 us without. 24 heads, backward, take 2.4 us with an early start and 2.6 us without. Hypothesis: on shared
    SMs the programs spread unevenly."""
    return num_programs < num_sms


def plan_norm_backward(size: int, itemsize: int, has_more: bool) -> BackwardPlan:
    """For rows of `size` elements, at most `MAX_N`, of `itemsize` bytes; has_more: a gradient is to be added."""
    block_n = next_power_of_2(size)
    row_bytes = size * itemsize
    if block_n <= NARROW_N:
        rows = NARROW_TILE_BYTES // (block_n * itemsize)
        return BackwardPlan("tile", block_n, rows, NARROW_WARPS, NARROW_PROGRAMS, STAGES)
    if block_n <= TILE_N:
        rows, stages = max(1, TILE_BYTES // (block_n * itemsize)), STAGES if row_bytes <= STAGED_ROW_BYTES else 1
        return BackwardPlan("tile", block_n, rows, TILE_WARPS, TILE_PROGRAMS, stages)
    fetch = row_bytes <= FETCH_ROW_BYTES
    if size <= KEPT_MAX_N and fetch and has_more:
        return BackwardPlan("wide", WIDE_BLOCK_ADDED, 1, WIDE_WARPS, 1, STAGES, fetch=True, fetch_more=True)
    if size <= KEPT_MAX_N:
        kept = -(-size // WIDE_BLOCK)
        return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, STAGES, kept=kept, fetch=fetch, fetch_more=has_more)
    if row_bytes > WIDE_FETCH_ROW_BYTES:
        return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, STAGES, kept=WIDE_KEPT, hints=True)
    fetched = {"fetch": not has_more, "fetch_more": has_more}
    return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, STAGES, **fetched, hints=True)


def plan_gated_backward(group_size: int, num_groups: int) -> BackwardPlan | None:
    """For so many gated groups in all; None if no kernel takes them."""
    block_n = next_power_of_2(group_size)
    if block_n > GATED_MAX_N:
        return None
    if block_n > GATED_TILE:
        warps, programs = next(launch for most, *launch in GATED_WIDE if block_n <= most)
        return BackwardPlan("tile", block_n, 1, warps, programs, STAGES)
    for most, tile, warps, programs in GATED_FEW:
        if num_groups * block_n <= most and block_n <= tile:
            return BackwardPlan("tile", block_n, tile // block_n, warps, programs, STAGES)
    return BackwardPlan("tile", block_n, min(32, GATED_TILE // block_n), GATED_WARPS, GATED_PROGRAMS, STAGES)
