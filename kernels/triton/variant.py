"""What tells one compiled kernel from another, packed as the C++ launcher packs it (`kernels/cuda/run.cpp`).

Triton's own specialisation is off: pointers, counts and strides are typed arguments, and one flag says whether every
row starts on 16 bytes. So the variants are few, they can all be compiled before the first request, and the launcher in
C++ knows them without knowing Triton's rules.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triton
from serving_ops.kernels import contract

ALIGNMENT = 16
"""Bytes: the widest load of a thread."""

_DTYPES = {getattr(torch, name): place for place, name in enumerate(contract.DTYPES)}
_ABSENT, _DTYPE_OF_X, _FLOAT32 = map(contract.PARAMETERS.index, ("absent", "dtype_of_x", "float32"))


class Variant(NamedTuple):
    """A compiled kernel's key.

    size: N; of a gated norm that quantizes, the gated group's size; of `qk_norm_rope`, a head's.
    group_size: N, or the gated group's size; of a norm that quantizes, the columns of a scale, as SCALED; of
        `qk_norm_rope`, the pairs that are rotated and their sections.
    """

    flags: int
    size: int
    group_size: int


def run_time_parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of a kernel's parameters that are not compile-time constants."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, parameter in parameters if "constexpr" not in str(parameter.annotation)]


def unspecialized(function: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel that is launched: it is compiled for its parameters' types, not for their values."""
    return triton.jit(function, do_not_specialize=run_time_parameters(function))


def _parameter(parameter: Tensor | None, x: Tensor) -> int:
    if parameter is None:
        return _ABSENT
    return _DTYPE_OF_X if parameter.dtype == x.dtype else _FLOAT32


def starts_aligned(rows: Iterable[Tensor | None], parameters: Iterable[Tensor | None], group_size: int) -> bool:
    """Whether every row (group) of every tensor starts on `ALIGNMENT` bytes, and so does every parameter.

    The stride of a single row counts too: a row of a batch must be read the same way alone.
    """
    starts = 0
    for tensor in rows:
        if tensor is not None:
            elements = group_size
            for stride in tensor.stride()[:-1]:
                elements |= stride
            starts |= tensor.data_ptr() | elements * tensor.itemsize
    for tensor in parameters:
        if tensor is not None:
            starts |= tensor.data_ptr()
    return starts % ALIGNMENT == 0


def flags_of(x: Tensor, weight: Tensor | None, bias: Tensor | None = None, **others: int) -> int:
    """The flags of `kernels/contract.def`, packed. others: those that the tensors do not decide, by name, unless 0."""
    packed: int = _DTYPES[x.dtype] << contract.FLAGS["x_dtype"]
    packed |= _parameter(weight, x) << contract.FLAGS["weight"] | _parameter(bias, x) << contract.FLAGS["bias"]
    packed |= max(0, x.get_device()) << contract.FLAGS["device"]
    for name, value in others.items():
        packed |= value << contract.FLAGS[name]
    return packed
