"""Rows of several tensors as one grid: leading dimensions merged where every tensor's strides allow it."""

from __future__ import annotations

from torch import Tensor

from serving_ops.kernels.launches import RowGrid


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Of tensors of one shape; a dimension with one entry has no stride to speak of."""
    return all(size <= 1 or one == other for size, one, other in zip(a.shape, a.stride(), b.stride(), strict=True))


def row_grid(*tensors: Tensor) -> RowGrid | None:
    """The rows of tensors of one shape (..., N); None where the leading dimensions merge into more than two."""
    first = tensors[0]
    if first.dim() == 2 and first.shape[0] > 1:  # what nearly every layer passes
        return RowGrid(first.shape[0], first.shape[0], (0,) * len(tensors), tuple(t.stride(0) for t in tensors))
    sizes: list[int] = []
    strides: list[tuple[int, ...]] = []
    for dim, size in enumerate(first.shape[:-1]):
        if size == 1:
            continue
        here = tuple(t.stride(dim) for t in tensors)
        if sizes and all(before == size * step for before, step in zip(strides[-1], here, strict=True)):
            sizes[-1] *= size
            strides[-1] = here
        else:
            sizes.append(size)
            strides.append(here)
    if len(sizes) > 2:
        return None
    outer, inner = [1, 1, *sizes][-2:]
    zeros = (0,) * len(tensors)
    return RowGrid(outer * inner, inner, *[zeros, zeros, *strides][-2:])
