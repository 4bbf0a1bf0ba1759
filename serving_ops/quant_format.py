"""`QuantFormat`: the form of a quantized result, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The largest magnitude of each dtype."""

ALLOWED = {
    "dtype": tuple(LIMITS),
    "granularity": ("tensor", "token", "group"),
    "group_size": (64, 128),
    "scale_format": ("fp32", "fp32_power_of_2", "ue8m0"),
    "scale_layout": ("row_major", "column_major", "tma_aligned"),
}
"""The values of each field."""

PACKED = 4
"""Scales per int32 in the format ue8m0. The first is in the lowest byte; bytes after the last scale are 0."""

TMA_ROWS = 4
"""A column of scales that TMA loads is padded to a multiple of this many rows, which is 16 bytes."""


@dataclass(frozen=True)
class QuantFormat:
    """How a row is quantized, and how its scales are laid out.

    dtype: float8_e4m3fn or int8.
    granularity: what shares a scale: "tensor" (all rows, and the caller gives it), "token" (a row) or "group".
    group_size: elements of a group; divides N.
    scale_format: "fp32"; "fp32_power_of_2", rounded up; or "ue8m0", exponents of powers of two, four in an int32.
    scale_layout: of scales (..., groups): "row_major"; "column_major", where rows lie side by side; or "tma_aligned",
        the same with each column padded to a multiple of 4 rows.
    text: all of these in one line, as the operators take them.

    Raises ValueError for any other value, and for another scale format or layout than the defaults with "tensor".
    """

    dtype: torch.dtype = torch.float8_e4m3fn
    granularity: str = "group"
    group_size: int = 128
    scale_format: str = "fp32"
    scale_layout: str = "row_major"
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed or type(value) is not type(allowed[0]):
                raise ValueError(f"serving_ops: {name} is {value!r}: allowed are {', '.join(map(str, allowed))}")
        if self.granularity == "tensor" and (self.scale_format, self.scale_layout) != ("fp32", "row_major"):
            raise ValueError(f"serving_ops: granularity is 'tensor': its one scale is fp32 and row_major, not {self}")
        words = (str(self.dtype).removeprefix("torch."), self.granularity, str(self.group_size))
        object.__setattr__(self, "text", " ".join((*words, self.scale_format, self.scale_layout)))

    @classmethod
    def parse(cls, text: str) -> QuantFormat:
        """Return the format that has this `text`. Raises ValueError where none has."""
        dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in LIMITS}
        dtype, granularity, group_size, *scales = text.split() if text.count(" ") == len(ALLOWED) - 1 else [text] * 5
        size = int(group_size) if group_size.isdecimal() else group_size
        return cls(dtypes.get(dtype, dtype), granularity, size, *scales)  # type: ignore[arg-type]

    def group(self, size: int) -> int:
        """Return how many elements share a scale, in a row of this size."""
        return self.group_size if self.granularity == "group" else size

    def scales(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], torch.dtype, tuple[int, ...] | None]:
        """Return shape, dtype and strides (None: contiguous) of the scales for rows of this shape, (..., N)."""
        *leading, size = shape
        if self.granularity == "tensor":
            return (0,), torch.float32, None
        columns, dtype = size // self.group(size), torch.float32
        if self.scale_format == "ue8m0":
            columns, dtype = -(-columns // PACKED), torch.int32
        if self.scale_layout == "row_major":
            return (*leading, columns), dtype, None
        strides = [math.prod(leading[dim + 1 :]) for dim in range(len(leading))]
        rows = math.prod(leading)
        column = rows if self.scale_layout == "column_major" else -(-rows // TMA_ROWS) * TMA_ROWS
        return (*leading, columns), dtype, (*strides, column)
