"""The gradients on CUDA: from a plan to the launches, a kernel over the rows and a sum of its programs' parts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from serving_ops.kernels.triton.gated_backward import gated_backward_kernel
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import Rows, strides_of
from serving_ops.kernels.triton.norm_backward import norm_backward_kernel
from serving_ops.kernels.triton.norm_backward_columns import norm_backward_columns_kernel, row_moments_kernel
from serving_ops.kernels.triton.norm_backward_wide import norm_backward_wide_kernel
from serving_ops.kernels.triton.partial_sum import partial_sum_kernel
from serving_ops.kernels.triton.variant import Variant, flags_of, starts_aligned

_tile = Launcher(norm_backward_kernel)
_wide = Launcher(norm_backward_wide_kernel)
_moments = Launcher(row_moments_kernel)
_columns = Launcher(norm_backward_columns_kernel)
_gated = Launcher(gated_backward_kernel)
_sum = Launcher(partial_sum_kernel)


class BackwardPlan(Protocol):
    """As `serving_ops.plan_backward.BackwardPlan`."""

    @property
    def kernel(self) -> str: ...
    @property
    def block_n(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def kept(self) -> int: ...
    @property
    def fetch(self) -> bool: ...
    @property
    def fetch_more(self) -> bool: ...
    @property
    def hints(self) -> bool: ...


class Block(NamedTuple):
    """As a plan, for the kernels that have one for every size."""

    rows: int
    columns: int
    num_warps: int


def run_norm_backward(
    dout: Tensor,  # (..., N)
    s: Tensor,  # like dout
    more: Tensor | None,  # like dout: a gradient of s to add
    weight: Tensor | None,  # (N,)
    ds: Tensor,  # like dout, contiguous; written
    dweight: Tensor | None,  # like weight; written
    eps: float,
    weight_offset: float,
    rows: Rows,  # of dout, s and more (or s again), in one leading dimension but for the tile kernel
    plan: BackwardPlan,
    num_programs: int,
    moments_block: Block,
    sum_block: Block,
    pdl: bool,
) -> None:
    """Launch on s's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size, flat = s.shape[-1], rows.inner == rows.num_rows
    aligned = starts_aligned((dout, s, more), (ds, weight), size)
    flags = flags_of(s, weight, second=more is not None, flat=flat, aligned=aligned)
    partial = ds if weight is None else s.new_empty((num_programs, size), dtype=torch.float32)
    tensors = (dout, s, s if more is None else more, s if weight is None else weight, ds, partial)
    options = _Options(aligned, more is not None, weight is not None, pdl)
    call = _NormCall(Variant(flags, size, size), plan, num_programs, tensors, rows, eps, weight_offset, options)
    if plan.kernel == "tile":
        _run_tile(call)
    elif plan.kernel == "wide":
        _run_wide(call)
    else:
        _run_columns(call, moments_block)
    if dweight is not None:
        _add_up(partial, dweight, sum_block, pdl)


class _Options(NamedTuple):
    """The kernels' last constants, in their order."""

    aligned: bool
    has_more: bool
    has_weight: bool
    pdl: bool


class _NormCall(NamedTuple):
    """tensors: dout, s, more, weight, ds, partial, each of them something."""

    variant: Variant
    plan: BackwardPlan
    num_programs: int
    tensors: tuple[Tensor, ...]
    rows: Rows
    eps: float
    weight_offset: float
    options: _Options


def _run_tile(call: _NormCall) -> None:
    plan, rows = call.plan, call.rows
    numbers = (rows.num_rows, rows.inner, *strides_of(rows), call.eps, call.weight_offset)
    tile = (call.variant.size, plan.block_n, plan.rows, plan.stages, rows.inner == rows.num_rows)
    constants = (*tile, *call.options)
    _tile(call.variant, plan, (call.num_programs, 1, 1), call.tensors, numbers, constants, call.options.pdl)


