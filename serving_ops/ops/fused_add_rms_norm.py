"""`fused_add_rms_norm`: residual add and RMSNorm in one pass, in place.

s = x + residual                                        fp32
residual <- s                                           rounded to its dtype
x <- s * rsqrt(mean(s^2) + eps) * (weight + offset)     from the unrounded s
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, UPDATED_RESIDUAL, NormOp, Number, Rows, Vector


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`residual <- x + residual`, `x <- rms_norm(residual) * (weight + weight_offset)`, both in place.

    Args:
        x: (..., N), fp16, bf16, fp32 or float64, any strides. Overwritten with the normalised sum.
        residual: like x in shape, dtype and device, or fp32 beside fp16 and bf16; shares no element with x. Overwritten
            with the sum.
        weight: (N,) in x's dtype or fp32, or None.
        eps: added to the mean of squares; at least 0, and finite in fp32.
        weight_offset: added to the weight in fp32, and finite there; 1.0 is Gemma's convention.

    Returns `(x, residual)`, the arguments themselves. Arithmetic is fp32; the sum is normalised before it is rounded;
    a weight in x's dtype without offset is applied after rounding to that dtype (vLLM's IR definition of this op).

    Raises RuntimeError, with nothing written, for input that `serving_ops.checks` calls wrong, and where a tensor
    requires grad, or `torch.func` or forward-mode AD transforms it: `serving_ops.add_rms_norm` is differentiated. What
    the kernels do not take runs on `serving_ops.reference`; `serving_ops.explain` says why.
    """
    if not modes.only_computed(x, residual, weight):
        checks.not_differentiated("serving_ops.add_rms_norm", x=x, residual=residual, weight=weight)
    _operator(x, residual, weight, eps, weight_offset)
    modes.increment_version((x, residual))
    return x, residual


registry.register(
    NormOp(
        fused_add_rms_norm,
        reference.fused_add_rms_norm,
        (Rows("x", written=True), UPDATED_RESIDUAL, Vector("weight"), EPS, Number("weight_offset")),
        route=cuda.norm_route,
        launch=cuda.launch_norm,
        in_cpp=("cpu", "cuda"),
    )
)
_operator = torch.ops.serving_ops.fused_add_rms_norm.default
