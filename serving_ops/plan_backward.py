"""How a gradient of one size runs on CUDA, as `serving_ops.plan` says it for the norms themselves.

Measurements: one H200, torch 2.11, Triton 3.6, bf16 unless said, the gradients of x and weight, device time per call in
a CUDA graph of calls that go over few sets of tensors, 2026-11-21, from throw-away sweeps; `training-h200*.json` have
the figures beside others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving_ops.plan import next_power_of_2

NARROW_N = 2048
NARROW_TILE_BYTES = 8192
NARROW_WARPS = 4
NARROW_PROGRAMS = 2
"""Elements a row up to which a program holds that many bytes of x at a time, of several rows; its warps, and programs
an SM: 32768 x 128 took 13.6 us, with two stages of loads 15.7; 4096 x 1024 12.2 us, a row a program 14.3 or more.
Both before the sum of the parts started early. In fp32 32768 x 512 takes 51.6 us, with twice the rows 56.9."""

TILE_N = 8192
TILE_BYTES = 16384
TILE_WARPS = 8
TILE_PROGRAMS = 1
"""The same for wider rows: 32768 x 4096 takes 196 us, a row at a time 200 or more; 4096 x 8192 takes 55 us."""

STAGES = 3
"""Of loads in flight: 4096 x 8192 takes 55 us with 3, 59 with 4, 68 or more with 1."""

STAGED_ROW_BYTES = 16384
"""Bytes of x in a row up to which loads are staged: 4096 x 8192 takes 104 us in fp32 without, 108 to 110 with 3."""

WIDE_MAX_N = 32768
"""Elements a row up to which one program's registers hold the gradient of the weight, in fp32."""

WIDE_WARPS = 16

WIDE_BLOCK = 2048
"""Elements at a time: 16384 x 32768 spills with 4096 and takes 1160 us or more."""

KEPT_MAX_N = 16384
"""Elements a row up to which all of it stays in registers between the two passes, but see WIDE_BLOCK_ADDED: 4096 x
16384 takes 106 us so and 110 read twice; in fp32 202 and 242."""

FETCH_ROW_BYTES = 32768
"""Bytes of x in such a row up to which the next one is fetched to the L2 before the first pass: 4096 x 16384 takes
106 us so, 115 if it is not; in fp32 202 us if it is not, 216 or more if it is."""

WIDE_BLOCK_ADDED = 4096
"""Elements at a time of rows of at most FETCH_ROW_BYTES with a gradient to add, which are read twice: 4096 x 16384
takes 144 us so and 152 with all of the row kept; in fp32 272 kept and 299 read twice."""

WIDE_FETCH_ROW_BYTES = 65536
"""Bytes of x in a row wider still up to which the next one is fetched, with hints for the caches: 16384 x 32768 takes
898 us in bf16 and 884 in fp16 so, 945 and 934 if it is not, 1450 in bf16 without hints. With a gradient to add, whose
row is fetched at once, 1147 if the next row is not fetched, 1262 or more if it is: two rows an SM of everything do
not fit the L2."""

WIDE_KEPT = 4
"""Blocks that stay in registers of rows of more than WIDE_FETCH_ROW_BYTES: in fp32 16384 x 32768 takes 2166 us so,
2293 or more with none, 2490 with the next row fetched; with a gradient to add 2484, 2501 with its row fetched. 16-bit
rows are read twice: in bf16 it would be 880 instead of 898, but in fp16 952 instead of 884."""

MOMENTS_BLOCK = 4096
COLUMNS_BLOCK = 2048
COLUMNS_WARPS = 4
COLUMNS_PROGRAMS = 4
"""Of rows wider still: elements at a time in the first and the second kernel, its warps, and programs an SM. Not
measured against others."""

GATED_TILE = 1024
GATED_WARPS = 2
GATED_PROGRAMS = 4
"""As NARROW_TILE_BYTES, in elements, for gated groups: 200000 heads of 128 take 66.3 us, 49152 take 20.3; twice the
elements, with twice the warps and half the programs, 67.7 and 21.1."""

GATED_FEW = ((4096, 256, 1, 2), (2**20, 1024, 2, 2))
"""For up to so many elements in all: elements a program holds at a time, its warps, and programs an SM. 24 heads of 128
take 2.4 us, 768 take 3.1, 6144 take 6.9."""

GATED_WIDE = ((2048, 4, 2), (8192, 16, 1))
"""Of groups wider than GATED_TILE, one at a time, up to so many elements: warps, and programs an SM. Not measured
against others."""

GATED_MAX_N = GATED_WIDE[-1][0]
"""Elements of the widest gated group."""

