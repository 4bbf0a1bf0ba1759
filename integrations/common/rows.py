"""The checks that adapters make before they call an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.support import KERNEL_DTYPES


def rows_fit(x: Tensor, weight: Tensor | None) -> bool:
    """Return whether the kernels take rows like x's with this weight. Reads metadata only: calls may be traced."""
    if x.dtype not in KERNEL_DTYPES or x.stride(-1) != 1:
        return False
    return weight is None or weight.dtype in (x.dtype, torch.float32)


def in_shape_of(gate: Tensor, x: Tensor) -> Tensor:
    """Return x viewed in its gate's shape: some models merge tokens and heads in one of the two tensors only.

    Returns x itself if x is not contiguous or the gate has other rows; `alike` then refuses the pair.
    """
    if x.shape == gate.shape or x.shape[-1] != gate.shape[-1] or x.numel() != gate.numel():
        return x
    return x.view(gate.shape) if x.is_contiguous() else x


def alike(x: Tensor, other: Tensor) -> bool:
    """Return whether a second operand has x's dtype and shape, and dense rows."""
    return other.dtype == x.dtype and other.shape == x.shape and other.stride(-1) == 1
