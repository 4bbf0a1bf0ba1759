"""`fused_add_rms_norm`: residual add and RMSNorm in one pass, in place.

s = x + residual                                        fp32
residual <- s                                           rounded to x's dtype
x <- s * rsqrt(mean(s^2) + eps) * (weight + offset)     from the unrounded s
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import checks, counters, cuda, extension, modes, reference, support
from serving_ops.schemas import library

NAME = "fused_add_rms_norm"


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`residual <- x + residual`, `x <- rms_norm(residual) * (weight + weight_offset)`, both in place.

    Args:
        x: (..., N), fp16, bf16, fp32 or float64, any strides. Overwritten with the normalised sum.
        residual: like x in shape, dtype and device; shares no element with x. Overwritten with the sum.
        weight: (N,) in x's dtype or fp32, or None.
        eps: added to the mean of squares.
        weight_offset: added to the weight in fp32; 1.0 is Gemma's convention.

    Returns `(x, residual)`, the arguments themselves. Arithmetic is fp32; the sum is normalised before it is rounded;
    a weight in x's dtype without offset is applied after rounding to that dtype (vLLM's IR definition of this op).

    Raises RuntimeError, with nothing written, for input that `serving_ops.checks` calls wrong, and where a tensor
    requires grad, or `torch.func` or forward-mode AD transforms it: `serving_ops.add_rms_norm` is differentiated. What
    the kernels do not take runs on `serving_ops.reference`; `serving_ops.explain` says why.
    """
    if not modes.only_computed(x, residual, weight):
        checks.not_differentiated("serving_ops.add_rms_norm", x=x, residual=residual, weight=weight)
    torch.ops.serving_ops.fused_add_rms_norm.default(x, residual, weight, eps, weight_offset=weight_offset)
    modes.increment_version((x, residual))
    return x, residual


def check(x: Tensor, residual: Tensor, weight: Tensor | None) -> None:
    checks.norm_metadata(x, residual, "residual", weight)
    checks.written("x", x)
    checks.written("residual", residual)
    checks.apart("residual", residual, "x", x)
    checks.apart("x", x, "weight", weight)
    checks.apart("residual", residual, "weight", weight)


def _run_reference(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float, reason: str
) -> None:
    counters.count_reference(NAME, reason)
    reference.fused_add_rms_norm(x, residual, weight, eps, weight_offset=weight_offset)


def _cuda(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> None:
    check(x, residual, weight)
    reason = cuda.norm(x, residual, weight, x, eps, weight_offset)
    if reason is None:
        counters.count_kernel(NAME)
    else:
        _run_reference(x, residual, weight, eps, weight_offset, reason)


def _any_device(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> None:
    check(x, residual, weight)
    _run_reference(x, residual, weight, eps, weight_offset, support.no_kernels_for(x))


def _fallback(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> str:
    """What C++ does not take: compiled and launched from here, or the reference; or the text of the error."""
    try:
        if x.is_cuda:
            _cuda(x, residual, weight, eps, weight_offset=weight_offset)
            return ""
        check(x, residual, weight)
        reason = support.why_not_cpu(NAME, x, residual, weight, eps, weight_offset)
        _run_reference(x, residual, weight, eps, weight_offset, reason)
    except BaseException as error:  # Triton's own and an interrupt included: none crosses into C++
        return support.text_of(error)
    return ""


def _fake(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> None:
    checks.norm_metadata(x, residual, "residual", weight)


if extension.cpp_library() is None:  # which registers for CUDA too
    library.impl(NAME, _cuda, "CUDA")
library.impl(NAME, _any_device, "CompositeExplicitAutograd")
library.impl(f"_{NAME}_fallback", _fallback, "CompositeExplicitAutograd")
torch.library.register_fake(f"serving_ops::{NAME}", _fake, lib=library)
