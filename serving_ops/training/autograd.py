"""The ops differentiated, transformed or exported; with gradients, the serving operators forward, and
`serving_ops.training.backward_ops` behind them.

So a row gets the same bits in training as in serving. Autograd is here and not at the operators, whose calls would pay
for it while serving: engines that run under `torch.no_grad()` still go through its dispatch key.

A gradient that is differentiated again is computed by its formula in PyTorch (see
`serving_ops.training.backward_ops`), and what `torch.func` or forward-mode AD transforms is computed by
`serving_ops.reference`, so all of these have right values.
An exported graph holds operators that autograd knows, `*_trainable`: it may be trained, whatever it was exported under.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import modes, reference
from serving_ops.ops import registry
from serving_ops.schemas import library
from serving_ops.training import backward_ops

_ops = torch.ops.serving_ops


def _norm_backward() -> Any:
    """The operator, or its formula in PyTorch where the gradient may be differentiated again."""
    return backward_ops.rms_norm_backward if torch.is_grad_enabled() else _ops.rms_norm_backward.default


def _unless_empty(gradient: Tensor, of: Tensor | None) -> Tensor | None:
    """Operators have no optional results: an empty one stands for a tensor that was not given."""
    return None if of is None else gradient


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    """See `serving_ops.rms_norm`."""
    if modes.transformed():
        call: dict[str, Any] = {"x": x, "weight": weight, "eps": eps, "weight_offset": weight_offset}
        registry.find("rms_norm").check_metadata(call)
        return reference.rms_norm(**call)
    if modes.exporting():
        return _ops.rms_norm_trainable(x, weight, eps, weight_offset)  # type: ignore[no-any-return]
    result: Tensor = RMSNorm.apply(x, weight, eps, weight_offset)  # type: ignore[no-untyped-call]
    return result


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    """See `serving_ops.add_rms_norm`."""
    if modes.transformed() or residual.dtype != x.dtype:  # the kernels' gradients have one dtype
        call: dict[str, Any] = {"x": x, "residual": residual, "weight": weight}
        call |= {"eps": eps, "weight_offset": weight_offset}
        registry.find("add_rms_norm").check_metadata(call)
        return reference.add_rms_norm(**call)
    if modes.exporting():
        return _ops.add_rms_norm_trainable(x, residual, weight, eps, weight_offset)  # type: ignore[no-any-return]
    out, total = AddRMSNorm.apply(x, residual, weight, eps, weight_offset)  # type: ignore[no-untyped-call]
    return out, total


def rms_norm_gated(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
) -> Tensor:
    """See `serving_ops.rms_norm_gated`."""
    if modes.transformed():
        call: dict[str, Any] = {"x": x, "z": z, "weight": weight, "eps": eps, "bias": bias}
        call |= {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
        registry.find("rms_norm_gated").check_metadata(call)
        return reference.rms_norm_gated(**call)
    arguments = (x, z, weight, bias, eps, norm_before_gate, activation, group_size)
    if modes.exporting():
        return _ops.rms_norm_gated_trainable(*arguments)  # type: ignore[no-any-return]
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
        dx, dweight = _norm_backward()(dout, x, weight, ctx.eps, **options)
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
        ds, dweight = _norm_backward()(dout, total, weight, ctx.eps, **options)
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
        run = backward_ops.rms_norm_gated_backward if torch.is_grad_enabled() else _ops.rms_norm_gated_backward.default
        gradients = run(
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


def _register_trainable(name: str, function: type[torch.autograd.Function]) -> None:
    library.impl(name, function.forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"serving_ops::{name}", function.forward, lib=library)
    torch.library.register_autograd(
        f"serving_ops::{name}", function.backward, setup_context=function.setup_context, lib=library
    )


_register_trainable("rms_norm_trainable", RMSNorm)
_register_trainable("add_rms_norm_trainable", AddRMSNorm)
_register_trainable("rms_norm_gated_trainable", RMSNormGated)
