"""How `qk_norm_rope` runs on CUDA. A head is summed by an explicit pairwise tree, so no plan changes its bits."""

from __future__ import annotations

from serving_ops.plan import FEW_ROWS, MAX_ROWS, SOME_ROWS, TILE_MAX_N, Plan, next_power_of_2

MAX_SIZE = TILE_MAX_N
"""Elements of a head."""

TILE = 1024
"""Elements of a program for many heads."""

WARPS = 2


def plan_rope(size: int, num_tokens: int, heads_a_token: int) -> Plan:
    """The plan for heads of `size` elements, of which a token has `heads_a_token` in q and k together."""
    block, heads = next_power_of_2(size), num_tokens * heads_a_token
    many = max(1, TILE // block)
    if heads <= FEW_ROWS:
        return Plan("heads", block, 1, 1, overlap=True, max_rows=FEW_ROWS)
    if heads <= SOME_ROWS:
        return Plan("heads", block, many, WARPS, overlap=True, min_rows=FEW_ROWS + 1, max_rows=SOME_ROWS)
    return Plan("heads", block, many, WARPS, min_rows=SOME_ROWS + 1, max_rows=MAX_ROWS)


def tokens_to_prewarm(heads_a_token: int) -> tuple[int, ...]:
    """Counts that together use every plan that a layer can have."""
    return (1, *(most // heads_a_token + 1 for most in (FEW_ROWS, SOME_ROWS)))
