"""Derivatives beyond `backward()`: second ones, forward mode, `torch.func`, exported graphs. None is silently wrong.

In fp32 and bf16, since float64 runs on the formulas anyway.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import rows
from torch import Tensor
from torch.autograd import forward_ad

import serving_ops
from serving_ops import nn, reference

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def both(results: tuple[Tensor, Tensor]) -> Tensor:
    return results[0] + 0.5 * results[1]


CALLS: dict[str, tuple[Call, Call]] = {
    "rms_norm": (
        lambda x, other, weight: serving_ops.rms_norm(x, weight, 1e-5, weight_offset=1.0),
        lambda x, other, weight: reference.rms_norm(x, weight, 1e-5, weight_offset=1.0),
    ),
    "add_rms_norm": (
        lambda x, other, weight: both(serving_ops.add_rms_norm(x, other, weight, 1e-5)),
        lambda x, other, weight: both(reference.add_rms_norm(x, other, weight, 1e-5)),
    ),
    "rms_norm_gated": (
        lambda x, other, weight: serving_ops.rms_norm_gated(x, other, weight, 1e-5, bias=weight * 0.5, group_size=8),
        lambda x, other, weight: reference.rms_norm_gated(x, other, weight, 1e-5, bias=weight * 0.5, group_size=8),
    ),
    "rms_norm_gated, gate first": (
        lambda x, other, weight: serving_ops.rms_norm_gated(
            x, other, weight, 1e-5, norm_before_gate=False, activation="sigmoid"
        ),
        lambda x, other, weight: reference.rms_norm_gated(
            x, other, weight, 1e-5, norm_before_gate=False, activation="sigmoid"
        ),
    ),
}
"""Each public function that is differentiated, as one result, and the same in plain PyTorch."""

each_call = pytest.mark.parametrize(("ours", "plain"), CALLS.values(), ids=list(CALLS))


def sample(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return rows((3, 16), dtype, device, 1), rows((3, 16), dtype, device, 2), rows((16,), dtype, device, 3)


def gradient_penalty(call: Call, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradient of the squared gradient of a sum of cubes."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = call(*leaves).float().pow(3).sum() + sum(leaf.float().square().sum() for leaf in leaves)
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return torch.autograd.grad(sum(gradient.float().square().sum() for gradient in first), leaves)


def test_a_second_derivative_known_by_hand(device: torch.device) -> None:
    x = torch.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    loss = serving_ops.rms_norm(x, None).pow(3).sum() + x.square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(second, torch.tensor([[7.2627, 15.9078]], device=device), rtol=1e-4, atol=0)


def test_a_second_derivative_whose_incoming_gradient_is_constant(device: torch.device) -> None:
    """`once_differentiable` would let this one pass: the gradient that comes in does not require grad."""
    x = torch.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    (first,) = torch.autograd.grad(serving_ops.rms_norm(x, None)[:, 0].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    exact = x.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(reference.rms_norm(exact, None)[:, 0].sum(), exact, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), exact)
    torch.testing.assert_close(second.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_call
def test_second_derivatives_are_those_of_plain_pytorch(
    device: torch.device, ours: Call, plain: Call, dtype: torch.dtype
) -> None:
    tensors = sample(device, dtype)
    exact = gradient_penalty(plain, tuple(tensor.double() for tensor in tensors))
    for mine, truth in zip(gradient_penalty(ours, tensors), exact, strict=True):
        error = float((mine.double() - truth).norm() / truth.norm())
        assert error < (1e-5 if dtype == torch.float32 else 0.03)


@each_call
def test_second_derivatives_agree_with_finite_differences(device: torch.device, ours: Call, plain: Call) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in sample(device)]
    assert torch.autograd.gradgradcheck(ours, leaves, fast_mode=True)


@each_call
def test_compiled_functions_give_no_wrong_second_derivative(device: torch.device, ours: Call, plain: Call) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient_penalty(compiled, sample(device))


def test_a_gradient_without_a_second_one_comes_from_the_kernels(device: torch.device) -> None:
    x, _, weight = (tensor.requires_grad_() for tensor in sample(device, torch.bfloat16))
    with torch.profiler.profile() as profile:
        serving_ops.rms_norm(x, weight).sum().backward()
    assert "serving_ops::rms_norm_backward" in {event.key for event in profile.key_averages()}


TRANSFORMS: dict[str, Callable[[Call], Call]] = {
    "jvp": lambda call: lambda *tensors: torch.func.jvp(call, tensors, tensors)[1],
    "jacfwd": lambda call: torch.func.jacfwd(call, argnums=(0, 1, 2)),
    "jacrev": lambda call: torch.func.jacrev(call, argnums=(0, 1, 2)),
    "hessian": lambda call: torch.func.hessian(lambda *tensors: call(*tensors).pow(3).sum(), argnums=(0, 2)),
    "grad of grad": lambda call: torch.func.grad(
        lambda *tensors: torch.func.grad(lambda *inner: call(*inner).pow(3).sum())(*tensors).square().sum()
    ),
    "vmap": lambda call: torch.func.vmap(call, in_dims=(0, 0, None)),
    "vmap over the weight": lambda call: (
        lambda x, other, weight: torch.func.vmap(call, in_dims=(None, None, 0))(
            x, other, torch.stack([weight, 2 * weight])
        )
    ),
    "gradients of each row": lambda call: torch.func.vmap(
        torch.func.grad(lambda *tensors: call(*tensors).pow(3).sum(), argnums=(0, 2)), in_dims=(0, 0, None)
    ),
}


def assert_as_in_float64(ours: Any, plain: Any, tensors: tuple[Tensor, ...]) -> None:
    results, exact = ours(*tensors), plain(*(tensor.double() for tensor in tensors))
    flat, _ = torch.utils._pytree.tree_flatten(results)
    flat_exact, _ = torch.utils._pytree.tree_flatten(exact)
    assert any(truth.any() for truth in flat_exact)
    for mine, truth in zip(flat, flat_exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
@each_call
def test_transforms_of_torch_func(device: torch.device, transform: Any, ours: Call, plain: Call) -> None:
    assert_as_in_float64(transform(ours), transform(plain), sample(device))


@pytest.mark.parametrize("name", ["jvp", "gradients of each row"])
@each_call
def test_compiled_transforms(device: torch.device, name: str, ours: Call, plain: Call) -> None:
    torch._dynamo.reset()
    transform = TRANSFORMS[name]
    compiled = torch.compile(transform(ours), backend="aot_eager", fullgraph=True)
    assert_as_in_float64(compiled, transform(plain), sample(device))


def tangent(call: Call, *tensors: Tensor) -> Tensor:
    with forward_ad.dual_level():
        result = call(*(forward_ad.make_dual(tensor, tensor.clone()) for tensor in tensors))
        return forward_ad.unpack_dual(result).tangent


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@each_call
def test_dual_tensors(device: torch.device, ours: Call, plain: Call, mode: Any) -> None:
    with mode():
        assert_as_in_float64(lambda *t: tangent(ours, *t), lambda *t: tangent(plain, *t), sample(device))


def test_a_function_compiled_before_sees_dual_tensors(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, other, weight: serving_ops.rms_norm(x, weight), backend="aot_eager")
    tensors = sample(device)
    compiled(*tensors)
    assert_as_in_float64(
        lambda *t: tangent(compiled, *t),
        lambda *t: tangent(lambda x, other, weight: reference.rms_norm(x, weight), *t),
        tensors,
    )


IN_PLACE: dict[str, Callable[[Tensor, Tensor], object]] = {
    "fused_add_rms_norm": lambda x, other: serving_ops.fused_add_rms_norm(other, x, None),
    "rms_norm": lambda x, other: serving_ops.rms_norm(x, None, out=other),
    "rms_norm_gated": lambda x, other: serving_ops.rms_norm_gated(other, x, None, out=other),
}


@pytest.mark.parametrize("write", IN_PLACE.values(), ids=list(IN_PLACE))
def test_calls_in_place_refuse_what_is_transformed_and_write_nothing(device: torch.device, write: Any) -> None:
    x, other, _ = sample(device)
    before = other.clone()
    with pytest.raises(RuntimeError, match="in place and is not transformed"):
        torch.func.vmap(lambda x: write(x, other))(x[None])
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="in place and is not transformed"):
        write(forward_ad.make_dual(x, x.clone()), other)
    assert torch.equal(other, before)


@pytest.mark.parametrize("write", IN_PLACE.values(), ids=list(IN_PLACE))
def test_calls_in_place_run_beside_dual_tensors(device: torch.device, write: Any) -> None:
    x, other, _ = sample(device)
    before = other.clone()
    with forward_ad.dual_level():
        write(x, other)
    assert not torch.equal(other, before)


def test_wrong_input_is_named_under_transforms_too(device: torch.device) -> None:
    x, _, weight = sample(device)
    for call in (serving_ops.rms_norm, lambda x, w, **eps: serving_ops.add_rms_norm(x, x, w, **eps)):
        with pytest.raises(RuntimeError, match=r"weight\.shape is \(15,\)"):
            torch.func.jvp(lambda x: call(x, weight[1:]), (x,), (x,))  # noqa: B023
        with pytest.raises(RuntimeError, match="eps is nan"):
            torch.func.jvp(lambda x: call(x, weight, eps=math.nan), (x,), (x,))  # noqa: B023
    with pytest.raises(RuntimeError, match="activation is 'relu'"):
        torch.func.jvp(lambda x: serving_ops.rms_norm_gated(x, x, weight, activation="relu"), (x,), (x,))


class Block(torch.nn.Module):
    """One of each module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain, self.gated = torch.nn.Linear(16, 16), nn.RMSNorm(16), nn.RMSNormGated(16)
        self.from_one = nn.GemmaRMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.plain(self.first(x), x)
        return self.gated(self.from_one(h), total).sin() + total


