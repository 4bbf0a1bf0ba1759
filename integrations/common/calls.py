"""The calls of our operators that layers of both engines make. Each returns None, with nothing written, where the
kernels do not take it: the engine's own method then runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.integrations.common.rows import alike, in_shape_of, rows_fit

NORMS: tuple[str, ...] = ("rms_norm", "fused_add_rms_norm")
"""The operators of `norm`."""


def norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float) -> Any:
    """Norm x (..., N) into a new tensor; or, with a residual like x, both in place: returns both."""
    if not rows_fit(x, weight):
        return None
    if residual is None:
        return torch.ops.serving_ops.rms_norm(x, weight, eps, weight_offset=weight_offset)
    if residual is x or not alike(x, residual):
        return None
    torch.ops.serving_ops.fused_add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)
    return x, residual


def gated(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float, **options: Any) -> Tensor | None:
    """Norm and gate x (..., N) by z, which has the same rows, or is None; into a new tensor of x's shape."""
    rows = x if z is None else in_shape_of(z, x)
    if not rows_fit(rows, weight) or not (z is None or alike(rows, z)):
        return None
    out: Tensor = torch.ops.serving_ops.rms_norm_gated(rows, z, weight, eps, **options)
    return out if rows is x else out.view(x.shape)
