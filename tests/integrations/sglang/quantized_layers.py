"""SGLang's quantized projections as tests build them, of its own methods, and decoder layers around them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from built_layers import HIDDEN, rms_norm, rows

COLUMNS = 384


def method(module: str, name: str, **options: Any) -> Any:
    """A method of SGLang's, without what its constructor asks of the server."""
    method = object.__new__(getattr(importlib.import_module(f"sglang.srt.layers.quantization.{module}"), name))
    vars(method).update(options)
    return method


def fp8_weight(*shape: int) -> torch.Tensor:
    return (rows(*shape, seed=3).float() * 20).to(torch.float8_e4m3fn)


def projection_of(method: Any, weight: torch.Tensor, **attributes: Any) -> torch.nn.Module:
    projection = torch.nn.Module()
    projection.quant_method, projection.weight, projection.input_scale = method, weight, None
    for name, value in attributes.items():
        setattr(projection, name, value)
    return projection


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4)) / 100 + 0.001


def fp8_method(**options: Any) -> Any:
    absent = ("use_marlin", "use_mxfp8", "block_quant", "block_fp8_as_mxfp8", "use_per_token_if_dynamic")
    fixed = dict.fromkeys(absent, False)
    return method("fp8", "Fp8LinearMethod", **{**fixed, "cutlass_fp8_supported": True, **options})


def blocks(linear: str) -> torch.nn.Module:
    from sglang.srt.layers.quantization import fp8_utils

    chosen = getattr(fp8_utils, linear)
    config, size = SimpleNamespace(weight_block_size=[128, 128]), [128, 128]
    method = fp8_method(block_quant=True, quant_config=config, weight_block_size=size, w8a8_block_fp8_linear=chosen)
    return projection_of(method, fp8_weight(COLUMNS, HIDDEN), weight_scale_inv=scales(COLUMNS // 128, HIDDEN // 128))


def per_column(method: Any, **attributes: Any) -> torch.nn.Module:
    return projection_of(method, fp8_weight(COLUMNS, HIDDEN).T, weight_scale=scales(COLUMNS, 1), **attributes)


def compressed(scheme: str, **options: Any) -> dict[str, Any]:
    where = "compressed_tensors.schemes"
    return {
        "method": method("compressed_tensors.compressed_tensors", "CompressedTensorsLinearMethod"),
        "scheme": method(where, scheme, weight_block_size=None, strategy="channel", **options),
    }


def compressed_blocks() -> torch.nn.Module:
    from sglang.srt.layers.quantization import fp8_utils

    given = compressed("CompressedTensorsW8A8Fp8", w8a8_block_fp8_linear=fp8_utils.triton_w8a8_block_fp8_linear)
    given["scheme"].weight_block_size = [128, 128]
    scale = scales(COLUMNS // 128, HIDDEN // 128)
    return projection_of(weight=fp8_weight(COLUMNS, HIDDEN), weight_scale=scale, **given)


def int8(method: Any, **attributes: Any) -> torch.nn.Module:
    weight = torch.randint(-127, 128, (COLUMNS, HIDDEN), dtype=torch.int8, generator=torch.Generator().manual_seed(5)).T
    return projection_of(method, weight, weight_scale=scales(COLUMNS, 1), **attributes)


def static(scale: float = 0.02) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(scale), requires_grad=False)


def per_tensor() -> torch.nn.Module:
    given = compressed("CompressedTensorsW8A8Fp8", is_static_input_scheme=True)
    weight = fp8_weight(COLUMNS, HIDDEN).T
    return projection_of(weight=weight, weight_scale=torch.tensor(0.01), **given | {"input_scale": static()})


TAKEN: dict[str, tuple[Callable[[], torch.nn.Module], str, str]] = {
    "fp8 token": (lambda: per_column(fp8_method()), "FP8 per token", "cutlass"),
    "fp8 static": (lambda: per_column(fp8_method(), input_scale=static()), "FP8 with a static scale", "cutlass"),
    "fp8 blocks, Triton": (lambda: blocks("triton_w8a8_block_fp8_linear"), "FP8 in groups of 128", "triton"),
    "fp8 blocks, DeepGEMM": (
        lambda: blocks("deepgemm_w8a8_block_fp8_linear_with_fallback"), "FP8 in groups of 128", "deepgemm",
    ),
    "w8a8_fp8 token": (
        lambda: per_column(method("w8a8_fp8", "W8A8Fp8LinearMethod", cutlass_fp8_supported=True)),
        "FP8 per token", "cutlass",
    ),
    "compressed fp8 token": (
        lambda: per_column(**compressed("CompressedTensorsW8A8Fp8", is_static_input_scheme=False)),
        "FP8 per token", "cutlass",
    ),
    "compressed fp8 static": (per_tensor, "FP8 with a static scale", "torch"),
    "compressed fp8 blocks": (compressed_blocks, "FP8 in groups of 128", "triton"),
    "int8 token": (lambda: int8(method("w8a8_int8", "W8A8Int8LinearMethod")), "INT8 per token", "cutlass"),
    "compressed int8 token": (lambda: int8(**compressed("CompressedTensorsW8A8Int8")), "INT8 per token", "cutlass"),
}  # fmt: skip
"""How to build a projection, the quantization of the norm before it, and the product that it runs."""


def layer_of(projection: torch.nn.Module, name: str = "sglang.srt.models.qwen3.Qwen3DecoderLayer") -> Any:
    """A decoder layer of SGLang's as far as the pairing looks: its class, its norms, and what reads them."""
    module, _, cls = name.rpartition(".")
    layer = object.__new__(getattr(importlib.import_module(module), cls))
    torch.nn.Module.__init__(layer)
    layer.input_layernorm, layer.post_attention_layernorm = rms_norm(), rms_norm()
    layer.self_attn, layer.mlp = torch.nn.Module(), torch.nn.Module()
    layer.self_attn.qkv_proj, layer.mlp.gate_up_proj = projection, torch.nn.Linear(HIDDEN, COLUMNS)
    layer.mlp.gate_up_proj.quant_method = UNQUANTIZED
    return layer


class UnquantizedLinearMethod:
    """Named as SGLang's."""


UNQUANTIZED = UnquantizedLinearMethod()
