"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call either writes in place (x and
residual, or `out`) and returns None, or returns what it allocated: x and residual as a pair, or the result.
A quantized result is two tensors: `out` and `scales`. With gradients, the call returns those of the leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import reference
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import rope_cases
from serving_ops.bench_e2e.ops.cases import ADD, BOTH, FORWARD, FUSED_ADD, GATED, QK_ROPE, RMS_NORM, Case
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.quant_format import QuantFormat

Call = Callable[[], object]
Norm = Callable[..., object]  # of a case's leaves


class Unsupported(Exception):
    """The contestant does not offer the case; the text says why."""


@dataclass(frozen=True)
class Contestant:
    name: str
    version: str
    bind: Callable[[Case, Inputs], Call]
    variation: Mapping[str, Any] = field(default_factory=dict)  # fields of Case; size_change is added to N
    computes: bool = True  # or only shows what a part of it costs, and is not checked

    def case(self, case: Case) -> Case:
        """The case this contestant runs: the table's own, or a variation of it."""
        changes = dict(self.variation)
        if "size_change" in changes:
            changes["shape"] = (*case.shape[:-1], case.size + changes.pop("size_change"))
        return replace(case, **changes)


def ours() -> Contestant:
    return Contestant(OURS, serving_ops.__version__, bind_ours)


VARIATIONS: dict[str, dict[str, Any]] = {
    "odd N (N - 1)": {"size_change": -1},
    "strided rows": {"layout": "strided"},
    "offset 1": {"weight_offset": 1.0},
    "fp32 weight": {"weight": "float32"},
    "no weight": {"weight": "none"},
}


def variants() -> list[Contestant]:
    """Ours, and ours on the inputs that must cost no more than the plain ones beside them."""
    return [ours(), *(replace(ours(), name=name, variation=changes) for name, changes in VARIATIONS.items())]


def eager() -> Contestant:
    return Contestant("eager", torch.__version__, lambda case, inputs: _bind(formula(case), case, inputs))


def inductor() -> Contestant:
    return Contestant("Inductor", torch.__version__, lambda case, inputs: _bind(_compiled(case), case, inputs))


def copy() -> Contestant:
    """A copy of the rows of `qk_norm_rope`, which reads and writes as much. It computes nothing."""

    def bind(case: Case, inputs: Inputs) -> Call:
        if case.op != QK_ROPE:
            raise Unsupported(f"{case.op} is more than a copy")
        source = inputs.x.contiguous()
        return partial(torch.empty_like(source).copy_, source)

    return Contestant("copy", torch.__version__, bind, computes=False)


def bind_ours(case: Case, inputs: Inputs) -> Call:
    if case.passes != FORWARD:
        return differentiated(with_eps(getattr(serving_ops, case.op)), case, inputs)
    op = getattr(torch.ops.serving_ops, case.op)
    if inputs.call:
        return partial(op.default, **inputs.call)
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    if case.fmt is not None:
        results = {"out": inputs.out, "scales_out": inputs.scales}
        return partial(op.out, *inputs.arguments, fmt=case.fmt.text, **offset, **results)
    if inputs.out is None:
        return partial(op.default, *inputs.arguments, **offset)
    return partial(op.out, *inputs.arguments, out=inputs.out, **offset)


def differentiated(norm: Norm, case: Case, inputs: Inputs, *, overwrites_dout: bool = False) -> Call:
    """The passes of the case, differentiated by autograd as users do.

    overwrites_dout: the backward pass writes dx there, and so gets copies.
    """
    leaves, douts = inputs.leaves, inputs.douts
    if overwrites_dout:
        douts = tuple(dout.clone() for dout in douts)
    if case.passes == BOTH:
        return lambda: torch.autograd.grad(norm(*leaves), leaves, douts)  # type: ignore[arg-type]
    results = norm(*leaves)
    return lambda: torch.autograd.grad(results, leaves, douts, retain_graph=True)  # type: ignore[arg-type]


def with_eps(norm: Norm) -> Norm:
    return lambda *leaves: norm(*leaves, EPS)


def _bind(norm: Norm, case: Case, inputs: Inputs) -> Call:
    if case.passes != FORWARD:
        return differentiated(with_eps(norm), case, inputs)
    return partial(norm, *inputs.arguments)


# Out of place, also where the op is in place: eager PyTorch would copy each result once more.
FORMULAS: dict[str, Callable[..., object]] = {
    FUSED_ADD: reference.add_rms_norm,
    ADD: reference.add_rms_norm,
    RMS_NORM: reference.rms_norm,
    GATED: reference.rms_norm_gated,
    QK_ROPE: rope_cases.formula,
}


def formula(case: Case) -> Callable[..., object]:
    """Of the case's op, for the arguments of its inputs."""
    return FORMULAS[case.op] if case.fmt is None else _quantizing(case.fmt)


def _quantizing(fmt: QuantFormat) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def quantizing(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, total = reference.add_rms_norm(x, residual, weight, eps)
        q, scales = reference.quantize(y, fmt)
        return q, scales if fmt.scale_layout == "row_major" else scales.mT.contiguous().mT, total

    return quantizing


_compiled_for: dict[Case, Norm] = {}


def _compiled(case: Case) -> Norm:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    key = case if case.passes == FORWARD else replace(case, passes=BOTH)
    if key not in _compiled_for:
        torch._dynamo.reset()
        # A backward pass that gives away the buffers it was handed cannot run twice on one forward pass.
        torch._functorch.config.donated_buffer = case.passes == FORWARD
        _compiled_for.clear()
        _compiled_for[key] = torch.compile(formula(case), dynamic=False, fullgraph=True)
    return _compiled_for[key]
