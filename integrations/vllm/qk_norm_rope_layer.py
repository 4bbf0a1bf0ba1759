"""q and k norms and the rotary embedding of vLLM's attention layers in one launch.

vLLM runs three kernels there in eager mode, and Inductor two when it compiles. vLLM has no layer for both, so ours is
the `forward` of the attention classes that norm heads and then rotate them. Each layer of a loaded model is examined
once; what the operator does not do stays vLLM's.

Where `cache_write` knows the layer's cache, the same kernel writes k and v into it. Elsewhere vLLM does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, RopeSpec, extension, settings
from serving_ops.integrations.common.norm_classes import Activations, rope_options, why_reference
from serving_ops.integrations.common.rope_text import options_text
from serving_ops.integrations.vllm import cache_write, features, installed
from serving_ops.integrations.vllm.adapters import GEMMA_RMS_NORM, RMS_NORM, Adapter, why_part
from serving_ops.integrations.vllm.known_code import is_one_of, names_of, parameters_of, why_lacking
from serving_ops.integrations.vllm.layers import LEFT_OUT, NormLayer, activations

OP = "qk_norm_rope"
KIND = "q and k norms with rotary in one kernel"
CACHED_KIND = "q and k norms with rotary and cache write in one kernel"

CLASSES = {
    "Qwen3Attention": "vllm.model_executor.models.qwen3",
    "Qwen3MoeAttention": "vllm.model_executor.models.qwen3_moe",
    "Gemma3Attention": "vllm.model_executor.models.gemma3",
    "Qwen3NextAttention": "vllm.model_executor.models.qwen3_next",
}
"""The name of a class -> its module. Other models build these classes too, as Qwen3-VL and Qwen3.5 do."""

STEPS = {
    *("qkv_proj", "split", "q_size", "kv_size", "q_norm", "k_norm", "rotary_emb", "attn", "o_proj"),
    *("view", "shape", "unflatten", "flatten", "head_dim", "num_heads", "num_kv_heads"),
}
"""The names that a `forward` uses which ours may replace. A name beyond them is a step that ours lacks."""

ASKED = (
    *("qkv_proj", "q_norm", "k_norm", "rotary_emb", "attn", "o_proj"),
    *("q_size", "kv_size", "head_dim", "num_heads", "num_kv_heads"),
)
"""The attributes of a layer that our `forward` uses."""

PARAMETERS = {"self", "positions", "hidden_states", "output"}
"""The parameters of a `forward` that ours takes."""

PROJECT = "_project_qkv_gate"
"""The method of classes whose q may come with an output gate, which does what is ours between the projection and the
attention."""

GATE = "attn_output_gate"
"""The attribute of a layer of these classes that says whether it has one."""

GATED_STEPS = STEPS | {
    *(PROJECT, "use_fused_qk_norm_rope_gate", "fused_qk_rmsnorm_rope_gate", GATE, "sigmoid"),
    *("weight", "float", "cos_sin_cache", "variance_epsilon", "rotary_dim"),
    *("torch", "chunk", "reshape", "ndim", "getattr"),
}
"""The same for these classes."""

COMPUTES = ("forward", "forward_native", "forward_cuda", "forward_cpu", "_match_cos_sin_cache_dtype")
"""Methods of a rotary embedding. Classes that only compute another table inherit all of these; ours calls the last."""

OPTIONS = "serving_ops_qk_norm_rope"
"""The attribute of each layer that is on: the operator's options as a text. Dynamo does not trace how it is made."""

WRITES_CACHE = f"{OPTIONS}_writes_cache"
"""The attribute of each layer that is on: whether its kernel writes the KV cache."""

PASS = "vLLM's own fusion pass was asked for"
GATE_ALONE = "its q has an output gate, and vLLM writes the cache"
FROM_PYTHON = "launched from Python, it takes the host longer than vLLM's kernels"

layers_on: list[str] = []
"""The names of the loaded model's layers that are on, with their classes: compiled graphs depend on them."""


@dataclass(frozen=True)
class AttentionLayer(NormLayer):
    """An attention layer of one of `CLASSES`, its name in the model, and whether the kernel writes its cache."""

    name: str
    attention: Any
    writes_cache: bool

    def fell_back(self) -> bool:
        """Return whether the operator failed. Elsewhere vLLM keeps what the operator is not for."""
        return OP in installed.given_back

    def norms(self) -> tuple[Any, Any]:
        """Return the layers that are not called where the operator is."""
        return self.attention.q_norm, self.attention.k_norm


