"""The result of a hybrid's mixer, handed on without a buffer.

The decoder layers of Qwen3-Next and Qwen3.5 in vLLM 0.25 make a tensor, and their mixer copies its last product into
it. In a compiled graph Inductor makes that copy in its own norm. It cannot in our operator, so each layer has a kernel
more, as each has in eager mode. Our `forward` gives the mixer an object that keeps the product. Since vLLM 0.32 a mixer
returns its result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from serving_ops.integrations.vllm import features, installed, mixer_gate
from serving_ops.integrations.vllm.known_code import is_one_of, names_of, parameters_of, why_lacking

LAYERS = {
    "Qwen3NextDecoderLayer": "vllm.model_executor.models.qwen3_next",
    "Qwen3_5DecoderLayer": "vllm.model_executor.models.qwen3_5",
}
"""The name of a decoder layer's class -> its module."""

ASKED = ("input_layernorm", "post_attention_layernorm", "layer_type", "mlp")
"""The attributes of such a layer that our `forward` uses, beside its mixer."""

MIXERS = {**mixer_gate.MIXERS, "Qwen3NextAttention": "vllm.model_executor.models.qwen3_next"}

BUFFER = "empty_like"
STEPS = {
    *("input_layernorm", "post_attention_layernorm", "layer_type", "linear_attn", "self_attn", "mlp"),
    *("layer_scale", "attn_layer_scale", "ffn_layer_scale", "len", "shape", "to", "dtype"),
    *("torch", BUFFER, "ValueError"),
}
"""The names that the `forward` of a decoder layer uses which ours may replace."""

PARAMETERS = {"self", "hidden_states", "residual", "positions"}
"""Its parameters that ours takes."""

MIXER_STEPS = {
    *("qkv_proj", "_project_qkv_gate", "attn", "sigmoid", "o_proj"),
    *("_forward_method", "_output_projection", "norm", "out_proj", "prefix", "_encode_layer_name"),
    *("in_proj_qkvz", "in_proj_ba", "gqa_interleaved_layout", "fix_query_key_value_ordering", "split_ba"),
    *("key_dim", "value_dim", "head_v_dim", "num_v_heads", "tp_size"),
    *("torch", "ops", "vllm", "qwen_gdn_attention_core", "cpu_gdn_attention_core"),
    *("zeros", "dtype", "device", "shape", "size", "cat", "split", "chunk", "reshape", "flatten", "contiguous"),
    *("map", "hasattr", "rearrange"),
}
"""The names that vLLM 0.25's mixers use. They write their output by index, once and whole, and do no more with it."""

FUSED = "fused_add_rms_norm"
"""The operator behind the mixer, for whose sake the buffer goes."""

WITHOUT = "serving_ops_mixer_output"
"""The attribute of each layer that is on."""

layers_on: list[str] = []
"""The classes of the loaded model's layers that are on: compiled graphs depend on them."""


class Kept:
    """Takes the place of a buffer that is written whole: `kept[...] = value`."""

    value: Tensor

    def __setitem__(self, rows: Any, value: Tensor) -> None:
        self.value = value


def take(models: Iterable[torch.nn.Module], vllm_config: Any) -> str | None:
    """Have the layers of a loaded model go on without the buffer; returns a phrase for the start-up line."""
    found = (layer for model in models for layer in model.modules() if _fits(layer))
    layers = list(found) if _may(vllm_config) else []
    layers_on[:] = installed.take_over(layers, "forward", _with_ours, WITHOUT)
    installed.on_undo(layers_on.clear)
    return f"no copy of the result of {len(layers)} mixers" if layers else None


def _may(vllm_config: Any) -> bool:
    """With an all-reduce in the norm, vLLM's passes have a graph of their own to find."""
    return (
        FUSED in features.ops()
        and features.COMPILE_CACHE not in installed.failures
        and not features.joins_norms_to_an_all_reduce(vllm_config)
    )


def _fits(layer: Any) -> bool:
    if not is_one_of(LAYERS, layer) or why_lacking(layer, *ASKED):
        return False
    names, others = names_of(type(layer).forward), parameters_of(type(layer).forward) - PARAMETERS
    mixer = getattr(layer, "linear_attn", None) or getattr(layer, "self_attn", None)
    return BUFFER in names and names <= STEPS and not others and not layer.layer_scale and _only_writes(mixer)


def _only_writes(mixer: Any) -> bool:
    """Return whether a mixer's methods that get the buffer have no step beyond those that are known."""
    methods = (getattr(mixer, name, None) for name in ("forward", "_forward_method", "_output_projection"))
    return is_one_of(MIXERS, mixer) and all(names_of(method) <= MIXER_STEPS for method in methods if method is not None)


def _with_ours(original: Any) -> Any:
    @functools.wraps(original)
    def mix_without_a_buffer(
        self: Any, hidden_states: Tensor, residual: Tensor | None, positions: Any = None, **more: Any
    ) -> Any:
        if getattr(self, WITHOUT, False):
            return forward(self, hidden_states, residual, positions)
        return original(self, hidden_states, residual, positions, **more)

    return mix_without_a_buffer


def forward(layer: Any, hidden_states: Tensor, residual: Tensor | None, positions: Any) -> tuple[Tensor, Tensor]:
    """`Qwen3NextDecoderLayer.forward` of vLLM 0.25 without layer scales: hidden_states (num_tokens, hidden_size)."""
    if residual is None:
        residual = hidden_states
        hidden_states = layer.input_layernorm(hidden_states)
    else:
        hidden_states, residual = layer.input_layernorm(hidden_states, residual)
    output = Kept()
    if layer.layer_type == "linear_attention":
        layer.linear_attn(hidden_states=hidden_states, output=output)
    else:
        layer.self_attn(hidden_states=hidden_states, output=output, positions=positions)
    hidden_states, residual = layer.post_attention_layernorm(output.value, residual)
    return layer.mlp(hidden_states), residual
