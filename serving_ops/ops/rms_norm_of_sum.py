"""`rms_norm_of_sum`: `add_rms_norm` without the sum. Of two norms in a row, `fused_add_two_rms_norm` is the second."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from serving_ops import cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.add_rms_norm import add_rms_norm
from serving_ops.ops.description import EPS, RESIDUAL, NormOp, Number, Result, Rows, Vector


def rms_norm_of_sum(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> Tensor:
    """`rms_norm(x + residual) * (weight + weight_offset)`, new and contiguous. The sum is not written.

    Whoever needs the sum later adds x and residual anew, in fp32: `serving_ops.fused_add_two_rms_norm` does.

    Args and arithmetic are those of `serving_ops.fused_add_rms_norm`, and so are the bits. Gradients are those of
    `serving_ops.add_rms_norm`.

    Raises RuntimeError for input that `serving_ops.checks` calls wrong.
    """
    if not modes.only_computed(x, residual, weight):
        return add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)[0]
    out: Tensor = torch.ops.serving_ops.rms_norm_of_sum.default(x, residual, weight, eps, weight_offset)
    return out


def _formula(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> Tensor:
    return reference.add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)[0]


registry.register(
    NormOp(
        rms_norm_of_sum,
        _formula,
        (Rows("x"), RESIDUAL, Vector("weight"), EPS, Number("weight_offset")),
        (Result("out"),),
        route=cuda.norm_route,
        launch=functools.partial(cuda.launch_norm, drops_sum=True),
        in_cpp=("cuda",),
        has_out=False,
    )
)
