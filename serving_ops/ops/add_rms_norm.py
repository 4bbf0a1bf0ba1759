"""`add_rms_norm`: `fused_add_rms_norm` without writing its arguments, and with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import cuda, modes, reference
from serving_ops.ops import registry
from serving_ops.ops.description import EPS, RESIDUAL, Call, Layout, NormOp, Number, Result, Rows, Vector
from serving_ops.training import autograd

IN_PLACE = "fused_add_rms_norm"


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual) * (weight + weight_offset), x + residual)`, both new and contiguous.

    The sum has the residual's dtype. Where that is not x's, gradients come from `serving_ops.reference`.

    Args and arithmetic are those of `serving_ops.fused_add_rms_norm`, and so are the bits. Differentiates x, residual
    and weight, from both results, any number of times; `torch.func` and forward-mode AD run `serving_ops.reference`.

    Raises RuntimeError for input that `serving_ops.checks` calls wrong.
    """
    if not modes.only_computed(x, residual, weight):
        tensors = {"x": x, "residual": residual, "weight": weight}
        out, total = autograd.run("add_rms_norm", **tensors, eps=eps, weight_offset=weight_offset)
        return out, total
    out, total = torch.ops.serving_ops.add_rms_norm.default(x, residual, weight, eps, weight_offset)
    return out, total


def _like_residual(call: Call) -> Layout:
    return Layout(tuple(call["x"].shape), call["residual"].dtype)


def _through_copies(x: Tensor, residual: Tensor, out: Tensor, total: Tensor, **options: Any) -> None:
    """The op in place, on copies; it counts the call."""
    out.copy_(x)
    total.copy_(residual)
    torch.ops.serving_ops.fused_add_rms_norm.default(out, total, **options)


def _route(residual: Tensor, **call: Any) -> Any:
    """The kernel of the op in place writes elsewhere too. The sum has the strides of a contiguous residual."""
    return cuda.norm_route(residual=residual.contiguous(), **call)


def _launch(route: Any, residual: Tensor, **call: Any) -> None:
    cuda.launch_norm(route, residual=residual.contiguous(), **call)


registry.register(
    NormOp(
        add_rms_norm,
        reference.add_rms_norm,
        (Rows("x"), RESIDUAL, Vector("weight"), EPS, Number("weight_offset")),
        (Result("out"), Result("total", _like_residual)),
        route=_route,
        launch=_launch,
        differentiated=autograd.AddRMSNorm,
        has_out=False,
        part_of=IN_PLACE,
        run=_through_copies,
    )
)
