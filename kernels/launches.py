"""What a launch is given beside its tensors: where their rows are, and a plan. Imports neither torch nor Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from serving_ops.kernels import contract


class Block(NamedTuple):
    """As a plan, for the kernels that have one for every size."""

    rows: int
    columns: int
    num_warps: int


class RowGrid(NamedTuple):
    """Row r of tensor i starts at `(r // inner) * outer_strides[i] + (r % inner) * inner_strides[i]` elements."""

    num_rows: int
    inner: int
    outer_strides: tuple[int, ...]
    inner_strides: tuple[int, ...]


class Quantized(NamedTuple):
    """What a norm that quantizes takes beside its result, a tensor of `fmt.dtype`."""

    fmt: Any  # a serving_ops.QuantFormat
    scales: Any  # (num_rows, `fmt.scales`' columns), any strides; written. granularity "tensor": one fp32, read
    normed: Any  # None, or a tensor like x, which it may be; written, before quantization


@dataclass(frozen=True)
class Plan:
    """One launch: which kernel, the columns and rows of a program, its warps; and for which counts of rows.

    overlap: the grid leaves room on the SMs, so the kernel after it may start early (programmatic dependent launch).
    kept_n: columns that the wide kernel keeps in registers.
    """

    kernel: Literal["tile", "row", "wide", "heads"]
    block_n: int
    rows_per_program: int
    num_warps: int
    overlap: bool = False
    kept_n: int = 0
    min_rows: int = 1
    max_rows: int = contract.LIMITS["max_rows"]


@dataclass(frozen=True)
class BackwardPlan:
    """One launch over `num_programs` programs: which kernel, the columns and rows a program holds at a time, its warps.

    stages: of loads in flight. Of the wide kernel and aligned rows, kept: blocks of a row in registers between its
    passes; fetch: whether it first has the next row fetched to the L2; fetch_more: this row of the gradient to add;
    hints: whether its loads say what the caches are to keep.
    """

    kernel: Literal["tile", "wide"]
    block_n: int
    rows: int
    num_warps: int
    programs_per_sm: int
    stages: int
    kept: int = 0
    fetch: bool = False
    fetch_more: bool = False
    hints: bool = False

    def num_programs(self, num_rows: int, num_sms: int, beside: int = 1) -> int:
        """Programs over the rows where `beside` of them share a row: no more than run at once, none without a row."""
        return max(1, min(max(1, num_sms // beside) * self.programs_per_sm, -(-num_rows // self.rows)))
