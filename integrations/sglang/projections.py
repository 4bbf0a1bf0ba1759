"""SGLang's projections that take rows which are quantized already: the form that each wants, and its product.

SGLang's own method quantizes its input and then multiplies. Each product here is what that method would call after
quantizing, with the arguments that it would pass. Some versions and methods take `(q, scale)` themselves, but no two
of them the same.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops import QuantFormat

Product = Callable[[Any, Tensor, Tensor, torch.dtype, Tensor | None], Tensor]
"""Takes a projection, q, its scales, the dtype of the result, and a bias or None."""

NOT_QUANTIZED = "its projection is not quantized"
UNKNOWN = "no code for its projection's"
"""Begins the reason for a method, or a product, that is not known here."""

CUTLASS_MULTIPLE = 16
"""Sizes of a weight that `fp8_scaled_mm` takes are multiples of this."""

BLOCK = [128, 128]
DEEP_GEMM_COLUMNS = 64
"""DeepGEMM takes blocks of `BLOCK`, in weights whose output size is a multiple of this."""


@dataclass(frozen=True)
class Prequantized:
    """The form of a projection's input, and the product that takes it.

    Where all rows have one scale, it is the projection's `input_scale`. SGLang may replace it when it loads weights
    again.
    """

    fmt: QuantFormat
    product: Product


def prequantized(projection: Any, dtype: torch.dtype) -> Prequantized | str:
    """Return how a projection takes rows of this dtype once they are quantized, or why it does not."""
    method = type(projection.quant_method)
    if method.__name__ == "UnquantizedLinearMethod":
        return NOT_QUANTIZED
    look = METHODS.get(f"{method.__module__.removeprefix(_QUANTIZATION)}.{method.__name__}")
    return f"{UNKNOWN} {method.__name__}" if look is None else look(projection, dtype)


def _fp8_method(projection: Any, dtype: torch.dtype) -> Prequantized | str:
    method = projection.quant_method
    if method.use_marlin or method.use_mxfp8 or getattr(method, "block_fp8_as_mxfp8", False):
        return f"{UNKNOWN} FP8 by Marlin or MXFP8"
    if method.block_quant:
        return _in_blocks(method, projection, "weight_scale_inv", dtype)
    return _fp8(projection, use_per_token_if_dynamic=method.use_per_token_if_dynamic)


def _compressed(projection: Any, dtype: torch.dtype) -> Prequantized | str:
    scheme = projection.scheme
    if type(scheme).__name__ == "CompressedTensorsW8A8Int8":
        return _int8(scheme)
    if type(scheme).__name__ != "CompressedTensorsW8A8Fp8":
        return f"{UNKNOWN} {type(scheme).__name__}"
    if scheme.weight_block_size is not None:
        return _in_blocks(scheme, projection, "weight_scale", dtype)
    return _fp8(projection, use_per_token_if_dynamic=True, compressed_tensor_quant=True)


def _in_blocks(method: Any, projection: Any, of_weight: str, dtype: torch.dtype) -> Prequantized | str:
    """The method has the function that SGLang has chosen for this machine; two are known to take what we write.

    of_weight: the name of the weight's scales. SGLang may replace them and the weight when it loads weights again.
    """
    from sglang.srt.layers import deep_gemm_wrapper
    from sglang.srt.layers.quantization import fp8_utils

    size, linear = method.weight_block_size, method.w8a8_block_fp8_linear
    scale_dtype = getattr(projection, of_weight).dtype
    if scale_dtype != torch.float32 or size[1] not in (64, 128):
        return f"{UNKNOWN} FP8 in blocks of {tuple(size)} with scales in {scale_dtype}"
    if linear is fp8_utils.triton_w8a8_block_fp8_linear:
        multiply, layout = fp8_utils.w8a8_block_fp8_matmul_triton, "row_major"
    elif linear is not fp8_utils.deepgemm_w8a8_block_fp8_linear_with_fallback or deep_gemm_wrapper.DEEPGEMM_SCALE_UE8M0:
        return f"{UNKNOWN} {getattr(linear, '__name__', linear)}"
    else:
        multiply, layout = fp8_utils.w8a8_block_fp8_matmul_deepgemm, "tma_aligned"
        if dtype != torch.bfloat16 or list(size) != BLOCK or projection.weight.shape[0] % DEEP_GEMM_COLUMNS:
            return "DeepGEMM does not take its projection"

    def product(projection: Any, q: Tensor, scales: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        out = multiply(q, projection.weight, scales, getattr(projection, of_weight), size, output_dtype=dtype)
        return out if bias is None else out.add_(bias)

    return Prequantized(QuantFormat(group_size=size[1], scale_layout=layout), product)


def _fp8(projection: Any, **options: bool) -> Prequantized | str:
    """FP8 with a scale a row, or with one for all rows from the checkpoint."""
    from sglang.srt.layers.quantization import fp8_utils

    if not fp8_utils.cutlass_fp8_supported():
        return f"{UNKNOWN} FP8 on this GPU"
    static = getattr(projection, "input_scale", None)
    if static is not None and (static.shape != () or static.dtype != torch.float32):
        return f"{UNKNOWN} FP8 with input scales {tuple(static.shape)} in {static.dtype}"
    product = _fp8_product(projection, static is not None, options)
    if product is None:
        return f"{UNKNOWN} product in FP8"
    return Prequantized(QuantFormat(granularity="token" if static is None else "tensor"), product)


def _fp8_product(projection: Any, static: bool, options: dict[str, bool]) -> Product | None:
    """Return the product of SGLang's `apply_fp8_linear`, which itself takes quantized rows since 0.5.23."""
    from sglang.srt.layers.quantization import fp8_utils

    if "pre_quant_output_dtype" in inspect.signature(fp8_utils.apply_fp8_linear).parameters:
        return partial(_apply_fp8_linear, fp8_utils.apply_fp8_linear, options)
    weight, scale = projection.weight, projection.weight_scale
    if scale.numel() == weight.shape[1] and not fp8_utils.use_triton_w8a8_fp8_kernel:
        fits = not any(size % CUTLASS_MULTIPLE for size in weight.shape)
        return partial(_fp8_scaled_mm, fp8_utils.fp8_scaled_mm) if fits else None
    return _scaled_mm if scale.numel() == 1 and static else None


