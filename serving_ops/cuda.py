"""Whether a kernel takes a checked call on CUDA, with which plan, and why not; and the launch."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serving_ops import extension, plan, settings, support
from serving_ops.kernels.launches import RowGrid
from serving_ops.layout import row_grid

if TYPE_CHECKING:
    from serving_ops.kernels.launches import Plan
    from serving_ops.kernels.triton.launch import Compiled
    from serving_ops.kernels.triton.variant import Variant


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


def planned(route: tuple[RowGrid, Plan], x: Tensor) -> dict[str, Any]:
    """What a route decides of a launch, by the names in kernels/triton/."""
    return {"rows": route[0], "plan": route[1], "pdl": pdl(x.device)}


def why_not_rows(
    x: Tensor, *tensors: support.Named, max_rows: int = plan.MAX_ROWS, max_n: int = plan.MAX_N
) -> str | None:
    """Return why no kernel takes rows like x's in these tensors, the first of which is x; None where they do."""
    reason = support.no_triton() or support.why_not_layout(*tensors)
    if reason is None and x.shape[:-1].numel() > max_rows:
        return support.TOO_MANY_ROWS
    return support.TOO_WIDE if reason is None and x.shape[-1] > max_n else reason


def norm_route(
    x: Tensor, weight: Tensor | None, residual: Tensor | None = None, out: Tensor | None = None, **_: Any
) -> tuple[RowGrid, Plan] | str:
    """The rows and the plan that run this call, or why the reference does. out: None for x."""
    reason = why_not_rows(x, ("x", x), ("residual", residual), ("weight", weight), ("out", out))
    rows = row_grid(x, x if residual is None else residual, x if out is None else out)
    if reason is not None or rows is None:
        return reason or support.TOO_MANY_DIMENSIONS
    return rows, plan.plan_norm(x.shape[-1], x.itemsize, rows.num_rows)


def launch_norm(route: tuple[RowGrid, Plan], **call: Any) -> None:
    """Launch `rms_norm`, `fused_add_rms_norm`, which writes its result into x, or `add_rms_norm`."""
    call = {"residual": None, "out": call["x"], **call}
    _modules()[0].run_norm(**call, **planned(route, call["x"]))


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
    reason = why_not_rows(x, ("x", x), ("z", z), ("weight", weight), ("bias", bias), ("out", out))
    rows = row_grid(x, x if z is None else z, out)
    if reason is not None or rows is None:
        return reason or support.TOO_MANY_DIMENSIONS
    group_size = group_size or x.shape[-1]
    groups = x.shape[-1] // group_size
    if groups > plan.MAX_GROUPS:
        return support.TOO_MANY_GROUPS
    chosen = plan.plan_gated(group_size, x.itemsize, rows.num_rows * groups)
    return support.GROUP_TOO_WIDE if chosen is None else (rows, chosen)


def launch_gated(route: tuple[RowGrid, Plan], **call: Any) -> None:
    """Launch `rms_norm_gated`."""
    sigmoid = call.pop("activation") == "sigmoid"
    call["group_size"] = call["group_size"] or call["x"].shape[-1]
    _modules()[1].run_gated(**call, sigmoid=sigmoid, **planned(route, call["x"]))