def _run_wide(call: _NormCall) -> None:
    plan, rows = call.plan, call.rows
    numbers = (rows.num_rows, *rows.inner_strides, call.eps, call.weight_offset)
    of_aligned = (plan.kept, plan.fetch, plan.fetch_more, plan.hints)
    reads = of_aligned if call.options.aligned else (0, False, False, False)
    constants = (call.variant.size, plan.block_n, *reads, *call.options)
    _wide(call.variant, plan, (call.num_programs, 1, 1), call.tensors, numbers, constants, call.options.pdl)


def _run_columns(call: _NormCall, moments_block: Block) -> None:
    plan, rows, size = call.plan, call.rows, call.variant.size
    dout, s, more, weight, ds, partial = call.tensors
    moments = s.new_empty((rows.num_rows, 2), dtype=torch.float32)
    each_row, of_row = (rows.num_rows, 1, 1), (*rows.inner_strides[:2], call.eps, call.weight_offset)
    constants = (size, moments_block.columns, call.options.aligned, call.options.has_weight)
    _moments(call.variant, moments_block, each_row, (dout, s, weight, moments), of_row, constants, False)
    grid = (call.num_programs, -(-size // plan.block_n), 1)
    tensors = (dout, s, more, weight, moments, ds, partial)
    numbers = (rows.num_rows, *rows.inner_strides, call.weight_offset)
    _columns(call.variant, plan, grid, tensors, numbers, (size, plan.block_n, plan.stages, *call.options), False)


def sum_variant(out: Tensor, pdl: bool) -> Variant:
    """The key of the sum that ends in `out`: its dtype and device, and how it is launched, decide the compiled code."""
    return Variant(flags_of(out, None, second=pdl, flat=True, aligned=False), 0, 0)


def _add_up(partial: Tensor, out: Tensor, block: Block, pdl: bool) -> None:
    """`out` (size,) becomes the sum of `partial` (programs, size), rounded once."""
    _sum(
        sum_variant(out, pdl),
        block,
        (-(-out.numel() // block.columns), 1, 1),
        (partial, out),
        partial.shape,
        (block.rows, block.columns, pdl),
        pdl,
    )


def run_gated_backward(
    dout: Tensor,  # (..., N)
    x: Tensor,  # like dout
    z: Tensor | None,  # like dout
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    dx: Tensor,  # like dout, contiguous; written
    dz: Tensor | None,  # like dx; written
    dweight: Tensor | None,  # like weight; written
    dbias: Tensor | None,  # like bias; written
    eps: float,
    norm_before_gate: bool,
    sigmoid: bool,
    group_size: int,
    rows: Rows,  # of dout, x and z (or x again)
    plan: BackwardPlan,
    num_programs: int,
    sum_block: Block,
    pdl: bool,
    dependent: bool,  # the gradient's kernel too is launched as a programmatic dependent
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1."""
    size, has_gate = x.shape[-1], z is not None
    flat = rows.inner == rows.num_rows
    gate_first, sigmoid = has_gate and not norm_before_gate, has_gate and sigmoid
    aligned = starts_aligned((dout, x, z), (dx, dz, weight, bias), group_size)
    flags = flags_of(
        x,
        weight,
        bias,
        gated=True,
        second=has_gate,
        gate_first=gate_first,
        sigmoid=sigmoid,
        flat=flat,
        aligned=aligned,
    )
    partial = x.new_empty((2, num_programs, size), dtype=torch.float32)
    gates = x if z is None else z
    _gated(
        Variant(flags, size, group_size),
        plan,
        (num_programs, size // group_size, 1),
        (dout, x, gates, *(x if t is None else t for t in (weight, bias)), dx, dx if dz is None else dz, partial),
        (rows.num_rows, rows.inner, *strides_of(rows), eps),
        (
            size,
            group_size,
            plan.block_n,
            plan.rows,
            plan.stages,
            flat,
            aligned,
            has_gate,
            weight is not None,
            bias is not None,
            gate_first,
            sigmoid,
            pdl,
        ),
        dependent,
    )
    for part, gradient in zip(partial, (dweight, dbias), strict=True):
        if gradient is not None:
            _add_up(part, gradient, sum_block, pdl)
