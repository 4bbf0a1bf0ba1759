"""From a checked gradient on CUDA to the Triton launches, or to the reason why there are none."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from serving_ops import support
from serving_ops.cuda import pdl, why_not_rows
from serving_ops.kernels.launches import BackwardPlan, RowGrid
from serving_ops.layout import row_grid
from serving_ops.plan import MAX_GROUPS
from serving_ops.training import plan_backward as plans


@cache
def _module() -> Any:
    """Imported at the first call: importing this package must not import Triton."""
    from serving_ops.kernels.triton.backward import run_backward

    return run_backward


@cache
def _num_sms(device_index: int) -> int:
    if device_index < 0:  # the interpreter
        return 1
    return int(torch.cuda.get_device_properties(device_index).multi_processor_count)


@cache
def _plan_for(size: int, itemsize: int, has_more: bool, device: torch.device) -> BackwardPlan:
    """`cp.async.bulk` came with compute capability 9.0, as programmatic dependent launch did."""
    from serving_ops.kernels.triton.launch import programmatic_launch_supported

    plan = plans.plan_norm_backward(size, itemsize, has_more)
    if programmatic_launch_supported(device):
        return plan
    return dataclasses.replace(plan, fetch=False, fetch_more=False, hints=False)


def norm(
    dout: Tensor,
    s: Tensor,
    ds_more: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    ds: Tensor,
    dweight: Tensor,
) -> str | None:
    """Run `rms_norm_backward`, num_rows at least 1; returns why not, with nothing written.

    ds and dweight are new, contiguous and written; dweight is empty without a weight.
    """
    named = ("dout", dout), ("s", s), ("ds_more", ds_more), ("weight", weight)
    reason = why_not_rows(s, *named, max_rows=plans.MAX_ROWS, max_n=plans.MAX_N)
    if reason is not None:
        return reason
    plan = _plan_for(s.shape[-1], s.itemsize, ds_more is not None, s.device)
    rows = row_grid(dout, s, s if ds_more is None else ds_more)
    if rows is None or (plan.kernel != "tile" and rows.inner != rows.num_rows):
        dout, s, ds_more = dout.contiguous(), s.contiguous(), None if ds_more is None else ds_more.contiguous()
        rows = _flat(s)
    programs = plan.num_programs(rows.num_rows, _num_sms(s.get_device()))
    with torch.cuda._DeviceGuard(s.get_device()):
        _module().run_norm_backward(
            *(dout, s, ds_more, weight, ds, dweight, eps, weight_offset),
            *(rows, plan, programs, plans.sum_block(s.shape[-1]), pdl(s.device)),
        )
    return None


def gated(
    dout: Tensor,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
    dx: Tensor,
    dz: Tensor,
    dweight: Tensor,
    dbias: Tensor,
) -> str | None:
    """Run `rms_norm_gated_backward`, num_rows at least 1; returns why not, with nothing written.

    The gradients are new, contiguous and written; empty for what is None.
    """
    group_size = group_size or x.shape[-1]
    groups = x.shape[-1] // group_size
    named = ("dout", dout), ("x", x), ("z", z), ("weight", weight), ("bias", bias)
    reason = why_not_rows(x, *named, max_rows=plans.MAX_ROWS)
    plan = plans.plan_gated_backward(group_size, x.numel() // group_size)
    if reason is None and groups > MAX_GROUPS:
        reason = support.TOO_MANY_GROUPS
    if reason is not None or plan is None:
        return reason or support.GROUP_TOO_WIDE
    rows = row_grid(dout, x, x if z is None else z)
    if rows is None:
        dout, x, z = dout.contiguous(), x.contiguous(), None if z is None else z.contiguous()
        rows = _flat(x)
    num_sms = _num_sms(x.get_device())
    programs = plan.num_programs(rows.num_rows, num_sms, groups)
    tensors = (dout, x, z, weight, bias, dx, dz, dweight, dbias)
    dependent = pdl(x.device) and plans.gated_may_start_early(programs * groups, num_sms)
    launch = (rows, plan, programs, plans.sum_block(x.shape[-1]), pdl(x.device), dependent)
    with torch.cuda._DeviceGuard(x.get_device()):
        _module().run_gated_backward(*tensors, eps, norm_before_gate, activation == "sigmoid", group_size, *launch)
    return None


def _flat(x: Tensor) -> RowGrid:
    """The rows of contiguous tensors of one shape."""
    num_rows, size = math.prod(x.shape[:-1]), x.shape[-1]
    return RowGrid(num_rows, num_rows, (0, 0, 0), (size, size, size))
