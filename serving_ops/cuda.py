"""Whether a kernel takes a checked call of a norm on CUDA, with which plan, and why not; and the launch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serving_ops import extension, plan, settings, support
from serving_ops.kernels.launches import Plan, Quantized, RowGrid
from serving_ops.layout import row_grid, same_strides
from serving_ops.quant_format import QuantFormat

if TYPE_CHECKING:
    from serving_ops.kernels.triton.launch import Compiled
    from serving_ops.kernels.triton.variant import Variant

FP8_CAPABILITY = (8, 9)
"""The first compute capability that converts to FP8 (PTX ISA, `cvt` to .e4m3x2)."""

NO_FP8 = "FP8 needs compute capability 8.9"
ROWS_OF_RESULTS = "results whose rows the kernels cannot count as x's"
ROWS_OF_EARLIER = "earlier is not laid out as residual"

Route = tuple[RowGrid, Plan]


@cache
def triton_kernels() -> Any:
    """`kernels/triton`, whose launches hand what they compile to C++.

    Imported at the first call: importing this package must not import Triton.
    """
    from serving_ops.kernels import triton
    from serving_ops.kernels.triton import gated, launch, norm, run_rope  # noqa: F401

    launch.on_compiled = _hand_to_the_extension
    return triton


def _hand_to_the_extension(variant: Variant, plan: Plan, compiled: Compiled) -> None:
    """From here on the C++ library launches this variant, and its calls no longer come to Python."""
    extension.add_cuda_variant(*variant, plan.min_rows, plan.max_rows, plan.rows_per_program, *compiled)


@cache
def pdl(device: torch.device) -> bool:
    """Whether kernels on a device use programmatic dependent launch."""
    return settings.pdl_enabled() and bool(triton_kernels().launch.programmatic_launch_supported(device))


@cache
def converts_to_fp8(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def why_not_rows(
    x: Tensor, *tensors: support.Named, max_rows: int = plan.MAX_ROWS, max_n: int = plan.MAX_N
) -> str | None:
    """Return why no kernel takes rows like x's in these tensors, the first of which is x; None where they do."""
    reason = support.no_triton() or support.why_not_layout(*tensors)
    if reason is None and x.shape[:-1].numel() > max_rows:
        return support.TOO_MANY_ROWS
    return support.TOO_WIDE if reason is None and x.shape[-1] > max_n else reason


def _rows(
    x: Tensor,
    second: Tensor | None,
    out: Tensor,
    fmt: QuantFormat | None = None,
    normed: Tensor | None = None,
    scales_out: Tensor | None = None,
    **_: Any,
) -> RowGrid | str:
    """The rows of x, of the residual or gate, and of what a norm writes, or why no kernel does."""
    second = x if second is None else second
    rows = row_grid(x, second, out if fmt is None else x)
    if fmt is None or rows is None:
        return rows or support.TOO_MANY_DIMENSIONS
    if fmt.dtype == torch.float8_e4m3fn and not converts_to_fp8(x.device):
        return NO_FP8
    reason = support.why_not_layout(("normed", normed))
    if reason is not None:
        return reason
    if out.stride(-1) != 1 and out.shape[-1] != 1:
        return "out.stride(-1) is not 1"
    rows = row_grid(x, second, x if normed is None else normed, out)
    if rows is None or (scales_out is not None and fmt.granularity != "tensor" and _rows_of_scales(scales_out) is None):
        return ROWS_OF_RESULTS
    return rows


def _rows_of_scales(scales: Tensor) -> Tensor | None:
    """Scales as (num_rows, columns), where they lie so; None where their leading dimensions do not merge."""
    if scales.dim() == 2:
        return scales
    try:
        return scales.view(-1, scales.shape[-1])
    except RuntimeError:
        return None


def norm_route(
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    earlier: Tensor | None = None,
    **call: Any,
) -> Route | str:
    """The rows and the plan that run this call, or why the reference does. out: None for x."""
    out = x if out is None else out
    quantized = "fmt" in call
    if earlier is not None and residual is not None and not same_strides(earlier, residual):
        return ROWS_OF_EARLIER
    named = ("x", x), ("residual", residual), ("weight", weight), ("out", x if quantized else out)
    rows = why_not_rows(x, *named) or (_rows(x, residual, out, **call) if quantized else _rows(x, residual, out))
    return rows if isinstance(rows, str) else (rows, plan.plan_norm(x.shape[-1], x.itemsize, rows.num_rows))


def gated_route(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    group_size: int | None = None,
    norm_group_size: int | None = None,
    **call: Any,
) -> Route | str:
    """As `norm_route`, for gated norms. norm_group_size: the group size of those that quantize."""
    named = ("x", x), ("z", z), ("weight", weight), ("bias", bias), ("out", x if "fmt" in call else out)
    rows = why_not_rows(x, *named) or _rows(x, z, out, **call)
    if isinstance(rows, str):
        return rows
    group_size = group_size or norm_group_size or x.shape[-1]
    groups = x.shape[-1] // group_size
    if groups > plan.MAX_GROUPS:
        return support.TOO_MANY_GROUPS
    chosen = plan.plan_gated(group_size, x.itemsize, rows.num_rows * groups, quantized="fmt" in call)
    if chosen is None:
        return support.GROUP_TOO_WIDE
    reason = why_not_scales(x.shape[-1], group_size, call["fmt"]) if "fmt" in call else None
    return reason or (rows, chosen)


def why_not_scales(size: int, group_size: int, fmt: QuantFormat) -> str | None:
    """Why a program, which has one group of a row, cannot write the scales; None where it can."""
    if fmt.granularity == "token" and group_size != size:
        return "a scale a row of several gated groups"
    if fmt.granularity == "group" and group_size % fmt.group_size:
        return "groups of scales that do not divide the gated group"
    scales = group_size // fmt.group_size
    if fmt.granularity == "group" and fmt.scale_format == "ue8m0" and group_size != size and scales % 4:
        return "UE8M0 words that several gated groups share"
    return None


def _by_name(route: Route, call: dict[str, Any]) -> dict[str, Any]:
    """What the launches in kernels/triton/ take: a call, which is changed, and what its route decides."""
    if "fmt" in call:
        fmt, scale, scales, normed = (call.pop(name) for name in ("fmt", "scale", "scales_out", "normed"))
        call["quantized"] = Quantized(fmt, _rows_of_scales(scales) if scale is None else scale, normed)
    call["rows"], call["plan"] = route
    call["pdl"] = pdl(call["x"].device)
    return call


def launch_norm(route: Route, **call: Any) -> None:
    """Launch a norm without a gate: without `out`, it writes its result into x. call: as `run_norm` takes it."""
    call.setdefault("residual", None)
    call.setdefault("out", call["x"])
    triton_kernels().norm.run_norm(**_by_name(route, call))


def launch_gated(route: Route, **call: Any) -> None:
    """Launch a gated norm."""
    sigmoid = call.pop("activation") == "sigmoid"
    call["group_size"] = call.pop("norm_group_size", None) or call.get("group_size") or call["x"].shape[-1]
    triton_kernels().gated.run_gated(**_by_name(route, call), sigmoid=sigmoid)
