"""What runs where an op is differentiated, transformed or exported.

With gradients, the serving operators run forward, and those of `serving_ops.training.backward_ops` backward. So a row
gets the same bits in training as in serving. Autograd is here and not at the operators, whose calls would pay for it
while serving: engines that run under `torch.no_grad()` still go through its dispatch key.

A gradient that is differentiated again is computed by its formula in PyTorch (see
`serving_ops.training.backward_ops`), and what `torch.func` or forward-mode AD transforms is computed by
`serving_ops.reference`, so all of these have right values.
An exported graph holds operators that autograd knows, `*_trainable`: it may be trained, whatever it was exported under.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import modes
from serving_ops.ops import registry
from serving_ops.training import backward_ops

_ops = torch.ops.serving_ops


def _norm_gradients(ctx: Any, dout: Tensor, ds_more: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the row that was normed, and of the weight; by the formula where they may be differentiated again."""
    s, weight = ctx.saved_tensors
    run = backward_ops.rms_norm_backward if torch.is_grad_enabled() else _ops.rms_norm_backward.default
    ds, dweight = run(dout, s, weight, ctx.eps, weight_offset=ctx.weight_offset, ds_more=ds_more)
    return ds, _unless_empty(dweight, weight)


def _unless_empty(gradient: Tensor, of: Tensor | None) -> Tensor | None:
    """Operators have no optional results: an empty one stands for a tensor that was not given."""
    return None if of is None else gradient


def run(name: str, **call: Any) -> Any:
    """The public function of an op. call: its arguments in the operator's order."""
    op = registry.find(name)
    # The kernels' gradients have one dtype.
    if modes.transformed() or ("residual" in call and call["residual"].dtype != call["x"].dtype):
        op.check_metadata(call)
        return op.formula(**call)
    if modes.exporting():
        return getattr(_ops, f"{name}_trainable")(*call.values())
    assert op.differentiated is not None
    return op.differentiated.apply(*call.values())


class RMSNorm(torch.autograd.Function):
    """`rms_norm`; keeps x."""

    @staticmethod
    def forward(*call: Any) -> Any:
        return _ops.rms_norm.default(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.eps, ctx.weight_offset = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        return *_norm_gradients(ctx, dout, None), None, None


class AddRMSNorm(torch.autograd.Function):
    """`add_rms_norm`; keeps the sum, which its caller has anyway."""

    @staticmethod
    def forward(*call: Any) -> Any:
        return _ops.add_rms_norm.default(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, weight, ctx.eps, ctx.weight_offset = inputs
        ctx.save_for_backward(output[1], weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        ds, dweight = _norm_gradients(ctx, dout, dtotal)
        return ds, ds, dweight, None, None


class RMSNormGated(torch.autograd.Function):
    """`rms_norm_gated`; keeps x and z."""

    @staticmethod
    def forward(*call: Any) -> Any:
        return _ops.rms_norm_gated.default(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, z, weight, ctx.eps, bias, norm_before_gate, activation, group_size = inputs
        ctx.options = {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
        ctx.save_for_backward(x, z, weight, bias)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight, bias = ctx.saved_tensors
        run = backward_ops.rms_norm_gated_backward if torch.is_grad_enabled() else _ops.rms_norm_gated_backward.default
        gradients = run(dout, x, z, weight, ctx.eps, bias=bias, **ctx.options)
        dx, dz, dweight, dbias = map(_unless_empty, gradients, (x, z, weight, bias))
        return dx, dz, dweight, None, dbias, None, None, None
