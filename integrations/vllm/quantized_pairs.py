"""Norms that quantize their result for the linear layer behind them, in one kernel.

vLLM's compiled graphs on CUDA have a pass for that. This is the way for what the pass does not see: eager mode, CPU,
INT8, and norms whose weight is in fp32 or an offset from one. It holds where the norm's result has one reader, so only
decoder layers that are known are looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import NormSpec, QuantFormat, settings
from serving_ops.integrations.common.norm_specs import why_reference
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm import (
    features,
    gemma_rms_norm,
    installed,
    linear_kernels,
    priority,
    quant_fusion,
    quantization,
    quantized_consumers,
    rms_norm_layer,
)

SERVES_FASTER: frozenset[tuple[str, str]] = frozenset(
    {
        ("CPUInt8ScaledMMLinearKernel", "eager"),  # TPOT 0.81: step-cpu-int8.json
        ("CutlassInt8ScaledMMLinearKernel", "compiled"),  # 0.92: step-h200-int8-token-compiled.json
    }
)
"""The kernels of linear layers, and the mode, in which a model was measured to be faster. Beside each, the TPOT or the
device time of a step, over vLLM's (Qwen3-0.6B's shape, with `qk_norm_rope`), and the file in bench_e2e/results."""

NAME = "quantized_pairs"

_FOR_ATTENTION = ("input_layernorm", "self_attn", "qkv_proj")
_LLAMA = (_FOR_ATTENTION, ("post_attention_layernorm", "mlp", "gate_up_proj"))
_GEMMA = (_FOR_ATTENTION, ("pre_feedforward_layernorm", "mlp", "gate_up_proj"))
LAYERS = {
    "gemma2.Gemma2DecoderLayer": _GEMMA,
    "gemma3.Gemma3DecoderLayer": _GEMMA,
    "llama.LlamaDecoderLayer": _LLAMA,
    "qwen2.Qwen2DecoderLayer": _LLAMA,
    "qwen3.Qwen3DecoderLayer": _LLAMA,
}
"""Decoder layers of vLLM's models -> norm, reader of its result, and the reader's linear layer. The module counts: some
draft models call a layer of another shape by the same name."""

READERS = {
    *("gemma2.Gemma2Attention", "gemma2.Gemma2MLP", "gemma3.Gemma3Attention", "gemma3.Gemma3MLP"),
    *("llama.LlamaAttention", "llama.LlamaMLP", "qwen2.Qwen2Attention", "qwen2.Qwen2MLP", "qwen3.Qwen3Attention"),
}
"""The readers that use their input for one linear layer alone. Mixtures of experts also route by it."""

OPS = ("rms_norm_quant", "fused_add_rms_norm_quant")

OFFSETS = {gemma_rms_norm.ADAPTER: gemma_rms_norm.WEIGHT_OFFSET, rms_norm_layer.ADAPTER: 0.0}
"""vLLM's classes of norms -> what is added to their weights."""


@dataclass(frozen=True)
class Pair:
    """A norm and the kernel of the linear layer that reads its result.

    fmt: what the kernel wants. specs: the norm without a residual and with one.
    """

    norm: Any
    kernel: Any
    fmt: QuantFormat
    specs: tuple[NormSpec, ...]


def pairs_of(models: Iterable[torch.nn.Module], dtype: torch.dtype, device: torch.device) -> Iterator[Pair]:
    """Yield the pairs of loaded models."""
    for model in models:
        for layer in model.modules():
            for norm_name, reader_name, linear_name in LAYERS.get(_name(layer), ()):
                reader = getattr(layer, reader_name)
                if _name(reader) in READERS:
                    pair = _pair(getattr(layer, norm_name), getattr(reader, linear_name), dtype, device)
                    yield from () if pair is None else (pair,)


def _name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__name__}".removeprefix("vllm.model_executor.models.")


def _pair(norm: Any, linear: Any, dtype: torch.dtype, device: torch.device) -> Pair | None:
    offset = next((OFFSETS[adapter] for adapter in OFFSETS if adapter.is_of(type(norm))), None)
    kernel = linear_kernels.kernel_of(linear) if hasattr(linear, "quant_method") else None
    fmt = quantized_consumers.fmt_of(kernel)
    bounded = getattr(linear, "input_scale_ub", None) is not None
    if offset is None or fmt is None or bounded or getattr(norm, "variance_size_override", None) is not None:
        return None
    weight = norm.weight if getattr(norm, "has_weight", True) else None
    options: dict[str, Any] = {"eps": norm.variance_epsilon, "weight_offset": offset, "fmt": fmt}
    rows = (norm.weight.numel(), dtype, None if weight is None else weight.dtype, device)
    return Pair(norm, kernel, fmt, tuple(NormSpec(op, *rows, **options) for op in OPS))


def take(models: Sequence[torch.nn.Module], vllm_config: Any, device: torch.device) -> str | None:
    """Have the norms of a loaded model quantize where that serves faster; returns a phrase for the start-up line."""
    every = list(pairs_of(models, vllm_config.model_config.dtype, device))
    if not every or not _may(vllm_config):
        return None
    mode = "eager" if quantization.is_eager(vllm_config) else "compiled"
    faster = (pair for pair in every if (type(pair.kernel).__name__, mode) in SERVES_FASTER)
    found = [pair for pair in faster if why_reference(pair.specs) is None]
    if not found:
        return None
    specs = dict.fromkeys(spec for pair in found for spec in pair.specs)
    failed = serving_ops.prewarm(list(specs)).failed if settings.prewarm_enabled() else {}
    if failed:
        installed.failures[NAME] = next(iter(failed.values()))
        return f"no norm quantizes for the layer behind it: {installed.failures[NAME]}"
    for pair in found:
        switch(pair)
    return f"{len(found)} norms quantize for the layer behind them, where our kernels run"


def _may(vllm_config: Any) -> bool:
    """Return whether each result of a norm reaches its linear layer as it is, and the user left norms to us."""
    on_one_device = vllm_config.parallel_config.tensor_parallel_size == 1
    left_to_us = not (features.has_ir() and priority.user_chose_any(vllm_config))
    as_measured = on_one_device and vllm_config.lora_config is None and not features.is_batch_invariant()
    return as_measured and left_to_us and settings.ops() >= quant_fusion.NEEDED_OPS


def switch(pair: Pair) -> None:
    """Have a norm hand quantized rows on, and its kernel take them. Both end with the model."""
    quantized_consumers.teach(type(pair.kernel))
    pair.norm._forward_method = _quantizing(pair)


def _quantizing(pair: Pair) -> Any:
    """vLLM's `forward` of a norm; what the kernels do not take goes to the method that vLLM chose."""
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation

    norm, own, spec, ops = pair.norm, pair.norm._forward_method, pair.specs[0], torch.ops.serving_ops
    eps, text, options = spec.eps, pair.fmt.text, {"weight_offset": spec.weight_offset}
    has_weight = spec.weight_dtype is not None

    @functools.wraps(own)
    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        weight = norm.weight if has_weight else None
        if x.dim() != 2 or not rows_fit(x, weight):
            return own(x, residual)
        if residual is None:
            q, scales = ops.rms_norm_quant(x, weight, eps, text, **options)
            return QuantizedActivation(q, scales, x.dtype, x.shape, None)
        if residual is x or not alike(x, residual):
            return own(x, residual)
        q, scales = ops.fused_add_rms_norm_quant(x, residual, weight, eps, text, **options)
        return QuantizedActivation(q, scales, x.dtype, x.shape, None), residual

    return forward
