"""What the kernels take. A reason is a phrase for a person, counted by `counters` and shown by `explain`."""

from __future__ import annotations

import _thread
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from serving_ops import extension
from serving_ops.kernels import contract

KERNEL_DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in contract.DTYPES)
TOO_MANY_DIMENSIONS = "leading dimensions that merge into more than two"
TOO_MANY_ROWS = "more rows than the kernels count"
TOO_WIDE = "rows longer than the kernels count"
TOO_MANY_GROUPS = "more groups a row than a CUDA grid holds"
GROUP_TOO_WIDE = "a gated group too wide for registers"

Named = tuple[str, Tensor | None]


@cache
def no_triton() -> str | None:
    """Why our Triton kernels cannot run in this process at all, or None.

    ROCm tensors report a CUDA device, but the kernels contain PTX and use programmatic dependent launch.
    """
    if torch.version.hip is not None:
        return "no kernels for ROCm"
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def why_not_layout(*tensors: Named) -> str | None:
    """Return why the kernels cannot read these rows, or None: dtype, or a last dimension that is not dense."""
    for name, tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in KERNEL_DTYPES:
            return f"{name}.dtype {tensor.dtype}"
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            return f"{name}.stride(-1) is not 1"
    return None


def why_not_cpu(op: str, *call: Any) -> str:
    """Return why the C++ kernels refuse a checked call on CPU; an empty string if they accept it.

    C++ gives the reason, because C++ decides. call: the arguments of the op's fallback.
    """
    return extension.why_missing() or str(getattr(torch.ops.serving_ops, f"_{op}_refusal")(*call))


def text_of(error: BaseException) -> str:
    """Return a message, never empty, for C++ to raise as RuntimeError. Repeats an interrupt in the main thread."""
    if isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()
    if isinstance(error, RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
