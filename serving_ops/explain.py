"""Which path a call would take, and why, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from serving_ops import checks
from serving_ops.kernels.launches import Plan
from serving_ops.ops import registry


@dataclass(frozen=True)
class Explanation:
    """How a call would run.

    path: "triton.tile", "triton.row", "triton.wide" or "triton.heads" (the kernels on CUDA), "cpu" or "reference".
    reason: why the reference runs; None for a kernel.
    plan: how the kernel on CUDA is launched; None elsewhere.
    """

    path: str
    reason: str | None = None
    plan: Plan | None = None


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say how `serving_ops.<op>(*args, **kwargs)` would run. Nothing is computed or written.

    Raises what the call would raise, ValueError for an unknown op, and RuntimeError for tensors without memory, fake
    ones or those on the meta device: which kernel takes a call depends on addresses.
    """
    described = registry.find(op)
    call = described.bind_public(args, kwargs)
    described.check_metadata(call)
    _have_memory(call)
    if described.part_of is not None:
        described.check(call)
        call |= {name: _dense(value) for name, value in call.items() if isinstance(value, Tensor)}
        return explain(described.part_of, **call)
    call |= described.empty_results(call)
    described.check(call)
    route = registry.route_of(described, call)
    if route is None:
        return Explanation("cpu")
    if isinstance(route, str):
        return Explanation("reference", route)
    plan: Plan = route[-1]
    return Explanation(f"triton.{plan.kernel}", plan=plan)


def _have_memory(call: dict[str, Any]) -> None:
    why = "explain reads addresses of tensors, which have none there"
    if detect_fake_mode(list(call.values())) is not None:
        checks.fail("the mode", "FakeTensorMode", why)
    for name, value in call.items():
        if isinstance(value, Tensor) and value.is_meta:
            checks.fail(f"{name}.device", value.device, why)


def _dense(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