def survey(models: Iterable[torch.nn.Module], vllm_config: Any, device: torch.device) -> list[AttentionLayer]:
    """Return the attention layers of `CLASSES`, and why vLLM keeps each, or None."""
    named = [(name, layer) for model in models for name, layer in model.named_modules() if is_one_of(CLASSES, layer)]
    if not named:
        return []
    x = activations(vllm_config, device)
    everywhere = _why_nowhere(vllm_config)
    return [_examine(name, layer, x, everywhere, vllm_config) for name, layer in named]


def _why_nowhere(vllm_config: Any) -> str | None:
    """Why vLLM keeps all layers, or None."""
    if OP not in settings.ops():
        return LEFT_OUT
    if OP in installed.given_back:
        return f"the prewarm of {OP} failed"
    if vllm_config.compilation_config.pass_config.enable_qk_norm_rope_fusion:
        return PASS
    return installed.failures.get(features.COMPILE_CACHE) or features.why_no_kernels()


def _examine(name: str, attention: Any, x: Activations, reason: str | None, vllm_config: Any) -> AttentionLayer:
    asked = (*ASKED, GATE) if _may_have_gate(type(attention)) else ASKED
    reason = reason or _other_steps(type(attention)) or why_lacking(attention, *asked)
    reason = reason or _other_norms(attention, x) or _other_rotation(attention.rotary_emb, attention.head_dim)
    cached = reason is None and cache_write.is_for(attention.attn, x.dtype, vllm_config, x.device)
    if _may_have_gate(type(attention)):
        reason = reason or (None if cached else GATE_ALONE)
    specs = () if reason else _specs(attention, x, cached=cached)
    reason = reason or why_reference(specs) or _why_slower(x)
    return AttentionLayer(CACHED_KIND if cached else KIND, specs, reason, name, attention, cached)


def _may_have_gate(cls: type) -> bool:
    return hasattr(cls, PROJECT)


def _other_steps(cls: Any) -> str | None:
    names = names_of(cls.forward)
    if _may_have_gate(cls):
        names |= names_of(getattr(cls, PROJECT))
    if "qkv_proj" not in names:
        return f"{cls.__name__} projects elsewhere"  # as where another plugin put its code around vLLM's
    steps = GATED_STEPS if _may_have_gate(cls) else STEPS
    others = sorted((names - steps) | (parameters_of(cls.forward) - PARAMETERS))
    return f"{cls.__name__} also uses {', '.join(others)}" if others else None


def _other_norms(attention: Any, x: Activations) -> str | None:
    norms = attention.q_norm, attention.k_norm
    for norm in norms:
        if not any(_is_built_for(norm, adapter) for adapter in (RMS_NORM, GEMMA_RMS_NORM)):
            return f"its norms are {type(norm).__name__}"
        spec = _norm_spec(norm, x)
        if spec.size != attention.head_dim or spec.weight_dtype is None or why_part(norm):
            return "its norms are not of heads with a weight"
    q, k = (_norm_spec(norm, x) for norm in norms)
    return None if q == k else "its two norms differ"


def _is_built_for(norm: Any, adapter: Adapter) -> bool:
    """Return whether it is vLLM's class, or our subclass of it, and no other subclass."""
    cls = type(norm)
    return adapter.is_of(cls) and (cls.__module__ in adapter.defined_in or hasattr(cls, "stay_native"))


def _norm_spec(norm: Any, x: Activations) -> NormSpec:
    adapter = GEMMA_RMS_NORM if GEMMA_RMS_NORM.is_of(type(norm)) else RMS_NORM
    return adapter.specs(norm, x)[0]


def _other_rotation(rotary: Any, head_dim: int) -> str | None:
    from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding, RotaryEmbedding

    base = MRotaryEmbedding if isinstance(rotary, MRotaryEmbedding) else RotaryEmbedding
    inherits = isinstance(rotary, base) and all(
        getattr(type(rotary), method, None) is getattr(base, method, None) for method in COMPUTES
    )
    fits = inherits and rotary.head_size == head_dim and not rotary.use_flashinfer
    return why_lacking(rotary, *COMPUTES) if fits else f"its rotary embedding is {type(rotary).__name__}"


def _specs(attention: Any, x: Activations, *, cached: bool) -> tuple[NormSpec, ...]:
    """The calls that the layer may make: with three positions a token and with one, with a cache and without."""
    rotary = attention.rotary_emb
    section = getattr(rotary, "mrope_section", None)
    ropes = [
        RopeSpec(
            num_kv_heads=attention.num_kv_heads,
            rotary_dim=rotary.rotary_dim,
            is_neox=rotary.is_neox_style,
            mrope_section=rows,
            mrope_interleaved=rows is not None and rotary.mrope_interleaved,
            separate=cached,
            has_cache=has_cache,
        )
        for rows in dict.fromkeys((section and tuple(section), None))
        for has_cache in ((False, True) if cached else (False,))
    ]
    norm = dataclasses.replace(_norm_spec(attention.q_norm, x), op=OP, heads=attention.num_heads)
    return tuple(dataclasses.replace(norm, rotation=rope) for rope in ropes)


