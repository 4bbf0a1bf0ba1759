"""`rms_norm_gated_quant`: `rms_norm_gated`, rounded to x's dtype, and then quantized."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import quantized, registry, rms_norm_gated
from serving_ops.ops.description import Divisor, NormOp
from serving_ops.ops.quantized import FORMAT, NORMED, RESULTS, SCALE
from serving_ops.quant_format import QuantFormat


def rms_norm_gated_quant(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    fmt: QuantFormat,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    norm_before_gate: bool = True,
    activation: str = "silu",
    norm_group_size: int | None = None,
    normed: Tensor | None = None,
    out: Tensor | None = None,
    scales_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated RMSNorm, quantized: the bits of the two ops one after the other.

    Args:
        x, z, weight, eps, bias, norm_before_gate, activation: as for `serving_ops.rms_norm_gated`.
        norm_group_size: elements normalised together, its `group_size`; `fmt` has that of the scales.
        fmt, scale, out, scales_out: as for `serving_ops.rms_norm_quant`.
        normed: like x in shape, dtype and device, any strides; may be x or z itself. Written: the rows before
            quantization.

    Returns and raises as `serving_ops.rms_norm_quant`.
    """
    checks.flag("norm_before_gate", norm_before_gate)
    if not modes.only_computed(x, z, weight, scale, bias, normed, out, scales_out):
        tensors = {"x": x, "z": z, "weight": weight, "scale": scale, "bias": bias, "normed": normed}
        checks.not_differentiated("serving_ops.rms_norm_gated", **tensors, out=out, scales_out=scales_out)
    options: dict[str, Any] = {"bias": bias, "norm_before_gate": norm_before_gate, "activation": activation}
    options["norm_group_size"] = norm_group_size
    return quantized.call(_operator, (x, z, weight, eps), fmt, scale, normed, out, scales_out, options)


def _formula(
    fmt: QuantFormat, scale: Tensor | None, normed: Tensor | None, norm_group_size: int | None, **options: Any
) -> tuple[Tensor, Tensor]:
    return reference.quantized(reference.rms_norm_gated(group_size=norm_group_size, **options), fmt, scale, normed)


registry.register(
    NormOp(
        rms_norm_gated_quant,
        _formula,
        (
            *rms_norm_gated.ROWS,
            FORMAT,
            SCALE,
            *rms_norm_gated.OPTIONS,
            Divisor("norm_group_size", field="group_size"),
            dataclasses.replace(NORMED, may_be=("x", "z")),
        ),
        RESULTS,
        route=cuda.gated_route,
        launch=cuda.launch_gated,
        in_cpp=("cuda",),
    )
)
_operator = torch.ops.serving_ops.rms_norm_gated_quant
