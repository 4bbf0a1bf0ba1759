"""From a checked call on a CUDA tensor to a Triton launch, or to the reason why there is none."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serving_ops import extension, plan, settings, support
from serving_ops.layout import RowGrid, row_grid

if TYPE_CHECKING:
    from serving_ops.kernels.triton.launch import Compiled
    from serving_ops.kernels.triton.variant import Variant
    from serving_ops.plan import Plan


@cache
def _modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Imported at the first call: importing this package must not import Triton."""
    from serving_ops.kernels.triton import gated, launch, norm

    launch.on_compiled = _hand_to_the_extension
    return norm, gated, launch


def _hand_to_the_extension(variant: Variant, plan: Plan, compiled: Compiled) -> None:
    """From here on the C++ library launches this variant, and its calls no longer come to Python."""
    extension.add_cuda_variant(
        variant.flags,
        variant.size,
        variant.group_size,
        plan.min_rows,
        plan.max_rows,
        plan.rows_per_program,
        compiled.function,
        compiled.num_warps,
        compiled.shared_bytes,
        compiled.dependent,
        compiled.parameters,
    )


@cache
def pdl(device: torch.device) -> bool:
    """Whether kernels on a device use programmatic dependent launch."""
    return settings.pdl_enabled() and bool(_modules()[2].programmatic_launch_supported(device))


def _rows_of(x: Tensor, other: Tensor | None, out: Tensor) -> RowGrid | str:
    """The rows of x, `other` (or x again) and out as the kernels count them, or why they cannot."""
    rows = row_grid(x, x if other is None else other, out)
    if rows is None:
        return support.TOO_MANY_DIMENSIONS
    if rows.num_rows > plan.MAX_ROWS:
        return support.TOO_MANY_ROWS
    return support.TOO_WIDE if x.shape[-1] > plan.MAX_N else rows


def norm_route(
    x: Tensor, weight: Tensor | None, residual: Tensor | None = None, out: Tensor | None = None, **_: Any
) -> tuple[RowGrid, Plan] | str:
    """The rows and the plan that run this call, or why the reference does. out: None for x."""
    out = x if out is None else out
    reason = support.no_triton() or support.why_not_layout(
        ("x", x), ("residual", residual), ("weight", weight), ("out", out)
    )
    if reason is not None:
        return reason
    rows = _rows_of(x, residual, out)
    if isinstance(rows, str):
        return rows
    return rows, plan.plan_norm(x.shape[-1], x.itemsize, rows.num_rows)


def norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    total: Tensor | None = None,
) -> str | None:
    """Run `rms_norm`, `fused_add_rms_norm` or `add_rms_norm`; returns why not, with nothing written.

    out: where the normalised row goes; None for x. total: where the sum goes instead of the residual, with its strides.
    """
    out = x if out is None else out
    route = norm_route(x, weight, residual, out)
    if isinstance(route, str):
        return route
    if route[0].num_rows:
        with torch.cuda._DeviceGuard(x.get_device()):
            _modules()[0].run_norm(x, residual, weight, out, eps, weight_offset, *route, pdl(x.device), total)
    return None


def gated_route(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group_size: int | None,
    out: Tensor,
    **_: Any,
) -> tuple[RowGrid, Plan] | str:
    """As `norm_route`, for `rms_norm_gated`."""
    reason = support.no_triton() or support.why_not_layout(
        ("x", x), ("z", z), ("weight", weight), ("bias", bias), ("out", out)
    )
    if reason is not None:
        return reason
    rows = _rows_of(x, z, out)
    if isinstance(rows, str):
        return rows
    group_size = group_size or x.shape[-1]
    groups = x.shape[-1] // group_size
    if groups > plan.MAX_GROUPS:
        return support.TOO_MANY_GROUPS
    chosen = plan.plan_gated(group_size, x.itemsize, rows.num_rows * groups)
    return support.GROUP_TOO_WIDE if chosen is None else (rows, chosen)


def gated(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float,
    bias: Tensor | None,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
    out: Tensor,
) -> str | None:
    """Run `rms_norm_gated`; returns why not, with nothing written."""
    route = gated_route(x, z, weight, bias, group_size, out)
    if isinstance(route, str):
        return route
    if route[0].num_rows:
        options = norm_before_gate, activation == "sigmoid", group_size or x.shape[-1]
        with torch.cuda._DeviceGuard(x.get_device()):
            _modules()[1].run_gated(x, z, weight, bias, out, eps, *options, *route, pdl(x.device))
    return None
