"""Norms that quantize their result for the linear layer behind them, in one kernel.

vLLM's compiled graphs on CUDA have a pass for FP8. This is the way for what the pass does not see: eager mode, INT8,
CPU, and a product that quantizes inside its operator. It holds where the norm's result has one reader, so only decoder
layers that are known are looked at. The norm returns vLLM's `QuantizedActivation`, which vLLM's own kernels take for
static FP8 alone. We have a kernel's class take it too, and leave a plain tensor to vLLM's method.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, QuantFormat, extension
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.calls import may_add, rows_fit
from serving_ops.integrations.common.norm_classes import GEMMA_OFFSET, NORMS, Activations, why_reference
from serving_ops.integrations.common.norm_layers import prewarm
from serving_ops.integrations.vllm import block_product, features, installed, linear_kernels, priority, quantization
from serving_ops.integrations.vllm.adapters import GEMMA_RMS_NORM, RMS_NORM, why_part
from serving_ops.integrations.vllm.compilation import is_eager
from serving_ops.integrations.vllm.known_code import names_of
from serving_ops.integrations.vllm.layers import activations

_logger = logging.getLogger("vllm.serving_ops")

NAME = "quantized_pairs"

INT8 = QuantFormat(dtype=torch.int8, granularity="token")
FP8_BY_TOKEN = QuantFormat(granularity="token")
FP8_IN_BLOCKS = QuantFormat(scale_layout="column_major")

MODES = ("eager", "compiled")

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

STEPS = {
    *("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("qkv_proj", "split", "q_size", "kv_size", "qk_norm", "q_norm", "k_norm", "rotary_emb", "attn", "o_proj"),
    *("view", "shape", "unflatten", "flatten", "head_dim", "num_heads", "num_kv_heads"),
    *("gate_up_proj", "act_fn", "maybe_fused_act_quant", "down_proj"),
}
"""The names that the `forward` of these layers and readers uses in vLLM 0.25 to 0.33. Another may read the result."""

OFFSETS = {GEMMA_RMS_NORM: GEMMA_OFFSET, RMS_NORM: 0.0}
"""vLLM's classes of norms -> what is added to their weights."""


@dataclass(frozen=True)
class Consumer:
    """A class of kernels, in the modes in which a model with it was measured to be faster.

    fmt: of the rows that the product takes.
    product: takes vLLM's `_custom_ops`, a kernel, its linear layer, a QuantizedActivation of two dimensions and a bias.
    quantizes_so: takes a kernel and its linear layer; returns whether vLLM would quantize its rows in this format, in a
        step of their own or inside the product.
    """

    modes: tuple[str, ...]
    fmt: QuantFormat
    product: Callable[[Any, Any, Any, Any, Tensor | None], Tensor]
    quantizes_so: Callable[[Any, Any], bool] = lambda kernel, linear: True


