"""`add_rms_norm`: `fused_add_rms_norm` without writing its arguments, and with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops import autograd, checks, counters, cuda, modes
from serving_ops.ops.fused_add_rms_norm import NAME as IN_PLACE
from serving_ops.schemas import library

NAME = "add_rms_norm"


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual) * (weight + weight_offset), x + residual)`, both new and contiguous.

    Args and arithmetic are those of `serving_ops.fused_add_rms_norm`, and so are the bits. Differentiates x, residual
    and weight, from both results, any number of times; `torch.func` and forward-mode AD run `serving_ops.reference`.

    Raises RuntimeError for input that `serving_ops.checks` calls wrong.
    """
    if not modes.only_computed(x, residual, weight):
        return autograd.add_rms_norm(x, residual, weight, eps, weight_offset)
    out, total = torch.ops.serving_ops.add_rms_norm.default(x, residual, weight, eps, weight_offset=weight_offset)
    return out, total


def _through_copies(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Any device: the op in place, on copies."""
    out, total = (tensor.clone(memory_format=torch.contiguous_format) for tensor in (x, residual))
    torch.ops.serving_ops.fused_add_rms_norm.default(out, total, weight, eps, weight_offset=weight_offset)
    return out, total


def _cuda(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    out, total = _fake(x, residual, weight, eps, weight_offset=weight_offset)
    if cuda.norm(x, residual.contiguous(), weight, out, eps, weight_offset, total) is not None:
        return _through_copies(x, residual, weight, eps, weight_offset=weight_offset)
    counters.count_kernel(IN_PLACE)  # the same kernel
    return out, total


def _fake(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-6, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    checks.norm_metadata(x, residual, "residual", weight)
    out, total = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    return out, total


library.impl(NAME, _cuda, "CUDA")
library.impl(NAME, _through_copies, "CompositeExplicitAutograd")
torch.library.register_fake(f"serving_ops::{NAME}", _fake, lib=library)
