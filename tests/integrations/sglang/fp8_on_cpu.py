"""What SGLang's quantized projections call on CUDA, in plain PyTorch, so that its own methods run on CPU.

Rows are quantized by serving_ops' reference, whose bits a fused norm has too; products are in float64.
"""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serving_ops import QuantFormat, reference

PRODUCTS: list[str] = []
"""The products that have run, by name."""


def _product(name: str, q: Tensor, weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Rows times columns, both dequantized; counted."""
    PRODUCTS.append(name)
    y = (q @ weight).to(dtype)
    return y if bias is None else y + bias


def fp8_scaled_mm(
    q: Tensor, weight: Tensor, scales: Tensor, weight_scale: Tensor, out_dtype: Any, bias: Tensor | None = None
) -> Tensor:
    """weight (K, N), a scale a row and one a column, as sgl_kernel's kernel demands."""
    assert q.is_contiguous()
    assert (scales.numel(), weight_scale.numel()) == (q.shape[0], weight.shape[1])
    assert q.dtype == weight.dtype
    return _product(
        "cutlass", q.double() * scales.double().view(-1, 1), weight.double() * weight_scale.double().view(1, -1),
        out_dtype, bias,
    )  # fmt: skip


def int8_scaled_mm(*args: Any, **kwargs: Any) -> Tensor:
    return fp8_scaled_mm(*args, **kwargs)


def scaled_mm(
    q: Tensor, weight: Tensor, *, out_dtype: Any, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None
) -> Tensor:
    assert scale_a.numel() == scale_b.numel() == 1
    return _product("torch", q.double() * scale_a.double(), weight.double() * scale_b.double(), out_dtype, bias)


def _blocks(name: str, layout: str) -> Any:
    def multiply(
        q: Tensor, weight: Tensor, scales: Tensor, weight_scale: Tensor, size: list[int], output_dtype: Any
    ) -> Tensor:
        shape, dtype, strides = QuantFormat(group_size=size[1], scale_layout=layout).scales(tuple(q.shape))
        assert (tuple(scales.shape), scales.dtype) == (shape, dtype)
        assert strides is None or scales.stride() == strides
        assert strides is not None or scales.is_contiguous()
        rows = q.double() * scales.double().repeat_interleave(size[1], 1)
        blocks = weight_scale.double().repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
        return _product(name, rows, (weight.double() * blocks).T, output_dtype)

    return multiply


def _per_token(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return reference.quantize(x, QuantFormat(granularity="token"))


def _groups(x: Tensor, group_size: int, column_major_scales: bool = False, **options: Any) -> tuple[Tensor, Tensor]:
    if group_size == x.shape[-1]:
        return _per_token(x)
    q, scales = reference.quantize(x, QuantFormat(group_size=group_size))
    if not column_major_scales:
        return q, scales
    shape, dtype, strides = QuantFormat(group_size=group_size, scale_layout="tma_aligned").scales(tuple(x.shape))
    return q, torch.empty_strided(shape, strides, dtype=dtype).copy_(scales)


def _static(x: Tensor, scale: Tensor, repeat_scale: bool = False) -> tuple[Tensor, Tensor]:
    q, _ = reference.quantize(x, QuantFormat(granularity="tensor"), scale)
    return q, scale.repeat(x.shape[0], 1) if repeat_scale else scale


def _scaled_fp8_quant(x: Tensor, scale: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    return _per_token(x) if scale is None else _static(x, scale)


def _per_token_int8(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return reference.quantize(x, QuantFormat(dtype=torch.int8, granularity="token"))


def install(patch: pytest.MonkeyPatch) -> None:
    """Have SGLang's methods call these, as on a GPU with CUTLASS."""
    PRODUCTS.clear()
    fp8_utils = importlib.import_module("sglang.srt.layers.quantization.fp8_utils")
    own = fp8_utils.apply_fp8_linear
    here = {
        "fp8_scaled_mm": fp8_scaled_mm,
        "w8a8_block_fp8_matmul_triton": _blocks("triton", "row_major"),
        "w8a8_block_fp8_matmul_deepgemm": _blocks("deepgemm", "tma_aligned"),
        "per_token_group_quant_fp8": _groups,
        "sglang_per_token_group_quant_fp8": _groups,
        "static_quant_fp8": _static,
        "scaled_fp8_quant": _scaled_fp8_quant,
        "cutlass_fp8_supported": lambda: True,
        "get_w8a8_channelwise_fp8_config": lambda **_: None,
        "get_global_server_args": lambda: SimpleNamespace(piecewise_cuda_graph_compiler="eager"),
        "get_exec": lambda: SimpleNamespace(
            graph=SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(tc_compiler="eager")))
        ),
    }
    for name, value in here.items():
        patch.setattr(fp8_utils, name, value, raising=False)
    patch.setattr(torch, "_scaled_mm", scaled_mm)
    # SGLang asks for CUTLASS when it defines the function, and keeps the answer as an argument's default
    defaults = inspect.signature(own).parameters
    assert defaults["cutlass_fp8_supported"].default is False
    values = [True if name == "cutlass_fp8_supported" else it.default for name, it in defaults.items()]
    patch.setattr(own, "__defaults__", tuple(value for value in values if value is not inspect.Parameter.empty))
    for module in ("w8a8_int8", "compressed_tensors.schemes.compressed_tensors_w8a8_int8"):
        found = importlib.import_module(f"sglang.srt.layers.quantization.{module}")
        patch.setattr(found, "int8_scaled_mm", int8_scaled_mm, raising=False)
        patch.setattr(found, "per_token_quant_int8", _per_token_int8)
