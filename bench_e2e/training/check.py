"""Is a contestant right? Its gradients against float64, before anything of it is timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving_ops.bench_e2e.training.cases import TrainingCase
from serving_ops.bench_e2e.training.contestants import formula
from serving_ops.bench_e2e.training.inputs import Inputs

# Largest ||gradient - exact|| / ||exact|| that passes, over some rows or over the weight. Eager rounds the product with
# the weight, the normed row and their product to bf16: 5e-3; a wrong formula is over 5e-2.
MAX_ERROR = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
ROWS_COMPARED = 256  # evenly spread, the first and the last included
CHUNK_ELEMENTS = 1 << 24  # of rows in float64 at a time: 128 MiB a tensor, a dozen of them


class Exact:
    """The gradients of all rows that share the weight, and those of some rows, in float64."""

    def __init__(self, case: TrainingCase, inputs: Inputs) -> None:
        *rows, weight = (tensor.detach().flatten(0, -2) if tensor.dim() > 1 else tensor for tensor in inputs.leaves)
        douts = [dout.flatten(0, -2) for dout in inputs.douts]
        self.tokens = torch.linspace(0, case.rows - 1, min(case.rows, ROWS_COMPARED), dtype=torch.float64)
        self.tokens = self.tokens.round().long().to(weight.device)
        *self.rows, _ = _gradients(case, [t[self.tokens] for t in rows], weight, [t[self.tokens] for t in douts])
        self.weight = torch.zeros_like(weight, dtype=torch.float64)
        size = max(1, CHUNK_ELEMENTS // case.size)
        for first in range(0, case.rows, size):
            taken = slice(first, first + size)
            self.weight += _gradients(case, [t[taken] for t in rows], weight, [t[taken] for t in douts])[-1]

    def problem(self, case: TrainingCase, gradients: Sequence[Tensor]) -> str | None:
        """None if the gradients are right, else what is wrong with them."""
        *of_rows, of_weight = gradients
        compared = [("dweight", of_weight, self.weight)]
        compared += [
            ("dx", got.flatten(0, -2)[self.tokens], want) for got, want in zip(of_rows, self.rows, strict=True)
        ]
        for name, got, want in compared:
            error = float(torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want))
            if not error <= MAX_ERROR[case.torch_dtype]:  # NaN is wrong, too
                return f"wrong: {name} is off by {error:.1e} of its norm"
        return None


def _gradients(
    case: TrainingCase, rows: Sequence[Tensor], weight: Tensor, douts: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    leaves = [tensor.double().requires_grad_() for tensor in (*rows, weight)]
    return torch.autograd.grad(formula(case)(*leaves), leaves, [dout.double() for dout in douts])
