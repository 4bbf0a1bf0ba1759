"""The tensors of a case: random data, in the layout the case asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops import rope_cases
from serving_ops.bench_e2e.ops.cases import ADD, FORWARD, QK_ROPE, Case
from serving_ops.ops import registry

EPS = 1e-6


@dataclass(frozen=True)
class Inputs:
    """x, residual, z and out have the case's shape; weight is (N,). What the op does not take is None.

    A quantized case has `out` and `scales` in its format. A case with gradients has none of both; `douts` are the
    gradients of its results, and the tensors before them require theirs. `qk_norm_rope` has its arguments by name in
    `call`, and x is the heads of q and k.
    """

    x: Tensor
    residual: Tensor | None
    z: Tensor | None
    weight: Tensor | None
    out: Tensor | None
    scales: Tensor | None = None
    douts: tuple[Tensor, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in (self.x, self.residual, self.z) if tensor is not None)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What is differentiated: x, the residual or z, and the weight."""
        return self.rows if self.weight is None else (*self.rows, self.weight)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the op's public function takes by position; the formula of `qk_norm_rope` takes its `call`."""
        return (self.call,) if self.call else (*self.rows, self.weight, EPS)

    @property
    def bytes(self) -> int:
        of_rope = [self.call[name] for name in ("qkv", "key_cache", "value_cache") if name in self.call]
        tensors = of_rope or (*self.rows, self.out, self.scales, *self.douts)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def make_inputs(case: Case, device: str) -> Inputs:
    """Fresh tensors on the device. Results start as NaN, so that an element nobody wrote is seen."""
    op = registry.find(case.op)
    call = registry.sample(case.spec(device), case.shape[0])
    for value in call.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.normal_(1.0, 0.1) if value.dim() == 1 else value.normal_()
    if case.op == QK_ROPE:
        made = rope_cases.placed(call)
        return Inputs(rope_cases.rotated_heads(made), None, None, None, None, call=made)
    x, tensors = call["x"], [call.get(name) for name in ("x", "residual", "z", "weight")]
    if case.passes == FORWARD:
        results = {name: _unwritten(result) for name, result in op.empty_results(call).items()}
        return Inputs(*tensors, results.get("out"), results.get("scales_out"))
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_()
    douts = tuple(torch.empty_like(x).normal_() for _ in range(2 if case.op == ADD else 1))
    return Inputs(*tensors, None, None, douts)


def redraw(inputs: Inputs) -> None:
    """New random x, residual and z, and results of NaN, in the same memory."""
    for tensor in inputs.rows:
        tensor.normal_()
    for result in (inputs.out, inputs.scales):
        if result is not None:
            _unwritten(result)


def _unwritten(result: Tensor) -> Tensor:
    """All NaN, or in INT8 a number that no result has."""
    return result.fill_(torch.nan if result.dtype.is_floating_point else -128)
