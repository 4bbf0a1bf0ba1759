"""`rms_norm` and `fused_add_rms_norm` on CUDA: from a plan to one launch."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm_row import norm_row_kernel
from serving_ops.kernels.triton.norm_tile import norm_tile_kernel
from serving_ops.kernels.triton.norm_wide import norm_wide_kernel

_LAUNCHERS = {
    "row": Launcher(norm_row_kernel),
    "tile": Launcher(norm_tile_kernel, enable_fp_fusion=False),  # a fused multiply-add would tie bits to the layout
    "wide": Launcher(norm_wide_kernel),
}


class Rows(Protocol):
    """The rows of x, residual (or x again) and out, in that order, as in `serving_ops.layout.RowGrid`."""

    @property
    def num_rows(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def outer_strides(self) -> tuple[int, ...]: ...
    @property
    def inner_strides(self) -> tuple[int, ...]: ...


class NormPlan(Protocol):
    """As `serving_ops.plan.Plan`."""

    @property
    def kernel(self) -> Any: ...
    @property
    def block_n(self) -> int: ...
    @property
    def rows_per_program(self) -> int: ...
    @property
    def num_warps(self) -> int: ...


def run_norm(
    x: Tensor,  # (..., N)
    residual: Tensor | None,  # like x; written
    weight: Tensor | None,  # (N,)
    out: Tensor,  # like x; written, may be x
    eps: float,
    weight_offset: float,
    rows: Rows,
    plan: NormPlan,
    pdl: bool,
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    flat = rows.inner == rows.num_rows
    in_fp32 = weight is not None and (weight.dtype != x.dtype or weight_offset != 0.0)
    strides = [s for pair in zip(rows.outer_strides, rows.inner_strides, strict=True) for s in pair]
    flags = (flat, residual is not None, weight is not None, in_fp32, pdl)
    columns: tuple[int, ...] = (x.shape[-1], plan.block_n)
    counts: tuple[int, ...] = (rows.inner,)
    programs = rows.num_rows
    if plan.kernel == "tile":
        counts = (rows.num_rows, rows.inner)
        columns = (*columns, plan.block_n.bit_length() - 1, plan.rows_per_program)
        programs = -(-rows.num_rows // plan.rows_per_program)
    key = (x.dtype, None if weight is None else weight.dtype, columns, flags, plan.num_warps, *strides)
    _LAUNCHERS[plan.kernel](
        key,
        x.get_device(),
        (programs, 1, 1),
        (x, residual, weight, out),
        (*counts, *strides, eps, weight_offset),
        (*columns, *flags),
        plan.num_warps,
        pdl,
    )
