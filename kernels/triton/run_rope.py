"""`qk_norm_rope` on CUDA: from a plan to one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from serving_ops.kernels.triton.launch import Launcher, Plan, Repeat
from serving_ops.kernels.triton.rope import qk_norm_rope_kernel
from serving_ops.kernels.triton.variant import ALIGNMENT

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
) -> Repeat | None:
    """Launch on q's device and its current stream. The caller has checked the input; num_tokens is at least 1.

    Returns the same launch for tensors that lie alike, by the addresses of the kernel's pointers, in its order; None in
    the interpreter.
    """
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
        "ALIGNED": _starts_aligned(heads, rows, caches, half),
        "HAS_WEIGHT": q_weight is not None,
        "WEIGHT_IN_FP32": q_weight is not None and (q_weight.dtype != q.dtype or weight_offset != 0.0),
        "CACHED": cache is not None,
        "SCALED": k_scale is not None,
        "PDL": pdl,
        "OVERLAP": plan.overlap,
    }
    strides = (0, 0, 0) if cache is None else cache.keys.stride()[:3]
    numbers = {
        "num_q_heads": q.shape[1],
        "num_kv_heads": k.shape[1],
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "k_token_stride": k.stride(0),
        "k_head_stride": k.stride(1),
        "v_token_stride": 0 if v is None else v.stride(0),
        "v_head_stride": 0 if v is None else v.stride(1),
        "positions_axis_stride": positions.stride(0) if positions.dim() == 2 else 0,
        "positions_token_stride": positions.stride(-1),
        "table_row_stride": table.stride(0),
        "num_slots": 0 if cache is None else cache.slots.shape[0],
        "block_size": 1 if cache is None else cache.keys.shape[1],
        "cache_block_stride": strides[0],
        "cache_slot_stride": strides[1],
        "cache_head_stride": strides[2],
        "eps": eps,
        "weight_offset": weight_offset,
    }
    variant: Any = (q.get_device(), *(tensor.dtype for tensor in tensors.values()), *constants.values())
    blocks = sum(-(-tensor.shape[1] // plan.rows_per_program) for tensor in heads)
    launch = variant, plan, (q.shape[0], blocks, 1), tensors | numbers | constants, pdl
    _launcher(*launch)
    return _launcher.repeat_of(*launch)


def _power_of_2(count: int) -> int:
    """The next one; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _starts_aligned(heads: tuple[Tensor, ...], rows: tuple[Tensor, ...], caches: tuple[Tensor, ...], half: int) -> bool:
    """Whether every half of a head, of a row of the table and of a weight starts on `ALIGNMENT` bytes.

    rows: the table, and the weights. caches: on as many elements as that is of heads.
    """
    starts = 0
    for tensor in (*heads, *rows):
        elements = half
        for stride in tensor.stride()[:-1]:
            elements |= stride
        starts |= tensor.data_ptr() | elements * tensor.itemsize
    for cache in caches:
        elements = cache.data_ptr() // cache.itemsize
        for stride in cache.stride()[:-1]:
            elements |= stride
        starts |= elements * heads[0].itemsize
    return starts % ALIGNMENT == 0
