"""As `cuda`, for the norms that quantize."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from serving_ops import support
from serving_ops.cuda import gated_route, norm_route, planned
from serving_ops.kernels.launches import Plan, RowGrid
from serving_ops.layout import row_grid
from serving_ops.quant_format import QuantFormat

FP8_CAPABILITY = (8, 9)
"""The first compute capability that converts to FP8 (PTX ISA, `cvt` to .e4m3x2)."""

NO_FP8 = "FP8 needs compute capability 8.9"
ROWS_OF_RESULTS = "results whose rows the kernels cannot count as x's"

Route = tuple[RowGrid, Plan] | str


@cache
def converts_to_fp8(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _rows_of_scales(scales: Tensor) -> Tensor | None:
    """Scales as (num_rows, columns), where they lie so; None where their leading dimensions do not merge."""
    if scales.dim() == 2:
        return scales
    try:
        return scales.view(-1, scales.shape[-1])
    except RuntimeError:
        return None


def _with_results(
    route: Route, x: Tensor, second: Tensor | None, fmt: QuantFormat, normed: Tensor | None, out: Tensor, scales: Tensor
) -> Route:
    """A plain norm's route, with the rows of what a quantized one writes."""
    if isinstance(route, str):
        return route
    if fmt.dtype == torch.float8_e4m3fn and not converts_to_fp8(x.device):
        return NO_FP8
    reason = support.why_not_layout(("normed", normed))
    if reason is not None:
        return reason
    if out.stride(-1) != 1 and out.shape[-1] != 1:
        return "out.stride(-1) is not 1"
    rows = row_grid(x, x if second is None else second, x if normed is None else normed, out)
    if rows is None or (fmt.granularity != "tensor" and _rows_of_scales(scales) is None):
        return ROWS_OF_RESULTS
    return rows, route[1]


def norm_quant_route(
    x: Tensor,
    weight: Tensor | None,
    fmt: QuantFormat,
    normed: Tensor | None,
    out: Tensor,
    scales_out: Tensor,
    residual: Tensor | None = None,
    **_: Any,
) -> Route:
    """As `cuda.norm_route`, for `rms_norm_quant` and `fused_add_rms_norm_quant`."""
    return _with_results(norm_route(x, weight, residual), x, residual, fmt, normed, out, scales_out)


def _results(scale: Tensor | None, out: Tensor, scales_out: Tensor) -> dict[str, Any]:
    """Where the kernels write, or the scale that they read."""
    return {"q": out, "scales": _rows_of_scales(scales_out) if scale is None else scale}


def launch_norm_quant(
    route: tuple[RowGrid, Plan], scale: Tensor | None, out: Tensor, scales_out: Tensor, **call: Any
) -> None:
    """Launch `rms_norm_quant` or `fused_add_rms_norm_quant`."""
    from serving_ops.kernels.triton.norm_quant import run_norm_quant

    call = {"residual": None, **call, **_results(scale, out, scales_out)}
    run_norm_quant(**call, **planned(route, call["x"]))


def gated_quant_route(
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    fmt: QuantFormat,
    bias: Tensor | None,
    norm_group_size: int | None,
    normed: Tensor | None,
    out: Tensor,
    scales_out: Tensor,
    **_: Any,
) -> Route:
    """As `cuda.gated_route`, for `rms_norm_gated_quant`."""
    route = gated_route(x, z, weight, bias, norm_group_size, x)
    if not isinstance(route, str):
        from serving_ops.kernels.triton.gated_quant import why_not_scales

        route = why_not_scales(x.shape[-1], norm_group_size or x.shape[-1], fmt) or route
    return _with_results(route, x, z, fmt, normed, out, scales_out)


def launch_gated_quant(
    route: tuple[RowGrid, Plan], scale: Tensor | None, out: Tensor, scales_out: Tensor, **call: Any
) -> None:
    """Launch `rms_norm_gated_quant`."""
    from serving_ops.kernels.triton.gated_quant import run_gated_quant

    sigmoid, group_size = call.pop("activation") == "sigmoid", call.pop("norm_group_size") or call["x"].shape[-1]
    call |= {"sigmoid": sigmoid, "group_size": group_size, **_results(scale, out, scales_out)}
    run_gated_quant(**call, **planned(route, call["x"]))
