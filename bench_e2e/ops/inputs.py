"""The tensors of a case: random data, in the layout the case asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops import rope_cases
from serving_ops.bench_e2e.ops.cases import ADD, FORWARD, FUSED_ADD, FUSED_ADD_QUANT, GATED, QK_ROPE, Case
from serving_ops.ops.quantized import RESULTS

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
    def leaves(self) -> tuple[Tensor, ...]:
        """What is differentiated: x, the residual or z, and the weight."""
        return tuple(tensor for tensor in (self.x, self.residual, self.z, self.weight) if tensor is not None)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the op's public function takes by position; the formula of `qk_norm_rope` takes its `call`."""
        if self.call:
            return (self.call,)
        rows = (tensor for tensor in (self.x, self.residual, self.z) if tensor is not None)
        return (*rows, self.weight, EPS)

    @property
    def bytes(self) -> int:
        if self.call:
            return sum(self.call[name].nbytes for name in ("qkv", "key_cache", "value_cache") if name in self.call)
        tensors = (self.x, self.residual, self.z, self.out, self.scales, *self.douts)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def make_inputs(case: Case, device: str) -> Inputs:
    """Fresh tensors on the device. Results start as NaN, so that an element nobody wrote is seen."""
    if case.op == QK_ROPE:
        call = rope_cases.make(case, device)
        return Inputs(rope_cases.rotated_heads(call), None, None, None, None, call=call)
    strided = case.layout == "strided"
    gated = case.op == GATED
    x = _random(case, device, strided and not gated)
    residual = _random(case, device, strided) if case.op in (FUSED_ADD, FUSED_ADD_QUANT, ADD) else None
    z = _random(case, device, strided) if gated else None
    weight = _weight(case, device)
    if case.passes == FORWARD:
        return Inputs(x, residual, z, weight, *_results(case, x))
    for tensor in (x, residual, z, weight):
        if tensor is not None:
            tensor.requires_grad_()
    douts = tuple(_random(case, device, strided=False) for _ in range(2 if case.op == ADD else 1))
    return Inputs(x, residual, z, weight, None, None, douts)


def redraw(inputs: Inputs) -> None:
    """New random x, residual and z, and results of NaN, in the same memory."""
    for tensor in (inputs.x, inputs.residual, inputs.z):
        if tensor is not None:
            tensor.normal_()
    for tensor in (inputs.out, inputs.scales):
        if tensor is not None:
            _unwritten(tensor)


def _unwritten(result: Tensor) -> Tensor:
    """All NaN, or in INT8 a number that no result has."""
    return result.fill_(torch.nan if result.dtype.is_floating_point else -128)


def _results(case: Case, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """`out` and `scales`."""
    if case.fmt is not None:
        out, scales = (_unwritten(result.empty({"x": x, "fmt": case.fmt})) for result in RESULTS)
        return out, scales
    if case.op == FUSED_ADD:
        return None, None
    return _empty(case, str(x.device), strided=False).fill_(torch.nan), None


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