def gradients_of(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    for parameter in module.parameters():
        parameter.requires_grad_()
        parameter.grad = None
    module(x).square().sum().backward()
    return {"x": x.grad, **{name: parameter.grad for name, parameter in module.named_parameters()}}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_an_exported_model_trains(device: torch.device, strict: bool, frozen: bool, mode: Any) -> None:
    block, (x, _, _) = Block().to(device).requires_grad_(not frozen), sample(device)
    with mode():
        exported = torch.export.export(block, (x,), strict=strict)
    expected = gradients_of(block, x)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    reruns = {
        "module": exported.module(),
        "decomposed": exported.run_decompositions().module(),
        "saved and loaded": torch.export.load(buffer).module(),
        "exported again": torch.export.export(exported.module(), (x,), strict=strict).module(),
        "compiled": torch.compile(exported.module(), backend="aot_eager"),
    }
    for name, module in reruns.items():
        got = {key.removeprefix("_orig_mod."): gradient for key, gradient in gradients_of(module, x).items()}
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_an_exported_model_serves_with_the_bits_of_the_module(device: torch.device) -> None:
    block, (x, _, _) = Block().to(device), sample(device)
    exported = torch.export.export(block, (x,)).module()
    with torch.inference_mode():
        assert torch.equal(exported(x), block(x))
