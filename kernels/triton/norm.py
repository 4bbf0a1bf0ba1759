"""`rms_norm` and `fused_add_rms_norm` on CUDA: from a plan to one launch."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from serving_ops.kernels.launches import Plan, RowGrid
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm_row import norm_row_kernel
from serving_ops.kernels.triton.norm_tile import norm_tile_kernel
from serving_ops.kernels.triton.norm_wide import norm_wide_kernel
from serving_ops.kernels.triton.variant import BIT, Variant, flags_of, starts_aligned

_LAUNCHERS = {
    "row": Launcher(norm_row_kernel, enable_fp_fusion=True),
    # A fused multiply-add would tie bits to the layout.
    "tile": Launcher(norm_tile_kernel, enable_fp_fusion=False),
    "wide": Launcher(norm_wide_kernel, enable_fp_fusion=True),
}


def fields_of(rows: RowGrid, **tensors: Tensor) -> dict[str, Any]:
    """Return the kernels' arguments for these rows, by parameter name. tensors: the tensors of `rows`, in its order."""
    of_rows = rows.num_rows, rows.inner, rows.inner == rows.num_rows
    values = (*of_rows, *tensors.values(), *rows.outer_strides, *rows.inner_strides)
    return dict(zip(_names_of(*tensors), values, strict=True))


@cache
def _names_of(*tensors: str) -> tuple[str, ...]:
    of_tensors = (f"{tensor}_{what}" for what in ("ptr", "outer_stride", "row_stride") for tensor in tensors)
    return ("num_rows", "inner", "FLAT", *of_tensors)


def constants_of(plan: Plan, pdl: bool) -> dict[str, Any]:
    """Return the kernels' constants that a plan decides, by parameter name."""
    return {
        "BLOCK_N": plan.block_n,
        "LOG2_BLOCK_N": plan.block_n.bit_length() - 1,
        "ROWS": plan.rows_per_program,
        "KEPT_N": plan.kept_n,
        "PAIRWISE": plan.kernel == "tile",
        "PDL": pdl,
        "OVERLAP": plan.overlap,
    }


def run_norm(
    x: Tensor,  # (..., N)
    residual: Tensor | None,  # like x, or fp32; written, unless there is a `total`
    weight: Tensor | None,  # (N,)
    out: Tensor,  # like x; written, may be x
    eps: float,
    weight_offset: float,
    rows: RowGrid,
    plan: Plan,
    pdl: bool,
    total: Tensor | None = None,  # like residual in shape, dtype and strides; written instead of it
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size = x.shape[-1]
    flat = rows.inner == rows.num_rows
    in_fp32 = weight is not None and (weight.dtype != x.dtype or weight_offset != 0.0)
    aligned = starts_aligned((x, residual, out, total), (weight,), size)
    flags = flags_of(x, weight, second=residual is not None, weight_in_fp32=in_fp32, flat=flat, aligned=aligned)
    flags |= (residual is not None and residual.dtype != x.dtype) << BIT.residual_in_fp32
    second = x if residual is None else residual
    arguments = {
        **fields_of(rows, x=x, residual=second, out=out),
        "total_ptr": second if total is None else total,
        "weight_ptr": x if weight is None else weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "N": size,
        "ALIGNED": aligned,
        "HAS_RESIDUAL": residual is not None,
        "HAS_WEIGHT": weight is not None,
        "WEIGHT_IN_FP32": in_fp32,
        **constants_of(plan, pdl),
    }
    grid = (-(-rows.num_rows // plan.rows_per_program), 1, 1)
    _LAUNCHERS[plan.kernel](Variant(flags, size, size), plan, grid, arguments, pdl)
