"""How a norm of one size runs on CUDA: frozen values from pure functions, to print, test and compare.

The order in which a row is summed depends on N, the dtype and whether rows start on 16 bytes, never on their number:
rows of at most `TILE_MAX_N` always run on the tile kernels, whose sum is an explicit pairwise tree, and wider rows
always on the same kernel with the same number of warps.

Measurements: one H200, torch 2.11, Triton 3.6, bf16 `fused_add_rms_norm` unless said otherwise, device time per call
in a CUDA graph, 2026-11-20 and 2026-11-21, and for heads and groups of few rows 2026-11-30. Since then rows of the row
kernel take up to 14% less: `docs/ops.md` has the figures of today. Figures of choices that were not kept come from
sweeps that are not kept.
"""

from __future__ import annotations

from serving_ops.kernels import contract
from serving_ops.kernels.launches import Plan

TILE_MAX_N = 512
"""Elements. Rows up to here fit one warp, so a program can take several; wider ones get a program each."""

FEW_ROWS = 256
"""Rows. Up to here four warps of a program have a row or more each, if a row has at most MIDDLE_N elements: 24 x 128
takes 0.74 us, and 0.75 us with a row and a warp a program; 256 x 128 takes 0.81 and 0.89 us. Longer rows get one warp
and a program each: 24 x 512 takes 0.82 us, and 0.99 us with four to a program."""

SOME_ROWS = 2048
SOME_ELEMENTS = 524288
"""Rows in all, and elements in all. Up to here the next kernel may start early: 2048 x 128 takes 1.17 us, and 1.46 us
if the next kernel may not; 2048 x 512 takes 2.91 us, and 2.84 us if it may not."""

NARROW_N, MIDDLE_N = 128, 256
SOME_ROWS_TILE = 512
"""Elements per program up to SOME_ROWS rows of at most NARROW_N elements, and of one warp beyond FEW_ROWS: 768 x 128
takes 0.97 us, and 1.48 us with one row per program. Longer rows get one warp each, `TILE_WARPS` per program: 2048 x 256
(`rms_norm`) takes 1.17 us, and 1.62 us with two rows per warp."""

MANY_ROWS_TILE = 16
"""Rows of at most NARROW_N elements per program of `TILE_WARPS`, beyond SOME_ROWS rows: 32768 x 128 (`rms_norm`) takes
3.39 us, with one warp 3.70 us, with two 3.97 us. Longer rows get one warp each: 262144 x 256 takes 129.2 us, and 130.8
us with 8 rows per warp."""

TILE_WARPS = 4

GATED_FEW_ROWS = 512
GATED_SOME_ROWS = 2560
"""Gated groups of at most NARROW_N elements, one warp each: up to here four, and then eight to a program. Measured with
groups of 128: 16 tokens of 24 heads take 0.86 us, with eight 0.92 us; 32 tokens take 0.91 us, with four 0.98 us."""

GATED_MORE_ROWS = 8192
"""Gated groups up to which the next kernel may start early."""

GATED_MORE_TILE = {False: (16, 8), True: (8, 4)}
GATED_MANY_TILE = {False: (8, 4), True: (8, 2)}
"""Rows and warps of a program up to GATED_MORE_ROWS and beyond, by whether the groups are quantized. The second time is
with a strided gate. 256 tokens of 24 heads take 1.70 and 1.86 us, with 8 rows and 4 warps 1.88 and 1.98 us. 8192 tokens
take 36.1 and 36.1 us, with 16 rows and 8 warps 36.4 and 38.4 us, and with 2 warps 38.5 and 37.2 us. Quantized with a
scale a group, 100 tokens take 1.52 and 1.75 us, with 2 warps 1.71 and 1.92 us; 512 tokens take 3.29 and 3.53 us, with 4
warps 3.27 and 3.88 us. From 8192 tokens on 32 rows and 4 warps would take up to 4% less, and below up to 13% more."""

WIDE_GATED_TILE = 2048
WIDE_GATED_WARPS = 2
"""Elements per program beyond SOME_ROWS groups of more than NARROW_N elements, and warps beyond GATED_MORE_ROWS. Up to
SOME_ROWS they get a program and a warp each: 4 tokens of 24 groups of 256 take 0.97 us, and 1.08 us with four groups
and warps to a program."""

OVERLAP_ROWS = 132
"""Rows of the row kernel: the number of SMs of an H200. Up to here the next kernel may start early. With N = 4096 and
an early start, 1, 128 and 256 rows take 1.28, 1.83 and 2.72 us; without it, 1.45, 1.86 and 2.43 us."""

ROW_WARPS = {8192: 4, 12288: 8, 16384: 16, 32768: 8, 65536: 32}
"""Warps of the row kernel, by the largest number of bytes of x in a row. The number does not depend on the row count;
another one is up to 5% faster at some counts. N = 4096 takes 1.25 us at 1 row and 132.6 us at 16384 rows, with 8 warps
1.26 and 135.1 us. N = 7168 takes 3.31 us at 256 rows, with 8 warps 3.61 us. N = 16384 takes 6.48 us at 256 rows, with
16 warps 7.71 us, because half of the programs then wait for registers."""

