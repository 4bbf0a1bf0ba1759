"""Gradients of the ops: against float64, against eager PyTorch, compiled; and the same bits forward as in serving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import rms_error, rows
from torch import Tensor

import serving_ops
from serving_ops import reference

SLACK = 1.05
"""Ratio of root-mean-square errors of gradients to those of eager PyTorch, which sums in another order."""

FP32_FLOOR = {"cpu": 2.0**-23, "cuda": 2.0**-21}
"""By the exact gradient's root mean square. At fp32 both sides are a few roundings off, which of them is luck; on CUDA
programs sum their rows one by one, and rsqrt is off by up to 2^-22.9 (PTX ISA, rsqrt.approx)."""

Op = Callable[..., Any]


def plain(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm) -> tuple[Tensor, ...]:
    return (op(x, weight, 1e-5),)


def plain_from_one(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm) -> tuple[Tensor, ...]:
    return (op(x, weight, 1e-5, weight_offset=1.0),)


def plain_unweighted(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm) -> tuple[Tensor, ...]:
    return (op(x, None, 1e-5),)


def _eager_add(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, **options: Any) -> Any:
    """As models write it, who keep no unrounded sum either."""
    total = x + residual
    return reference.rms_norm(total, weight, eps, **options), total


def added(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.add_rms_norm) -> tuple[Tensor, ...]:
    return tuple(op(x, other, weight, 1e-5))


def added_from_one(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.add_rms_norm) -> tuple[Tensor, ...]:
    return tuple(op(x, other, weight, 1e-5, weight_offset=1.0))


def gated(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm_gated) -> tuple[Tensor, ...]:
    return (op(x, other, weight, 1e-5, bias=weight * 0.5, group_size=16),)


def gated_first(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm_gated) -> tuple[Tensor, ...]:
    return (op(x, other, weight, 1e-5, norm_before_gate=False, activation="sigmoid"),)


def ungated(x: Tensor, other: Tensor, weight: Tensor, op: Op = serving_ops.rms_norm_gated) -> tuple[Tensor, ...]:
    return (op(x, None, weight, 1e-5),)


REFERENCES: dict[Op, Op] = {
    plain: reference.rms_norm,
    plain_from_one: reference.rms_norm,
    plain_unweighted: reference.rms_norm,
    added: _eager_add,
    added_from_one: _eager_add,
    gated: reference.rms_norm_gated,
    gated_first: reference.rms_norm_gated,
    ungated: reference.rms_norm_gated,
}
CALLS = list(REFERENCES)


def inputs(device: torch.device, dtype: torch.dtype, num_tokens: int = 37, size: int = 64) -> list[Tensor]:
    made = [rows((num_tokens, size), dtype, device, 1), rows((num_tokens, size), dtype, device, 2)]
    return [*made, rows((size,), dtype, device, 3)]


def gradients(call: Op, tensors: list[Tensor], *op: Op) -> list[Tensor]:
    """Of a fixed weighting of every result, for every tensor that takes part."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = call(*leaves, *op)
    seeds = [rows(tuple(result.shape), torch.float32, result.device, 9 + i) for i, result in enumerate(results)]
    seeds = [seed.to(result.dtype) for seed, result in zip(seeds, results, strict=True)]
    got = torch.autograd.grad(results, leaves, seeds, allow_unused=True)
    return [gradient for gradient in got if gradient is not None]


@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_the_derivative(device: torch.device, call: Op) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(device, torch.float64, 3, 32)]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_gradients_are_as_close_to_float64_as_those_of_eager_pytorch(
    device: torch.device, call: Op, dtype: torch.dtype
) -> None:
    tensors = inputs(device, dtype, 211, 128)
    exact = gradients(call, [tensor.double() for tensor in tensors], REFERENCES[call])
    eager = gradients(call, tensors, REFERENCES[call])
    ours = gradients(call, tensors)
    assert len(ours) == len(eager) == len(exact)
    for mine, theirs, truth in zip(ours, eager, exact, strict=True):
        assert mine.dtype == theirs.dtype
        floor = FP32_FLOOR[device.type] * float(truth.square().mean().sqrt())
        assert rms_error(mine, truth) <= max(SLACK * rms_error(theirs, truth), floor)


@pytest.mark.parametrize("call", CALLS)
def test_a_row_has_the_bits_of_serving(device: torch.device, call: Op) -> None:
    tensors = inputs(device, torch.bfloat16)
    served = call(*tensors)
    trained = call(*(tensor.requires_grad_() for tensor in tensors))
    assert all(result.requires_grad for result in trained)
    assert all(torch.equal(a, b) for a, b in zip(served, trained, strict=True))


def test_the_functional_add_has_the_bits_of_the_one_in_place_and_writes_nothing(device: torch.device) -> None:
    x, residual, weight = inputs(device, torch.bfloat16)
    before = x.clone(), residual.clone()
    out, total = serving_ops.add_rms_norm(x, residual, weight)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    serving_ops.fused_add_rms_norm(x, residual, weight)
    assert torch.equal(out, x)
    assert torch.equal(total, residual)


def test_views_are_differentiated_where_they_lie(device: torch.device) -> None:
    qkv = rows((5, 512), torch.float64, device).requires_grad_()
    weight = rows((64,), torch.float64, device).requires_grad_()

    def heads(qkv: Tensor, weight: Tensor) -> Tensor:
        return serving_ops.rms_norm(qkv[:, :256].view(5, 4, 64), weight)

    assert torch.autograd.gradcheck(heads, (qkv, weight), fast_mode=True)


