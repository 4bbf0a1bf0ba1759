"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call returns what it allocated: of the op's
results, and what it updates in place behind them, the first ones. The rest it has written where the inputs have it.
With gradients it returns those of the operands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import rope_reference
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops.cases import ADD, BOTH, FORWARD, FUSED_ADD, QK_ROPE, Case
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.ops import registry
from serving_ops.ops.description import NormOp

Call = Callable[[], object]
Norm = Callable[..., Any]  # of a case's operands
Calls = Mapping[Any, Callable[[Inputs], Call]]  # op, or op and form of the result -> binds a call without gradients
Norms = Mapping[str, Norm]  # op -> a function of the operands and eps that is differentiated


class Unsupported(Exception):
    """The contestant does not offer the case; the text says why."""


@dataclass(frozen=True)
class Contestant:
    """call: binds what runs without gradients. norm: makes the function of the operands and eps that is differentiated.
    Where one is None, it takes no part in that bench. Both raise Unsupported.

    case: the case that it runs: the table's own, or a variation of it.
    computes: or only shows what a part of it costs, and is not checked.
    overwrites_dout: its backward pass writes dx there, and so gets copies.
    """

    name: str
    version: str
    call: Callable[[Case, Inputs], Call] | None = None
    norm: Callable[[Case], Norm] | None = None
    case: Callable[[Case], Case] = lambda case: case
    computes: bool = True
    overwrites_dout: bool = False

    def bind(self, case: Case, inputs: Inputs) -> Call:
        """With gradients, the passes of the case, differentiated by autograd as users do."""
        if case.passes == FORWARD:
            return self.call(case, inputs)  # type: ignore[misc]
        norm, leaves, douts = self.norm(case), inputs.operands, inputs.douts  # type: ignore[misc]
        if self.overwrites_dout:
            douts = tuple(dout.clone() for dout in douts)
        if case.passes == BOTH:
            return lambda: torch.autograd.grad(norm(*leaves, EPS), leaves, douts)
        results = norm(*leaves, EPS)
        return lambda: torch.autograd.grad(results, leaves, douts, retain_graph=True)


def _call_operator(case: Case, inputs: Inputs) -> Call:
    op, operator = registry.find(case.op), getattr(torch.ops.serving_ops, case.op)
    overload = operator.out if op.results and op.has_out else operator.default
    by_place = [argument.name for argument in overload._schema.arguments if not argument.kwarg_only]
    return _bound(overload, by_place, op.unbind(inputs.call), op)


