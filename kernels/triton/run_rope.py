"""`qk_norm_rope` on CUDA: from a plan to one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving_ops.kernels.launches import Plan
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.rope import qk_norm_rope_kernel
from serving_ops.kernels.triton.variant import ALIGNMENT, BIT, Variant, flags_of

_launcher = Launcher(qk_norm_rope_kernel, enable_fp_fusion=False)  # as norm_tile


class Rotation(NamedTuple):
    """How heads are rotated: the first `rotary_dim` elements of each."""

    rotary_dim: int
    is_neox: bool
    mrope_section: tuple[int, ...] | None
    mrope_interleaved: bool


class Cache(NamedTuple):
    """Where k and v go: (blocks, block_size, heads, head_dim) each, in the same strides, and the slots of tokens."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    k_scale: Tensor | None  # one fp32; None for values as they are
    v_scale: Tensor | None  # likewise


def run_qk_norm_rope(
    q: Tensor,  # (num_tokens, heads, head_dim), written
    k: Tensor,  # likewise
    v: Tensor | None,  # like k; None without a cache, and only then
    positions: Tensor,  # (num_tokens,) or (3, num_tokens)
    table: Tensor,  # (positions, rotary_dim)
    q_weight: Tensor | None,  # (head_dim,)
    k_weight: Tensor | None,  # in the dtype of q_weight
    eps: float,
    weight_offset: float,
    rotation: Rotation,
    cache: Cache | None,
    plan: Plan,
    pdl: bool,
) -> None:
    """Launch on q's device and its current stream. The caller has checked the input; num_tokens is at least 1."""
    size, half = q.shape[2], rotation.rotary_dim // 2
    heads = (q, k) if v is None else (q, k, v)
    rows = (table,) if q_weight is None or k_weight is None else (table, q_weight, k_weight)
    caches = () if cache is None else (cache.keys, cache.values)
    k_scale, v_scale = (None, None) if cache is None else (cache.k_scale, cache.v_scale)
    sections = rotation.mrope_section if positions.dim() == 2 else None
    tensors = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": q if v is None else v,
        "positions_ptr": positions,
        "table_ptr": table,
        "q_weight_ptr": q if q_weight is None else q_weight,
        "k_weight_ptr": q if k_weight is None else k_weight,
        "key_cache_ptr": q if cache is None else cache.keys,
        "value_cache_ptr": q if cache is None else cache.values,
        "slots_ptr": positions if cache is None else cache.slots,
        "k_scale_ptr": q if k_scale is None else k_scale,
        "v_scale_ptr": q if v_scale is None else v_scale,
    }
    aligned = _starts_aligned(heads, rows, caches, half)
    in_fp32 = q_weight is not None and (q_weight.dtype != q.dtype or weight_offset != 0.0)
    constants: dict[str, Any] = {
        "SIZE": size,
        "HALF": half,
        "BLOCK_HALF": _power_of_2(half),
        "BLOCK_REST": _power_of_2(size - 2 * half),
        "BLOCK_SIZE": _power_of_2(size),
        "HEADS": plan.rows_per_program,
        "NEOX": rotation.is_neox,
        "SECTION_1": -1 if sections is None else sections[1],
        "SECTION_2": -1 if sections is None else sections[2],
        "SECTION_INTERLEAVED": sections is not None and rotation.mrope_interleaved,
        "ALIGNED": aligned,
        "HAS_WEIGHT": q_weight is not None,
        "WEIGHT_IN_FP32": in_fp32,
        "CACHED": cache is not None,
        "SCALED": k_scale is not None,
        "PDL": pdl,
        "OVERLAP": plan.overlap,
    }
    blocks, slots, cache_heads, _ = (0, 0, 0, 0) if cache is None else cache.keys.stride()
    numbers = {
        "num_q_heads": q.shape[1],
        "num_kv_heads": k.shape[1],
        "q_outer_stride": q.stride(0),
        "q_row_stride": q.stride(1),
        "k_outer_stride": k.stride(0),
        "k_row_stride": k.stride(1),
        "v_outer_stride": 0 if v is None else v.stride(0),
        "v_row_stride": 0 if v is None else v.stride(1),
        "positions_axis_stride": positions.stride(0) if positions.dim() == 2 else 0,
        "positions_token_stride": positions.stride(-1),
        "table_row_stride": table.stride(0),
        "num_slots": 0 if cache is None else cache.slots.shape[0],
        "block_size": 1 if cache is None else cache.keys.shape[1],
        "cache_block_stride": blocks,
        "cache_slot_stride": slots,
        "cache_head_stride": cache_heads,
        "eps": eps,
        "weight_offset": weight_offset,
    }
    flags = flags_of(q, q_weight, second=False, weight_in_fp32=in_fp32, flat=False, aligned=aligned)
    flags |= _rope_flags(rotation, sections, table.dtype != q.dtype, positions, cache)
    pairs = half if sections is None else half | (sections[1] + 1) << 16 | (sections[2] + 1) << 32
    programs = sum(-(-tensor.shape[1] // plan.rows_per_program) for tensor in heads)
    grid = (q.shape[0], programs, 1)
    _launcher(Variant(flags, size, pairs), plan, grid, tensors | numbers | constants, pdl)


def _rope_flags(
    rotation: Rotation, sections: tuple[int, ...] | None, table_in_fp32: bool, positions: Tensor, cache: Cache | None
) -> int:
    """The bits of a variant that norms do not have."""
    flags = 1 << BIT.rope | (not rotation.is_neox) << BIT.interleaved | table_in_fp32 << BIT.table_in_fp32
    flags |= (sections is not None and rotation.mrope_interleaved) << BIT.taking_turns
    flags |= (positions.dtype == torch.int64) << BIT.long_positions
    if cache is None:
        return flags
    flags |= 1 << BIT.cached | (cache.slots.dtype == torch.int64) << BIT.long_slots
    in_fp8 = cache.keys.dtype == torch.float8_e4m3fn
    return flags | in_fp8 << BIT.cache_in_fp8 | (cache.k_scale is not None) << BIT.scaled


def _power_of_2(count: int) -> int:
    """The next one; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _starts_aligned(heads: tuple[Tensor, ...], rows: tuple[Tensor, ...], caches: tuple[Tensor, ...], half: int) -> bool:
    """Whether every half of a head, of a row of the table and of a weight starts on `ALIGNMENT` bytes.

    rows: the table, and the weights. caches: on as many elements as that is of heads.
    """
    starts = 0
    for tensor in (*heads, *rows):
        starts |= tensor.data_ptr() | (half | _steps(tensor)) * tensor.itemsize
    for cache in caches:
        starts |= (cache.data_ptr() // cache.itemsize | _steps(cache)) * heads[0].itemsize
    return starts % ALIGNMENT == 0


def _steps(tensor: Tensor) -> int:
    """The strides between rows that are apart by them, ored together."""
    steps = 0
    for size, stride in zip(tensor.shape[:-1], tensor.stride(), strict=False):
        steps |= stride if size > 1 else 0
    return steps
