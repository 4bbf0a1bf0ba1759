"""The ops in plain PyTorch: their definition, their fallback, and what tests compare with.

Arithmetic is fp32 (float64 where x is float64). The formulas of `rms_norm` and `fused_add_rms_norm` are those of
vLLM's IR ops (vllm/ir/ops/layernorm.py), that of `rms_norm_gated` is vLLM's `RMSNormGated.forward_native`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving_ops.quant_format import LIMITS, PACKED, QuantFormat


def wide(x: Tensor) -> Tensor:
    """x in the dtype that arithmetic has."""
    return x if x.dtype == torch.float64 else x.float()


def _normalize(s: Tensor, weight: Tensor | None, eps: float, weight_offset: float, dtype: torch.dtype) -> Tensor:
    """`s * rsqrt(mean(s^2) + eps)`, weighted and rounded to dtype; s is fp32 or float64, (..., N)."""
    normed = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(dtype)
    if weight.dtype == dtype and weight_offset == 0.0:
        return normed.to(dtype) * weight
    return (normed * (weight.to(s.dtype) + weight_offset)).to(dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`(norm(x + residual), x + residual)`; normed is the sum before it is rounded."""
    s = wide(x) + wide(residual)
    return _normalize(s, weight, eps, weight_offset, x.dtype), s.to(residual.dtype)


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in place: `x <- norm(x + residual)`, `residual <- x + residual`."""
    out, total = add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)
    return x.copy_(out), residual.copy_(total)


def fused_add_two_rms_norm(
    x: Tensor,
    residual: Tensor,
    earlier: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The same with two tensors added to the residual, first `earlier` and then x."""
    s = wide(x) + (wide(residual) + wide(earlier))
    out, total = _normalize(s, weight, eps, weight_offset, x.dtype), s.to(residual.dtype)
    return x.copy_(out), residual.copy_(total)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> Tensor:
    """`x * rsqrt(mean(x^2) + eps)`, times `weight + weight_offset`."""
    return _normalize(wide(x), weight, eps, weight_offset, x.dtype)


def rms_norm_gated(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    bias: Tensor | None = None,
    norm_before_gate: bool = True,
    activation: str = "silu",
    group_size: int | None = None,
) -> Tensor:
    """`norm(x) * weight + bias`, gated by `activation(z)` after or before the norm, rounded once at the end."""
    y = wide(x)
    gate: Tensor | None = None
    if z is not None:
        gate = torch.sigmoid(wide(z)) if activation == "sigmoid" else F.silu(wide(z))
    if gate is not None and not norm_before_gate:
        y = y * gate
    grouped: Tensor = y.unflatten(-1, (-1, group_size or y.shape[-1]))
    y = (grouped * torch.rsqrt(grouped.square().mean(dim=-1, keepdim=True) + eps)).flatten(-2)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


MIN_TOKEN_SCALE = 1 / (448 * 512)
"""Of FP8 rows, as vLLM's `QuantFP8` and `dynamic_per_token_scaled_fp8_quant` have it."""

MIN_AMAX = 1e-10
"""Of a group, and wherever a scale is a power of two, as vLLM's and SGLang's `per_token_group_quant` have it."""


def quantize(y: Tensor, fmt: QuantFormat, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y (..., N) in `fmt.dtype`, and its scales (empty for a given scale). fp32 arithmetic; fp8 and int8 saturate.

    A group's scale is amax / 448 (fp8) or amax / 127 (int8), from at least `MIN_AMAX`; a row's in fp8 is at least
    `MIN_TOKEN_SCALE`, and in int8 it has no floor: a row of zeros has the scale 0. Powers of two are rounded up,
    exactly. Values are divided by their scale; those in int8 with an fp32 scale a row are multiplied by 127 / amax, and
    those in fp8 with a given scale by its reciprocal, as vLLM's `_C` kernels do. A NaN makes its group's scale NaN, and
    is 0 in int8.
    """
    limit, by_token_int8 = LIMITS[fmt.dtype], fmt.granularity == "token" and fmt.dtype == torch.int8
    groups = y.float().unflatten(-1, (-1, fmt.group(y.shape[-1])))
    if scale is not None:
        scaled = groups / scale if fmt.dtype == torch.int8 else groups * scale.reciprocal()
        return _saturated(scaled, limit, fmt.dtype), y.new_empty(0, dtype=torch.float32)
    amax = groups.abs().amax(dim=-1, keepdim=True)
    limits = torch.full_like(amax, limit)  # PyTorch may round twice where one of the two is a number
    if by_token_int8 and fmt.scale_format == "fp32":
        inverse = torch.where(amax == 0, 0.0, limits / amax)
        return _saturated(groups * inverse, limit, fmt.dtype), (amax / limits).squeeze(-1)
    scales = amax.clamp(min=MIN_AMAX) / limits
    if fmt.granularity == "token" and not by_token_int8:
        scales = (amax / limits).clamp(min=MIN_TOKEN_SCALE)
    if fmt.scale_format != "fp32":
        scales = _power_of_2(scales)
    q = _saturated(groups / scales, limit, fmt.dtype)
    scales = scales.squeeze(-1)
    return q, _exponents(scales) if fmt.scale_format == "ue8m0" else scales


def quantized(
    y: Tensor, fmt: QuantFormat, scale: Tensor | None = None, normed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`quantize`, with y itself written into `normed`."""
    if normed is not None:
        normed.copy_(y)
    return quantize(y, fmt, scale)


def dequantize(q: Tensor, scales: Tensor, fmt: QuantFormat) -> Tensor:
    """What q (..., N) stands for, in fp32. scales: as quantized ops return them."""
    if fmt.granularity == "tensor":
        return q.float() * scales
    groups: Tensor = q.float().unflatten(-1, (-1, fmt.group(q.shape[-1])))
    if fmt.scale_format == "ue8m0":
        words = scales.clone(memory_format=torch.contiguous_format).view(torch.uint8)
        exponents = words[..., : groups.shape[-2]].to(torch.int32)
        scales = torch.where(exponents == 255, torch.nan, torch.exp2((exponents - 127).float()))
    dequantized: Tensor = groups * scales.unsqueeze(-1)
    return dequantized.flatten(-2)


def _saturated(groups: Tensor, limit: float, dtype: torch.dtype) -> Tensor:
    values = groups.flatten(-2)
    if dtype == torch.int8:
        return values.round().clamp(-limit - 1, limit).nan_to_num(nan=0.0).to(dtype)
    return values.clamp(-limit, limit).to(dtype)


def _power_of_2(scales: Tensor) -> Tensor:
    """The next one, or the scale itself; by the bits of fp32, so that every device finds the same."""
    bits = scales.contiguous().view(torch.int32)
    up = torch.bitwise_and(bits + 0x7FFFFF, ~0x7FFFFF).view(torch.float32)
    return torch.where(scales.isnan(), scales, up)


def _exponents(scales: Tensor) -> Tensor:
    """(..., groups) powers of two as (..., groups / 4) int32, with the exponent's bits of fp32 in each byte."""
    exponents = (scales.contiguous().view(torch.int32) >> 23).to(torch.uint8)
    return F.pad(exponents, (0, -exponents.shape[-1] % PACKED)).view(torch.int32)