def _call_function(case: Case, inputs: Inputs, *, new: bool) -> Call:
    """The public function, by name only what users must give so. new: the results, instead of those of the inputs."""
    op = registry.find(case.op)
    call = op.arguments_of(inputs.call) if new else dict(inputs.call)
    by_place = [name for name, p in op.parameters.items() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    return _bound(getattr(serving_ops, case.op), by_place, call, op)


def _bound(function: Norm, by_place: Sequence[str], call: dict[str, Any], op: NormOp) -> Call:
    """By name goes what is not its default: each one costs host time."""
    placed = [call.pop(name) for name in by_place]
    named = {name: v for name, v in call.items() if isinstance(v, Tensor) or v != op.defaults[name]}
    return partial(function, *placed, **named)


def peer(name: str, of: str, calls: Calls | None = None, norms: Norms | None = None, **options: bool) -> Contestant:
    """Another project's kernels. of: its version."""
    call = None if calls is None else lambda case, inputs: _offered(calls, case)(inputs)
    return Contestant(name, of, call, None if norms is None else partial(_offered, norms), **options)


def _offered(by_op: Mapping[Any, Any], case: Case) -> Any:
    key = case.op if case.fmt is None else (case.op, case.form)
    if key not in by_op:
        raise Unsupported(f"no {case.op}")
    return by_op[key]


def heads(inputs: Inputs) -> tuple[Tensor, ...]:
    """q, k and v of `qk_norm_rope` as (num_tokens, heads, head_dim), views of qkv."""
    sizes = inputs.num_q_heads, inputs.num_kv_heads, inputs.head_dim
    return rope_reference.heads_of(inputs.qkv, None, None, *sizes)  # type: ignore[return-value]


def formula(case: Case) -> Norm:
    """The reference. Out of place for an op of norms that is in place: eager PyTorch would copy each result once more.

    Scales come as the case's format has them.
    """
    if case.op == QK_ROPE:
        return _rotated
    norm = registry.find(ADD if case.op == FUSED_ADD else case.op).formula
    if case.form != "block":
        return norm

    def with_columns(**call: Any) -> tuple[Tensor, Tensor]:
        q, scales = norm(**call)
        return q, scales.mT.contiguous().mT

    return with_columns


def _call_formula(norm_of: Callable[[Case], Norm], case: Case, inputs: Inputs) -> Call:
    op = registry.find(case.op)
    return partial(norm_of(case), **op.arguments_of(op.defaults | inputs.call))


def _rotated(key_cache: Any, value_cache: Any, slot_mapping: Any, **call: Any) -> None:
    """Writes to all slots: the reference looks for negative ones, and waits for the device."""
    rope_reference.qk_norm_rope(**call)
    _, k, v = heads(Inputs(call))
    for x, cache in ((k, key_cache), (v, value_cache)):
        if cache is not None:
            cache.index_put_((slot_mapping // cache.shape[1], slot_mapping % cache.shape[1]), x)


@lru_cache(maxsize=1)
def _compiled(case: Case) -> Norm:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    torch._dynamo.reset()
    # A backward pass that gives away the buffers it was handed cannot run twice on one forward pass.
    torch._functorch.config.donated_buffer = case.passes == FORWARD
    return torch.compile(formula(case), dynamic=False, fullgraph=True)


def _copied(inputs: Inputs) -> Call:
    source = torch.cat(heads(inputs)[:2], dim=1)
    return partial(torch.empty_like(source).copy_, source)


ours = Contestant(OURS, serving_ops.__version__, _call_operator, lambda case: getattr(serving_ops, case.op))
eager = Contestant("eager", torch.__version__, partial(_call_formula, formula), formula)
inductor = Contestant(
    "Inductor", torch.__version__, partial(_call_formula, _compiled), lambda case: _compiled(replace(case, passes=BOTH))
)
copy = peer("copy", torch.__version__, {QK_ROPE: _copied}, computes=False)
"""Of q and k of `qk_norm_rope`, which reads and writes as much. It computes nothing."""

VARIATIONS: dict[str, Callable[[Case], Case]] = {
    "odd N (N - 1)": lambda case: replace(case, shape=(*case.shape[:-1], case.size - 1)),
    "strided rows": lambda case: replace(case, layout="strided"),
    "offset 1": lambda case: replace(case, weight_offset=1.0),
    "fp32 weight": lambda case: replace(case, weight="float32"),
    "no weight": lambda case: replace(case, weight="none"),
}
"""Inputs that must cost no more than the plain ones beside them."""

_new = replace(ours, call=partial(_call_function, new=True))
_to_int8 = replace(_new, name="to INT8", case=lambda case: replace(case, op=f"{case.op}_quant", form="int8"))
_given = replace(_to_int8, name="to INT8, results given", call=partial(_call_function, new=False))
_without_rows = replace(_given, name="the same, no rows", computes=False)  # what a call costs without its kernel
_without_rows = replace(_without_rows, case=lambda case: replace(_to_int8.case(case), shape=(0, case.size)))
OF_OURS = {
    "variants": [ours, *(replace(ours, name=name, case=varied) for name, varied in VARIATIONS.items())],
    "calls": [_new, _to_int8, _given, _without_rows],
}
"""Regime -> who takes part, where ours is compared with itself."""