def _apply_fp8_linear(
    apply: Callable[..., Tensor],
    options: dict[str, bool],
    projection: Any,
    q: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """A single row's scale has one dimension: SGLang repeats it, as a static one, on GPUs before Hopper."""
    weight, weight_scale = projection.weight, projection.weight_scale
    if scales.dim() == 2 and weight_scale.numel() > scales.numel() == 1:
        scales = scales.view(1)
    options = {**options, "bias": bias, "pre_quant_output_dtype": dtype}
    return apply(q, weight, weight_scale, input_scale=scales, **options)


def _fp8_scaled_mm(
    multiply: Callable[..., Tensor],
    projection: Any,
    q: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """CUTLASS's product with a scale a row; a static scale is repeated."""
    rows = scales if scales.dim() == 2 else scales.repeat(q.shape[0], 1)
    return multiply(q, projection.weight, rows, projection.weight_scale, out_dtype=dtype, bias=bias)


def _scaled_mm(projection: Any, q: Tensor, scale: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    """PyTorch's product with one scale for each operand."""
    weight, weight_scale = projection.weight, projection.weight_scale
    return torch._scaled_mm(q, weight, out_dtype=dtype, scale_a=scale, scale_b=weight_scale, bias=bias)


def _int8(method: Any) -> Prequantized | str:
    """INT8 with a scale a row: the product is imported where the method is defined, on CUDA alone."""
    multiply = getattr(importlib.import_module(type(method).__module__), "int8_scaled_mm", None)
    if multiply is None:
        return f"{UNKNOWN} INT8 on this device"

    def product(projection: Any, q: Tensor, scales: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        return multiply(q, projection.weight, scales, projection.weight_scale, out_dtype=dtype, bias=bias)

    return Prequantized(QuantFormat(dtype=torch.int8, granularity="token"), product)


_QUANTIZATION = "sglang.srt.layers.quantization."

METHODS: dict[str, Callable[[Any, torch.dtype], Prequantized | str]] = {
    "fp8.Fp8LinearMethod": _fp8_method,
    "w8a8_fp8.W8A8Fp8LinearMethod": lambda projection, dtype: _fp8(projection),
    "w8a8_int8.W8A8Int8LinearMethod": lambda projection, dtype: _int8(projection.quant_method),
    "compressed_tensors.compressed_tensors.CompressedTensorsLinearMethod": _compressed,
}
