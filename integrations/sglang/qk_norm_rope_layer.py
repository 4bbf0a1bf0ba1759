"""The norms of q and k, the rotary embedding and the cache write of SGLang's Qwen3 attention in one kernel of ours.

On CUDA SGLang runs three kernels in `Qwen3Attention`, and two in `Qwen3MoeAttention`, whose rotary embedding writes the
cache. We set a method on each attention layer. Where SGLang's own kernels may write the cache beside the rotary
embedding, ours does; elsewhere the attention writes it, as before.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, extension
from serving_ops.integrations.common import rope_text
from serving_ops.integrations.common.code_names import names_in, parameters_in
from serving_ops.integrations.common.norm_classes import Activations, rope_options
from serving_ops.integrations.common.record import Installed
from serving_ops.integrations.sglang.adapters import RMS_NORM
from serving_ops.norm_spec import RopeSpec

OP = "qk_norm_rope"
FROM_PYTHON = "a launch from Python takes longer than SGLang's"
SPREAD = "decode context parallelism spreads the cache"
NOT_MEASURED = "without CUDA graphs its host time beside SGLang's kernels was not measured"

KEPT = "serving_ops_qk_norm_rope"
"""The attribute of an attention layer that has its `Kept`."""

READ = ("qkv_proj", "o_proj", "q_size", "kv_size", "attn.layer_id", "attn.k_scale", "attn.v_scale")
"""What calls read of an attention layer, beyond what is read when it is looked at."""


@dataclass(frozen=True)
class Kept:
    """What the calls of an attention layer have in common: the operator's options, and SGLang's access to the cache.

    options: as `rope_text.options_text` has them.
    may_write: takes a batch; returns whether the kernel may write the cache.
    pool: takes a batch; returns the caches of all layers.
    """

    options: str
    may_write: Callable[[Any], bool]
    pool: Callable[[Any], Any]


def _forward(layer: Any, positions: Tensor, hidden_states: Any, forward_batch: Any) -> Tensor:
    """`Qwen3Attention.forward`."""
    qkv, _ = layer.qkv_proj(hidden_states)
    caches = _caches(layer, qkv, forward_batch)
    q, k, v = _normed_and_rotated(layer, qkv, positions, caches)
    out, _ = layer.o_proj(layer.attn(q, k, v, forward_batch, save_kv_cache=not caches))
    return out


def _apply_qk_norm_rope(layer: Any, qkv: Tensor, positions: Tensor, forward_batch: Any) -> tuple[Tensor, ...]:
    """`Qwen3MoeAttention.apply_qk_norm_rope`. `forward_core` writes the cache where `TOLD` is True."""
    caches = _caches(layer, qkv, forward_batch) if layer.compatible_with_fused_kv_buffer else ()
    setattr(layer, TOLD, not caches)
    return _normed_and_rotated(layer, qkv, positions, caches)


def _normed_and_rotated(layer: Any, qkv: Tensor, positions: Tensor, caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """q, k and v as views of qkv, with k and v in the caches."""
    inputs = qkv, positions, layer.rotary_emb.cos_sin_cache, layer.q_norm.weight, layer.k_norm.weight
    options = getattr(layer, KEPT).options
    if caches:
        torch.ops.serving_ops.qk_norm_rope_short_cached.default(*inputs, options, None, None, *caches)
    else:
        torch.ops.serving_ops.qk_norm_rope_short.default(*inputs, options)
    return qkv.split([layer.q_size, layer.kv_size, layer.kv_size], dim=-1)


def _caches(layer: Any, qkv: Tensor, forward_batch: Any) -> tuple[Tensor, ...]:
    """Return the caches that the kernel may write, as SGLang's rotary embedding may, and the slots; else nothing."""
    attn, kept = layer.attn, getattr(layer, KEPT)
    if attn.k_scale is not None or attn.v_scale is not None or not kept.may_write(forward_batch):
        return ()
    keys, values = kept.pool(forward_batch).get_kv_buffer(attn.layer_id)
    slots = forward_batch.out_cache_loc
    if keys.dim() != 3 or keys.dtype != qkv.dtype or slots.shape[0] > qkv.shape[0] or not slots.is_contiguous():
        return ()
    return keys, values, slots