MAX_ROWS = 2**30
"""Rows a call: the kernels count them in 32 bits, and one step beyond the last."""

MAX_N = COLUMNS_BLOCK * 65535
"""Elements a row: the second dimension of a CUDA grid holds no more blocks of columns."""

SUM_NARROW_N = 512
SUM_NARROW = (128, 4)
SUM_WIDE = (64, 8)
SUM_WARPS = 4
"""Of the parts of a weight's gradient, one a program: parts and columns at a time for weights of up to so many
elements and for wider ones, and warps: 4096 x 1024 takes 10.8 us so, with 16 columns at a time 11.2."""


@dataclass(frozen=True)
class BackwardPlan:
    """One launch over `num_programs` programs: which kernel, the columns and rows a program holds at a time, its warps.

    stages: of loads in flight. Of the wide kernel and aligned rows, kept: blocks of a row in registers between its
    passes; fetch: whether it first has the next row fetched to the L2; fetch_more: this row of the gradient to add;
    hints: whether its loads say what the caches are to keep.
    """

    kernel: Literal["tile", "wide", "columns"]
    block_n: int
    rows: int
    num_warps: int
    programs_per_sm: int
    stages: int = STAGES
    kept: int = 0
    fetch: bool = False
    fetch_more: bool = False
    hints: bool = False

    def column_blocks(self, size: int) -> int:
        """Programs beside one another over a row of `size` elements."""
        return -(-size // self.block_n) if self.kernel == "columns" else 1

    def num_programs(self, num_rows: int, num_sms: int, beside: int) -> int:
        """Programs over the rows where `beside` of them share a row: no more than run at once, none without a row."""
        return max(1, min(max(1, num_sms // beside) * self.programs_per_sm, -(-num_rows // self.rows)))


def gated_may_start_early(num_programs: int, num_sms: int) -> bool:
    """Whether a gated gradient's kernel is launched as a programmatic dependent, so that it may start while the kernel
    before runs. Not where it has to share SMs with that one, probably since its programs come to lie unevenly: 6144
    heads, forward and backward, take 12.5 us so and 9.8 us otherwise. 24 heads, backward, take 2.4 us so and 2.6 us
    otherwise."""
    return num_programs < num_sms


def plan_norm_backward(size: int, itemsize: int, has_more: bool) -> BackwardPlan:
    """For rows of `size` elements of `itemsize` bytes; has_more: a gradient is to be added."""
    block_n = next_power_of_2(size)
    row_bytes = size * itemsize
    if block_n <= NARROW_N:
        return BackwardPlan("tile", block_n, NARROW_TILE_BYTES // (block_n * itemsize), NARROW_WARPS, NARROW_PROGRAMS)
    if block_n <= TILE_N:
        rows, stages = max(1, TILE_BYTES // (block_n * itemsize)), STAGES if row_bytes <= STAGED_ROW_BYTES else 1
        return BackwardPlan("tile", block_n, rows, TILE_WARPS, TILE_PROGRAMS, stages)
    if size > WIDE_MAX_N:
        return BackwardPlan("columns", COLUMNS_BLOCK, 1, COLUMNS_WARPS, COLUMNS_PROGRAMS)
    fetch = row_bytes <= FETCH_ROW_BYTES
    if size <= KEPT_MAX_N and fetch and has_more:
        return BackwardPlan("wide", WIDE_BLOCK_ADDED, 1, WIDE_WARPS, 1, fetch=True, fetch_more=True)
    if size <= KEPT_MAX_N:
        kept = -(-size // WIDE_BLOCK)
        return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, kept=kept, fetch=fetch, fetch_more=has_more)
    if row_bytes > WIDE_FETCH_ROW_BYTES:
        return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, kept=WIDE_KEPT, hints=True)
    return BackwardPlan("wide", WIDE_BLOCK, 1, WIDE_WARPS, 1, fetch=not has_more, fetch_more=has_more, hints=True)


def plan_gated_backward(group_size: int, num_groups: int) -> BackwardPlan | None:
    """For so many gated groups in all; None if no kernel takes them."""
    block_n = next_power_of_2(group_size)
    if block_n > GATED_MAX_N:
        return None
    if block_n > GATED_TILE:
        warps, programs = next(launch for most, *launch in GATED_WIDE if block_n <= most)
        return BackwardPlan("tile", block_n, 1, warps, programs)
    for most, tile, warps, programs in GATED_FEW:
        if num_groups * block_n <= most and block_n <= tile:
            return BackwardPlan("tile", block_n, tile // block_n, warps, programs)
    return BackwardPlan("tile", block_n, min(32, GATED_TILE // block_n), GATED_WARPS, GATED_PROGRAMS)
