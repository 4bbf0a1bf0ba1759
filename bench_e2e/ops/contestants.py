"""Who is measured: ours, the plain PyTorch formula, and the same formula through Inductor.

A contestant binds a case's tensors into a call without arguments. The call either writes in place, or into the results
that the inputs have, and returns None, or it returns what it allocated: the results, and then what the op updates in
place. With gradients it returns those of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import Parameter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import cuda_rope, reference, rope_reference
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops.cases import ADD, BOTH, FORWARD, FUSED_ADD, GATED, QK_ROPE, RMS_NORM, Case
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
    return Contestant("eager", torch.__version__, lambda case, i: partial(formula(case), *i.operands, EPS), formula)


def inductor() -> Contestant:
    return Contestant("Inductor", torch.__version__, lambda case, i: partial(_compiled(case), *i.operands, EPS), _both)


def _both(case: Case) -> Norm:
    return _compiled(replace(case, passes=BOTH))


def peer(
    name: str,
    version: str,
    calls: Mapping[Any, Callable[[Inputs], Call]] = MappingProxyType({}),
    norms: Mapping[str, Norm] = MappingProxyType({}),
    *,
    overwrites_dout: bool = False,
) -> Contestant:
    """Another project's kernels.

    calls: op, or op and form of the result -> binds a call without gradients.
    norms: op -> a function of the operands and eps that is differentiated.
    """

    def find(offered: Mapping[Any, Any], case: Case) -> Any:
        key = case.op if case.fmt is None else (case.op, case.form)
        if key not in offered:
            raise Unsupported(f"no {case.op}")
        return offered[key]

    call = (lambda case, inputs: find(calls, case)(inputs)) if calls else None
    norm = partial(find, norms) if norms else None
    return Contestant(name, version, call, norm, overwrites_dout=overwrites_dout)


def copy() -> Contestant:
    """A copy of q and k of `qk_norm_rope`, which reads and writes as much. It computes nothing."""

    def copied(inputs: Inputs) -> Call:
        source = torch.cat(heads(inputs)[:2], dim=1)
        return partial(torch.empty_like(source).copy_, source)

    return replace(peer("copy", torch.__version__, {QK_ROPE: copied}), computes=False)


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


def _rotated(*operands: Any) -> tuple[Tensor, Tensor]:
    """New q and k; k and v in the caches."""
    qkv, positions, table, q_weight, k_weight, *sizes, key_cache, value_cache, slots, eps = operands
    q, k, v = rope_reference.heads_of(qkv, None, None, *sizes)
    cos, sin = rope_reference.cos_and_sin(positions, table, None, False)
    normed = reference.rms_norm(q, q_weight, eps), reference.rms_norm(k, k_weight, eps)
    q, k = (rope_reference.rotated(x, cos, sin, True) for x in normed)
    for x, cache in ((k, key_cache), (v, value_cache)):
        if cache is not None:
            cache.index_put_((slots // cache.shape[1], slots % cache.shape[1]), x)
    return q, k


# Out of place, also where the op is in place: eager PyTorch would copy each result once more.
FORMULAS: dict[str, Norm] = {
    FUSED_ADD: reference.add_rms_norm,
    ADD: reference.add_rms_norm,
    RMS_NORM: reference.rms_norm,
    GATED: reference.rms_norm_gated,
    QK_ROPE: _rotated,
}


def norm_of(case: Case) -> Norm:
    """The formula of its op, without quantization: of the operands and eps."""
    return FORMULAS[case.op.removesuffix("_quant")]


def formula(case: Case) -> Norm:
    """The same, with what the case's form adds to it."""
    norm, fmt = norm_of(case), case.fmt
    if fmt is None:
        return norm

    def quantizing(*arguments: Any) -> tuple[Tensor, ...]:
        y, *updated = results if isinstance(results := norm(*arguments), tuple) else (results,)
        q, scales = reference.quantize(y, fmt)
        return q, scales if fmt.scale_layout == "row_major" else scales.mT.contiguous().mT, *updated

    return quantizing


@lru_cache(maxsize=1)
def _compiled(case: Case) -> Norm:
    """One at a time: past eight shapes of one function Dynamo would silently run it eagerly."""
    torch._dynamo.reset()
    # A backward pass that gives away the buffers it was handed cannot run twice on one forward pass.
    torch._functorch.config.donated_buffer = case.passes == FORWARD
    return torch.compile(formula(case), dynamic=False, fullgraph=True)