def _access() -> tuple[Callable[[Any], bool], Callable[[Any], Any]]:
    """Return `Kept.may_write` and `Kept.pool`. Raises ImportError or AttributeError in a SGLang without them.

    A subclass of SGLang's pool may have no place for a token at its slot: one of them keeps nothing.
    """
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
    from sglang.srt.models.utils import enable_fused_set_kv_buffer

    attrgetter("get_kv_buffer")(MHATokenToKVPool)
    pool = _pool_of_a_batch()

    def may_write(forward_batch: Any) -> bool:
        return type(pool(forward_batch)) is MHATokenToKVPool and enable_fused_set_kv_buffer(forward_batch)

    return may_write, pool


def _pool_of_a_batch() -> Callable[[Any], Any]:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    if hasattr(ForwardBatch, "token_to_kv_pool"):  # SGLang 0.5.11
        return lambda forward_batch: forward_batch.token_to_kv_pool
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    return lambda forward_batch: get_token_to_kv_pool()


ATTENTION = {
    "sglang.srt.models.qwen3.Qwen3Attention": ("forward", _forward),
    "sglang.srt.models.qwen3_moe.Qwen3MoeAttention": ("apply_qk_norm_rope", _apply_qk_norm_rope),
}
"""A class of SGLang's -> the method that ours replaces, and ours."""

TELLS, TOLD = "apply_qk_norm_rope", "_used_fused_qk_norm_rope_last_call"
"""A method that ours replaces, and the attribute by which it tells `forward_core` to write the cache."""

INSIDE = {"forward": ("forward", "forward_prepare_native"), "apply_qk_norm_rope": ("apply_qk_norm_rope",)}
"""A method that ours replaces -> the methods whose work it does."""

STEPS = {
    *("qkv_proj", "split", "q_size", "kv_size", "q_norm", "k_norm", "apply_qk_norm", "rotary_emb", "attn", "o_proj"),
    *("head_dim", "num_heads", "num_kv_heads", "weight", "variance_epsilon", "alt_stream"),
    *("forward_prepare_native", "forward_prepare_npu", "forward_prepare_aiter_fused_mrope"),
    *("forward_prepare_aiter_fused", "use_fused_qk_norm_mrope", "forward_mode", "is_decode"),
    *("is_extend_or_draft_extend_or_mixed", "get_token_to_kv_pool", "get_kv_buffer", "layer_id", "dim"),
    *("get_global_server_args", "get_exec", "deterministic", "rl_on_policy_target"),
    *("_used_fused_qk_norm_rope_last_call", "compatible_with_fused_kv_buffer"),
    *("create_fused_set_kv_buffer_arg", "enable_fused_set_kv_buffer"),
    *("use_fused_qk_norm_rope", "fused_qk_norm_rope", "fused_inplace_qknorm_rope", "compute_yarn_parameters"),
    *("use_fused_qk_norm_rope_cpu", "fused_qk_norm_rope_cpu", "sgl_kernel", "_match_cos_sin_cache_dtype"),
    *("config", "rope_theta", "is_neox_style", "cos_sin_cache", "rotary_dim", "contiguous", "view"),
    *("_is_npu", "_is_cuda", "_is_xpu", "_is_cpu"),
    *("torch", "ops", "to", "dtype", "device", "bfloat16", "float16", "int32"),
}
"""The names that these methods use in SGLang 0.5.11 to 0.5.23. A name beyond them is a step that ours lacks."""

PARAMETERS = {"self", "positions", "hidden_states", "qkv", "forward_batch"}
"""Their parameters."""

ROTARY = "sglang.srt.layers.rotary_embedding"
GLM = "mrope_interleaved_glm"
"""The attribute of embeddings whose MRoPE takes turns in another way."""