UNALIGNED_ROW_WARPS = {2048: 4, 4096: 2, 32768: 4, 65536: 32}
"""Warps for rows whose length is not a multiple of 16 bytes; these are loaded one element at a time. N = 5125 takes 152
us at 13088 rows, with 8 warps 208 us."""

ROW_MAX_BYTES = 65536
"""Bytes of x in a row that still fit registers: bf16 at N = 32768 takes 64 registers a thread and does not spill."""

WIDE_BLOCK_BYTES = 32768
"""Bytes of x that the two-pass kernel holds at a time."""

WIDE_KEPT_BYTES = 65536
"""Bytes of x, and as many of the residual, that the two-pass kernel keeps in registers between its passes; these fill
the registers. 4096 x 65536 takes 542 us, and 592 us with nothing kept; 2048 x 131072 takes 673 us."""

WIDE_WARPS = 32

MAX_ROWS: int = contract.LIMITS["max_rows"]
"""Rows a call. The kernels count them in 32 bits (offsets have 64): no H200 holds more of 32 elements."""

MAX_N = 2**30
"""Elements a row: the kernels count columns in 32 bits too."""

MAX_GROUPS: int = contract.LIMITS["max_groups"]
"""Gated groups a row: the second dimension of a CUDA grid holds no more."""


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _norm_tile(block_n: int, num_rows: int) -> Plan:
    some_rows = min(SOME_ROWS, SOME_ELEMENTS // block_n)
    narrow = block_n <= NARROW_N
    rows = max(TILE_WARPS, min(MANY_ROWS_TILE, SOME_ROWS_TILE // block_n))
    if num_rows <= FEW_ROWS:
        rows, warps = (rows, TILE_WARPS) if block_n <= MIDDLE_N else (1, 1)
        return Plan("tile", block_n, rows, warps, overlap=True, max_rows=FEW_ROWS)
    if num_rows <= some_rows:
        warps = 1 if narrow else TILE_WARPS
        return Plan("tile", block_n, rows, warps, overlap=True, min_rows=FEW_ROWS + 1, max_rows=some_rows)
    return Plan("tile", block_n, MANY_ROWS_TILE if narrow else TILE_WARPS, TILE_WARPS, min_rows=some_rows + 1)


def _narrow_gated_tile(block_n: int, num_rows: int, quantized: bool) -> Plan:
    if num_rows <= GATED_FEW_ROWS:
        return Plan("tile", block_n, 4, 4, overlap=True, max_rows=GATED_FEW_ROWS)
    if num_rows <= GATED_SOME_ROWS:
        return Plan("tile", block_n, 8, 8, overlap=True, min_rows=GATED_FEW_ROWS + 1, max_rows=GATED_SOME_ROWS)
    if num_rows <= GATED_MORE_ROWS:
        rows, warps = GATED_MORE_TILE[quantized]
        more = {"min_rows": GATED_SOME_ROWS + 1, "max_rows": GATED_MORE_ROWS}
        return Plan("tile", block_n, rows, warps, overlap=True, **more)
    rows, warps = GATED_MANY_TILE[quantized]
    return Plan("tile", block_n, rows, warps, min_rows=GATED_MORE_ROWS + 1)


def _wide_gated_tile(block_n: int, num_rows: int) -> Plan:
    if num_rows <= SOME_ROWS:
        return Plan("tile", block_n, 1, 1, overlap=True, max_rows=SOME_ROWS)
    rows = WIDE_GATED_TILE // block_n
    if num_rows <= GATED_MORE_ROWS:
        more = {"min_rows": SOME_ROWS + 1, "max_rows": GATED_MORE_ROWS}
        return Plan("tile", block_n, rows, TILE_WARPS, overlap=True, **more)
    return Plan("tile", block_n, rows, WIDE_GATED_WARPS, min_rows=GATED_MORE_ROWS + 1)


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


def plan_gated(group_size: int, itemsize: int, num_groups: int, *, quantized: bool = False) -> Plan | None:
    """The plan of gated norms over `num_groups` groups (rows times groups a row); None if no kernel takes them."""
    block_n = next_power_of_2(group_size)
    if group_size <= NARROW_N:
        return _narrow_gated_tile(block_n, num_groups, quantized)
    if group_size <= TILE_MAX_N:
        return _wide_gated_tile(block_n, num_groups)
    if block_n * itemsize <= ROW_MAX_BYTES // 2:  # the gate shares the registers
        return _row(group_size, itemsize, num_groups)
    return None


def rows_to_prewarm(size: int) -> tuple[int, ...]:
    """Return row counts that together use every plan of this size, gated or not."""
    if size > TILE_MAX_N:
        return (1, OVERLAP_ROWS + 1)
    return (1, *(rows + 1 for rows in (FEW_ROWS, GATED_FEW_ROWS, SOME_ROWS, GATED_SOME_ROWS, GATED_MORE_ROWS)))
