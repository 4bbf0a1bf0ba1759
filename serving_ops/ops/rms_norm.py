"""`rms_norm`: x * rsqrt(mean(x^2) + eps) * (weight + offset)."""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import autograd, checks, counters, cuda, extension, modes, reference, support
from serving_ops.schemas import library

NAME = "rms_norm"


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
        eps: added to the mean of squares.
        weight_offset: added to the weight in fp32; 1.0 is Gemma's convention.
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
            return autograd.rms_norm(x, weight, eps, weight_offset)
        result: Tensor = torch.ops.serving_ops.rms_norm.default(x, weight, eps, weight_offset=weight_offset)
        return result
    if not modes.only_computed(x, weight, out):
        checks.not_differentiated("it without out", x=x, weight=weight, out=out)
    torch.ops.serving_ops.rms_norm.out(x, weight, eps, weight_offset=weight_offset, out=out)
    modes.increment_version((out,))
    return out


def check(x: Tensor, weight: Tensor | None, out: Tensor) -> None:
    checks.norm_metadata(x, out, "out", weight)
    checks.written("out", out)
    checks.apart("out", out, "x", x, or_same=True)
    checks.apart("out", out, "weight", weight)


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _run_reference(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, out: Tensor, reason: str
) -> None:
    counters.count_reference(NAME, reason)
    out.copy_(reference.rms_norm(x, weight, eps, weight_offset=weight_offset))


def _run_cuda(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, out: Tensor) -> None:
    reason = cuda.norm(x, None, weight, out, eps, weight_offset)
    if reason is None:
        counters.count_kernel(NAME)
    else:
        _run_reference(x, weight, eps, weight_offset, out, reason)


def _cuda(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> Tensor:
    checks.norm_metadata(x, None, "out", weight)
    out = _empty(x)
    _run_cuda(x, weight, eps, weight_offset, out)
    return out


def _cuda_out(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0, out: Tensor) -> None:
    check(x, weight, out)
    _run_cuda(x, weight, eps, weight_offset, out)


def _any_device(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> Tensor:
    checks.norm_metadata(x, None, "out", weight)
    out = _empty(x)
    _run_reference(x, weight, eps, weight_offset, out, support.no_kernels_for(x))
    return out


def _any_device_out(
    x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0, out: Tensor
) -> None:
    check(x, weight, out)
    _run_reference(x, weight, eps, weight_offset, out, support.no_kernels_for(x))


def _fallback(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, out: Tensor) -> str:
    """What C++ does not take: compiled and launched from here, or the reference; or the text of the error."""
    try:
        if x.is_cuda:
            _cuda_out(x, weight, eps, weight_offset=weight_offset, out=out)
            return ""
        check(x, weight, out)
        reason = support.why_not_cpu(NAME, x, weight, eps, weight_offset, out)
        _run_reference(x, weight, eps, weight_offset, out, reason)
    except BaseException as error:  # Triton's own and an interrupt included: none crosses into C++
        return support.text_of(error)
    return ""


def _fake(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0) -> Tensor:
    checks.norm_metadata(x, None, "out", weight)
    return _empty(x)


def _fake_out(x: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0, out: Tensor) -> None:
    checks.norm_metadata(x, out, "out", weight)


if extension.cpp_library() is None:  # which registers for CUDA too
    library.impl(NAME, _cuda, "CUDA")
    library.impl(f"{NAME}.out", _cuda_out, "CUDA")
library.impl(NAME, _any_device, "CompositeExplicitAutograd")
library.impl(f"{NAME}.out", _any_device_out, "CompositeExplicitAutograd")
library.impl(f"_{NAME}_fallback", _fallback, "CompositeExplicitAutograd")
torch.library.register_fake(f"serving_ops::{NAME}", _fake, lib=library)
torch.library.register_fake(f"serving_ops::{NAME}.out", _fake_out, lib=library)
