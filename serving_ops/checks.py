"""What is wrong input, said before anything is written.

Every check raises RuntimeError, as PyTorch's own operators do, with the argument, its value and what is allowed.
What is valid but not taken by a kernel is not here: see `support`.

`written` and `apart` read addresses. The others look at shapes, dtypes and devices alone, so the fakes use them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from serving_ops import modes

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ACTIVATIONS = ("silu", "swish", "sigmoid")


def fail(argument: str, value: object, allowed: str) -> NoReturn:
    raise RuntimeError(f"serving_ops: {argument} is {value}: {allowed}")


def not_differentiated(instead: str, **tensors: Tensor | None) -> None:
    """Refuse a call that writes where autograd, `torch.func` or forward-mode AD would follow one of its tensors."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if torch.is_grad_enabled() and tensor.requires_grad:
            allowed = f"this call writes in place and does not differentiate; {instead} does, or use torch.no_grad()"
            fail(f"{name}.requires_grad", True, allowed)
        if modes.transformed() and modes.is_transformed(tensor):
            allowed = f"this call writes in place and is not transformed; {instead} is"
            fail(name, "transformed by torch.func or forward-mode AD", allowed)


def flag(name: str, value: bool) -> None:
    """Refuse None, which PyTorch would read as False, whatever the default is."""
    if value is None:
        fail(name, None, "it must be True or False")


def dense(name: str, tensor: Tensor) -> None:
    """With strides, as neither sparse nor nested tensors have them."""
    if tensor.layout != torch.strided:
        fail(f"{name}.layout", tensor.layout, "it must be torch.strided")


def rows(name: str, tensor: Tensor) -> None:
    """(..., N) of a floating dtype."""
    if tensor.dtype not in FLOATING:
        fail(f"{name}.dtype", tensor.dtype, "allowed are float16, bfloat16, float32 and float64")
    if tensor.dim() == 0:
        fail(f"{name}.shape", "()", "at least one dimension is needed, (..., N)")
    if tensor.shape[-1] == 0:
        fail(f"{name}.shape", tuple(tensor.shape), "the last dimension, N, must be at least 1")


def fits(name: str, tensor: Tensor, device: torch.device, *dtypes: torch.dtype, beside: str = "x") -> None:
    """Of one of these dtypes, and on the device of the argument `beside`."""
    if tensor.dtype not in dtypes:
        fail(f"{name}.dtype", tensor.dtype, f"it must be {' or '.join(map(str, dict.fromkeys(dtypes)))}")
    if tensor.device != device:
        fail(f"{name}.device", tensor.device, f"it must be {beside}'s, {device}")


def like_x(name: str, tensor: Tensor, x: Tensor, *, or_fp32: bool = False) -> None:
    """In shape, dtype and device. or_fp32: beside an x of half precision it may be fp32."""
    dtype = x.dtype
    fits(name, tensor, x.device, dtype, torch.float32 if or_fp32 and dtype.itemsize == 2 else dtype)
    if not same_sizes(tensor.shape, x.shape):
        fail(f"{name}.shape", tuple(tensor.shape), f"it must be x's, {tuple(x.shape)}")


def same_sizes(sizes: Sequence[int], wanted: Sequence[int]) -> bool:
    """Of sizes that a trace does not know, as of `x[mask]`, the graph checks when it runs that they are equal."""
    if all(isinstance(size, int) for size in (*sizes, *wanted)):
        return tuple(sizes) == tuple(wanted)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # a slow import, which tracing has done

    pairs = list(zip(sizes, wanted, strict=False))
    if len(sizes) != len(wanted) or not all(guard_or_true(size == other) for size, other in pairs):
        return False
    for size, other in pairs:
        torch._check(size == other)
    return True


