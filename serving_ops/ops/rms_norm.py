"""`rms_norm`: x * rsqrt(mean(x^2) + eps) * (weight + offset)."""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, NormOp, Number, Result, Rows, Vector
from serving_ops.training import autograd


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """RMSNorm over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        x: (..., N), fp16, bf16, fp32 or float64, any strides; q and k views are read where they lie.
        weight: (N,) in x's dtype or fp32, or None.
        eps: added to the mean of squares; at least 0, and finite in fp32.
        weight_offset: added to the weight in fp32, and finite there; 1.0 is Gemma's convention.
        out: like x in shape, dtype and device, any strides; may be x itself, or share no element with it. Written.

    Returns `out`, or a new contiguous tensor. Arithmetic is fp32; a weight in x's dtype without offset is applied
    after rounding to that dtype (vLLM's IR definition of this op).

    Raises RuntimeError, with nothing written, for input that `serving_ops.checks` calls wrong, and where `out` is given
    and a tensor requires grad, or `torch.func` or forward-mode AD transforms it; without `out`, x and weight are
    differentiated, any number of times. What the kernels do not take runs on `serving_ops.reference`, and so do those
    transforms; `serving_ops.explain` says why.
    """
    if out is None:
        if not modes.only_computed(x, weight):
            result: Tensor = autograd.run("rms_norm", x=x, weight=weight, eps=eps, weight_offset=weight_offset)
            return result
        result = _default(x, weight, eps, weight_offset)
        return result
    if not modes.only_computed(x, weight, out):
        checks.not_differentiated("it without out", x=x, weight=weight, out=out)
    _out(x, weight, eps, weight_offset, out=out)
    modes.increment_version((out,))
    return out


registry.register(
    NormOp(
        rms_norm,
        reference.rms_norm,
        (Rows("x"), Vector("weight"), EPS, Number("weight_offset")),
        (Result("out", may_be=("x",)),),
        route=cuda.norm_route,
        launch=cuda.launch_norm,
        differentiated=autograd.RMSNorm,
        in_cpp=("cpu", "cuda"),
    )
)
_default, _out = torch.ops.serving_ops.rms_norm.default, torch.ops.serving_ops.rms_norm.out
