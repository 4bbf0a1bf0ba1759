"""What holds for every registered op, whatever it computes: tried on calls made from the ops' descriptions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from numerics import assert_no_less_accurate
from op_calls import (
    FLOATING,
    OPS,
    by_formula,
    collect,
    copied,
    exact,
    is_floating,
    make,
    results,
    run,
    specs,
    token_dimension,
    values,
)
from torch import Tensor

import serving_ops
from serving_ops.kernels import contract
from serving_ops.ops import registry
from serving_ops.ops.description import Choice, Divisor, Flag, NormOp, Number, Result
from serving_ops.support import KERNEL_DTYPES

each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
each_with_out = pytest.mark.parametrize("op", [op for op in OPS if op.results and op.has_out], ids=lambda op: op.name)
each_in_cpp = pytest.mark.parametrize("op", [op for op in OPS if "cpu" in op.in_cpp], ids=lambda op: op.name)
each_dtype = pytest.mark.parametrize("dtype", FLOATING, ids=str)
SIZES = (1, 33, 64, 100, 128, 512, 896, 1001, 2048, 4097, 5125, 40000)
LARGEST = {"qk_norm_rope": 512}
"""Of an op whose rows are heads."""

SCHEMAS = {
    "fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps=1e-6, "
    "float weight_offset=0.0) -> ()",
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps=1e-6, float weight_offset=0.0) "
    "-> (Tensor, Tensor)",
    "rms_norm(Tensor x, Tensor? weight, float eps=1e-6, float weight_offset=0.0) -> Tensor",
    "rms_norm.out(Tensor x, Tensor? weight, float eps=1e-6, float weight_offset=0.0, *, Tensor(a!) out) -> ()",
    "rms_norm_gated(Tensor x, Tensor? z, Tensor? weight, float eps=1e-6, Tensor? bias=None, "
    'bool norm_before_gate=True, str activation="silu", int? group_size=None) -> Tensor',
    "rms_norm_gated.out(Tensor x, Tensor? z, Tensor? weight, float eps=1e-6, Tensor? bias=None, "
    'bool norm_before_gate=True, str activation="silu", int? group_size=None, *, Tensor(a!) out) -> ()',
    "rms_norm_quant(Tensor x, Tensor? weight, float eps, str fmt, *, Tensor? scale=None, float weight_offset=0.0, "
    "Tensor(a!)? normed=None) -> (Tensor, Tensor)",
    "rms_norm_quant.out(Tensor x, Tensor? weight, float eps, str fmt, Tensor(a!) out, Tensor(b!) scales_out, *, "
    "Tensor? scale=None, float weight_offset=0.0, Tensor(c!)? normed=None) -> ()",
    "fused_add_rms_norm_quant(Tensor x, Tensor(a!) residual, Tensor? weight, float eps, str fmt, *, "
    "Tensor? scale=None, float weight_offset=0.0, Tensor(b!)? normed=None) -> (Tensor, Tensor)",
    "fused_add_rms_norm_quant.out(Tensor x, Tensor(a!) residual, Tensor? weight, float eps, str fmt, "
    "Tensor(b!) out, Tensor(c!) scales_out, *, Tensor? scale=None, float weight_offset=0.0, "
    "Tensor(d!)? normed=None) -> ()",
}
"""Of the ops that engines and compiled graphs of users call: they stay as they are."""


def test_the_schemas_that_are_in_use_have_not_changed() -> None:
    parse = torch._C.parse_schema
    derived = {str(parse(schema)) for op in OPS for schema in registry.schemas_of(op)}
    assert {str(parse(schema)) for schema in SCHEMAS} <= derived


def test_the_ops_that_cpp_runs_are_described_so_and_counted() -> None:
    assert set(contract.OPS) == {op.name for op in OPS if op.in_cpp}
    assert list(serving_ops.counters.snapshot()) == [op.name for op in OPS if op.part_of is None]


# Numbers


@each_dtype
@pytest.mark.parametrize(
    ("op", "size"),
    [pytest.param(op, n, id=f"{op.name}-{n}") for op in OPS for n in SIZES if n <= LARGEST.get(op.name, n)],
)
def test_results_are_no_less_accurate_than_the_reference(
    device: torch.device, op: NormOp, dtype: torch.dtype, size: int
) -> None:
    for spec in specs(op, dtype, size, pairs=size < 5000):
        call = make(spec, device, num_tokens=13)
        truth, expected = exact(op, call), values(op, call, by_formula(op, call))
        got = values(op, call, run(op, ran := copied(call)))
        for name in truth:
            assert_no_less_accurate(got[name], expected[name], truth[name])
        for name, value in call.items():
            assert name in got or not isinstance(value, Tensor) or torch.equal(ran[name], value), f"{name} was written"


@each_with_out
def test_results_that_are_given_are_returned_with_the_bits_of_new_ones(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        call = make(spec, device)
        new, given = run(op, copied(call)), results(op, call)
        into = run(op, copied(call), **given)
        for name, result in into.items():
            assert name not in given or result is given[name]
            assert same_bits(result, new[name]), (spec, name)


@each_op
def test_results_may_be_the_arguments_that_the_description_names(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        for name, others in op.may_be.items():
            for other in others:
                call = make(spec, device)
                if call.get(other) is None:
                    continue
                expected = run(op, copied(call) | ({name: torch.empty_like(call[other])} if name in call else {}))
                call |= {name: call[other]}
                got = run(op, call)
                assert got[name] is call[other]
                assert same_bits(got[name], expected[name])


@each_op
def test_a_rows_bits_do_not_depend_on_the_batch(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        call = make(spec, device, num_tokens=300)
        whole = run(op, copied(call))
        for row in (0, 1, 150, 299):
            alone = {name: of_token(op, name, value, row) for name, value in call.items()}
            for name, got in run(op, alone).items():
                if got.shape[:1] == (1,):
                    assert same_bits(got, whole[name][row : row + 1]), (spec, name)


def of_token(op: NormOp, name: str, value: Any, token: int) -> Any:
    dimension = token_dimension(op, name)
    return value if value is None or dimension is None else value.narrow(dimension, token, 1).clone()


def is_rows(op: NormOp, name: str, value: Any) -> bool:
    return token_dimension(op, name) == 0 and is_floating(value)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Also where they are NaN, and in dtypes that PyTorch does not compare."""
    as_bytes = [tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


ONE_STEP = {torch.float8_e4m3fn: {"rtol": 2**-3, "atol": 2**-6}, torch.int8: {"rtol": 0.0, "atol": 2**-4}}
"""Kernels sum a row in another order than the reference and than kernels for other layouts. That can move a quantized
value to its neighbour: FP8 has 3 bits behind the first, and in INT8 rows of normal numbers lie apart by 5 / 127."""


def assert_near(got: Tensor, want: Tensor, call: dict[str, Any], name: str, **tolerance: float) -> None:
    """Of `values`. tolerance: where the values are not quantized."""
    if "fmt" in call and name == "out":
        tolerance = ONE_STEP[call["fmt"].dtype]
    assert torch.allclose(got.float(), want.float(), **tolerance, equal_nan=True), name


@each_op
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_go_through_as_in_the_reference(device: torch.device, op: NormOp, bad: float) -> None:
    for spec in specs(op):
        call = make(spec, device)
        for place, name in enumerate(name for name in call if is_rows(op, name, call[name])):
            call[name][1 + place % 2].view(-1)[5] = bad
        expected, got = (values(op, call, outcome) for outcome in (by_formula(op, call), run(op, copied(call))))
        for name, value in got.items():
            assert torch.equal(value.isnan(), expected[name].isnan()), (spec, name)
            assert torch.equal(value.isinf(), expected[name].isinf()), (spec, name)
            assert_near(value, expected[name], call, name, rtol=1e-2, atol=1e-3)


@each_op
def test_zero_rows_are_fine(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        for name, result in run(op, make(spec, device, num_tokens=0)).items():
            assert result.numel() == 0, name
    wide = make(dataclasses.replace(next(iter(specs(op))), heads=2), device, num_tokens=0)
    assert all(result.numel() == 0 for result in run(op, wide).values())


# Layouts


def columns(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], 3 * x.shape[-1])[..., x.shape[-1] : 2 * x.shape[-1]]


def every_other_row(x: Tensor) -> Tensor:
    return x.new_zeros(2 * x.shape[0], *x.shape[1:])[::2]


def transposed(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def misaligned(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)[..., 3:]


def last_stride_2(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]


def last_dimension_first(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[-1], *x.shape[:-1]).movedim(0, -1)


def three_leading(x: Tensor) -> Tensor:
    """x is (tokens, 2, N): seen as if tokens lay in two dimensions of a permuted buffer."""
    return x.new_zeros(2, 8, x.shape[0], x.shape[-1]).permute(2, 0, 1, 3)[:, :, 3]


VIEWS = [columns, every_other_row, transposed, misaligned, last_stride_2, last_dimension_first, three_leading]


def viewed(op: NormOp, call: dict[str, Any], view: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """With views of rows, where the view has room for the rows."""
    views = {name: view(value) for name, value in call.items() if is_rows(op, name, value)}
    return call | {name: seen.copy_(call[name]) for name, seen in views.items() if seen.shape == call[name].shape}


@each_op
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_and_written_where_they_lie(
    device: torch.device, op: NormOp, view: Callable[[Tensor], Tensor]
) -> None:
    for spec in specs(op):
        call = make(dataclasses.replace(spec, heads=2), device, num_tokens=10)
        new = run(op, copied(call))
        expected = values(op, call, new)
        call = viewed(op, call, view)
        if op.results and op.has_out:
            given = {result.name: of_result(result, view, call) for result in op.results}
            outcome = run(op, copied(call), **given)
            assert all(name not in given or result is given[name] for name, result in outcome.items())
            for name, value in values(op, call, outcome).items():
                assert_near(value, expected[name], call, name, rtol=2**-6, atol=2**-6)
        beside = {name: outside(call[name]) for name in op.may_be if name in call and call[name] is not None}
        got = values(op, call, run(op, call))
        for name, want in expected.items():
            assert_near(got[name], want, call, name, rtol=2**-6, atol=2**-6)
        for name, before in beside.items():
            assert torch.equal(outside(call[name]), before), f"{name}: something beside the view was written"


def of_result(result: Result, view: Callable[[Tensor], Tensor], call: dict[str, Any]) -> Tensor:
    made = result.empty(call)
    free = result.layout(call).strides is None and made.dim() == call["x"].dim()
    return view(made) if free else made


def outside(view: Tensor) -> Tensor:
    """The elements of the view's storage that it does not show."""
    everything = torch.as_strided(view, (view.untyped_storage().nbytes() // view.itemsize,), (1,), 0)
    shown = torch.zeros(everything.numel(), dtype=torch.bool, device=view.device)
    shown.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    return everything[~shown].clone()


# Wrong input


def wrong(op: NormOp, call: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """For each argument and each result that is given: what is wrong, the call with it, words that the error has."""
    for name, parameter in op.all.items():
        value = call.get(name)
        if isinstance(parameter, Choice):
            yield f"{name} unknown", call | {name: "nothing"}, (name, "'nothing'", *parameter.allowed)
        elif isinstance(parameter, Flag):
            yield f"{name} of None", call | {name: None}, (f"{name} is None", "True or False")
        elif type(parameter) is Number:
            for number in (math.nan, math.inf, -math.inf, 1e39, *((-1e-6,) if name == "eps" else ())):
                yield f"{name} of {number}", call | {name: number}, (f"{name} is {number}", "finite")
        elif isinstance(parameter, Divisor):
            yield f"{name} of 0", call | {name: 0}, (name, "0", "128")
            yield f"{name} does not divide", call | {name: 48}, (name, "48", "128")
        elif isinstance(value, Tensor):
            for what, spoilt, words in wrong_tensors(parameter, value, op.subject(call)):
                yield f"{name}: {what}", call | {name: spoilt}, (name, *words)
            if name in op.may_be:
                for what, spoilt, words in wrong_memory(op, name, call):
                    yield f"{name}: {what}", spoilt, (name, *words)


MAY_BE_SHORT = {"slot_mapping"}


def wrong_tensors(parameter: Any, tensor: Tensor, x: Tensor) -> Iterator[tuple[str, Tensor, tuple[str, ...]]]:
    other = torch.float64 if tensor.dtype == torch.float16 else torch.float16
    if tensor is x:
        yield "of integers", tensor.int(), ("dtype", "int32", "bfloat16")
        yield "without a dimension", tensor.flatten()[0], ("shape", "()")
        yield "of no elements", tensor[..., :0], ("shape", str((*tensor.shape[:-1], 0)))
        return
    yield "other dtype", tensor.to(other), ("dtype", str(other))
    yield "elsewhere", torch.empty_like(tensor, device="meta"), ("device", "meta")
    if parameter.name in MAY_BE_SHORT:
        longer = tensor.repeat(2)
        yield "too long", longer, ("shape", str(tuple(longer.shape)))
    elif tensor.dim():
        yield "too short", tensor[..., :-1], ("shape", str((*tensor.shape[:-1], tensor.shape[-1] - 1)))
    if tensor.dim():
        yield "another dimension", tensor[None], ("shape", str((1, *tensor.shape)))
    else:
        yield "two elements", tensor.expand(2), ("shape", "(2,)")


def wrong_memory(op: NormOp, name: str, call: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    tensor = call[name]
    if tensor.shape[0] > 1:
        expanded = tensor[:1].expand(tensor.shape)
        yield "expanded", call | {name: expanded}, ("stride()", str(expanded.stride()))
    if tensor.dim() > 1 and tensor.shape[-1] > 1:
        steps = (*tensor.stride()[:-1], 0)
        if tensor.dtype in KERNEL_DTYPES:
            yield "to be negated", call | {name: torch._neg_view(tensor)}, ("is_neg()", "resolve_neg()")
        yield "one column", call | {name: tensor.as_strided(tensor.shape, steps)}, ("stride()", str(steps))
    for other, value in call.items():
        if other == name or not isinstance(value, Tensor):
            continue
        shared = torch.zeros(tensor.nbytes + value.nbytes + 64, dtype=torch.uint8, device=tensor.device)
        if other not in op.may_be.get(name, ()) and (value.shape, value.dtype) == (tensor.shape, tensor.dtype):
            yield f"is {other}", call | {name: value}, (other, "overlap")
        first = restrided(shared[: value.nbytes].view(value.dtype), value).copy_(value)
        offset = 0 if value.nbytes <= 16 else value.nbytes // 2 // 16 * 16
        second = shared[offset : offset + tensor.nbytes].view(tensor.dtype)
        yield f"over {other}", call | {other: first, name: restrided(second, tensor)}, (other, "overlap")


def restrided(flat: Tensor, like: Tensor) -> Tensor:
    return flat.as_strided(like.shape, like.stride()) if not like.is_contiguous() else flat.view(like.shape)


@each_op
def test_wrong_input_is_named_and_changes_nothing(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        for given in (False, True) if op.results and op.has_out else (False,):
            call = make(spec, device, num_tokens=4)
            call |= {n: t for n, t in results(op, call).items() if t.numel()} if given else {}
            for what, spoilt, words in wrong(op, call):
                tensors = [v for v in spoilt.values() if isinstance(v, Tensor) and v.device.type != "meta"]
                before = [t.clone() for t in tensors]
                for ask in (op.function, functools.partial(serving_ops.explain, op.name)):
                    with pytest.raises((RuntimeError, ValueError)) as raised:
                        ask(**spoilt)
                    missing = [word for word in words if word not in str(raised.value)]
                    assert not missing, f"{what}: {missing} not in {raised.value}"
                assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True)), f"{what}: it was written"


@each_op
def test_what_is_no_tensor_is_named_and_changes_nothing(device: torch.device, op: NormOp) -> None:
    call = make(next(iter(specs(op))), device, num_tokens=4)
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
    before = copied(tensors)
    for name, tensor in tensors.items():
        with pytest.raises(RuntimeError, match=f"type '.*' for argument '{name}' but instead found type 'ndarray'"):
            op.function(**call | {name: tensor.float().cpu().numpy()})
    assert all(same_bits(tensor, before[name]) for name, tensor in tensors.items())


@each_op
def test_none_in_place_of_a_tensor_is_named_and_changes_nothing(device: torch.device, op: NormOp) -> None:
    call = make(next(iter(specs(op))), device, num_tokens=4)
    needed = [name for name in call if op.parameters[name].annotation == "Tensor"]
    assert needed[0] == op.arguments[0].name
    before = copied(call)
    for name in needed:
        for ask in (op.function, functools.partial(serving_ops.explain, op.name)):
            with pytest.raises(RuntimeError, match=f"serving_ops: {name} is None: it must be a tensor"):
                ask(**call | {name: None})
    assert all(same_bits(value, before[name]) for name, value in call.items() if isinstance(value, Tensor))


@each_op
def test_a_sparse_tensor_is_named(device: torch.device, op: NormOp) -> None:
    call = make(next(iter(specs(op))), device, num_tokens=4)
    for name, tensor in call.items():
        if isinstance(tensor, Tensor):
            with pytest.raises(RuntimeError, match=f"serving_ops: {name}.layout is torch.sparse_coo: .*torch.strided"):
                op.function(**call | {name: tensor.to_sparse()})


@each_op
def test_a_call_that_writes_does_not_differentiate_and_says_so(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        call = make(spec, device)
        given = {n: t for n, t in results(op, call).items() if t.numel()} if op.results and op.has_out else {}
        if not given and not any(name in op.may_be for name in call if isinstance(call[name], Tensor)):
            continue
        for name, value in call.items():
            if is_floating(value):
                spoilt = copied(call)
                spoilt[name].requires_grad_()
                with pytest.raises(RuntimeError, match=rf"{name}\.requires_grad is True.*no_grad"):
                    op.function(**spoilt, **given)
                with torch.no_grad():
                    op.function(**spoilt, **given)


# PyTorch


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_opcheck(device: torch.device, op: NormOp, dtype: torch.dtype) -> None:
    """Without its check of schemas for fp8, on which PyTorch has no arithmetic to compare results with."""
    packet = getattr(torch.ops.serving_ops, op.name)
    for spec in specs(op, dtype):
        call = make(spec, device, num_tokens=8)  # columns that are padded to no more rows survive its copies
        arguments = op.unbind(call)
        tensors = [value for value in (call | op.empty_results(call)).values() if isinstance(value, Tensor)]
        is_fp8 = any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors)
        tests = ("test_faketensor", "test_aot_dispatch_dynamic", *(() if is_fp8 else ("test_schema",)))
        torch.library.opcheck(packet.default, (), arguments, test_utils=tests)
        if op.results and op.has_out:
            torch.library.opcheck(packet.out, (), arguments | results(op, call), test_utils=tests)


@each_op
def test_a_compiled_call_gives_the_eager_result(device: torch.device, op: NormOp) -> None:
    for spec in specs(op):
        call = make(spec, device)
        options = {name: value for name, value in call.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
        torch._dynamo.reset()
        compiled = torch.compile(functools.partial(op.function, **options), fullgraph=True)
        ran = copied(tensors)
        got, expected = collect(op, ran, compiled(**ran)), run(op, copied(call))
        for name, want in expected.items():
            assert same_bits(got[name], want), (spec, name)


@each_op
def test_a_compiled_call_without_gradients_is_one_of_the_operator(device: torch.device, op: NormOp) -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    for spec in specs(op):
        call = make(spec, device)
        torch._dynamo.reset()
        targets.clear()
        torch.compile(op.function, fullgraph=True, backend=backend)(**call)
        assert any(target.split(".")[:2] == ["serving_ops", op.name] for target in targets), (spec, targets)


# What runs


def calls_of(op: NormOp) -> dict[str, Any]:
    return serving_ops.counters.snapshot()[op.part_of or op.name]


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_explain_agrees_with_what_ran(device: torch.device, op: NormOp, dtype: torch.dtype) -> None:
    for view in (torch.empty_like, *VIEWS):
        for spec in specs(op, dtype):
            call = viewed(op, make(dataclasses.replace(spec, heads=2), device, num_tokens=10), view)
            explanation, before = serving_ops.explain(op.name, **call), calls_of(op)
            run(op, call)
            after = calls_of(op)
            assert after["kernel"] - before["kernel"] == (explanation.path != "reference"), (spec, explanation)
            if explanation.path == "reference":
                counted = [after["reference"][explanation.reason], before["reference"].get(explanation.reason, 0)]
                assert counted[0] == counted[1] + 1


@each_in_cpp
@each_dtype
def test_what_cpp_is_made_for_runs_in_cpp(op: NormOp, dtype: torch.dtype) -> None:
    if serving_ops.cpp_library() is None:
        pytest.skip("the C++ library was not built")
    for size in SIZES:
        for spec in specs(op, dtype, size):
            found = serving_ops.explain(op.name, **make(spec, torch.device("cpu")))
            assert found.path == ("cpu" if has_cpp_kernel(spec) else "reference"), spec


def has_cpp_kernel(spec: serving_ops.NormSpec) -> bool:
    """On CPU: one form of quantization, of rows of one dtype, and a rotation without a cache."""
    form = spec.fmt and (spec.fmt.dtype, spec.fmt.granularity, spec.fmt.scale_format)
    is_taken = form in (None, (torch.int8, "token", "fp32")) and not (spec.fmt and spec.fp32_residual)
    return is_taken and not spec.rotation.has_cache


@each_op
def test_prewarm_runs_what_a_layer_may_ask_for(device: torch.device, op: NormOp) -> None:
    wanted = [dataclasses.replace(spec, device=device) for spec in specs(op)]
    report = serving_ops.prewarm(wanted)
    assert not report.failed
    assert report.warmed == list(dict.fromkeys(wanted))


@each_op
def test_a_failing_prewarm_is_reported_and_not_raised(device: torch.device, op: NormOp) -> None:
    good = dataclasses.replace(next(iter(specs(op))), device=device)
    bad = dataclasses.replace(good, dtype=torch.int32)
    report = serving_ops.prewarm([bad, good])
    assert list(report.failed) == [bad]
    assert "int32" in report.failed[bad]
    assert report.warmed == [good]


@pytest.mark.parametrize("norms", [next(iter(specs(OPS[0]))), None], ids=["one spec", "None"])
def test_prewarm_takes_an_iterable_alone(norms: Any) -> None:
    with pytest.raises(TypeError, match=r"norms is (NormSpec|None).*: it must be an iterable"):
        serving_ops.prewarm(norms)


@pytest.mark.parametrize("norms", ["rms_norm", ["rms_norm"], [None]], ids=str)
def test_prewarm_takes_specs_alone(norms: Any) -> None:
    with pytest.raises(TypeError, match=r"norms holds ('rms_norm'|None): .*NormSpec"):
        serving_ops.prewarm(norms)


@each_op
def test_bytes_moved_are_those_of_its_rows(op: NormOp) -> None:
    call = make(next(iter(specs(op))), torch.device("meta"), num_tokens=7)
    row = 7 * 128 * 2
    moved = {"fused_add_rms_norm": 4 * row, "add_rms_norm": 4 * row, "rms_norm": 2 * row, "rms_norm_gated": 3 * row}
    assert registry.bytes_moved(op, call) == moved.get(op.name, registry.bytes_moved(op, call)) > 0
