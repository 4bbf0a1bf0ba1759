"""Inputs, the float64 answer, and what counts as "no less accurate than the reference"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import reference

SLACK = 1.02
"""Ratio of root-mean-square errors; the errors of two correct roundings of the same rows differ by less."""

FP32_FLOOR = 2.0**-23
"""Relative. At fp32 the reference's own error is a few units in the last place of rstd, which is luck for few rows."""


def wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def exact_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    """The formula in float64, without any rounding to x's dtype on the way."""
    s = x.double() if residual is None else x.double() + residual.double()
    y = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    return y if weight is None else y * (weight.double() + weight_offset)


def exact_gated(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float, **options: Any) -> Tensor:
    options["bias"] = wide(options.get("bias"))
    return reference.rms_norm_gated(x.double(), wide(z), wide(weight), eps, **options)


def rms_error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).square().mean().sqrt())


def assert_no_less_accurate(result: Tensor, from_reference: Tensor, exact: Tensor, slack: float = SLACK) -> None:
    assert result.dtype == from_reference.dtype
    assert result.shape == from_reference.shape
    assert torch.isfinite(result).all()
    allowed = slack * rms_error(from_reference, exact)
    if result.dtype == torch.float32:
        allowed = max(allowed, FP32_FLOOR * float(exact.square().mean().sqrt()))
    assert rms_error(result, exact) <= allowed


def rows(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)