def _name(layer: torch.nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def is_known(layer: torch.nn.Module) -> bool:
    """Return whether a layer is of one of the classes in `ATTENTION`."""
    return _name(layer) in ATTENTION


def why_not_there(args: Any) -> str | None:
    """Return why a server keeps SGLang's kernels, or None: ours take more of the host's time, or write elsewhere."""
    if getattr(args, "dcp_size", 1) > 1:
        return SPREAD
    if extension.cpp_library() is None:
        return FROM_PYTHON
    graphs = getattr(args, "cuda_graph_config", None)
    eager = getattr(args, "disable_cuda_graph", False) or (graphs and graphs.decode.backend == "disabled")
    return NOT_MEASURED if eager else None


def why_native(layer: Any) -> str | None:
    """Return what the layer does beyond our operator, or None."""
    cls, replaced = type(layer), ATTENTION[_name(layer)][0]
    codes = [getattr(cls, name).__code__ for name in INSIDE[replaced]]
    if any(code.co_filename != sys.modules[cls.__module__].__file__ for code in codes):
        return f"other code stands in for its {replaced}"
    if replaced == TELLS and TOLD not in names_in(cls.forward_core.__code__):
        return f"its forward_core does not read {TOLD}"
    others = set().union(*map(names_in, codes)) - STEPS | set().union(*map(parameters_in, codes)) - PARAMETERS
    if others:
        return f"its {replaced} also uses {', '.join(sorted(others))}"
    if _rotation(layer.rotary_emb) is None:
        return f"no code for {type(layer.rotary_emb).__name__}"
    if getattr(layer, "use_fused_qk_norm_rope", False):
        return "the user chose SGLang's fused kernel"
    if layer.q_norm.variance_epsilon != layer.k_norm.variance_epsilon:
        return "q and k have norms of two kinds"
    try:
        attrgetter(*READ)(layer), _access()
    except (AttributeError, ImportError) as error:
        return f"this SGLang is not known: {error}"
    return RMS_NORM.why_native(layer.q_norm) or RMS_NORM.why_native(layer.k_norm)


def _rotation(rotary: Any) -> dict[str, Any] | None:
    """Return the fields of a `RopeSpec` for a rotary embedding, or None for one that computes something else.

    A subclass that only fills its table otherwise, as YaRN's does, rotates as its base.
    """
    base = next(cls for cls in type(rotary).__mro__ if any(name.startswith("forward") for name in vars(cls)))
    if not base.__module__.startswith(ROTARY):
        return None
    options = {"rotary_dim": rotary.rotary_dim, "is_neox": rotary.is_neox_style}
    if base.__name__ == "RotaryEmbedding":
        return options
    if base.__name__ != "MRotaryEmbedding" or not rotary.mrope_section or getattr(rotary, GLM, False):
        return None
    return options | {"mrope_section": tuple(rotary.mrope_section), "mrope_interleaved": rotary.mrope_interleaved}


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """With a cache and without; SGLang may turn a table into the activations' dtype while it serves."""
    norm = dataclasses.replace(RMS_NORM.specs(layer.q_norm, x)[0], op=OP, heads=layer.num_heads)
    rope = RopeSpec(layer.num_kv_heads, block_size=None, **(_rotation(layer.rotary_emb) or {}))
    return tuple(
        dataclasses.replace(norm, rotation=dataclasses.replace(rope, table_dtype=dtype, has_cache=cached))
        for dtype in {layer.rotary_emb.cos_sin_cache.dtype, x.dtype}
        for cached in (True, False)
    )


def connect(layer: Any, spec: NormSpec, changes: Installed) -> None:
    """Have our method run for an attention layer."""
    method, ours = ATTENTION[_name(layer)]
    rope_text.define()
    changes.set(layer, KEPT, Kept(rope_text.options_text(rope_options(spec)), *_access()))
    changes.set(layer, method, MethodType(ours, layer))
