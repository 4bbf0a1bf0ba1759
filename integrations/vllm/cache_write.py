"""The write of k and v to vLLM's KV cache by the kernel that norms and rotates them.

vLLM's `Attention.forward` calls two operators: one writes the cache, and the attention takes its empty result, so that
it runs behind it. `OP` stands in for the first. As vLLM's operator it ends a piece of the compiled graph, because the
slots of a step are known outside graphs only. A graph of a whole decode step captures its kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from serving_ops import schemas
from serving_ops.integrations.common.rope_text import options_of
from serving_ops.integrations.vllm import installed
from serving_ops.integrations.vllm.compilation import is_eager, is_in_pieces
from serving_ops.integrations.vllm.known_code import is_one_of, names_of, why_lacking

OP = "vllm_qk_norm_rope_cached"
ARGUMENTS = (
    "Tensor(a!) q, Tensor(b!) k, Tensor v, Tensor positions, Tensor cos_sin_cache, Tensor q_weight, Tensor k_weight, "
    "str options, str layer_name"
)
QUALIFIED = f"serving_ops::{OP}"
VLLM_WRITES = "vllm::unified_kv_cache_update"
"""Operators by which vLLM may split a compiled graph. Where it splits by its own write, it splits by ours."""

ATTENTION = {"Attention": "vllm.model_executor.layers.attention.attention"}
BACKEND = {"FlashAttentionImpl": "vllm.v1.attention.backends.flash_attn"}
"""The name of a class whose cache or whose write is known -> its module."""

STEPS = {
    *("query_quant", "_q_scale", "supports_quant_query_input", "fp8_dtype", "current_platform", "startswith"),
    *("calculate_kv_scales", "maybe_calc_kv_scales", "kv_cache_dtype", "kv_sharing_target_layer_name"),
    *("attn_backend", "impl", "forward_includes_kv_cache_update", "use_direct_call"),
    *("layer_name", "_encode_layer_name"),
    *("torch", "ops", "vllm", "unified_kv_cache_update", "unified_attention_with_output"),
    *("empty", "Size", "shape", "view", "dtype", "device", "head_size", "head_size_v", "num_heads", "num_kv_heads"),
}
"""The names that the `forward` of vLLM 0.25 to 0.33 uses. A name beyond them is a step that ours lacks."""

WRITE_STEPS = {
    *("attn_type", "AttentionType", "ENCODER_ONLY", "ENCODER", "unbind", "transpose", "split", "head_size"),
    *("reshape_and_cache_flash", "kv_cache_dtype", "_k_scale", "_v_scale"),
}
"""The same of the backend's write."""

CALLS = {"unified_kv_cache_update", "reshape_and_cache_flash"}
"""What the two call. Without it they are not vLLM's, but what another plugin put around them."""

ASKED = ("get_attention_context", "_encode_layer_name")
"""What our operator and `attend` use of vLLM's module."""

ATTENDS, WRITTEN = "unified_attention_with_output", "kv_cache_dummy_dep"
"""vLLM's operator after the write, and its argument that is the write's result."""


def is_for(attn: Any, dtype: torch.dtype, vllm_config: Any, device: torch.device) -> bool:
    """Return whether the kernel may write the cache of vLLM's layer `attn`, whose activations have `dtype`."""
    return (
        device.type == "cuda"
        and is_one_of(ATTENTION, attn)
        and _does_no_more(type(attn).forward, STEPS)
        and _attends_as_known(attn)
        and is_one_of(BACKEND, attn.impl)
        and _does_no_more(type(attn.impl).do_kv_cache_update, WRITE_STEPS)
        and attn.attn_type == "decoder"
        and attn.kv_sharing_target_layer_name is None
        and attn.kv_cache_torch_dtype == dtype
        and attn.head_size == attn.head_size_v
        and attn.query_quant is None
        and not getattr(attn, "calculate_kv_scales", False)
        and not attn.use_direct_call
        and getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) == 1  # not tried with more
        and _stays_outside_of_graphs(vllm_config.compilation_config)
    )


def _does_no_more(method: Any, steps: set[str]) -> bool:
    names = names_of(method)
    return names <= steps and not names.isdisjoint(CALLS)


@functools.cache
def _of_vllm() -> Any:
    """vLLM's module. An import in each call would take 0.5 us."""
    from vllm.model_executor.layers.attention import attention

    return attention


def _attends_as_known(attn: Any) -> bool:
    if why_lacking(attn, "layer_name") or why_lacking(_of_vllm(), *ASKED) or why_lacking(torch.ops.vllm, ATTENDS):
        return False
    return any(argument.name == WRITTEN for argument in getattr(torch.ops.vllm, ATTENDS).default._schema.arguments)


def _stays_outside_of_graphs(compilation: Any) -> bool:
    splits = VLLM_WRITES in (compilation.splitting_ops or ()) and not compilation.use_inductor_graph_partition
    return is_eager(compilation) or (is_in_pieces(compilation) and splits)


def split_graphs(compilation: Any) -> None:
    """Have vLLM end a piece of its compiled graph at our write, as it does at its own."""
    splits = compilation.splitting_ops
    if splits and QUALIFIED not in splits:
        splits.append(QUALIFIED)
        installed.on_undo(functools.partial(splits.remove, QUALIFIED))


@functools.cache
def define() -> None:
    """Define the operator, once per process: graphs from vLLM's cache call it by its name."""
    schemas.define(f"{OP}({ARGUMENTS}) -> Tensor", _norm_rotate_and_write, lambda q, *_: q.new_empty(0))


def _norm_rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    options: str,
    layer_name: str,
) -> Tensor:
    """q, k and v: (num_tokens, heads, head_dim). What the kernel cannot write, vLLM does."""
    _, attn, cache, slots = _of_vllm().get_attention_context(layer_name)
    caches = _caches(cache, k, slots)
    inputs = q, positions, table, q_weight, k_weight
    if caches is not None:
        torch.ops.serving_ops.qk_norm_rope_short_cached.default(*inputs, options, k, v, *caches, slots)
        return q.new_empty(0)
    torch.ops.serving_ops.qk_norm_rope.default(*inputs, k=k, **options_of(options))
    if slots is not None:
        attn.impl.do_kv_cache_update(attn, k, v, cache, slots)
    return q.new_empty(0)


def _caches(cache: Tensor, k: Tensor, slots: Tensor | None) -> tuple[Tensor, ...] | None:
    """Return the caches of keys and of values, (blocks, block_size, heads, head_dim) each; None where it is not known.

    While vLLM profiles memory, there are no slots yet.
    """
    if slots is None or cache.dtype != k.dtype or slots.shape[0] > k.shape[0]:
        return None
    heads, size = k.shape[1:]
    if cache.dim() == 5 and cache.shape[1] == 2 and cache.shape[3:] == k.shape[1:]:
        nested = cache.stride(1) < max(cache.stride()[2:])  # key and value alternate in a block: C++ refuses that
        return None if nested else cache.unbind(1)
    if cache.dim() == 4 and cache.shape[1] == heads and cache.shape[3] == 2 * size:  # since 0.32
        return cache.transpose(1, 2).split(size, dim=-1)
    return None


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, written: Tensor, output: Tensor) -> None:
    """vLLM's attention over a cache that is written. q, k, v and output: (num_tokens, heads, head_dim).

    Dynamo traces it, and leaves the import out. A function kept on the layer would be pickled with what is compiled.
    """
    from vllm.model_executor.layers.attention import attention

    name = attention._encode_layer_name(attn.layer_name)
    torch.ops.vllm.unified_attention_with_output(q, k, v, output, name, kv_cache_dummy_dep=written)
