"""The calls of our operators that layers of both engines make, and which rows the kernels take.

`norm` and `gated` return None, with nothing written, where the kernels do not take the rows: the engine's own method
then runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.support import KERNEL_DTYPES


def rows_fit(x: Tensor, weight: Tensor | None) -> bool:
    """Return whether the kernels take rows like x's with this weight. Reads metadata only: calls may be traced."""
    if x.dtype not in KERNEL_DTYPES or x.stride(-1) != 1:
        return False
    return weight is None or weight.dtype in (x.dtype, torch.float32)


def alike(x: Tensor, other: Tensor) -> bool:
    """Return whether a second operand has x's dtype and shape, and dense rows."""
    return other.dtype == x.dtype and other.shape == x.shape and other.stride(-1) == 1


def may_add(x: Tensor, residual: Tensor) -> bool:
    """Return whether a norm may add x to the residual in place: another tensor, like x."""
    return residual is not x and alike(x, residual)


def in_shape_of(gate: Tensor, x: Tensor) -> Tensor:
    """Return x viewed in its gate's shape: some models merge tokens and heads in one of the two tensors only.

    Returns x itself if x is not contiguous or the gate has other rows; `alike` then refuses the pair.
    """
    if x.shape == gate.shape or x.shape[-1] != gate.shape[-1] or x.numel() != gate.numel():
        return x
    return x.view(gate.shape) if x.is_contiguous() else x


def norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float, weight_offset: float) -> Any:
    """Norm x (..., N) into a new tensor; or, with a residual like x, both in place: returns both."""
    if not rows_fit(x, weight):
        return None
    if residual is None:
        return torch.ops.serving_ops.rms_norm.default(x, weight, eps, weight_offset)
    if not may_add(x, residual):
        return None
    torch.ops.serving_ops.fused_add_rms_norm.default(x, residual, weight, eps, weight_offset)
    return x, residual


def gated(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float,
    bias: Tensor | None,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
) -> Tensor | None:
    """Norm and gate x (..., N) by z, which has the same rows, or is None; into a new tensor of x's shape.

    The options go by position: each name would cost host time.
    """
    rows = x if z is None else in_shape_of(z, x)
    if not rows_fit(rows, weight) or not (z is None or alike(rows, z)):
        return None
    options = bias, norm_before_gate, activation, group_size
    out: Tensor = torch.ops.serving_ops.rms_norm_gated.default(rows, z, weight, eps, *options)
    return out if rows is x else out.view(x.shape)
