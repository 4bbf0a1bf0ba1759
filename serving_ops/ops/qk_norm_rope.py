"""`qk_norm_rope`: the norms of q and k, their rotary embedding and the write to the KV cache, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving_ops import checks, cuda_rope, modes, plan_rope, rope_checks, rope_reference
from serving_ops.norm_spec import NormSpec
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, Call, NormOp, Number, Own


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
) -> None:
    """RMSNorm of each head of q and k, then rotary embedding (Su et al. 2021, arXiv:2104.09864), in place.

    Args:
        qkv: (num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim), fp16, bf16, fp32 or float64, any strides: q, k
            and v side by side. Where `k` is given, it is q alone, (num_tokens, num_q_heads * head_dim) or
            (num_tokens, num_q_heads, head_dim). Written.
        positions: (num_tokens,), int32 or int64, rows of the table. With `mrope_section` also (3, num_tokens).
        cos_sin_cache: (positions, rotary_dim) in qkv's dtype or fp32: cosines, then sines, half of each row.
        q_weight, k_weight: (head_dim,) in qkv's dtype or fp32; both None for no norm.
        eps, weight_offset: as for `serving_ops.rms_norm`.
        rotary_dim: the first elements of a head that are rotated, even; by default as many as a row of the table has.
        is_neox: pairs are (i, i + rotary_dim / 2); otherwise (2 * i, 2 * i + 1).
        mrope_section: how many pairs each row of three positions rotates (Qwen-VL's MRoPE).
        mrope_interleaved: pairs of the three take turns (Qwen3-VL's), instead of lying in sections.
        k, v: (num_tokens, num_kv_heads * head_dim) or (num_tokens, num_kv_heads, head_dim), where they do not lie in
            qkv; v only where there are caches. k is written.
        key_cache, value_cache: (num_blocks, block_size, num_kv_heads, head_dim) or (num_slots, num_kv_heads, head_dim),
            in qkv's dtype or FP8 E4M3, any strides. k, rotated, and v are written into them too.
        slot_mapping: (n,), int32 or int64, n at most num_tokens: the slot of each of the first n tokens; where it is
            negative, nothing is cached.
        k_scale, v_scale: fp32, one element, what values are divided by on their way into FP8; both None for 1.

    The normalised head is rounded to qkv's dtype, as by `serving_ops.rms_norm`, then rotated in fp32 and rounded.

    Raises RuntimeError, with nothing written, for input that `serving_ops.rope_checks` calls wrong, and where a tensor
    requires grad. On CUDA, positions beyond the table and slots beyond the cache are not looked for, and lead to
    undefined behaviour. What the kernels do not take runs on `serving_ops.rope_reference`; `serving_ops.explain` says
    why.
    """
    checks.flag("is_neox", is_neox)
    checks.flag("mrope_interleaved", mrope_interleaved)
    named = {"k": k, "v": v, "key_cache": key_cache, "value_cache": value_cache, "k_scale": k_scale, "v_scale": v_scale}
    tensors = {"qkv": qkv, "cos_sin_cache": cos_sin_cache, "q_weight": q_weight, "k_weight": k_weight} | named
    if not modes.only_computed(*tensors.values()):
        checks.not_differentiated("the unfused sequence", **tensors)
    torch.ops.serving_ops.qk_norm_rope(
        *(qkv, positions, cos_sin_cache, q_weight, k_weight, num_q_heads, num_kv_heads, head_dim),
        eps=eps,
        weight_offset=weight_offset,
        rotary_dim=rotary_dim,
        is_neox=is_neox,
        mrope_section=mrope_section,
        mrope_interleaved=mrope_interleaved,
        slot_mapping=slot_mapping,
        **named,
    )
    modes.increment_version(tuple(tensor for tensor in (qkv, k, key_cache, value_cache) if tensor is not None))


def _sample(spec: NormSpec, num_tokens: int) -> Call:
    rope, of_k = spec.rotation, (num_tokens, spec.rotation.num_kv_heads, spec.size)

    def ones(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.ones(shape, dtype=dtype or spec.dtype, device=spec.device)

    def cache() -> Tensor | None:
        slots = (num_tokens,) if rope.block_size is None else (-(-num_tokens // rope.block_size), rope.block_size)
        return ones(*slots, *of_k[1:], dtype=rope.cache_dtype).zero_() if rope.has_cache else None

    def scale() -> Tensor | None:
        return ones(dtype=torch.float32) if rope.cache_dtype == torch.float8_e4m3fn else None

    width = (spec.heads + 2 * rope.num_kv_heads) * spec.size
    in_one = ones(num_tokens, spec.token_stride or width)[:, :width]
    rows = torch.arange(num_tokens, dtype=rope.index_dtype, device=spec.device)
    rotary_dim = spec.size if rope.rotary_dim is None else rope.rotary_dim
    return {
        "qkv": ones(num_tokens, spec.heads, spec.size) if rope.separate else in_one,
        "positions": rows if rope.mrope_section is None else torch.stack((rows, rows + 1, rows + 2)),
        "cos_sin_cache": ones(num_tokens + 2, rotary_dim, dtype=rope.table_dtype),
        "q_weight": spec.vector(),
        "k_weight": spec.vector(),
        "num_q_heads": spec.heads,
        "num_kv_heads": rope.num_kv_heads,
        "head_dim": spec.size,
        "eps": spec.eps,
        "weight_offset": spec.weight_offset,
        "rotary_dim": rope.rotary_dim,
        "is_neox": rope.is_neox,
        "mrope_section": rope.mrope_section,
        "mrope_interleaved": rope.mrope_interleaved,
        "k": ones(*of_k) if rope.separate else None,
        "v": ones(*of_k) if rope.separate and rope.has_cache else None,
        "key_cache": cache(),
        "value_cache": cache(),
        "slot_mapping": rows.clone() if rope.has_cache else None,
        "k_scale": scale(),
        "v_scale": scale(),
    }


def _bytes_moved(call: Call) -> int:
    """Of q and k, read and written; of v and the caches where they are."""
    heads, kv_heads = call["num_q_heads"], call["num_kv_heads"]
    x, cache, slots = call["qkv"], call["key_cache"], call["slot_mapping"]
    row = call["head_dim"] * x.itemsize
    moved = 2 * (heads + kv_heads) * row * x.shape[0]
    if cache is not None:
        moved += slots.shape[0] * kv_heads * (row + 2 * call["head_dim"] * cache.itemsize)
    return int(moved)


registry.register(
    NormOp(
        qk_norm_rope,
        rope_reference.qk_norm_rope,
        (
            Own("qkv", written=True),
            *map(Own, ("positions", "cos_sin_cache", "q_weight", "k_weight")),
            *map(Own, ("num_q_heads", "num_kv_heads", "head_dim")),
            EPS,
            Number("weight_offset"),
            *map(Own, ("rotary_dim", "is_neox", "mrope_section", "mrope_interleaved")),
            Own("k", written=True),
            Own("v"),
            Own("key_cache", written=True),
            Own("value_cache", written=True),
            *map(Own, ("slot_mapping", "k_scale", "v_scale")),
        ),
        route=cuda_rope.rope_route,
        launch=cuda_rope.launch_rope,
        tokens_to_prewarm=lambda spec: plan_rope.tokens_to_prewarm(spec.heads + spec.rotation.num_kv_heads),
        in_cpp=("cpu", "cuda"),
        check_own=rope_checks.check,
        check_values=rope_checks.index_values,
        sample_own=_sample,
        bytes_moved=_bytes_moved,
    )
)
