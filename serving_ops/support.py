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

    On ROCm tensors say that they are on CUDA, but the kernels hold PTX and ask for dependent launches.
    """
    if torch.version.hip is not None:
        return "no kernels for ROCm"
    return None if importlib.util.find_spec("triton") else "Triton is not installed"


def why_not_layout(*tensors: Named) -> str | None:
    """Rows must be dense in their last dimension and of a dtype that the kernels compute."""
    for name, tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in KERNEL_DTYPES:
            return f"{name}.dtype {tensor.dtype}"
        if tensor.stride(-1) != 1 and tensor.shape[-1] != 1:
            return f"{name}.stride(-1) is not 1"
    return None


def why_not_cpu(op: str, *call: Any) -> str:
    """Why the C++ kernels do not take a checked call on CPU, in the words of the code that decides; empty if they do.

    call: the arguments of the op's fallback.
    """
    return extension.why_missing() or str(getattr(torch.ops.serving_ops, f"_{op}_refusal")(*call))


def text_of(error: BaseException) -> str:
    """An error as a text that is not empty, for C++ to raise as RuntimeError; an interrupt comes again behind it."""
    if isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()
    if isinstance(error, RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
