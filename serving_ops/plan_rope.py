"""How `qk_norm_rope` runs on CUDA. A head is summed by an explicit pairwise tree, so no plan changes its bits.

Figures are of one H200 (torch 2.11, Triton 3.6, 2026-11-28): 16 heads of q and 8 of k, 128 elements of bf16 each, in a
CUDA graph. They come from a search that is not kept.
"""

from __future__ import annotations

from serving_ops.kernels.launches import Plan
from serving_ops.plan import MAX_ROWS, TILE_MAX_N, next_power_of_2

MAX_SIZE = TILE_MAX_N
"""Elements of a head."""

SOME_HEADS = 8192
"""Heads of a call up to which the next kernel may start early. With two warps, 1024 tokens take 4.90 us, and 5.66 us
with an early start."""

TILE = 1024
"""Elements of a program. 8192 tokens take 27.8 us, with 512 elements 31.4 us, and with 2048 30.6 us."""

WARPS = 4
"""Warps of a program up to SOME_HEADS. 1, 16 and 256 tokens take 0.97, 1.10 and 2.32 us, and with one warp 1.16, 1.33
and 2.52 us."""

CACHED_TILE = 512
"""Elements of a program of one warp up to SOME_HEADS where the KV cache is written too. 16 tokens take 1.36 us, and
1.62 us with TILE and WARPS."""

MANY_HEADS_WARPS = 1
"""Warps beyond SOME_HEADS. 8192 tokens with a cache take 41.0 us, with two warps 42.7 us."""


def plan_rope(size: int, num_tokens: int, heads_a_token: int, *, cached: bool = False) -> Plan:
    """The plan for heads of `size` elements, of which a token has `heads_a_token` in q and k together."""
    block = next_power_of_2(size)
    if num_tokens * heads_a_token > SOME_HEADS:
        return Plan("heads", block, max(1, TILE // block), MANY_HEADS_WARPS, min_rows=SOME_HEADS + 1, max_rows=MAX_ROWS)
    tile, warps = (CACHED_TILE, 1) if cached else (TILE, WARPS)
    return Plan("heads", block, max(1, tile // block), warps, overlap=True, max_rows=SOME_HEADS)


def tokens_to_prewarm(heads_a_token: int) -> tuple[int, ...]:
    """Counts that together use every plan that a layer can have."""
    return (1, SOME_HEADS // heads_a_token + 1)
