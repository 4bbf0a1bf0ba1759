"""How `qk_norm_rope` runs on CUDA. A head is summed by an explicit pairwise tree, so no plan changes its bits.

Figures are of one H200 (torch 2.11, Triton 3.6, 2026-11-30): 16 heads of q and 8 of k, 128 elements of bf16 each, in a
CUDA graph. They come from a search that is not kept.
"""

from __future__ import annotations

from serving_ops.kernels.launches import Plan
from serving_ops.plan import MAX_ROWS, TILE_MAX_N, next_power_of_2

MAX_SIZE = TILE_MAX_N
"""Elements of a head."""

FEW_HEADS = 512
CACHED_FEW_HEADS = 1536
"""Heads of a call up to which a program has FEW_TILE and FEW_WARPS; the second where the KV cache is written too. 64
tokens take 1.11 us with a cache, and 1.16 us with TILE and WARPS; without a cache 1.08 and 0.99 us."""

FEW_TILE, FEW_WARPS = 512, 2
"""Elements and warps of a program. 1 and 16 tokens with a cache take 0.87 and 0.93 us, and with TILE and WARPS 0.88 and
0.97 us. Without a cache 16 tokens take 0.90 and 0.95 us."""

SOME_HEADS = 12288
"""Heads of a call up to which the next kernel may start early. 512 tokens with a cache take 3.49 us, and 4.10 us with
MANY_HEADS_WARPS and no early start; 1024 tokens, in tensors that did not fit the L2, take 6.89 and 6.48 us."""

TILE, WARPS = 1024, 4
"""Elements and warps of a program beyond the few heads. 256 tokens with a cache take 1.78 us, with 512 elements and two
warps 2.98 us."""

MANY_HEADS_WARPS = 1
"""Warps beyond SOME_HEADS. 8192 tokens with a cache take 41.7 us, with two warps 43.5 us."""


def plan_rope(size: int, num_tokens: int, heads_a_token: int, *, cached: bool = False) -> Plan:
    """The plan for heads of `size` elements, of which a token has `heads_a_token` in q and k together."""
    block, num_heads = next_power_of_2(size), num_tokens * heads_a_token
    few = CACHED_FEW_HEADS if cached else FEW_HEADS
    if num_heads <= few:
        return Plan("heads", block, max(1, FEW_TILE // block), FEW_WARPS, overlap=True, max_rows=few)
    heads = max(1, TILE // block)
    if num_heads <= SOME_HEADS:
        return Plan("heads", block, heads, WARPS, overlap=True, min_rows=few + 1, max_rows=SOME_HEADS)
    return Plan("heads", block, heads, MANY_HEADS_WARPS, min_rows=SOME_HEADS + 1, max_rows=MAX_ROWS)


def tokens_to_prewarm(heads_a_token: int) -> tuple[int, ...]:
    """Counts that together use every plan that a layer can have."""
    return (1, *(heads // heads_a_token + 1 for heads in (FEW_HEADS, CACHED_FEW_HEADS, SOME_HEADS)))
