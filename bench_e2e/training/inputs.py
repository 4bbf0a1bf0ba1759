"""The tensors of a case: what is differentiated, and the gradients that arrive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import GATED
from serving_ops.bench_e2e.training.cases import ADD, TrainingCase


@dataclass(frozen=True)
class Inputs:
    """`leaves`: x, weight; x, residual, weight; or x, z, weight. `douts`: a gradient for each result."""

    leaves: tuple[Tensor, ...]
    douts: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.leaves, *self.douts))


def make_inputs(case: TrainingCase, device: str) -> Inputs:
    def drawn() -> Tensor:
        return torch.empty(case.shape, dtype=case.torch_dtype, device=device).normal_()

    dtype = torch.float32 if case.weight == "float32" else case.torch_dtype
    weight = torch.empty(case.size, dtype=dtype, device=device).normal_(1.0, 0.1)
    rows = [drawn() for _ in range(2 if case.op in (ADD, GATED) else 1)]
    leaves = tuple(tensor.requires_grad_() for tensor in (*rows, weight))
    return Inputs(leaves, tuple(drawn() for _ in range(2 if case.op == ADD else 1)))
