"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant has a function of a case's leaves for each case that it offers, differentiated by autograd as users do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import serving_ops
from serving_ops.bench_e2e.ops.cases import FUSED_ADD
from serving_ops.bench_e2e.ops.contestants import FORMULAS, OURS
from serving_ops.bench_e2e.training.cases import ADD, TrainingCase

EPS = 1e-6
Norm = Callable[..., Tensor | tuple[Tensor, ...]]  # of a case's leaves


@dataclass(frozen=True)
class Contestant:
    """`norm` gives the function for a case, or raises Unsupported."""

    name: str
    version: str
    norm: Callable[[TrainingCase], Norm]
    overwrites_dout: bool = False  # its backward pass writes dx there: it gets a copy of its own


def ours() -> Contestant:
    return Contestant(OURS, serving_ops.__version__, _ours)


def _ours(case: TrainingCase) -> Norm:
    op = getattr(serving_ops, case.op)
    return lambda *leaves: op(*leaves, EPS)  # type: ignore[no-any-return]


def eager() -> Contestant:
    return Contestant("eager", torch.__version__, formula)


def formula(case: TrainingCase) -> Norm:
    function = FORMULAS[FUSED_ADD if case.op == ADD else case.op]
    return lambda *leaves: function(*leaves, EPS)  # type: ignore[return-value]


def inductor() -> Contestant:
    return Contestant("Inductor", torch.__version__, _compiled)


def _compiled(case: TrainingCase) -> Norm:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    torch._dynamo.reset()
    # A backward pass that gives away the buffers it was handed cannot run twice on one forward pass.
    torch._functorch.config.donated_buffer = False
    return torch.compile(formula(case), dynamic=False, fullgraph=True)
