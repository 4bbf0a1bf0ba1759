"""Which calls the kernels take, as far as an adapter has to know."""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.support import KERNEL_DTYPES


def rows_fit(x: Tensor, weight: Tensor | None) -> bool:
    """Whether the kernels take rows like x's with this weight, from metadata alone (the call may be traced)."""
    if x.dtype not in KERNEL_DTYPES or x.stride(-1) != 1:
        return False
    return weight is None or weight.dtype in (x.dtype, torch.float32)


def in_shape_of(gate: Tensor, x: Tensor) -> Tensor:
    """x with the leading dimensions of its gate, where a model keeps tokens and heads apart in one of them alone.

    x itself where it is not contiguous, or the gate has other rows: `alike` refuses those.
    """
    if x.shape == gate.shape or x.shape[-1] != gate.shape[-1] or x.numel() != gate.numel():
        return x
    return x.view(gate.shape) if x.is_contiguous() else x


def alike(x: Tensor, other: Tensor) -> bool:
    """Whether a second operand's rows fit too, and match x's."""
    return other.dtype == x.dtype and other.shape == x.shape and other.stride(-1) == 1