def _by_onednn(ops: Any, kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    adjustment = kernel._get_layer_params(linear)[-1]
    out = torch.empty((x.data.shape[0], kernel.dnnl_handler.n), dtype=x.orig_dtype)
    ops.onednn_scaled_mm(kernel.dnnl_handler, x.data, out, x.scale, None, adjustment, bias)
    return out


def _by_cutlass(ops: Any, kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    weight, weight_scale, *_ = kernel._get_layer_params(linear)
    return ops.cutlass_scaled_mm(
        x.data, weight, scale_a=x.scale, scale_b=weight_scale, out_dtype=x.orig_dtype, bias=bias
    )


def _by_cutlass_fp8(ops: Any, kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    weight, weight_scale, *_ = kernel._get_layer_params(linear)
    dtype, shape = kernel.config.out_dtype or x.orig_dtype, [*x.orig_shape[:-1], weight.shape[1]]
    return kernel.apply_scaled_mm(
        A=x.data, B=weight, out_dtype=dtype, As=x.scale, Bs=weight_scale, bias=bias, output_shape=shape
    )


def _by_cutlass_in_blocks(ops: Any, kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    weight, weight_scale = _in_blocks(kernel, linear)
    out = kernel.apply_block_scaled_mm(A=x.data, B=weight, As=x.scale, Bs=weight_scale)
    return out if bias is None else out + bias


def _by_flashinfer(ops: Any, kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    out = torch.ops.serving_ops.vllm_block_product.default(x.data, x.scale, *_in_blocks(kernel, linear))
    return out if bias is None else out + bias


def _in_blocks(kernel: Any, linear: Any) -> tuple[Tensor, Tensor]:
    """A weight and its scales, which lie in one of two attributes."""
    layer = kernel._get_layer_params(linear)
    return layer.weight, layer.weight_scale if layer.weight_scale_inv is None else layer.weight_scale_inv


def _to_int8_by_token(kernel: Any, linear: Any) -> bool:
    dynamic = kernel.config.input_symmetric and not kernel.config.is_static_input_scheme
    method = getattr(kernel, "linear_method", None)  # on CPU; where it has AMX, another method quantizes by itself
    return bool(dynamic) and (method is None or method.__name__ == "_apply_weights_onednn")


def _to_fp8_by_token(kernel: Any, linear: Any) -> bool:
    """FBGEMM's checkpoints bound the largest value that a scale is made for. Ours are not bounded."""
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym

    upper_bound = getattr(linear, kernel.layer_param_names[-1], None)
    return bool(kernel.config.activation_quant_key == kFp8DynamicTokenSym) and upper_bound is None


CONSUMERS = {
    # 0.81: step-cpu-int8.json
    "CPUInt8ScaledMMLinearKernel": Consumer(("eager",), INT8, _by_onednn, _to_int8_by_token),
    # 0.89: step-h200-int8-token-compiled.json; 0.82: step-h200-int8-token-eager.json
    "CutlassInt8ScaledMMLinearKernel": Consumer(MODES, INT8, _by_cutlass, _to_int8_by_token),
    # 0.89: step-h200-fp8-block-flashinfer.json; 0.81: step-h200-fp8-block-flashinfer-eager.json
    "FlashInferFp8DeepGEMMDynamicBlockScaledKernel": Consumer(MODES, block_product.FMT, _by_flashinfer),
    # 0.81: step-h200-fp8-block-eager.json
    "CutlassFp8BlockScaledMMKernel": Consumer(("eager",), FP8_IN_BLOCKS, _by_cutlass_in_blocks),
    # 0.79: step-h200-fp8-token-eager.json
    "CutlassFP8ScaledMMLinearKernel": Consumer(("eager",), FP8_BY_TOKEN, _by_cutlass_fp8, _to_fp8_by_token),
}
"""By the class's name; subclasses may do something else, and do not count. Beside each, the TPOT or the device time of
a step, over vLLM's (Qwen3-0.6B's shape, with `qk_norm_rope`), and the file in bench_e2e/results."""


@dataclass(frozen=True)
class Pair:
    """A norm, the linear layer that reads its result, and its kernel. specs: without a residual and with one."""

    norm: Any
    linear: Any
    kernel: Any
    specs: tuple[NormSpec, ...]


def pairs_of(models: Iterable[torch.nn.Module], x: Activations) -> Iterator[Pair]:
    """Yield the pairs of loaded models."""
    for model in models:
        for layer in model.modules():
            for norm_name, reader_name, linear_name in LAYERS.get(_name(layer), ()):
                reader = getattr(layer, reader_name)
                if _name(reader) in READERS and _does_no_more(layer) and _does_no_more(reader):
                    pair = _pair(getattr(layer, norm_name), getattr(reader, linear_name), x)
                    yield from () if pair is None else (pair,)


def _name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__name__}".removeprefix("vllm.model_executor.models.")


def _does_no_more(layer: Any) -> bool:
    return names_of(type(layer).forward) <= STEPS


def _pair(norm: Any, linear: Any, x: Activations) -> Pair | None:
    adapter = next((adapter for adapter in OFFSETS if adapter.is_of(type(norm))), None)
    kernel = linear_kernels.kernel_of(linear) if hasattr(linear, "quant_method") else None
    consumer = CONSUMERS.get(type(kernel).__name__)
    if adapter is None or consumer is None or not consumer.quantizes_so(kernel, linear) or why_part(norm):
        return None
    if _may_not_be_called_alone(linear, x):
        return None
    quantized = {"weight_offset": OFFSETS[adapter], "fmt": consumer.fmt}
    plain = adapter.specs(norm, x)[: len(NORMS)]
    specs = tuple(dataclasses.replace(spec, op=f"{spec.op}_quant", **quantized) for spec in plain)
    return Pair(norm, linear, kernel, specs)


def _may_not_be_called_alone(linear: Any, x: Activations) -> bool:
    """Return whether vLLM rotates a layer's rows before its kernel, or offloads its weights between forwards."""
    rotates = getattr(linear.quant_method, "input_transform", None) is not None
    return rotates or any(
        x.device is not None and weight.device.type != x.device.type for weight in linear.parameters()
    )


def take(models: Sequence[torch.nn.Module], vllm_config: Any, device: torch.device) -> str | None:
    """Have the norms of a loaded model quantize where that serves faster; returns a phrase for the start-up line.

    Raises where the kernels fail, ours or vLLM's; nothing has changed then.
    """
    every = list(pairs_of(models, activations(vllm_config, device)))
    if not every or not _may(vllm_config):
        return None
    mode = "eager" if is_eager(vllm_config.compilation_config) else "compiled"
    faster = (pair for pair in every if mode in CONSUMERS[type(pair.kernel).__name__].modes)
    found = [pair for pair in faster if why_reference(pair.specs) is None]
    if not found:
        return None
    try:
        _try(found)
    except Exception as error:
        installed.failures[NAME] = guard.reason_of(error)  # cached graphs are told apart by it
        raise
    for pair in found:
        switch(pair)
    installed.on_undo(functools.partial(_give_back, weakref.WeakSet(pair.norm for pair in found)))
    return f"{len(found)} norms quantize for the layer after them, where our kernels run"


def _may(vllm_config: Any) -> bool:
    """Return whether each result of a norm reaches its linear layer as it is, and the user left norms to us.

    Eager models have our plain norms too, or none of ours. Without the C++ library norms would be launched from Python,
    which takes the host longer than vLLM's kernels.
    """
    plain_stay = quantization.why_norms_stay(vllm_config) is not None or extension.cpp_library() is None
    if is_eager(vllm_config.compilation_config) and plain_stay:
        return False
    on_one_device = vllm_config.parallel_config.tensor_parallel_size == 1
    left_to_us = not priority.user_chose_any(vllm_config)
    as_measured = on_one_device and vllm_config.lora_config is None and not features.is_batch_invariant()
    return as_measured and left_to_us and features.ops().issuperset(NORMS)


@torch.inference_mode()
def _try(pairs: Sequence[Pair]) -> None:
    """Prewarm the norms, and compute few rows and many by each class of kernels. Raises where a kernel of ours fails,
    or vLLM's kernels or rows are not what ours were written for: vLLM would find that while it profiles memory, and
    stop."""
    from vllm import _custom_ops as ops

    failed = prewarm(list(dict.fromkeys(spec for pair in pairs for spec in pair.specs)), _logger)
    if failed:
        raise RuntimeError(next(iter(failed.values())))
    for pair in {type(pair.kernel): pair for pair in pairs}.values():
        spec = pair.specs[0]
        for count in (1, block_product.FEW_ROWS):
            rows = _quantizing(pair)(torch.ones(count, spec.size, dtype=spec.dtype, device=spec.device))
            CONSUMERS[type(pair.kernel).__name__].product(ops, pair.kernel, pair.linear, rows, None)


def switch(pair: Pair) -> None:
    """Have a norm hand quantized rows on, and its kernel take them. The norm's change ends with the model."""
    cls = type(pair.kernel)
    installed.wrap(cls, "apply_weights", functools.partial(_taking_quantized, CONSUMERS[cls.__name__].product))
    pair.norm._forward_method = _quantizing(pair)


def _give_back(norms: Iterable[Any]) -> None:
    for norm in norms:
        norm._forward_method = norm._forward_method.__wrapped__


def _taking_quantized(product: Any, original: Any) -> Any:
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation

    @functools.wraps(original)
    def apply_weights(self: Any, layer: Any, x: Any, bias: Tensor | None = None, **kwargs: Any) -> Any:
        if isinstance(x, QuantizedActivation) and x.quant_key is None:  # vLLM's own have a key
            return product(ops, self, layer, x, bias)
        return original(self, layer, x, bias, **kwargs)

    return apply_weights


def _quantizing(pair: Pair) -> Any:
    """vLLM's `forward` of a norm; what the kernels do not take goes to the method that vLLM chose."""
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation

    norm, own, spec, ops = pair.norm, pair.norm._forward_method, pair.specs[0], torch.ops.serving_ops
    assert spec.fmt is not None
    eps, text, options = spec.eps, spec.fmt.text, {"weight_offset": spec.weight_offset} if spec.weight_offset else {}
    has_weight = spec.weight_dtype is not None

    @functools.wraps(own)
    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        weight = norm.weight if has_weight else None
        if x.dim() != 2 or not rows_fit(x, weight):
            return own(x, residual)
        if residual is None:
            q, scales = ops.rms_norm_quant.default(x, weight, eps, text, **options)
            return QuantizedActivation(q, scales, x.dtype, x.shape, None)
        if not may_add(x, residual):
            return own(x, residual)
        q, scales = ops.fused_add_rms_norm_quant.default(x, residual, weight, eps, text, **options)
        return QuantizedActivation(q, scales, x.dtype, x.shape, None), residual

    return forward
