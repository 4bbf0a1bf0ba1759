"""`rms_norm_gated`: RMSNorm by groups, weighted, with a gate before or after.

g = silu(z) or sigmoid(z)
y = x * g if the gate comes first, else x
y = y * rsqrt(mean over the group (y^2) + eps) * weight + bias
y = y * g if the gate comes last
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving_ops import autograd, checks, counters, cuda, extension, modes, reference, support
from serving_ops.schemas import library

NAME = "rms_norm_gated"
_default, _out = torch.ops.serving_ops.rms_norm_gated.default, torch.ops.serving_ops.rms_norm_gated.out


class Options(NamedTuple):
    """The schema's keyword arguments with its defaults, which the dispatcher leaves out of a call."""

    bias: Tensor | None = None
    norm_before_gate: bool = True
    activation: str = "silu"
    group_size: int | None = None


def rms_norm_gated(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float = 1e-6,
    *,
    bias: Tensor | None = None,
    norm_before_gate: bool = True,
    activation: str = "silu",
    group_size: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Gated RMSNorm, as in Mamba-2 and gated delta nets.

    Args:
        x: (..., N), fp16, bf16, fp32 or float64, any strides.
        z: the gate, like x in shape, dtype and device, any strides; None for no gate.
        weight, bias: (N,) in x's dtype or fp32, or None.
        eps: added to the mean of squares.
        norm_before_gate: whether the gate multiplies the result; if False it multiplies x before the statistics.
        activation: of the gate: "silu" (also called "swish") or "sigmoid".
        group_size: elements normalised together; divides N; None for N.
        out: like x in shape, dtype and device, any strides; may be x or z itself, or share no element with either.
            Written.

    Returns `out`, or a new contiguous tensor. All arithmetic is fp32, rounded once at the end.

    Raises RuntimeError, with nothing written, for input that `serving_ops.checks` calls wrong, and where `out` is given
    and a tensor requires grad, or `torch.func` or forward-mode AD transforms it; without `out`, x, z, weight and bias
    are differentiated, any number of times. What the kernels do not take runs on `serving_ops.reference`, and so do
    those transforms; `serving_ops.explain` says why.
    """
    if out is None:
        if not modes.only_computed(x, z, weight, bias):
            return autograd.rms_norm_gated(x, z, weight, bias, eps, norm_before_gate, activation, group_size)
        result: Tensor = _default(
            x,
            z,
            weight,
            eps,
            bias=bias,
            norm_before_gate=norm_before_gate,
            activation=activation,
            group_size=group_size,
        )
        return result
    if not modes.only_computed(x, z, weight, bias, out):
        checks.not_differentiated("it without out", x=x, z=z, weight=weight, bias=bias, out=out)
    _out(
        x,
        z,
        weight,
        eps,
        bias=bias,
        norm_before_gate=norm_before_gate,
        activation=activation,
        group_size=group_size,
        out=out,
    )
    modes.increment_version((out,))
    return out


def check(x: Tensor, z: Tensor | None, weight: Tensor | None, options: Options, out: Tensor) -> None:
    checks.gated_metadata(x, z, weight, options.bias, options.activation, options.group_size, out)
    checks.written("out", out)
    checks.apart("out", out, "x", x, or_same=True)
    checks.apart("out", out, "z", z, or_same=True)
    checks.apart("out", out, "weight", weight)
    checks.apart("out", out, "bias", options.bias)


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _run_reference(
    x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float, options: Options, out: Tensor, reason: str
) -> None:
    counters.count_reference(NAME, reason)
    out.copy_(reference.rms_norm_gated(x, z, weight, eps, **options._asdict()))


def _run_cuda(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float, options: Options, out: Tensor) -> None:
    bias, norm_before_gate, activation, group_size = options
    reason = cuda.gated(x, z, weight, bias, out, eps, norm_before_gate, activation, group_size or x.shape[-1])
    if reason is None:
        counters.count_kernel(NAME)
    else:
        _run_reference(x, z, weight, eps, options, out, reason)


def _cuda(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, **options: Any) -> Tensor:
    out = _empty(x)
    _cuda_out(x, z, weight, eps, **options, out=out)
    return out


def _cuda_out(
    x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, *, out: Tensor, **options: Any
) -> None:
    given = Options(**options)
    check(x, z, weight, given, out)
    _run_cuda(x, z, weight, eps, given, out)


def _any_device(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, **options: Any) -> Tensor:
    out = _empty(x)
    _any_device_out(x, z, weight, eps, **options, out=out)
    return out


def _any_device_out(
    x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, *, out: Tensor, **options: Any
) -> None:
    given = Options(**options)
    check(x, z, weight, given, out)
    _run_reference(x, z, weight, eps, given, out, support.no_kernels_for(x))


def _fallback(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float,
    bias: Tensor | None,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
    out: Tensor,
) -> str:
    """What C++ does not take: compiled and launched from here, or the reference; or the text of the error."""
    options = Options(bias, norm_before_gate, activation, group_size)
    try:
        if x.is_cuda:
            _cuda_out(x, z, weight, eps, **options._asdict(), out=out)
            return ""
        check(x, z, weight, options, out)
        reason = support.why_not_cpu(NAME, x, z, weight, eps, *options, out)
        _run_reference(x, z, weight, eps, options, out, reason)
    except BaseException as error:  # Triton's own and an interrupt included: none crosses into C++
        return support.text_of(error)
    return ""


def _fake(x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, **options: Any) -> Tensor:
    given = Options(**options)
    checks.gated_metadata(x, z, weight, given.bias, given.activation, given.group_size, None)
    return _empty(x)


def _fake_out(
    x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float = 1e-6, *, out: Tensor, **options: Any
) -> None:
    given = Options(**options)
    checks.gated_metadata(x, z, weight, given.bias, given.activation, given.group_size, out)


if extension.cpp_library() is None:  # which registers for CUDA too
    library.impl(NAME, _cuda, "CUDA")
    library.impl(f"{NAME}.out", _cuda_out, "CUDA")
library.impl(NAME, _any_device, "CompositeExplicitAutograd")
library.impl(f"{NAME}.out", _any_device_out, "CompositeExplicitAutograd")
library.impl(f"_{NAME}_fallback", _fallback, "CompositeExplicitAutograd")
torch.library.register_fake(f"serving_ops::{NAME}", _fake, lib=library)
torch.library.register_fake(f"serving_ops::{NAME}.out", _fake_out, lib=library)
