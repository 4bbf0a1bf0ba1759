"""How a norm of one size runs on CUDA: frozen values from pure functions, to print, test and compare.

The order in which a row is summed depends on N and the dtype alone, never on the number of rows: rows of at most
`TILE_MAX_N` always run on the tile kernels, whose sum is an explicit pairwise tree, and wider rows always on the
same kernel with the same number of warps.

Measurements: one H200, torch 2.11, Triton 3.6, bf16 `fused_add_rms_norm` unless said otherwise, device time per call
in a CUDA graph, 2026-11-20 and 2026-11-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TILE_MAX_N = 512
"""Elements. Rows up to here fit one warp, so a program can take several; wider ones get a program each."""

FEW_ROWS = 256
"""Rows. Up to here, about two programs an SM, a program a row is fastest: 24 x 128 takes 0.88 us."""

SOME_ROWS_TILE = 512
"""Elements a program holds for more rows than that: 768 x 128 takes 1.02 us, with a row a program 1.48."""

MANY_ROWS = 2048
"""Rows. Beyond, the SMs are full and larger tiles win: 4096 x 256 takes 3.69 us with 8 rows a program, 5.53 with 1."""

MANY_ROWS_TILE = 2048
"""Elements a program holds then: 1048576 x 128 takes 260 us, as many as 32 rows in 4 warps take 265."""

MAX_TILE_ROWS = 16
"""Rows a program. 131072 x 64 takes 19.3 us with 16, 20.2 with 32."""

GATED_MANY_ROWS_WARPS = 2
"""1449144 heads of 128 take 262 us with 2 warps, 264 with a strided gate; with 4 warps 271 and 279."""

OVERLAP_ROWS = 132
"""Rows of the row kernel, as many as an H200 has SMs. Up to here the kernel after it may start early: N = 4096 takes
1.28 us at 1 row and 1.83 at 128 so, otherwise 1.45 and 1.86; 256 rows take 2.72, otherwise 2.43."""

ROW_WARPS = {2048: 4, 4096: 4, 8192: 4, 16384: 8, 32768: 8, 65536: 32}
"""Bytes of x in a row, padded to a power of two: warps of the row kernel, one number for every count of rows. With
twice as many, N = 4096 takes 1.26 us at 1 row (1.25), 135.1 at 16384 (132.6); N = 16384 takes 2.47 at 1 (2.46), 7.71 at
256 (6.48), where half the programs have to wait for registers."""

UNALIGNED_ROW_WARPS = {2048: 4, 4096: 2, 8192: 4, 16384: 4, 32768: 4, 65536: 32}
"""The same for rows whose length is not a multiple of 16 bytes, which are loaded an element at a time: N = 5125 takes
152 us at 13088 rows, with 8 warps 208."""

ROW_MAX_BYTES = 65536
"""Bytes of x in a row that still fit registers: bf16 at N = 32768 takes 64 registers a thread and does not spill."""

WIDE_BLOCK_BYTES = 32768
"""Bytes of x that the two-pass kernel holds at a time."""

WIDE_KEPT_BYTES = 65536
"""Bytes of x that it keeps in registers from the first pass to the second, and of the residual as many, which fills
them: 4096 x 65536 takes 531 us, nothing kept 592; 2048 x 131072 takes 659 us, the L2 being the limit (6 TB/s)."""

WIDE_WARPS = 32

MAX_ROWS = 2**31 - 1024
"""Rows a call. The kernels count them in 32 bits (offsets have 64): no H200 holds more of 32 elements."""


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


def _tile(block_n: int, num_rows: int, many_rows_warps: int) -> Plan:
    if num_rows <= FEW_ROWS:
        return Plan("tile", block_n, 1, 1, overlap=True, max_rows=FEW_ROWS)
    if num_rows <= MANY_ROWS:
        rows = min(MAX_TILE_ROWS, SOME_ROWS_TILE // block_n)
        return Plan("tile", block_n, rows, 1, overlap=True, min_rows=FEW_ROWS + 1, max_rows=MANY_ROWS)
    rows = min(MAX_TILE_ROWS, MANY_ROWS_TILE // block_n)
    return Plan("tile", block_n, rows, many_rows_warps, min_rows=MANY_ROWS + 1)


def _row(size: int, itemsize: int, num_rows: int) -> Plan:
    block_n = next_power_of_2(size)
    warps = UNALIGNED_ROW_WARPS if size * itemsize % 16 else ROW_WARPS
    num_warps = warps[max(2048, block_n * itemsize)]
    if num_rows <= OVERLAP_ROWS:
        return Plan("row", block_n, 1, num_warps, overlap=True, max_rows=OVERLAP_ROWS)
    return Plan("row", block_n, 1, num_warps, min_rows=OVERLAP_ROWS + 1)


def plan_norm(size: int, itemsize: int, num_rows: int) -> Plan:
    """The plan of `rms_norm` and `fused_add_rms_norm` for rows of `size` elements of `itemsize` bytes."""
    block_n = next_power_of_2(size)
    if size <= TILE_MAX_N:
        return _tile(block_n, num_rows, 1)
    if block_n * itemsize <= ROW_MAX_BYTES:
        return _row(size, itemsize, num_rows)
    return Plan("wide", WIDE_BLOCK_BYTES // itemsize, 1, WIDE_WARPS, kept_n=WIDE_KEPT_BYTES // itemsize)


def plan_gated(group_size: int, itemsize: int, num_groups: int) -> Plan | None:
    """The plan of `rms_norm_gated` over `num_groups` groups (rows times groups a row); None if no kernel takes it."""
    block_n = next_power_of_2(group_size)
    if group_size <= TILE_MAX_N:
        return _tile(block_n, num_groups, GATED_MANY_ROWS_WARPS)
    if block_n * itemsize <= ROW_MAX_BYTES // 2:  # the gate shares the registers
        return _row(group_size, itemsize, num_groups)
    return None


def rows_to_prewarm(size: int) -> tuple[int, ...]:
    """Counts of rows that between them ask for every plan of this size."""
    return (1, FEW_ROWS + 1, MANY_ROWS + 1) if size <= TILE_MAX_N else (1, OVERLAP_ROWS + 1)
