"""`fused_add_two_rms_norm`: `fused_add_rms_norm` of a residual that is itself a sum, which nobody has rounded.

s = (residual + earlier) + x                            fp32
residual <- s                                           rounded to its dtype
x <- s * rsqrt(mean(s^2) + eps) * (weight + offset)     from the unrounded s
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, UPDATED_RESIDUAL, NormOp, Number, Rows, Vector


def fused_add_two_rms_norm(
    x: Tensor,
    residual: Tensor,
    earlier: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`residual <- residual + earlier + x`, `x <- rms_norm(residual) * (weight + weight_offset)`, both in place.

    After `serving_ops.rms_norm_of_sum` of residual and earlier it moves as many bytes as two `fused_add_rms_norm`, and
    rounds the residual once instead of twice.

    Args:
        x, residual, weight, eps, weight_offset: as for `serving_ops.fused_add_rms_norm`.
        earlier: like x in shape, dtype and device; shares no element with x or residual. It is read. The kernels take
            it in the strides of residual.

    Returns `(x, residual)`, the arguments themselves. Arithmetic and errors are those of
    `serving_ops.fused_add_rms_norm`.
    """
    if not modes.only_computed(x, residual, earlier, weight):
        tensors = {"x": x, "residual": residual, "earlier": earlier, "weight": weight}
        checks.not_differentiated("serving_ops.add_rms_norm", **tensors)
    torch.ops.serving_ops.fused_add_two_rms_norm.default(x, residual, earlier, weight, eps, weight_offset)
    modes.increment_version((x, residual))
    return x, residual


registry.register(
    NormOp(
        fused_add_two_rms_norm,
        reference.fused_add_two_rms_norm,
        (
            Rows("x", written=True),
            UPDATED_RESIDUAL,
            Rows("earlier"),
            Vector("weight"),
            EPS,
            Number("weight_offset"),
        ),
        route=cuda.norm_route,
        launch=cuda.launch_norm,
        in_cpp=("cuda",),
    )
)
