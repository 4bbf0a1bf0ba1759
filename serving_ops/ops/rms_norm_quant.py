"""`rms_norm_quant`: `rms_norm`, rounded to x's dtype, and then quantized: the bits of the two one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import quantized, registry
from serving_ops.ops.description import EPS, NormOp, Number, Rows, Vector
from serving_ops.ops.quantized import FORMAT, NORMED, RESULTS, SCALE
from serving_ops.quant_format import QuantFormat


def rms_norm_quant(
    x: Tensor,
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
    """RMSNorm over the last dimension, quantized; numbers as `serving_ops.reference.quantize` has them.

    Args:
        x, weight, eps, weight_offset: as for `serving_ops.rms_norm`.
        fmt: the form of the result.
        scale: fp32, (), what a value is divided by, where `fmt.granularity` is "tensor"; None elsewhere.
        normed: like x in shape, dtype and device, any strides; may be x itself. Written: the rows before quantization.
        out: like x in shape and device, in `fmt.dtype`, any strides; shares no element with another tensor. Written.
        scales_out: with shape, dtype and strides of `fmt.scales(x.shape)`. Written, unless a scale is given.

    Returns `(out, scales_out)`, or new tensors: (..., N) in `fmt.dtype`, and the scales, which are `scale` if given.

    Raises RuntimeError, with nothing written, for input that `serving_ops.checks` calls wrong, and where a tensor
    requires grad. What the kernels do not take runs on `serving_ops.reference`; `serving_ops.explain` says why.
    """
    if not modes.only_computed(x, weight, scale, normed, out, scales_out):
        tensors = {"x": x, "weight": weight, "scale": scale, "normed": normed, "out": out, "scales_out": scales_out}
        checks.not_differentiated("serving_ops.rms_norm", **tensors)
    options = {"weight_offset": weight_offset} if weight_offset else {}
    return quantized.call(_operator, (x, weight, eps), fmt, scale, normed, out, scales_out, options)


def _formula(fmt: QuantFormat, scale: Tensor | None, normed: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    return reference.quantized(reference.rms_norm(**options), fmt, scale, normed)


registry.register(
    NormOp(
        rms_norm_quant,
        _formula,
        (Rows("x"), Vector("weight"), EPS, FORMAT, SCALE, Number("weight_offset"), NORMED),
        RESULTS,
        route=cuda.norm_route,
        launch=cuda.launch_norm,
        in_cpp=("cpu", "cuda"),
    )
)
_operator = torch.ops.serving_ops.rms_norm_quant
