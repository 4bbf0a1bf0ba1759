"""`add_rms_norm`: `fused_add_rms_norm` without writing its arguments, and with gradients."""

from __future__ import annotations

from torch import Tensor

from serving_ops import autograd


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual) * (weight + weight_offset), x + residual)`, both new and contiguous.

    Args and arithmetic are those of `serving_ops.fused_add_rms_norm`, and so are the bits. Differentiates x, residual
    and weight, from both results.

    Raises RuntimeError for input that `serving_ops.checks` calls wrong.
    """
    return autograd.add_rms_norm(x, residual, weight, eps, weight_offset)
