"""`rms_norm` and `fused_add_rms_norm` on CUDA: from a plan to one launch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from serving_ops.kernels.triton.launch import Launcher, Plan
from serving_ops.kernels.triton.norm_row import norm_row_kernel
from serving_ops.kernels.triton.norm_tile import norm_tile_kernel
from serving_ops.kernels.triton.norm_wide import norm_wide_kernel
from serving_ops.kernels.triton.variant import Variant, flags_of, starts_aligned

_POINTERS = 5
_PARAMETERS = ("i32", "i32", *["i64"] * 6, "fp32", "fp32")
_LAUNCHERS = {
    "row": Launcher(norm_row_kernel, _POINTERS, _PARAMETERS, enable_fp_fusion=True),
    # A fused multiply-add would tie bits to the layout.
    "tile": Launcher(norm_tile_kernel, _POINTERS, _PARAMETERS, enable_fp_fusion=False),
    "wide": Launcher(norm_wide_kernel, _POINTERS, _PARAMETERS, enable_fp_fusion=True),
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


def strides_of(rows: Rows) -> tuple[int, ...]:
    """The outer and the inner stride of each tensor."""
    return tuple(s for pair in zip(rows.outer_strides, rows.inner_strides, strict=True) for s in pair)


def run_norm(
    x: Tensor,  # (..., N)
    residual: Tensor | None,  # like x; written, but for a `total`
    weight: Tensor | None,  # (N,)
    out: Tensor,  # like x; written, may be x
    eps: float,
    weight_offset: float,
    rows: Rows,
    plan: Plan,
    pdl: bool,
    total: Tensor | None = None,  # like residual in shape and strides; written instead of it
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size = x.shape[-1]
    strides = strides_of(rows)
    flat = rows.inner == rows.num_rows
    in_fp32 = weight is not None and (weight.dtype != x.dtype or weight_offset != 0.0)
    aligned = starts_aligned((x, residual, out, total), (weight,), size)
    flags = flags_of(x, weight, second=residual is not None, weight_in_fp32=in_fp32, flat=flat, aligned=aligned)
    second = x if residual is None else residual
    of_kernel = {"tile": (plan.block_n.bit_length() - 1, plan.rows_per_program), "wide": (plan.kept_n,)}
    _LAUNCHERS[plan.kernel](
        Variant(flags, size, size),
        plan,
        (-(-rows.num_rows // plan.rows_per_program), 1, 1),
        (x, second, x if weight is None else weight, out, second if total is None else total),
        (rows.num_rows, rows.inner, *strides, eps, weight_offset),
        (
            size,
            plan.block_n,
            *of_kernel.get(plan.kernel, ()),
            flat,
            aligned,
            residual is not None,
            weight is not None,
            in_fp32,
            pdl,
            plan.overlap,
        ),
        pdl,
    )
