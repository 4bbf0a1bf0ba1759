"""The gradients on CUDA: from a plan to the launches, a kernel over the rows and a sum of its programs' parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.kernels.launches import BackwardPlan, Block, RowGrid
from serving_ops.kernels.triton.backward.gated_backward import gated_backward_kernel
from serving_ops.kernels.triton.backward.norm_backward import norm_backward_kernel
from serving_ops.kernels.triton.backward.norm_backward_wide import norm_backward_wide_kernel
from serving_ops.kernels.triton.backward.partial_sum import partial_sum_kernel
from serving_ops.kernels.triton.gated import gated_call
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import fields_of
from serving_ops.kernels.triton.variant import Variant, flags_of, starts_aligned

_tile = Launcher(norm_backward_kernel)
_wide = Launcher(norm_backward_wide_kernel)
_gated = Launcher(gated_backward_kernel)
_sum = Launcher(partial_sum_kernel)


def run_norm_backward(
    dout: Tensor,  # (..., N)
    s: Tensor,  # like dout
    more: Tensor | None,  # like dout: a gradient of s to add
    weight: Tensor | None,  # (N,)
    ds: Tensor,  # like dout, contiguous; written
    dweight: Tensor,  # like weight, if there is one; written
    eps: float,
    weight_offset: float,
    rows: RowGrid,  # of dout, s and more (or s again), in one leading dimension but for the tile kernel
    plan: BackwardPlan,
    num_programs: int,
    sum_block: Block,
    pdl: bool,
) -> None:
    """Launch on s's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size = s.shape[-1]
    aligned = starts_aligned((dout, s, more), (ds, weight), size)
    flags = {"second": more is not None, "flat": rows.inner == rows.num_rows, "aligned": aligned}
    partial = ds if weight is None else s.new_empty((num_programs, size), dtype=torch.float32)
    arguments = {
        **fields_of(rows, dout=dout, s=s, more=s if more is None else more),
        "weight_ptr": s if weight is None else weight,
        "ds_ptr": ds,
        "partial_ptr": partial,
        "eps": eps,
        "weight_offset": weight_offset,
        "N": size,
        "ALIGNED": aligned,
        "HAS_MORE": more is not None,
        "HAS_WEIGHT": weight is not None,
        "PDL": pdl,
        **_constants_of(plan, aligned),
    }
    variant = Variant(flags_of(s, weight, **flags), size, size)
    launcher = _tile if plan.kernel == "tile" else _wide
    launcher(variant, plan, (num_programs, 1, 1), arguments, pdl)
    if weight is not None:
        _add_up(partial, dweight, sum_block, pdl)


def _constants_of(plan: BackwardPlan, aligned: bool) -> dict[str, Any]:
    """The kernels' constants that a plan decides, by the names of their parameters."""
    return {
        "BLOCK_N": plan.block_n,
        "ROWS": plan.rows,
        "STAGES": plan.stages,
        "KEPT": plan.kept if aligned else 0,
        "FETCH": plan.fetch and aligned,
        "FETCH_MORE": plan.fetch_more and aligned,
        "HINTS": plan.hints and aligned,
    }


def sum_variant(out: Tensor, pdl: bool) -> Variant:
    """The key of the sum that ends in `out`: its dtype and device, and how it is launched, decide the compiled code."""
    return Variant(flags_of(out, None, second=pdl, flat=True), 0, 0)


def _add_up(partial: Tensor, out: Tensor, block: Block, pdl: bool) -> None:
    """`out` (size,) becomes the sum of `partial` (programs, size), rounded once."""
    arguments = {
        "partial_ptr": partial,
        "out_ptr": out,
        "num_parts": partial.shape[0],
        "size": partial.shape[1],
        "PARTS": block.rows,
        "COLUMNS": block.columns,
        "PDL": pdl,
    }
    _sum(sum_variant(out, pdl), block, (-(-out.numel() // block.columns), 1, 1), arguments, pdl)


def run_gated_backward(
    dout: Tensor,  # (..., N)
    x: Tensor,  # like dout
    z: Tensor | None,  # like dout
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    dx: Tensor,  # like dout, contiguous; written
    dz: Tensor,  # like dx, if there is a z; written
    dweight: Tensor,  # like weight, if there is one; written
    dbias: Tensor,  # like bias, if there is one; written
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    rows: RowGrid,  # of dout, x and z (or x again)
    plan: BackwardPlan,
    num_programs: int,
    sum_block: Block,
    pdl: bool,
    dependent: bool,  # the gradient's kernel too is launched as a programmatic dependent
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size = x.shape[-1]
    aligned = starts_aligned((dout, x, z), (dx, dz, weight, bias), group_size)
    options = (eps, norm_before_gate, sigmoid, group_size)
    flags, shared = gated_call(x, z, weight, bias, *options, flat=rows.inner == rows.num_rows, aligned=aligned)
    partial = x.new_empty((2, num_programs, size), dtype=torch.float32)
    arguments = {
        **fields_of(rows, dout=dout, x=x, z=x if z is None else z),
        **shared,
        "dx_ptr": dx,
        "dz_ptr": dx if z is None else dz,
        "partial_ptr": partial,
        "N": size,
        "PDL": pdl,
        **_constants_of(plan, aligned),
    }
    grid = (num_programs, size // group_size, 1)
    variant = Variant(flags_of(x, weight, bias, **flags), size, group_size)
    _gated(variant, plan, grid, arguments, dependent)
    for part, gradient, parameter in zip(partial, (dweight, dbias), (weight, bias), strict=True):
        if parameter is not None:
            _add_up(part, gradient, sum_block, pdl)
