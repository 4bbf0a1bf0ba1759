"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call either writes in place (x and
residual, or `out`) and returns None, or returns what it allocated: x and residual as a pair, or the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs

Call = Callable[[], object]
OURS = "serving_ops"


class Unsupported(Exception):
    """The contestant does not offer the case; the text says why."""


@dataclass(frozen=True)
class Contestant:
    name: str
    version: str
    bind: Callable[[Case, Inputs], Call]
    variation: Mapping[str, Any] = field(
        default_factory=dict
    )  # fields of Case that it changes; size_change is added to N

    def case(self, case: Case) -> Case:
        """The case this contestant runs: the table's own, or a variation of it."""
        changes = dict(self.variation)
        if "size_change" in changes:
            changes["shape"] = (*case.shape[:-1], case.size + changes.pop("size_change"))
        return replace(case, **changes)


def ours() -> Contestant:
    import serving_ops

    return Contestant(OURS, serving_ops.__version__, bind_ours)


def variants() -> list[Contestant]:
    """Ours, and ours on the inputs that must cost no more than the plain ones beside them."""
    plain = ours()
    return [
        plain,
        replace(plain, name="odd N (N - 1)", variation={"size_change": -1}),
        replace(plain, name="strided rows", variation={"layout": "strided"}),
        replace(plain, name="offset 1", variation={"weight_offset": 1.0}),
        replace(plain, name="fp32 weight", variation={"weight": "float32"}),
        replace(plain, name="no weight", variation={"weight": "none"}),
    ]


def eager() -> Contestant:
    return Contestant("eager", torch.__version__, lambda case, inputs: _bind_formula(FORMULAS[case.op], case, inputs))


def inductor() -> Contestant:
    return Contestant("Inductor", torch.__version__, _bind_inductor)


def bind_ours(case: Case, inputs: Inputs) -> Call:
    ops = torch.ops.serving_ops
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    if case.op == FUSED_ADD:
        return partial(ops.fused_add_rms_norm.default, inputs.x, inputs.residual, inputs.weight, EPS, **offset)
    if case.op == RMS_NORM:
        return partial(ops.rms_norm.out, inputs.x, inputs.weight, EPS, out=inputs.out, **offset)
    return partial(ops.rms_norm_gated.out, inputs.x, inputs.z, inputs.weight, EPS, out=inputs.out)


def fused_add_formula(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    s = x.float() + residual.float()
    normed = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight, s.to(x.dtype)


def rms_norm_formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    s = x.float()
    normed = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def gated_formula(x: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    s = x.float()
    normed = s * torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight * torch.nn.functional.silu(z.float())).to(x.dtype)


FORMULAS: dict[str, Callable[..., object]] = {
    FUSED_ADD: fused_add_formula,
    RMS_NORM: rms_norm_formula,
    "rms_norm_gated": gated_formula,
}


def _bind_formula(formula: Callable[..., object], case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        return partial(formula, inputs.x, inputs.residual, inputs.weight, EPS)
    if case.op == RMS_NORM:
        return partial(formula, inputs.x, inputs.weight, EPS)
    return partial(formula, inputs.x, inputs.z, inputs.weight, EPS)


def _bind_inductor(case: Case, inputs: Inputs) -> Call:
    return _bind_formula(_compiled(case), case, inputs)


_compiled_for: dict[Case, Callable[..., object]] = {}


def _compiled(case: Case) -> Callable[..., object]:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    if case not in _compiled_for:
        torch._dynamo.reset()
        _compiled_for.clear()
        _compiled_for[case] = torch.compile(FORMULAS[case.op], dynamic=False, fullgraph=True)
    return _compiled_for[case]
