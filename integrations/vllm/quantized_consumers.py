"""vLLM's kernels of linear layers that can take rows which a norm has quantized for them, as a `QuantizedActivation`.

vLLM defines that class, and its kernels take it for static FP8 alone. `teach` has another kernel's class take it too,
and leaves a plain tensor to vLLM's own method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops import QuantFormat
from serving_ops.integrations.vllm import installed


@dataclass(frozen=True)
class Consumer:
    """A class of kernels.

    fmt: takes a kernel; returns what its input becomes, or None where it must quantize by itself.
    run: takes a kernel, its linear layer, a QuantizedActivation of two dimensions and a bias; returns the product.
    """

    fmt: Callable[[Any], QuantFormat | None]
    run: Callable[[Any, Any, Any, Tensor | None], Tensor]


INT8_TOKEN = QuantFormat(dtype=torch.int8, granularity="token")
FP8_TOKEN = QuantFormat(granularity="token")


def _int8_token(kernel: Any) -> QuantFormat | None:
    dynamic = kernel.config.input_symmetric and not kernel.config.is_static_input_scheme
    return INT8_TOKEN if dynamic else None


def _int8_token_for_onednn(kernel: Any) -> QuantFormat | None:
    """Where the CPU has AMX, vLLM's other kernel quantizes by itself."""
    return _int8_token(kernel) if kernel.linear_method.__name__ == "_apply_weights_onednn" else None


def _run_onednn(kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    from vllm import _custom_ops as ops

    adjustment = kernel._get_layer_params(linear)[-1]
    out = torch.empty((x.data.shape[0], kernel.dnnl_handler.n), dtype=x.orig_dtype)
    ops.onednn_scaled_mm(kernel.dnnl_handler, x.data, out, x.scale, None, adjustment, bias)
    return out


def _run_int8(kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    from vllm import _custom_ops as ops

    weight, weight_scale, *_ = kernel._get_layer_params(linear)
    product: Tensor = ops.cutlass_scaled_mm(
        x.data, weight, scale_a=x.scale, scale_b=weight_scale, out_dtype=x.orig_dtype, bias=bias
    )
    return product


def _fp8_token(kernel: Any) -> QuantFormat | None:
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym

    return FP8_TOKEN if kernel.config.activation_quant_key == kFp8DynamicTokenSym else None


def _run_fp8(kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    weight, weight_scale, *_ = kernel._get_layer_params(linear)
    product: Tensor = kernel.apply_scaled_mm(
        A=x.data,
        B=weight,
        out_dtype=kernel.config.out_dtype or x.orig_dtype,
        As=x.scale,
        Bs=weight_scale,
        bias=bias,
        output_shape=[x.data.shape[0], weight.shape[1]],
    )
    return product


def _fp8_group(kernel: Any) -> QuantFormat | None:
    """In the layout of the kernel's own quantization. DeepGEMM packs its scales after Hopper."""
    from vllm.platforms import current_platform

    own = kernel.quant_fp8
    if own.use_ue8m0 and not current_platform.is_device_capability(90):
        return None
    layout = "row_major"
    if own.column_major_scales:
        layout = "tma_aligned" if own.tma_aligned_scales else "column_major"
    scale_format = "fp32_power_of_2" if own.use_ue8m0 else "fp32"
    return QuantFormat(group_size=own.group_shape.col, scale_format=scale_format, scale_layout=layout)


def _run_blocks(kernel: Any, linear: Any, x: Any, bias: Tensor | None) -> Tensor:
    params = kernel._get_layer_params(linear)
    scales = params.weight_scale if params.weight_scale_inv is None else params.weight_scale_inv
    product: Tensor = kernel.apply_block_scaled_mm(A=x.data, B=params.weight, As=x.scale, Bs=scales)
    product = product if bias is None else product + bias
    return product.to(kernel.config.out_dtype)


CONSUMERS = {
    "CPUInt8ScaledMMLinearKernel": Consumer(_int8_token_for_onednn, _run_onednn),
    "CutlassFP8ScaledMMLinearKernel": Consumer(_fp8_token, _run_fp8),
    "CutlassFp8BlockScaledMMKernel": Consumer(_fp8_group, _run_blocks),
    "CutlassInt8ScaledMMLinearKernel": Consumer(_int8_token, _run_int8),
    "DeepGemmFp8BlockScaledMMKernel": Consumer(_fp8_group, _run_blocks),
}
"""The name of vLLM's class -> how it takes quantized rows. Subclasses may do something else, and do not count."""


def fmt_of(kernel: Any) -> QuantFormat | None:
    """Return what the kernel's input has to be, or None where it cannot take quantized rows."""
    consumer = CONSUMERS.get(type(kernel).__name__)
    return None if consumer is None else consumer.fmt(kernel)


def teach(cls: type) -> None:
    """Have a class of `CONSUMERS` take a `QuantizedActivation`. A second call does nothing."""
    installed.wrap(cls, "apply_weights", functools.partial(_taking_quantized, CONSUMERS[cls.__name__].run))


def _taking_quantized(run: Any, original: Any) -> Any:
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation

    @functools.wraps(original)
    def apply_weights(self: Any, layer: Any, x: Any, bias: Tensor | None = None, **kwargs: Any) -> Any:
        if isinstance(x, QuantizedActivation):
            return run(self, layer, x, bias)
        return original(self, layer, x, bias, **kwargs)

    return apply_weights
