"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call returns what it allocated: of the op's
results, and what it updates in place behind them, the first ones. The rest it has written where the inputs have it.
With gradients it returns those of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import cuda_rope, rope_reference
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops.cases import ADD, BOTH, FORWARD, FUSED_ADD, QK_ROPE, Case
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.ops import registry
from serving_ops.plan import Plan

Call = Callable[[], object]
Norm = Callable[..., Any]  # of a case's operands


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


def ours() -> Contestant:
    return Contestant(OURS, serving_ops.__version__, _call_ours, lambda case: getattr(serving_ops, case.op))


def _call_ours(case: Case, inputs: Inputs) -> Call:
    """The operator, as engines call it: by name what is not its default, which costs host time."""
    op, operator = registry.find(case.op), getattr(torch.ops.serving_ops, case.op)
    overload = operator.out if op.results else operator.default
    values = op.unbind(inputs.call)
    by_place = [values.pop(argument.name) for argument in overload._schema.arguments if not argument.kwarg_only]
    named = {name: v for name, v in values.items() if isinstance(v, Tensor) or v != op.defaults[name]}
    return partial(overload, *by_place, **named)


def eager() -> Contestant:
    return Contestant("eager", torch.__version__, partial(_call_formula, formula), formula)


def inductor() -> Contestant:
    call = partial(_call_formula, _compiled)
    return Contestant("Inductor", torch.__version__, call, lambda case: _compiled(replace(case, passes=BOTH)))


def peer(
    name: str,
    version: str,
    calls: Mapping[Any, Callable[[Inputs], Call]] | None = None,
    norms: Mapping[str, Norm] | None = None,
    **options: bool,
) -> Contestant:
    """Another project's kernels.

    calls: op, or op and form of the result -> binds a call without gradients.
    norms: op -> a function of the operands and eps that is differentiated.
    """
    call = None if calls is None else lambda case, inputs: _offered(calls, case)(inputs)
    return Contestant(name, version, call, None if norms is None else partial(_offered, norms), **options)


def _offered(by_op: Mapping[Any, Any], case: Case) -> Any:
    key = case.op if case.fmt is None else (case.op, case.form)
    if key not in by_op:
        raise Unsupported(f"no {case.op}")
    return by_op[key]


def copy() -> Contestant:
    """A copy of q and k of `qk_norm_rope`, which reads and writes as much. It computes nothing."""

    def copied(inputs: Inputs) -> Call:
        source = torch.cat(heads(inputs)[:2], dim=1)
        return partial(torch.empty_like(source).copy_, source)

    return peer("copy", torch.__version__, {QK_ROPE: copied}, computes=False)


VARIATIONS: dict[str, Callable[[Case], Case]] = {
    "odd N (N - 1)": lambda case: replace(case, shape=(*case.shape[:-1], case.size - 1)),
    "strided rows": lambda case: replace(case, layout="strided"),
    "offset 1": lambda case: replace(case, weight_offset=1.0),
    "fp32 weight": lambda case: replace(case, weight="float32"),
    "no weight": lambda case: replace(case, weight="none"),
}


def variants() -> list[Contestant]:
    """Ours, and ours on the inputs that must cost no more than the plain ones beside them."""
    return [ours(), *(replace(ours(), name=name, case=varied) for name, varied in VARIATIONS.items())]


def calls() -> list[Contestant]:
    """The public functions of a plain norm and of one that quantizes. No rows: what a call costs without its kernel."""
    plain = replace(ours(), call=partial(_call_function, new=True))
    to_int8 = replace(plain, name="to INT8", case=lambda case: replace(case, op=f"{case.op}_quant", form="int8"))
    no_rows = replace(to_int8, case=lambda case: replace(to_int8.case(case), shape=(0, case.size)), computes=False)
    given = {"name": "to INT8, results given", "call": partial(_call_function, new=False)}
    return [plain, to_int8, replace(to_int8, **given), replace(no_rows, **given | {"name": "the same, no rows"})]


def _call_function(case: Case, inputs: Inputs, *, new: bool) -> Call:
    """By name only what users must give so. new: the results, instead of those of the inputs."""
    op = registry.find(case.op)
    call = op.arguments_of(inputs.call) if new else dict(inputs.call)
    kinds = {name: parameter.kind for name, parameter in op.parameters.items()}
    by_place = [call.pop(name) for name, kind in kinds.items() if kind is Parameter.POSITIONAL_OR_KEYWORD]
    named = {name: v for name, v in call.items() if isinstance(v, Tensor) or v != op.parameters[name].default}
    return partial(getattr(serving_ops, case.op), *by_place, **named)


PLANS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "half the elements": lambda plan: {"rows_per_program": max(1, plan.rows_per_program // 2)},
    "twice the elements": lambda plan: {"rows_per_program": 2 * plan.rows_per_program},
    **{f"{n} warp{'s' * (n > 1)}": lambda plan, n=n: {"num_warps": n} for n in (1, 2, 4)},
    "early start": lambda plan: {"overlap": True},
    "no early start": lambda plan: {"overlap": False},
}
"""What a contestant does otherwise than the plan of `qk_norm_rope`."""


def plans() -> list[Contestant]:
    """Ours, and our kernel by each change of its plan: what `serving_ops/plan_rope.py` is compared with."""
    return [
        ours(),
        *(replace(ours(), name=name, call=partial(_call_by_plan, change)) for name, change in PLANS.items()),
    ]


def _call_by_plan(change: Callable[[Plan], dict[str, Any]], case: Case, inputs: Inputs) -> Call:
    route = cuda_rope.rope_route(**inputs.call)
    if isinstance(route, str):
        raise Unsupported(route)
    of_call, plan = route
    changed = replace(plan, **change(plan))
    if changed == plan:
        raise Unsupported("this is the plan")
    changed = replace(changed, min_rows=0, max_rows=0)  # so that C++ launches it for no call, and ours keep the plan
    return lambda: cuda_rope.launch_rope((of_call, changed), **inputs.call)


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
    sizes = call["num_q_heads"], call["num_kv_heads"], call["head_dim"]
    _, k, v = rope_reference.heads_of(call["qkv"], None, None, *sizes)
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
