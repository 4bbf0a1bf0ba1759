"""How a gradient of one size runs on CUDA, as `serving_ops.plan` says it for the norms themselves.

Measurements: one H200, torch 2.11, Triton 3.6, bf16, the gradients of x and weight, device time per call in a CUDA
graph of calls that go over few sets of tensors, 2026-11-21, from throw-away sweeps; `training-h200.json` has
the figures beside others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving_ops.plan import next_power_of_2

NARROW_N = 2048
NARROW_TILE = 4096
NARROW_WARPS = 4
NARROW_PROGRAMS = 2
"""Elements a row up to which a program holds that many elements of several rows, its warps, and programs an SM:
32768 x 128 took 13.6 us, with two stages of loads 15.7; 4096 x 1024 12.2 us, a row a program 14.3 or more. Both before
the sum of the parts started early."""

TILE = 8192
TILE_WARPS = 8
TILE_PROGRAMS = 1
"""The same for wider rows: 32768 x 4096 takes 196 us, a row at a time 200 or more; 4096 x 8192 takes 55 us."""

STAGES = 3
"""Of loads in flight: 4096 x 8192 takes 55 us with 3, 59 with 4, 68 or more with 1."""

WIDE_MAX_N = 32768
"""Elements a row up to which one program's registers hold the gradient of the weight, in fp32."""

EARLY_ROW_BYTES = 32768
WIDE_BLOCK_EARLY = 4096
"""Bytes of x in a row up to which the next row is fetched before the first pass over this one, and elements at a time:
4096 x 16384 takes 108 us so, 121 or more with the row fetched later or not at all."""

LATE_ROW_BYTES = 65536
WIDE_BLOCK_LATE = 2048
"""Bytes up to which it is fetched before the second pass: 16384 x 32768 takes 911 us so, 1515 early, 956 not at all;
with 4096 elements at a time and 32 warps, which spill, 1160 or more. With a gradient to add, whose row is fetched at
once, 1144 us if the next row is not fetched, 1430 if it is; 1640 if the gradient is not."""

WIDE_WARPS = 16

MOMENTS_BLOCK = 4096
COLUMNS_BLOCK = 2048
COLUMNS_WARPS = 4
COLUMNS_PROGRAMS = 4
"""Of rows wider still: elements at a time in the first and the second kernel, its warps, and programs an SM. Not
measured against others."""

GATED_TILE = 2048
GATED_WARPS = 4
GATED_PROGRAMS = 2
"""As NARROW_TILE, for gated groups: 200000 heads of 128 take 69 us, with twice the elements 74, with one stage 75."""

GATED_FEW = ((4096, 256, 1), (262144, 1024, 2))
"""For up to so many elements in all: elements a program holds at a time, and its warps. 24 heads of 128 take 2.5 us,
with 1024 elements 3.0; 768 heads 3.3 us, with GATED_TILE 3.6 or more; in the JSON 768 take 3.8."""

GATED_MAX_N = 8192
GATED_WIDE_WARPS = 16
"""Elements of the widest gated group; and warps for groups beyond GATED_TILE. Not measured against others."""

MAX_ROWS = 2**30
"""Rows a call: the kernels count them in 32 bits, and one step beyond the last."""

MAX_N = COLUMNS_BLOCK * 65535
"""Elements a row: the second dimension of a CUDA grid holds no more blocks of columns."""

SUM_NARROW_N = 512
SUM_NARROW = (128, 4)
SUM_WIDE = (64, 8)
SUM_WARPS = 4
"""Of the parts of a weight's gradient, one a program: parts and columns at a time for weights of up to so many elements
and for wider ones, and warps: 4096 x 1024 takes 10.8 us so, with 16 columns at a time 11.2."""


@dataclass(frozen=True)
class BackwardPlan:
    """One launch over `num_programs` programs: which kernel, the columns and rows a program holds at a time, its warps.

    stages: of loads in flight. Of the wide kernel, fetch: when it has the next row fetched to the L2; fetch_more:
    whether it first fetches this row of the gradient to add; hints: whether its loads say what the caches are to keep.
    """

    kernel: Literal["tile", "wide", "columns"]
    block_n: int
    rows: int
    num_warps: int
    programs_per_sm: int
    stages: int = STAGES
    fetch: Literal["early", "late", "not"] = "not"
    fetch_more: bool = False
    hints: bool = False

    def column_blocks(self, size: int) -> int:
        """Programs beside one another over a row of `size` elements."""
        return -(-size // self.block_n) if self.kernel == "columns" else 1

    def num_programs(self, num_rows: int, num_sms: int, beside: int) -> int:
        """Programs over the rows where `beside` of them share a row: no more than run at once, none without a row."""
        return max(1, min(max(1, num_sms // beside) * self.programs_per_sm, -(-num_rows // self.rows)))


def plan_norm_backward(size: int, itemsize: int, has_more: bool) -> BackwardPlan:
    """For rows of `size` elements of `itemsize` bytes; has_more: a gradient is to be added."""
    block_n = next_power_of_2(size)
    if block_n <= NARROW_N:
        return BackwardPlan("tile", block_n, NARROW_TILE // block_n, NARROW_WARPS, NARROW_PROGRAMS)
    if block_n <= TILE:
        return BackwardPlan("tile", block_n, TILE // block_n, TILE_WARPS, TILE_PROGRAMS)
    if size > WIDE_MAX_N:
        return BackwardPlan("columns", COLUMNS_BLOCK, 1, COLUMNS_WARPS, COLUMNS_PROGRAMS)
    row_bytes = size * itemsize
    if row_bytes <= EARLY_ROW_BYTES:
        return BackwardPlan("wide", WIDE_BLOCK_EARLY, 1, WIDE_WARPS, 1, fetch="early", fetch_more=has_more)
    if row_bytes > LATE_ROW_BYTES:
        return BackwardPlan("wide", WIDE_BLOCK_LATE, 1, WIDE_WARPS, 1)
    fetch: Literal["late", "not"] = "not" if has_more else "late"
    return BackwardPlan("wide", WIDE_BLOCK_LATE, 1, WIDE_WARPS, 1, fetch=fetch, fetch_more=has_more, hints=True)


def plan_gated_backward(group_size: int, num_groups: int) -> BackwardPlan | None:
    """For so many gated groups in all; None if no kernel takes them."""
    block_n = next_power_of_2(group_size)
    if block_n > GATED_MAX_N:
        return None
    if block_n > GATED_TILE:
        return BackwardPlan("tile", block_n, 1, GATED_WIDE_WARPS, 1)
    for most, tile, warps in GATED_FEW:
        if num_groups * block_n <= most and block_n <= tile:
            return BackwardPlan("tile", block_n, tile // block_n, warps, GATED_PROGRAMS)
    return BackwardPlan("tile", block_n, min(32, GATED_TILE // block_n), GATED_WARPS, GATED_PROGRAMS)
