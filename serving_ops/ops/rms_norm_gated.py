"""`rms_norm_gated`: RMSNorm by groups, weighted, with a gate before or after.

g = silu(z) or sigmoid(z)
y = x * g if the gate comes first, else x
y = y * rsqrt(mean over the group (y^2) + eps) * weight + bias
y = y * g if the gate comes last
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import checks, cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, Choice, Divisor, Flag, NormOp, Result, Rows, Vector
from serving_ops.training import autograd


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
        eps: added to the mean of squares; at least 0, and finite in fp32.
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
    checks.flag("norm_before_gate", norm_before_gate)
    if out is None:
        if not modes.only_computed(x, z, weight, bias):
            options = {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
            result: Tensor = autograd.run("rms_norm_gated", x=x, z=z, weight=weight, eps=eps, bias=bias, **options)
            return result
        result = _default(x, z, weight, eps, bias, norm_before_gate, activation, group_size)
        return result
    if not modes.only_computed(x, z, weight, bias, out):
        checks.not_differentiated("it without out", x=x, z=z, weight=weight, bias=bias, out=out)
    _out(x, z, weight, eps, bias, norm_before_gate, activation, group_size, out=out)
    modes.increment_version((out,))
    return out


ROWS = Rows("x"), Rows("z", given="has_gate", token_stride="gate_token_stride"), Vector("weight"), EPS
OPTIONS = (
    Vector("bias", given="has_bias"),
    Flag("norm_before_gate"),
    Choice("activation", allowed=checks.ACTIVATIONS),
)
"""What `rms_norm_gated_quant` takes too."""

registry.register(
    NormOp(
        rms_norm_gated,
        reference.rms_norm_gated,
        (*ROWS, *OPTIONS, Divisor("group_size")),
        (Result("out", may_be=("x", "z")),),
        route=cuda.gated_route,
        launch=cuda.launch_gated,
        differentiated=autograd.RMSNormGated,
        in_cpp=("cpu", "cuda"),
    )
)
_default, _out = torch.ops.serving_ops.rms_norm_gated.default, torch.ops.serving_ops.rms_norm_gated.out
