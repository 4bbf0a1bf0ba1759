"""The ops with gradients: the serving operators forward, `serving_ops.ops.backward` behind them.

So a row gets the same bits in training as in serving. Autograd is here and not at the operators, whose calls would pay
for it while serving: engines that run under `torch.no_grad()` still go through its dispatch key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.serving_ops


increment_version = torch._C._increment_version
"""Tells autograd that tensors, given as a tuple, were written: it then refuses a backward that saved them before.

Our operators do not, so that engines, which call them directly, do not pay. Inference tensors have no version: they are
passed over. PyTorch's public function of this name takes twice the time.
"""


def wanted(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors is to be differentiated."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _unless_empty(gradient: Tensor, of: Tensor | None) -> Tensor | None:
    """Operators have no optional results: an empty one stands for a tensor that was not given."""
    return None if of is None else gradient


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    """See `serving_ops.rms_norm`."""
    result: Tensor = RMSNorm.apply(x, weight, eps, weight_offset)  # type: ignore[no-untyped-call]
    return result


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    """See `serving_ops.add_rms_norm`."""
    out, total = AddRMSNorm.apply(x, residual, weight, eps, weight_offset)  # type: ignore[no-untyped-call]
    return out, total


def rms_norm_gated(*arguments: Any) -> Tensor:
    """See `serving_ops.rms_norm_gated`; arguments as `RMSNormGated.forward` has them."""
    result: Tensor = RMSNormGated.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class RMSNorm(torch.autograd.Function):
    """`rms_norm`; keeps x."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        result: Tensor = _ops.rms_norm.default(x, weight, eps, weight_offset=weight_offset)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.eps, ctx.weight_offset = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        options = {"weight_offset": ctx.weight_offset, "ds_more": None}
        dx, dweight = _ops.rms_norm_backward(dout, x, weight, ctx.eps, **options)
        return dx, _unless_empty(dweight, weight), None, None


class AddRMSNorm(torch.autograd.Function):
    """`add_rms_norm`; keeps the sum, which its caller has anyway."""

    @staticmethod
    def forward(
        x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
    ) -> tuple[Tensor, Tensor]:
        out, total = _ops.add_rms_norm.default(x, residual, weight, eps, weight_offset=weight_offset)
        return out, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, weight, ctx.eps, ctx.weight_offset = inputs
        ctx.save_for_backward(output[1], weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        options = {"weight_offset": ctx.weight_offset, "ds_more": dtotal}
        ds, dweight = _ops.rms_norm_backward(dout, total, weight, ctx.eps, **options)
        return ds, ds, _unless_empty(dweight, weight), None, None


class RMSNormGated(torch.autograd.Function):
    """`rms_norm_gated`; keeps x and z."""

    @staticmethod
    def forward(
        x: Tensor,
        z: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        norm_before_gate: bool,
        activation: str,
        group_size: int | None,
    ) -> Tensor:
        options = {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
        result: Tensor = _ops.rms_norm_gated.default(x, z, weight, eps, bias=bias, **options)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.eps, ctx.norm_before_gate, ctx.activation, ctx.group_size = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight, bias = ctx.saved_tensors
        gradients = _ops.rms_norm_gated_backward(
            dout,
            x,
            z,
            weight,
            ctx.eps,
            bias=bias,
            norm_before_gate=ctx.norm_before_gate,
            activation=ctx.activation,
            group_size=ctx.group_size,
        )
        return (*map(_unless_empty, gradients, (x, z, weight, bias)), None, None, None, None)
