"""`qk_norm_rope` on CUDA: from a checked call to a Triton launch, or to the reason why there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving_ops import plan, rope_reference, support
from serving_ops.cuda import NO_FP8, converts_to_fp8, pdl, triton_kernels
from serving_ops.kernels import contract
from serving_ops.kernels.launches import Plan
from serving_ops.plan_rope import MAX_SIZE, plan_rope

TOO_LARGE = f"heads of more than {MAX_SIZE} elements"
MAX_HEADS = plan.MAX_GROUPS // 3  # of q, k and v: the second dimension of a grid holds them all
TOO_MANY_HEADS = f"more than {MAX_HEADS} heads of q or of k"
NOTHING_ROTATED = "a rotation of no elements"
TWO_WEIGHT_DTYPES = "q_weight and k_weight of two dtypes"
TWO_LAYOUTS = "key_cache and value_cache in different strides"
TOO_MANY_SLOTS = "more slots than the kernels count"
SLOTS_APART = "slot_mapping.stride(0) is not 1"


class Heads(NamedTuple):
    """(num_tokens, heads, head_dim) each; v only where it is cached."""

    q: Tensor
    k: Tensor
    v: Tensor | None


def rope_route(
    qkv: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    k: Tensor | None,
    v: Tensor | None,
    key_cache: Tensor | None,
    value_cache: Tensor | None,
    slot_mapping: Tensor | None,
    **_: Any,
) -> tuple[Heads, Plan] | str:
    """The heads and the plan that run this call, or why the reference does."""
    heads = Heads(*rope_reference.heads_of(qkv, k, v, num_q_heads, num_kv_heads, head_dim))
    if key_cache is None:
        heads = heads._replace(v=None)
    named = (("qkv", heads.q), ("k", heads.k), ("v", heads.v), ("q_weight", q_weight), ("k_weight", k_weight))
    reason = support.no_triton() or support.why_not_layout(*named, ("cos_sin_cache", cos_sin_cache))
    if reason is not None:
        return reason
    if head_dim > MAX_SIZE:
        return TOO_LARGE
    if cos_sin_cache.shape[1] == 0:
        return NOTHING_ROTATED
    if q_weight is not None and k_weight is not None and q_weight.dtype != k_weight.dtype:
        return TWO_WEIGHT_DTYPES
    if qkv.shape[0] > plan.MAX_ROWS:
        return support.TOO_MANY_ROWS
    if max(num_q_heads, num_kv_heads) > MAX_HEADS:
        return TOO_MANY_HEADS
    if key_cache is not None and value_cache is not None and slot_mapping is not None:
        reason = _why_not_caches(key_cache, value_cache, slot_mapping)
    cached = key_cache is not None
    return reason or (heads, plan_rope(head_dim, qkv.shape[0], num_q_heads + num_kv_heads, cached=cached))


def _why_not_caches(keys: Tensor, values: Tensor, slots: Tensor) -> str | None:
    if keys.dtype == torch.float8_e4m3fn and not converts_to_fp8(keys.device):
        return NO_FP8
    if keys.stride() != values.stride():
        return TWO_LAYOUTS
    if keys.stride(-1) != 1 and keys.shape[-1] != 1:
        return "key_cache.stride(-1) is not 1"
    if slots.stride(0) != 1 and slots.shape[0] > 1:
        return SLOTS_APART
    return TOO_MANY_SLOTS if keys.shape[:-2].numel() > contract.LIMITS["max_slots"] else None


def launch_rope(route: tuple[Heads, Plan], **call: Any) -> None:
    """Launch `qk_norm_rope` of at least one token, its arguments by name."""
    heads, plan = route
    for name in ("key_cache", "value_cache"):
        call[name] = None if call[name] is None else rope_reference.in_slots(call[name])
    triton_kernels().run_rope.run_qk_norm_rope(**call | heads._asdict(), plan=plan, pdl=pdl(call["qkv"].device))
