"""The ops in plain PyTorch: their definition, their fallback, and what tests compare with.

Arithmetic is fp32 (float64 where x is float64). The formulas of `rms_norm` and `fused_add_rms_norm` are those of
vLLM's IR ops (vllm/ir/ops/layernorm.py), that of `rms_norm_gated` is vLLM's `RMSNormGated.forward_native`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    return _normalize(s, weight, eps, weight_offset, x.dtype), s.to(x.dtype)


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in place: `x <- norm(x + residual)`, `residual <- x + residual`."""
    out, total = add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)
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
