"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call either writes in place (x and
residual, or `out`) and returns None, or returns what it allocated: x and residual as a pair, or the result.
A quantized result is two tensors: `out` and `scales`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops import reference
from serving_ops.bench_e2e.ops.cases import FUSED_ADD, GATED, RMS_NORM, Case
from serving_ops.bench_e2e.ops.inputs import Inputs
from serving_ops.quant_format import QuantFormat

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
    return Contestant("eager", torch.__version__, lambda case, inputs: partial(formula(case), *inputs.arguments))


def inductor() -> Contestant:
    return Contestant("Inductor", torch.__version__, _bind_inductor)


def bind_ours(case: Case, inputs: Inputs) -> Call:
    op = getattr(torch.ops.serving_ops, case.op)
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    if case.fmt is not None:
        results = {"out": inputs.out, "scales_out": inputs.scales}
        return partial(op.out, *inputs.arguments, **case.fmt.fields(), **offset, **results)
    if inputs.out is None:
        return partial(op.default, *inputs.arguments, **offset)
    return partial(op.out, *inputs.arguments, out=inputs.out, **offset)


# Out of place, also where the op is in place: eager PyTorch would copy each result once more.
FORMULAS: dict[str, Callable[..., object]] = {
    FUSED_ADD: reference.add_rms_norm,
    RMS_NORM: reference.rms_norm,
    GATED: reference.rms_norm_gated,
}


def formula(case: Case) -> Callable[..., object]:
    """Of the case's op, for the arguments of its inputs."""
    return FORMULAS[case.op] if case.fmt is None else _quantizing(case.fmt)


def _quantizing(fmt: QuantFormat) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def add_norm_quantize(
        x: Tensor, residual: Tensor, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, total = reference.add_rms_norm(x, residual, weight, eps)
        q, scales = reference.quantize(y, fmt)
        return q, scales if fmt.scale_layout == "row_major" else scales.mT.contiguous().mT, total

    return add_norm_quantize


def _bind_inductor(case: Case, inputs: Inputs) -> Call:
    return partial(_compiled(case), *inputs.arguments)


_compiled_for: dict[Case, Callable[..., object]] = {}


def _compiled(case: Case) -> Callable[..., object]:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    if case not in _compiled_for:
        torch._dynamo.reset()
        _compiled_for.clear()
        _compiled_for[case] = torch.compile(formula(case), dynamic=False, fullgraph=True)
    return _compiled_for[case]
