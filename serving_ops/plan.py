"""How a norm of one size runs on CUDA: frozen values from pure functions, to print, test and compare.

The order in which a row is summed depends on N, the dtype and whether rows start on 16 bytes, never on their number:
rows of at most `TILE_MAX_N` always run on the tile kernels, whose sum is an explicit pairwise tree, and wider rows
always on the same kernel with the same number of warps.

Measurements: one H200, torch 2.11, Triton 3.6, bf16 `fused_add_rms_norm` unless said otherwise, device time per call
in a CUDA graph, 2026-11-20 and 2026-11-21; of what was not kept, from throw-away sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving_ops.kernels import contract

TILE_MAX_N = 512
"""Elements. Rows up to here fit one warp, so a program can take several; wider ones get a program each."""

FEW_ROWS = 256
"""Rows. Up to here, about two programs an SM, a row a program and a warp a row is fastest: 24 x 128 takes 0.82 us."""

SOME_ROWS = 2048
SOME_ELEMENTS = 524288
"""Rows, and elements of them all, up to which the kernel after may start early: 2048 x 128 takes 1.17 us so, otherwise
1.46; 2048 x 512 takes 2.91, otherwise 2.84."""

NARROW_N = 128
SOME_ROWS_TILE = 512
"""Elements a program holds for that many rows of at most NARROW_N elements, in one warp: 768 x 128 takes 0.97 us, with
a row a program 1.48. Longer rows get a warp each, `TILE_WARPS` a program: 2048 x 256 (`rms_norm`) takes 1.17 us, two
rows in one warp 1.62."""

MANY_ROWS_TILE = 16
"""Rows a program of at most NARROW_N elements beyond that, in `TILE_WARPS`: 32768 x 128 (`rms_norm`) takes 3.39 us,
with one warp 3.70, with two 3.97. Longer ones get a warp each there too: 262144 x 256 takes 129.2 us,
8 rows in one warp 130.8."""

TILE_WARPS = 4

GATED_SOME_ROWS_TILE = 256
"""The same for gated groups: 32 tokens of 24 heads of 128 take 1.01 us, with 512 elements 1.14."""

GATED_MORE_ROWS = 8192
GATED_TILE = 2048
"""Groups, and elements a program holds from SOME_ROWS on, up to GATED_MORE_ROWS in `TILE_WARPS` and with the kernel
after starting early: 256 tokens of 24 heads take 1.88 us so, 3.12 with two warps and not early."""

GATED_MANY_ROWS_WARPS = 2
"""Beyond: 1449144 heads of 128 take 262 us with 2 warps, 264 with a strided gate; with 4 warps 271 and 279."""

OVERLAP_ROWS = 132
"""Rows of the row kernel, as many as an H200 has SMs. Up to here the kernel after it may start early: N = 4096 takes
1.28 us at 1 row and 1.83 at 128 so, otherwise 1.45 and 1.86; 256 rows take 2.72, otherwise 2.43."""

ROW_WARPS = {8192: 4, 12288: 8, 16384: 16, 32768: 8, 65536: 32}
"""Warps of the row kernel by the bytes of x in a row, up to the key; one number for every count of rows. Others are up
to 5% faster at some count: N = 4096 takes 1.25 us at 1 row, with 8 warps 1.26, and 132.6 us at 16384, with 8 135.1;
N = 7168 3.31 us at 256, with 8 3.61; N = 16384 6.48 us at 256, with 16 7.71: half the programs wait for registers."""

UNALIGNED_ROW_WARPS = {2048: 4, 4096: 2, 32768: 4, 65536: 32}
"""The same for rows whose length is not a multiple of 16 bytes, which are loaded an element at a time: N = 5125 takes
152 us at 13088 rows, with 8 warps 208."""

ROW_MAX_BYTES = 65536
"""Bytes of x in a row that still fit registers: bf16 at N = 32768 takes 64 registers a thread and does not spill."""

WIDE_BLOCK_BYTES = 32768
"""Bytes of x that the two-pass kernel holds at a time."""

WIDE_KEPT_BYTES = 65536
"""Bytes of x that it keeps in registers from the first pass to the second, and of the residual as many, which fills
them: 4096 x 65536 takes 542 us, nothing kept 592; 2048 x 131072 takes 673 us."""

WIDE_WARPS = 32

MAX_ROWS: int = contract.LIMITS["max_rows"]
"""Rows a call. The kernels count them in 32 bits (offsets have 64): no H200 holds more of 32 elements."""

MAX_N = 2**30
"""Elements a row: the kernels count columns in 32 bits too."""

MAX_GROUPS = 65535
"""Gated groups a row: the second dimension of a CUDA grid holds no more."""


@dataclass(frozen=True)
class Plan:
    """One launch: which kernel, the columns and rows of a program, its warps; and for which counts of rows.

    overlap: the grid leaves room on the SMs, so the kernel after it may start early (programmatic dependent launch).
    kept_n: columns that the wide kernel keeps in registers.
    """

    kernel: Literal["tile", "row", "wide"]
    block_n: int
    rows_per_program: int
    num_warps: int
    overlap: bool = False
    kept_n: int = 0
    min_rows: int = 1
    max_rows: int = MAX_ROWS


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _norm_tile(block_n: int, num_rows: int) -> Plan:
    some_rows = min(SOME_ROWS, SOME_ELEMENTS // block_n)
    narrow = block_n <= NARROW_N
    if num_rows <= FEW_ROWS:
        return Plan("tile", block_n, 1, 1, overlap=True, max_rows=FEW_ROWS)
    if num_rows <= some_rows:
        rows, warps = (min(MANY_ROWS_TILE, SOME_ROWS_TILE // block_n), 1) if narrow else (TILE_WARPS, TILE_WARPS)
        return Plan("tile", block_n, rows, warps, overlap=True, min_rows=FEW_ROWS + 1, max_rows=some_rows)
    return Plan("tile", block_n, MANY_ROWS_TILE if narrow else TILE_WARPS, TILE_WARPS, min_rows=some_rows + 1)


def _gated_tile(block_n: int, num_rows: int) -> Plan:
    def rows(elements: int) -> int:
        return max(1, min(MANY_ROWS_TILE, elements // block_n))

    if num_rows <= FEW_ROWS:
        return Plan("tile", block_n, 1, 1, overlap=True, max_rows=FEW_ROWS)
    if num_rows <= SOME_ROWS:
        some = rows(GATED_SOME_ROWS_TILE)
        return Plan("tile", block_n, some, 1, overlap=True, min_rows=FEW_ROWS + 1, max_rows=SOME_ROWS)
    if num_rows <= GATED_MORE_ROWS:
        more = rows(GATED_TILE)
        return Plan("tile", block_n, more, TILE_WARPS, overlap=True, min_rows=SOME_ROWS + 1, max_rows=GATED_MORE_ROWS)
    return Plan("tile", block_n, rows(GATED_TILE), GATED_MANY_ROWS_WARPS, min_rows=GATED_MORE_ROWS + 1)


def _row(size: int, itemsize: int, num_rows: int) -> Plan:
    block_n, row_bytes = next_power_of_2(size), size * itemsize
    warps = UNALIGNED_ROW_WARPS if row_bytes % 16 else ROW_WARPS
    num_warps = next(number for most, number in warps.items() if row_bytes <= most)
    if num_rows <= OVERLAP_ROWS:
        return Plan("row", block_n, 1, num_warps, overlap=True, max_rows=OVERLAP_ROWS)
    return Plan("row", block_n, 1, num_warps, min_rows=OVERLAP_ROWS + 1)


def plan_norm(size: int, itemsize: int, num_rows: int) -> Plan:
    """The plan of `rms_norm` and `fused_add_rms_norm` for rows of `size` elements of `itemsize` bytes."""
    block_n = next_power_of_2(size)
    if size <= TILE_MAX_N:
        return _norm_tile(block_n, num_rows)
    if block_n * itemsize <= ROW_MAX_BYTES:
        return _row(size, itemsize, num_rows)
    return Plan("wide", WIDE_BLOCK_BYTES // itemsize, 1, WIDE_WARPS, kept_n=WIDE_KEPT_BYTES // itemsize)


def plan_gated(group_size: int, itemsize: int, num_groups: int) -> Plan | None:
    """The plan of `rms_norm_gated` over `num_groups` groups (rows times groups a row); None if no kernel takes it."""
    block_n = next_power_of_2(group_size)
    if group_size <= TILE_MAX_N:
        return _gated_tile(block_n, num_groups)
    if block_n * itemsize <= ROW_MAX_BYTES // 2:  # the gate shares the registers
        return _row(group_size, itemsize, num_groups)
    return None


def rows_to_prewarm(size: int) -> tuple[int, ...]:
    """Counts of rows that between them ask for every plan of this size, gated or not."""
    if size > TILE_MAX_N:
        return (1, OVERLAP_ROWS + 1)
    return (1, FEW_ROWS + 1, SOME_ROWS + 1, GATED_MORE_ROWS + 1)
