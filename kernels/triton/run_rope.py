"""`qk_norm_rope` on CUDA: from a plan to one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import triton
from serving_ops.kernels.launches import Plan
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.rope import qk_norm_rope_kernel
from serving_ops.kernels.triton.variant import ALIGNMENT, Variant, flags_of

_launcher = Launcher(qk_norm_rope_kernel, enable_fp_fusion=False)  # as tiles of norms


def run_qk_norm_rope(
    q: Tensor,  # (num_tokens, heads, head_dim), written
    k: Tensor,  # likewise
    v: Tensor | None,  # like k; None without caches, and only then
    plan: Plan,
    pdl: bool,
    *,
    positions: Tensor,  # (num_tokens,) or (3, num_tokens)
    cos_sin_cache: Tensor,  # (positions, rotary_dim)
    q_weight: Tensor | None,  # (head_dim,)
    k_weight: Tensor | None,  # in the dtype of q_weight
    eps: float,
    weight_offset: float,
    is_neox: bool,
    mrope_section: Sequence[int] | None,
    mrope_interleaved: bool,
    key_cache: Tensor | None,  # (blocks, block_size, heads, head_dim)
    value_cache: Tensor | None,  # likewise, in the same strides
    slot_mapping: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    **_: Any,  # the op's other arguments
) -> None:
    """Launch on q's device and its current stream. The caller has checked the input; num_tokens is at least 1."""
    size, half = q.shape[2], cos_sin_cache.shape[1] // 2
    heads = {"q": q, "k": k, "v": v}
    sections = mrope_section if positions.dim() == 2 else None
    taking_turns = sections is not None and mrope_interleaved
    tensors = {
        **{f"{name}_ptr": x for name, x in heads.items()},
        "positions_ptr": positions,
        "table_ptr": cos_sin_cache,
        "q_weight_ptr": q_weight,
        "k_weight_ptr": k_weight,
        "key_cache_ptr": key_cache,
        "value_cache_ptr": value_cache,
        "slots_ptr": positions if slot_mapping is None else slot_mapping,
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
    }
    aligned = _starts_aligned((q, k, v, cos_sin_cache, q_weight, k_weight), (key_cache, value_cache), half)
    in_fp32 = q_weight is not None and (q_weight.dtype != q.dtype or weight_offset != 0.0)
    constants = {
        "SIZE": size,
        "HALF": half,
        "BLOCK_HALF": triton.next_power_of_2(half),
        "BLOCK_REST": triton.next_power_of_2(size - 2 * half),
        "BLOCK_SIZE": triton.next_power_of_2(size),
        "HEADS": plan.rows_per_program,
        "NEOX": is_neox,
        "SECTION_1": -1 if sections is None else sections[1],
        "SECTION_2": -1 if sections is None else sections[2],
        "SECTION_INTERLEAVED": taking_turns,
        "ALIGNED": aligned,
        "HAS_WEIGHT": q_weight is not None,
        "WEIGHT_IN_FP32": in_fp32,
        "CACHED": key_cache is not None,
        "SCALED": k_scale is not None,
        "PDL": pdl,
        "OVERLAP": plan.overlap,
    }
    blocks, slots, cache_heads, _ = (0, 0, 0, 0) if key_cache is None else key_cache.stride()
    numbers = {
        "num_q_heads": q.shape[1],
        "num_kv_heads": k.shape[1],
        **{f"{name}_outer_stride": 0 if x is None else x.stride(0) for name, x in heads.items()},
        **{f"{name}_row_stride": 0 if x is None else x.stride(1) for name, x in heads.items()},
        "positions_axis_stride": positions.stride(0) if positions.dim() == 2 else 0,
        "positions_token_stride": positions.stride(-1),
        "table_row_stride": cos_sin_cache.stride(0),
        "num_slots": 0 if slot_mapping is None else slot_mapping.shape[0],
        "block_size": 1 if key_cache is None else key_cache.shape[1],
        "cache_block_stride": blocks,
        "cache_slot_stride": slots,
        "cache_head_stride": cache_heads,
        "eps": eps,
        "weight_offset": weight_offset,
    }
    flags = {
        "rope": 1,
        "weight_in_fp32": in_fp32,
        "aligned": aligned,
        "interleaved": not is_neox,
        "taking_turns": taking_turns,
        "table_in_fp32": cos_sin_cache.dtype != q.dtype,
        "long_positions": positions.dtype == torch.int64,
        "scaled": k_scale is not None,
        "cached": key_cache is not None,
        "long_slots": slot_mapping is not None and slot_mapping.dtype == torch.int64,
        "cache_in_fp8": key_cache is not None and key_cache.dtype == torch.float8_e4m3fn,
    }
    pairs = half if sections is None else half | (sections[1] + 1) << 16 | (sections[2] + 1) << 32
    programs = sum(-(-x.shape[1] // plan.rows_per_program) for x in heads.values() if x is not None)
    arguments = {name: q if tensor is None else tensor for name, tensor in tensors.items()} | numbers | constants
    variant = Variant(flags_of(q, q_weight, **flags), size, pairs)
    _launcher(variant, plan, (q.shape[0], programs, 1), arguments, pdl)


def _starts_aligned(rows: tuple[Tensor | None, ...], caches: tuple[Tensor | None, ...], half: int) -> bool:
    """Whether every half of a head, of a row of the table and of a weight starts on `ALIGNMENT` bytes.

    rows: heads, the table, and weights. caches: on as many elements as that is of heads.
    """
    starts, itemsize = 0, rows[0].itemsize
    for tensor in rows:
        if tensor is not None:
            starts |= tensor.data_ptr() | (half | _steps(tensor)) * tensor.itemsize
    for cache in caches:
        if cache is not None:
            starts |= (cache.data_ptr() // cache.itemsize | _steps(cache)) * itemsize
    return starts % ALIGNMENT == 0


def _steps(tensor: Tensor) -> int:
    """The strides between rows that are apart by them, ored together."""
    steps = 0
    for size, stride in zip(tensor.shape[:-1], tensor.stride(), strict=False):
        steps |= stride if size > 1 else 0
    return steps