def _why_slower(x: Activations) -> str | None:
    """Why vLLM's kernels may take less of the host's time on CUDA, or None.

    It waits for the host in eager mode, and where a prompt of a compiled model is in no graph. A launch from C++ is one
    call in place of three.
    """
    return FROM_PYTHON if x.device.type == "cuda" and extension.cpp_library() is None else None


def take(found: Iterable[NormLayer], vllm_config: Any) -> None:
    """Have the layers that are on call the operator. vLLM compiles them later."""
    on = [layer for layer in found if isinstance(layer, AttentionLayer) and layer.native_because is None]
    for cls in {type(layer.attention) for layer in on}:
        installed.wrap(cls, "forward", _with_ours)
    if any(layer.writes_cache for layer in on):
        cache_write.split_graphs(vllm_config.compilation_config)
    for layer in on:
        options = options_text(rope_options(layer.specs[0]))
        installed.mark(layer.attention, **{OPTIONS: options, WRITES_CACHE: layer.writes_cache})
    layers_on[:] = sorted(f"{layer.name}:{type(layer.attention).__name__}:{layer.writes_cache:d}" for layer in on)
    installed.on_undo(layers_on.clear)


def _with_ours(original: Any) -> Any:
    @functools.wraps(original)
    def norm_and_rotate(self: Any, positions: Tensor, hidden_states: Tensor, **more: Any) -> Tensor | None:
        if getattr(self, OPTIONS, None) is None or not _fit(self, positions, hidden_states):
            return original(self, positions=positions, hidden_states=hidden_states, **more)  # type: ignore[no-any-return]
        result = forward(self, positions, hidden_states)
        if "output" not in more:
            return result
        more["output"][:] = result  # vLLM 0.25
        return None

    return norm_and_rotate


def _fit(attention: Any, positions: Tensor, hidden_states: Any) -> bool:
    """hidden_states may come quantized, as vLLM's `QuantizedActivation`."""
    shape = hidden_states.shape if isinstance(hidden_states, Tensor) else getattr(hidden_states, "orig_shape", ())
    return len(shape) == 2 and (positions.dim() == 1 or bool(getattr(attention.rotary_emb, "mrope_section", None)))


def forward(attention: Any, positions: Tensor, hidden_states: Tensor) -> Tensor:
    """`Qwen3Attention.forward`: hidden_states (num_tokens, hidden_size). The heads of q and k are written in place."""
    qkv, _ = attention.qkv_proj(hidden_states)
    inputs = positions, attention.rotary_emb._match_cos_sin_cache_dtype(qkv)
    inputs += attention.q_norm.weight, attention.k_norm.weight, getattr(attention, OPTIONS)
    attend = _write_and_attend if getattr(attention, WRITES_CACHE) else _attend
    return attention.o_proj(attend(attention, qkv, inputs))[0]


def _attend(attention: Any, qkv: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    torch.ops.serving_ops.qk_norm_rope_short(qkv, *inputs)
    return attention.attn(*_split(attention, qkv)[:3])  # type: ignore[no-any-return]


def _write_and_attend(attention: Any, qkv: Tensor, inputs: tuple[Any, ...]) -> Tensor:
    """The views come first: a piece of the graph that lay between the two operators would be compiled alone."""
    q, k, v, gate = _split(attention, qkv)
    q = q.view(-1, attention.num_heads, attention.head_dim)
    k, v = (part.view(-1, attention.num_kv_heads, attention.head_dim) for part in (k, v))
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    written = torch.ops.serving_ops.vllm_qk_norm_rope_cached(q, k, v, *inputs, attention.attn.layer_name)
    cache_write.attend(attention.attn, q, k, v, written, output)
    return _gated(output.view(-1, attention.q_size), gate)


def _split(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v and the gate, views of the projection's result. Beside a gate, q is (num_tokens, heads, head_dim)."""
    gated = _may_have_gate(type(attention)) and getattr(attention, GATE)
    q, k, v = qkv.split([attention.q_size * (2 if gated else 1), attention.kv_size, attention.kv_size], dim=-1)
    if not gated:
        return q, k, v, None
    q, gate = q.view(-1, attention.num_heads, 2 * attention.head_dim).chunk(2, dim=-1)
    return q, k, v, gate


def _gated(output: Tensor, gate: Tensor | None) -> Tensor:
    """output: (num_tokens, heads * head_dim)."""
    if gate is None:
        return output
    return (output.view(gate.shape) * torch.sigmoid(gate)).view(output.shape)
