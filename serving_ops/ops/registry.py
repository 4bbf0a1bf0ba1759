"""From a description to an operator of PyTorch: schemas, fakes, fallback and registration, the same for every op.

The mutating overloads return nothing: PyTorch's functionalization takes operators that mutate, and operators
that return fresh tensors, but not results that alias arguments.

The `_..._refusal` operators take the arguments of the `_..._fallback` operators (`serving_ops.schemas`) and ask C++ why
it would hand them over; empty where it would not.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from serving_ops import counters, support
from serving_ops.norm_spec import NormSpec
from serving_ops.ops.description import Argument, Call, NormOp, Own, Result, Rows, is_written
from serving_ops.schemas import define, define_fallback, library

OPS: dict[str, NormOp] = {}
"""The registered ops by name."""


def find(name: str) -> NormOp:
    """Raises ValueError for an unknown name."""
    if name not in OPS:
        raise ValueError(f"serving_ops: op is {name!r}: allowed are {', '.join(OPS)}")
    return OPS[name]


def register(op: NormOp) -> None:
    """Define and implement `torch.ops.serving_ops.<op>`. The C++ library's implementations come before these."""
    OPS[op.name] = op
    if op.part_of is None:
        counters.add_op(op.name)
    for schema in schemas_of(op):
        define(schema, _implementation(op), _fake(op))
    if op.differentiated is not None:
        define(schemas_of(op)[0].replace("(", "_trainable(", 1), op.differentiated.forward, _fake(op))
        setup, backward = op.differentiated.setup_context, op.differentiated.backward
        torch.library.register_autograd(f"serving_ops::{op.name}_trainable", backward, setup_context=setup, lib=library)
    if op.in_cpp:
        define_fallback(op.name, _handed_over(op, iter(string.ascii_lowercase)), _implementation(op))
    if "cpu" in op.in_cpp:
        library.define(f"_{op.name}_refusal({_handed_over(op, None)}) -> str")


def schemas_of(op: NormOp) -> tuple[str, ...]:
    """Of the overload that makes its results, and of `.out`, which writes them."""
    returned = ", ".join("Tensor" for _ in op.results)
    schemas = [f"{op.name}({_declared(op, op.arguments)}) -> {returned if len(op.results) == 1 else f'({returned})'}"]
    if op.results and op.has_out:
        schemas.append(f"{op.name}.out({_declared(op, op.all.values())}) -> ()")
    return tuple(schemas)


def _handed_over(op: NormOp, letters: Iterator[str] | None) -> str:
    """The arguments of a private operator of the same call: all in order, without defaults, as C++ passes them."""
    return ", ".join(_named(op, parameter, letters) for parameter in op.all.values())


def _declared(op: NormOp, parameters: Iterable[Argument | Result]) -> str:
    """By name alone is only what may not be given by position: a name costs 0.4 us of host time."""
    letters = iter(string.ascii_lowercase)
    given = {*op.arguments[: op.num_given], *op.results}
    by_name = op.arguments[op.place :] or op.results
    words: list[str] = []
    for parameter in parameters:
        if parameter in by_name and "*" not in words:
            words.append("*")
        default = op.parameters[parameter.name].default
        text = f'"{default}"' if isinstance(default, str) else str(default)
        words.append(_named(op, parameter, letters) + ("" if parameter in given else f"={text}"))
    return ", ".join(words)


def _named(op: NormOp, parameter: Argument | Result, letters: Iterator[str] | None) -> str:
    """Type and name, with a letter, which no other has, where it is written. The function's annotation, a text in files
    that postpone annotations, has the type."""
    kind = "Tensor" if isinstance(parameter, Result) else op.parameters[parameter.name].annotation
    for annotated, declared in ((" | None", "?"), ("Sequence[int]", "int[]"), ("QuantFormat", "str")):
        kind = kind.replace(annotated, declared)
    if letters is not None and is_written(parameter):
        kind = kind.replace("Tensor", f"Tensor({next(letters)}!)")
    return f"{kind} {parameter.name}"


def _returned(results: Call) -> Any:
    return next(iter(results.values())) if len(results) == 1 else tuple(results.values()) or None


def _implementation(op: NormOp) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        call = op.bind(args, kwargs)
        op.check(call)
        made = op.empty_results(call)
        _run(op, call | made)
        return _returned(made)

    return run


def _fake(op: NormOp) -> Callable[..., Any]:
    def fake(*args: Any, **kwargs: Any) -> Any:
        call = op.bind(args, kwargs)
        op.check_metadata(call)
        return _returned(op.empty_results(call))

    return fake


def _run(op: NormOp, call: Call) -> None:
    """Run a checked call that has all its results, on kernels or on the reference."""
    route = route_of(op, call)
    if not isinstance(route, str) and route is not None:
        launch(op, route, call)
        return counters.count_kernel(op.part_of or op.name)
    if op.run is not None:
        return op.run(**call)
    counters.count_reference(op.name, route or "handed over by the C++ kernels")
    computed = op.formula(**op.arguments_of(call))
    for result, tensor in zip(op.results, (computed,) if isinstance(computed, Tensor) else computed, strict=False):
        call[result.name].copy_(tensor)


def route_of(op: NormOp, call: Call) -> Any:
    """Decide what runs a checked call that has its results: calls, `explain` and the counters ask here.

    Returns what `op.route` returns on CUDA, and on CPU None where C++ takes the call. A text is why the reference runs.
    """
    x = op.subject(call)
    if x.is_cuda and op.route is not None:
        return op.route(**call)
    if x.device.type != "cpu":
        return f"no kernels for {x.device.type}"
    if "cpu" not in op.in_cpp:
        return "no kernels for it on cpu"
    return support.why_not_cpu(op.name, *op.unbind(call).values()) or None


def launch(op: NormOp, route: Any, call: Call) -> None:
    """Launch what `op.route` returned for a call; nothing where there are no elements."""
    x = op.subject(call)
    if x.numel() and op.launch is not None:
        with torch.cuda._DeviceGuard(x.get_device()):
            op.launch(route, **call)


def sample(spec: NormSpec, num_tokens: int = 1) -> Call:
    """The arguments of one call that a layer may make, for the public function, by name. Raises ValueError as `find`.

    Used by prewarm, by the engines' probes, and by tests and benches.
    """
    op = find(spec.op)
    if op.sample_own is not None:
        return op.sample_own(spec, num_tokens)
    return {a.name: a.sample(spec, num_tokens) for a in op.arguments if not isinstance(a, Own)}


def bytes_moved(op: NormOp, call: Call) -> int:
    """The fewest that a call must move: each of its rows once each way. Vectors are left out: they stay in cache."""
    if op.bytes_moved is not None:
        return op.bytes_moved(call)
    call = call | op.empty_results(call)
    ways = {a.name: a.read + a.written for a in op.arguments if isinstance(a, Rows)} | {r.name: 1 for r in op.results}
    return sum(call[name].nbytes * count for name, count in ways.items() if call[name] is not None)
