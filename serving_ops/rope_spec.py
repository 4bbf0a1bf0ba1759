"""`RopeSpec`: what a layer fixes of `qk_norm_rope` beside its norm, and the sample calls that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RopeSpec:
    """A layer's rotation. Its `NormSpec` has the size of a head as `size`, and the number of q's heads as `heads`.

    rotary_dim: the rotated elements of a head; None for all.
    mrope_section: given where positions are (3, num_tokens). A list, as configurations have it, becomes a tuple.
    table_dtype, cache_dtype: of cos and sin, and of the caches; None for x's.
    index_dtype: of positions and slots.
    separate: whether q, k and v are given apart, and not as one tensor.
    has_cache: whether k and v go to a paged cache.
    block_size: tokens a block of a cache; None for a cache without blocks.
    """

    num_kv_heads: int = 1
    rotary_dim: int | None = None
    is_neox: bool = True
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False
    table_dtype: torch.dtype | None = None
    index_dtype: torch.dtype = torch.int64
    separate: bool = False
    has_cache: bool = False
    cache_dtype: torch.dtype | None = None
    block_size: int | None = 16

    def __post_init__(self) -> None:
        if self.mrope_section is not None:
            object.__setattr__(self, "mrope_section", tuple(self.mrope_section))


PLAIN = RopeSpec()
