"""The tensors of a case: random data, in the layout the case asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, GATED, Case

EPS = 1e-6


@dataclass(frozen=True)
class Inputs:
    """x, residual, z and out have the case's shape; weight is (N,). What the op does not take is None."""

    x: Tensor
    residual: Tensor | None
    z: Tensor | None
    weight: Tensor | None
    out: Tensor | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the op's public function takes by position."""
        rows = (tensor for tensor in (self.x, self.residual, self.z) if tensor is not None)
        return (*rows, self.weight, EPS)

    @property
    def bytes(self) -> int:
        tensors = (self.x, self.residual, self.z, self.out)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def make_inputs(case: Case, device: str) -> Inputs:
    """Fresh tensors on the device. `out` starts as NaN, so that an element nobody wrote is seen."""
    strided = case.layout == "strided"
    gated = case.op == GATED
    return Inputs(
        x=_random(case, device, strided and not gated),
        residual=_random(case, device, strided) if case.op == FUSED_ADD else None,
        z=_random(case, device, strided) if gated else None,
        weight=_weight(case, device),
        out=None if case.op == FUSED_ADD else _empty(case, device, strided=False).fill_(torch.nan),
    )


def redraw(inputs: Inputs) -> None:
    """New random x, residual and z, and an `out` of NaN, in the same memory."""
    for tensor in (inputs.x, inputs.residual, inputs.z):
        if tensor is not None:
            tensor.normal_()
    if inputs.out is not None:
        inputs.out.fill_(torch.nan)


def _empty(case: Case, device: str, *, strided: bool) -> Tensor:
    """A strided tensor is the second half of every token's columns, as in a fused projection's output."""
    num_tokens, *rest = case.shape
    if not strided:
        return torch.empty(case.shape, dtype=case.torch_dtype, device=device)
    wide = torch.empty((num_tokens, 2, *rest), dtype=case.torch_dtype, device=device)
    return wide[:, 1]


def _random(case: Case, device: str, strided: bool) -> Tensor:
    return _empty(case, device, strided=strided).normal_()


def _weight(case: Case, device: str) -> Tensor | None:
    if case.weight == "none":
        return None
    dtype = torch.float32 if case.weight == "float32" else case.torch_dtype
    return torch.empty(case.size, dtype=dtype, device=device).normal_(1.0, 0.1)
