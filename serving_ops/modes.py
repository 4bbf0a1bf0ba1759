"""What PyTorch does with a call beside computing it: differentiates or transforms it, counts what it writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

increment_version = torch._C._increment_version
"""Tells autograd that tensors, given as a tuple, were written: it then refuses a backward that saved them before.

Our operators do not, so that engines, which call them directly, do not pay. Inference tensors have no version: they are
passed over. PyTorch's public function of this name takes twice the time.
"""


_grad_enabled = torch.is_grad_enabled
_transforms_active = torch._C._are_functorch_transforms_active


def exporting() -> bool:
    """Whether `torch.export` traces. In PyTorch 2.11 `torch.compiler.is_exporting()` is True in torch.compile too."""
    return torch.compiler._is_exporting_flag


def only_computed(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors is neither differentiated, transformed nor exported: it is so while serving."""
    if _transforms_active() or forward_ad._current_level >= 0 or exporting():
        return False
    if _grad_enabled():
        for tensor in tensors:
            if getattr(tensor, "requires_grad", False):  # the operator refuses what is no tensor, and names it
                return False
    return True


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode AD is at work, none of which knows our operators."""
    return _transforms_active() or forward_ad._current_level >= 0


def is_transformed(tensor: Tensor) -> bool:
    """Whether such a transform sees more in the tensor than its values: a tangent, or a batch."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
