"""`qk_norm_rope` in plain PyTorch: its definition, its fallback, and what tests compare with.

A head is normalised, rounded to x's dtype, and rotated in fp32 (float64 where x is float64) by the cosines and sines as
the table has them; the result is rounded once. The kernels of engines that rotate in x's dtype round each product too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving_ops.quant_format import LIMITS
from serving_ops.reference import rms_norm, wide


def qk_norm_rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    rotary_dim: int | None = None,
    is_neox: bool = True,
    mrope_section: Sequence[int] | None = None,
    mrope_interleaved: bool = False,
    k: Tensor | None = None,
    v: Tensor | None = None,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[()]:
    """Norm and rotate q and k in place, and write k and v into the caches. Arguments as for the op."""
    q, k, v = heads_of(qkv, k, v, num_q_heads, num_kv_heads, head_dim)
    cos, sin = cos_and_sin(positions, cos_sin_cache, mrope_section, mrope_interleaved)
    for x, weight in ((q, q_weight), (k, k_weight)):
        normed = x if weight is None else rms_norm(x, weight, eps, weight_offset=weight_offset)
        x.copy_(rotated(normed, cos, sin, is_neox))
    if slot_mapping is not None:
        for values, cache, scale in ((k, key_cache, k_scale), (v, value_cache, v_scale)):
            assert values is not None
            assert cache is not None
            _cache(values, cache, slot_mapping, scale)
    return ()


def heads_of(
    qkv: Tensor, k: Tensor | None, v: Tensor | None, num_q_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """q, k and v as (num_tokens, heads, head_dim), views of what was given; v None where only q and k are."""

    def in_heads(x: Tensor) -> Tensor:
        return x if x.dim() == 3 else x.unflatten(1, (-1, head_dim))

    if k is None:
        heads = qkv.unflatten(1, (num_q_heads + 2 * num_kv_heads, head_dim))
        q, k, v = heads.split((num_q_heads, num_kv_heads, num_kv_heads), dim=1)
        return q, k, v
    return in_heads(qkv), in_heads(k), None if v is None else in_heads(v)


def cos_and_sin(
    positions: Tensor, cos_sin_cache: Tensor, mrope_section: Sequence[int] | None, mrope_interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(num_tokens, rotary_dim // 2) each, in the dtype of the table."""
    cos_sin = cos_sin_cache[positions]
    if positions.dim() == 2:
        assert mrope_section is not None
        rows = axis_of_pairs(mrope_section, mrope_interleaved, positions.device).repeat(2)
        cos_sin = cos_sin.gather(0, rows.expand(1, *cos_sin.shape[1:])).squeeze(0)
    cos, sin = cos_sin.chunk(2, dim=-1)
    return cos, sin


def axis_of_pairs(section: Sequence[int], interleaved: bool, device: torch.device) -> Tensor:
    """For each pair that is rotated, the row of `positions`, 0 to 2, that it is rotated by.

    Sections lie one after the other, or, interleaved, as 0, 1, 2, 0, 1, 2, ... for as long as 1 and 2 have pairs left.
    """
    pair = torch.arange(sum(section), device=device)
    if not interleaved:
        return (pair >= section[0]).long() + (pair >= section[0] + section[1]).long()
    axis = pair % 3
    limit = torch.tensor([0, 3 * section[1], 3 * section[2]], device=device)[axis]
    return torch.where(pair < limit, axis, 0)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """x (num_tokens, heads, head_dim) with its first elements rotated in pairs, in x's dtype.

    NeoX pairs the first half of them with the second, the other style each even one with the next.
    """
    rotary_dim = 2 * cos.shape[-1]
    turned, rest = wide(x[..., :rotary_dim]), x[..., rotary_dim:]
    cos, sin = (values.to(turned.dtype).unsqueeze(1) for values in (cos, sin))
    a, b = turned.chunk(2, dim=-1) if is_neox else (turned[..., ::2], turned[..., 1::2])
    pairs = a * cos - b * sin, b * cos + a * sin
    turned = torch.cat(pairs, dim=-1) if is_neox else torch.stack(pairs, dim=-1).flatten(-2)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def in_slots(cache: Tensor) -> Tensor:
    """A cache as (blocks, slots a block, heads, head_dim): one without blocks has one slot a block."""
    return cache if cache.dim() == 4 else cache.unsqueeze(1)


def _cache(x: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None) -> None:
    cache = in_slots(cache)
    token = (slot_mapping >= 0).nonzero().squeeze(1)
    slot = slot_mapping[token].long()
    values = x[token]
    if scale is not None:
        values = wide(values) / scale
    if cache.dtype in LIMITS:
        values = wide(values).clamp(-LIMITS[cache.dtype], LIMITS[cache.dtype])
    block_size = cache.shape[1]
    cache[slot // block_size, slot % block_size] = values.to(cache.dtype)
