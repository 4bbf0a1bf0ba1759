"""The tensors of a case: random data, in the layout the case asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import ADD, FORWARD, QK_ROPE, Case
from serving_ops.ops import registry

EPS = 1e-6
POSITIONS, THETA = 40960, 1e6  # as in Qwen3's configuration
ROWS = ("x", "residual", "earlier", "z", "qkv")
RESULTS = ("out", "scales_out", "key_cache", "value_cache")
OF_A_TOKEN = (*ROWS, "positions", "slot_mapping")  # have tokens as their first dimension
OPERANDS = ("x", "residual", "z", "weight")  # of a norm: what is differentiated, and what it takes before eps


@dataclass(frozen=True)
class Inputs:
    """call: arguments and results of the op's public function by name, which are attributes too.

    With gradients there are no results; `douts` are their gradients, and the operands require theirs.
    """

    call: dict[str, Any]
    douts: tuple[Tensor, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return self.call[name]

    @property
    def operands(self) -> tuple[Any, ...]:
        return tuple(self.call[name] for name in OPERANDS if name in self.call)

    def at(self, tokens: Tensor, dtype: torch.dtype | None = None) -> Inputs:
        """Copies of what some tokens need, in a dtype if one is given."""
        some = {name: v for name, v in self.call.items() if name not in ("out", "scales_out")}
        some |= {name: some[name][tokens] for name in OF_A_TOKEN if some.get(name) is not None}
        floats = {name: v for name, v in some.items() if isinstance(v, Tensor) and v.is_floating_point()}
        return Inputs(some | {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in floats.items()})

    @property
    def bytes(self) -> int:
        """Of what is of the size of the rows."""
        tensors = (*(self.call.get(name) for name in (*ROWS, *RESULTS)), *self.douts)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def make_inputs(case: Case, device: str) -> Inputs:
    op, trained = registry.find(case.op), case.passes != FORWARD
    call = registry.sample(case.spec(device), case.shape[0])
    if case.op == QK_ROPE:
        _as_in_a_model(call)
    results = 2 if case.op == ADD else 1
    douts = tuple(torch.empty_like(call["x"]).normal_() for _ in range(results)) if trained else ()
    inputs = Inputs(call if trained or not op.has_out else call | op.empty_results(call), douts)
    redraw(inputs)
    for operand in inputs.operands if trained else ():
        operand.requires_grad_()
    return inputs


def redraw(inputs: Inputs) -> None:
    """New random rows and weights in the same memory. Results become NaN, or in INT8 a number that no result has: an
    element that nobody writes is seen."""
    for name, tensor in inputs.call.items():
        if tensor is not None and name in ROWS:
            tensor.normal_()
        elif tensor is not None and name in RESULTS:
            tensor.fill_(torch.nan if tensor.dtype.is_floating_point else -128)
        elif tensor is not None and name.endswith("weight"):
            tensor.normal_(1.0, 0.1)


def _as_in_a_model(call: dict[str, Any]) -> None:
    """Gives `qk_norm_rope` the table of a model, positions anywhere in it, and slots in no order."""
    qkv, cache = call["qkv"], call["key_cache"]
    call["cos_sin_cache"] = _table(call["head_dim"], qkv.dtype, qkv.device)
    call["positions"].random_(POSITIONS)
    if cache is not None:
        call["slot_mapping"] = torch.randperm(cache.shape[:2].numel(), device=qkv.device)[: qkv.shape[0]]


@lru_cache(maxsize=1)
def _table(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(POSITIONS, head_dim), cos before sin. All sets of tensors have the same one, as the layers of a model do."""
    frequencies = THETA ** -(torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(POSITIONS, device=device)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(dtype)
