"""Which path a call would take, and why, without running it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops import cuda, support
from serving_ops.ops import fused_add_rms_norm, rms_norm, rms_norm_gated
from serving_ops.plan import Plan
from serving_ops.settings import OPS


@dataclass(frozen=True)
class Explanation:
    """How a call would run.

    path: "triton.tile", "triton.row", "triton.wide", "cpu" or "reference".
    reason: why the reference; None for a kernel.
    plan: the launch, on CUDA.
    """

    path: str
    reason: str | None = None
    plan: Plan | None = None


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say how `serving_ops.<op>(*args, **kwargs)` would run. Nothing is computed or written.

    Raises what the call would raise, and ValueError for an unknown op.
    """
    if op == "fused_add_rms_norm":
        return _explain_fused(**_bind(fused_add_rms_norm.fused_add_rms_norm, args, kwargs))
    if op == "rms_norm":
        return _explain_plain(**_bind(rms_norm.rms_norm, args, kwargs))
    if op == "rms_norm_gated":
        return _explain_gated(**_bind(rms_norm_gated.rms_norm_gated, args, kwargs))
    raise ValueError(f"op is {op!r}: allowed are {', '.join(OPS)}")


def _bind(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def _explain_fused(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Explanation:
    fused_add_rms_norm.check(x, residual, weight)
    if x.is_cuda:
        return _on_cuda(cuda.norm_route(x, residual, weight, x))
    return _elsewhere(fused_add_rms_norm.NAME, x, residual, weight, eps, weight_offset)


def _explain_plain(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, out: Tensor | None
) -> Explanation:
    target = _new(x) if out is None else out
    rms_norm.check(x, weight, target)
    if x.is_cuda:
        return _on_cuda(cuda.norm_route(x, None, weight, target))
    return _elsewhere(rms_norm.NAME, x, weight, eps, weight_offset, target)


def _explain_gated(
    x: Tensor, z: Tensor | None, weight: Tensor | None, eps: float, out: Tensor | None, **options: Any
) -> Explanation:
    target = _new(x) if out is None else out
    given = rms_norm_gated.Options(**options)
    rms_norm_gated.check(x, z, weight, given, target)
    if x.is_cuda:
        return _on_cuda(cuda.gated_route(x, z, weight, given.bias, target, given.group_size or x.shape[-1]))
    return _elsewhere(rms_norm_gated.NAME, x, z, weight, eps, *given, target)


def _new(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _on_cuda(route: Any) -> Explanation:
    if isinstance(route, str):
        return Explanation("reference", route)
    return Explanation(f"triton.{route[1].kernel}", plan=route[1])


def _elsewhere(op: str, x: Tensor, *call: Any) -> Explanation:
    reason = support.why_not_cpu(op, x, *call) if x.device.type == "cpu" else support.no_kernels_for(x)
    return Explanation("reference", reason) if reason else Explanation("cpu")
