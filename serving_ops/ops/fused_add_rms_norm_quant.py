"""`fused_add_rms_norm_quant`: residual add and `rms_norm_quant` in one pass; the residual is updated in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import quantized, registry
from serving_ops.ops.description import EPS, UPDATED_RESIDUAL, NormOp, Number, Rows, Vector
from serving_ops.ops.quantized import FORMAT, NORMED, RESULTS, SCALE
from serving_ops.quant_format import QuantFormat


def fused_add_rms_norm_quant(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    fmt: QuantFormat,
    scale: Tensor | None = None,
    weight_offset: float = 0.0,
    normed: Tensor | None = None,
    out: Tensor | None = None,
    scales_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`residual <- x + residual`; returns the norm of the sum, quantized: the bits of the two ops one after the other.

    Args:
        x: (..., N), fp16, bf16, fp32 or float64, any strides. Read only, unless it is `normed`.
        residual: as for `serving_ops.fused_add_rms_norm`.
        weight, eps, weight_offset: as for `serving_ops.fused_add_rms_norm`.
        fmt, scale, normed, out, scales_out: as for `serving_ops.rms_norm_quant`.

    Returns and raises as `serving_ops.rms_norm_quant`.
    """
    if not modes.only_computed(x, residual, weight, scale, normed, out, scales_out):
        tensors = {"x": x, "residual": residual, "weight": weight, "scale": scale, "normed": normed}
        checks.not_differentiated("serving_ops.add_rms_norm", **tensors, out=out, scales_out=scales_out)
    options = {"weight_offset": weight_offset} if weight_offset else {}
    rows = (x, residual, weight, eps)
    return quantized.call(_operator, rows, fmt, scale, normed, out, scales_out, options, (residual,))


def _formula(
    residual: Tensor, fmt: QuantFormat, scale: Tensor | None, normed: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    y, total = reference.add_rms_norm(residual=residual, **options)
    residual.copy_(total)
    return reference.quantized(y, fmt, scale, normed)


registry.register(
    NormOp(
        fused_add_rms_norm_quant,
        _formula,
        (Rows("x"), UPDATED_RESIDUAL, Vector("weight"), EPS, FORMAT, SCALE, Number("weight_offset"), NORMED),
        RESULTS,
        route=cuda.norm_route,
        launch=cuda.launch_norm,
        in_cpp=("cpu", "cuda"),
    )
)
_operator = torch.ops.serving_ops.fused_add_rms_norm_quant