def laid_out(
    name: str,
    tensor: Tensor,
    device: torch.device,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    strides: tuple[int, ...] | None,
) -> None:
    """A result that is given. strides: None for any."""
    fits(name, tensor, device, dtype)
    if not same_sizes(tensor.shape, shape):
        fail(f"{name}.shape", tuple(tensor.shape), f"it must be {tuple(shape)}")
    steps = zip(tensor.shape, tensor.stride(), strides or (), strict=False)
    if any(size > 1 and step != wanted for size, step, wanted in steps):
        fail(f"{name}.stride()", tensor.stride(), f"it must be {strides}")


def extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    spans = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + sum(spans)) * tensor.itemsize


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two indices may share an element (strides that nest have none; all others count as overlapping)."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach = stride * (size - 1) + reach
    return False


def same_view(a: Tensor, b: Tensor) -> bool:
    """Whether each index is the same element in both; a dimension of one index has no stride to speak of."""
    if a is b:
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True) if a.shape == b.shape else ()
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and all(size == 1 or ours == theirs for size, ours, theirs in strides)
    )


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether any byte of an element of `a` is one of `b`; exact.

    Costs a few comparisons, also for interleaved views such as two column slices of one buffer.
    """
    if a.numel() == 0 or b.numel() == 0:
        return False
    distance = b.data_ptr() - a.data_ptr()
    if distance >= extent(a) or -distance >= extent(b):
        return False
    pieces = _pieces(a), _pieces(b)
    return not _apart_by_stride(*pieces, distance) and _pieces_cross(*pieces, distance)


class _Pieces(NamedTuple):
    """A tensor's memory. length: bytes that lie together. dims: of their numbers, each size, and its step in bytes."""

    length: int
    dims: tuple[tuple[int, int], ...]


def _pieces(tensor: Tensor) -> _Pieces:
    length = 1
    dims: list[tuple[int, int]] = []
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1 or stride == 0:
            continue
        if stride == length and not dims:
            length *= size
        else:
            dims.append((size, stride * tensor.itemsize))
    return _Pieces(length * tensor.itemsize, tuple(dims))


def _apart_by_stride(a: _Pieces, b: _Pieces, distance: int) -> bool:
    """Whether all pieces of `a` start at one place modulo the strides' common divisor, and those of `b` beside them."""
    period = math.gcd(*(step for _, step in a.dims + b.dims))
    return bool(period) and a.length <= distance % period <= period - b.length


def _pieces_cross(a: _Pieces, b: _Pieces, distance: int) -> bool:
    starts_a, starts_b = (_starts(pieces).sort().values for pieces in (a, b))
    starts_b += distance
    first = torch.searchsorted(starts_b, starts_a - b.length, right=True)  # of b, to end past a's start
    there = first < starts_b.numel()
    nearest = starts_b[first.clamp(max=starts_b.numel() - 1)]
    return bool((there & (nearest < starts_a + a.length)).any())


def _starts(pieces: _Pieces) -> Tensor:
    starts = torch.zeros(1, dtype=torch.int64)
    for size, step in pieces.dims:
        starts = (starts[:, None] + torch.arange(size, dtype=torch.int64) * step).flatten()
    return starts


def written(name: str, tensor: Tensor) -> None:
    """A tensor that is to be written holds each element once, as it is."""
    if tensor.is_neg():
        fail(f"{name}.is_neg()", True, "it is written, so it must have its own values: resolve_neg()")
    if not tensor.is_contiguous() and overlaps_itself(tensor):
        fail(f"{name}.stride()", tensor.stride(), f"it is written, so no two elements of {name} may share memory")


def apart(name: str, tensor: Tensor, other_name: str, other: Tensor | None, *, or_same: bool = False) -> None:
    """A tensor that is written shares no element with one that is read, unless it may be that very view."""
    if other is None or (or_same and same_view(tensor, other)):
        return
    if share_memory(tensor, other):
        allowed = f"it must not overlap {other_name}" + (f", other than by being {other_name}" if or_same else "")
        fail(f"{name}", f"a view of memory that {other_name} uses", allowed)