def test_a_gradient_that_is_one_number_for_all_is_taken(device: torch.device) -> None:
    x, residual, weight = (tensor.requires_grad_() for tensor in inputs(device, torch.float32))
    serving_ops.add_rms_norm(x, residual, weight)[1].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(residual.grad, torch.ones_like(x))
    assert not weight.grad.any()


def test_no_rows_have_gradients_too(device: torch.device) -> None:
    x, residual, weight = (tensor.requires_grad_() for tensor in inputs(device, torch.bfloat16, num_tokens=0))
    for call in CALLS:
        sum(result.sum() for result in call(x, residual, weight)).backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


def test_the_same_call_gives_the_same_gradient_bits(device: torch.device) -> None:
    tensors = inputs(device, torch.bfloat16, 300, 256)
    for call in CALLS:
        first, second = (gradients(call, tensors) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_compiled_gradients_are_those_of_eager_mode(device: torch.device, call: Op) -> None:
    torch._dynamo.reset()
    tensors = inputs(device, torch.float32)
    compiled = torch.compile(call, fullgraph=True)
    for ours, eager in zip(gradients(compiled, tensors), gradients(call, tensors), strict=True):
        torch.testing.assert_close(ours, eager)


def test_without_gradients_the_operator_is_called_as_in_serving(device: torch.device) -> None:
    x, _, weight = inputs(device, torch.bfloat16)
    with torch.no_grad():
        assert serving_ops.rms_norm(x.requires_grad_(), weight).grad_fn is None
    assert "RMSNorm" in type(serving_ops.rms_norm(x, weight).grad_fn).__name__


@pytest.mark.parametrize("leaf", ["x", "residual", "weight"])
def test_the_op_in_place_refuses_and_names_the_functional_one(device: torch.device, leaf: str) -> None:
    call = dict(zip(("x", "residual", "weight"), inputs(device, torch.bfloat16), strict=True))
    call[leaf].requires_grad_()
    before = {name: tensor.detach().clone() for name, tensor in call.items()}
    with pytest.raises(RuntimeError, match=rf"{leaf}\.requires_grad is True.*serving_ops\.add_rms_norm"):
        serving_ops.fused_add_rms_norm(**call)
    assert all(torch.equal(call[name], tensor) for name, tensor in before.items())


BACKWARD_CALLS = {
    "rms_norm_backward": lambda dout, x, w: ((dout, x, w, 1e-6), {"weight_offset": 1.0, "ds_more": dout}),
    "rms_norm_backward, unweighted": lambda dout, x, w: (
        (dout, x, None, 1e-6),
        {"weight_offset": 0.0, "ds_more": None},
    ),
    "rms_norm_gated_backward": lambda dout, x, w: (
        (dout, x, dout.clone(), w, 1e-6),
        {"bias": w.clone(), "norm_before_gate": True, "activation": "silu", "group_size": 32},
    ),
    "rms_norm_gated_backward, no gate": lambda dout, x, w: (
        (dout, x, None, w, 1e-6),
        {"bias": None, "norm_before_gate": False, "activation": "sigmoid", "group_size": None},
    ),
}


@pytest.mark.parametrize("name", BACKWARD_CALLS)
def test_opcheck_of_the_operators_behind_autograd(device: torch.device, name: str) -> None:
    args, kwargs = BACKWARD_CALLS[name](*inputs(device, torch.bfloat16))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    op = getattr(torch.ops.serving_ops, name.partition(",")[0]).default
    torch.library.opcheck(op, args, kwargs, test_utils=tests)


def test_a_wrong_gradient_is_refused_by_name(device: torch.device) -> None:
    x, _, weight = inputs(device, torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"dout\.shape is \(36, 64\)"):
        torch.ops.serving_ops.rms_norm_backward(x[1:], x, weight, 1e-6, weight_offset=0.0, ds_more=None)
    for wrong in (x[1:], x.float()):
        with pytest.raises(RuntimeError, match=r"ds_more\."):
            torch.ops.serving_ops.rms_norm_backward(x, x, weight, 1e-6, weight_offset=0.0, ds_more=wrong)


@pytest.mark.parametrize("name", BACKWARD_CALLS)
def test_a_wrong_eps_of_a_gradient_is_refused(device: torch.device, name: str) -> None:
    args, kwargs = BACKWARD_CALLS[name](*inputs(device, torch.bfloat16))
    op = getattr(torch.ops.serving_ops, name.partition(",")[0]).default
    for eps in (math.nan, math.inf, -1e-6):
        wrong = tuple(eps if isinstance(value, float) else value for value in args)
        with pytest.raises(RuntimeError, match=f"eps is {eps}: "):
            op(*wrong, **kwargs)


def test_an_fp32_residual_has_the_exact_gradients_in_its_own_dtype(device: torch.device) -> None:
    x, weight = (rows(shape, torch.bfloat16, device, seed) for seed, shape in enumerate(((5, 64), (64,))))
    given = [x, rows((5, 64), torch.float32, device, 2), weight]
    for compiled in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        double = [tensor.double().requires_grad_() for tensor in given]
        op = torch.compile(serving_ops.add_rms_norm, fullgraph=True) if compiled else serving_ops.add_rms_norm
        out, total = op(*leaves)
        assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)
        ((out.double() * 0.5).sum() + total.double().square().sum()).backward()
        exact_out, exact_total = reference.add_rms_norm(*double)
        ((exact_out * 0.5).sum() + exact_total.square().sum()).backward()
        for leaf, exact in zip(leaves, double, strict=True):
            assert leaf.grad is not None
            assert exact.grad is not None
            assert leaf.grad.dtype == leaf.dtype
            assert torch.allclose(leaf.grad.double(), exact.grad, rtol=2**-6, atol=2**-4)
