"""`rms_norm_backward` and `rms_norm_gated_backward`: what autograd calls (see `serving_ops.training.autograd`).

With s the row that is normed, n = s * rsqrt(mean(s^2) + eps), y = n * weight + bias (weight: with its offset), and dt
the gradient of t:

dn      = dy * weight
ds      = rsqrt(mean(s^2) + eps) * (dn - n * mean(dn * n))
dweight = the sum of dy * n over rows, dbias that of dy

A gate g = act(z) behind the norm gives out = y * g, so dy = dout * g and dg = dout * y; one before it s = x * g, so
dx = ds * g and dg = ds * x. In fp32 (float64 for float64), rounded once at the end. On CPU in C++
(kernels/cpu/backward/), on CUDA in Triton (kernels/triton/backward/), where rstd is not kept from the forward but
computed anew from the row that has to be read anyway; the rest is plain PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from serving_ops import checks, reference
from serving_ops.ops import registry
from serving_ops.schemas import define, define_fallback
from serving_ops.training import cuda_backward


def _normed(s: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + eps)
    return s * rstd, rstd


def _before_norm(dn: Tensor, n: Tensor, rstd: Tensor) -> Tensor:
    return rstd * (dn - n * (dn * n).mean(dim=-1, keepdim=True))


def _over_rows(values: Tensor, vector: Tensor | None, x: Tensor) -> Tensor:
    """The gradient of a vector that every row shares; empty for none."""
    if vector is None:
        return x.new_empty(0)
    return values.reshape(-1, values.shape[-1]).sum(dim=0).to(vector.dtype)


def _rounded(gradient: Tensor, of: Tensor) -> Tensor:
    return gradient.to(of.dtype).contiguous()


def rms_norm_backward(
    dout: Tensor, s: Tensor, weight: Tensor | None, eps: float, *, weight_offset: float, ds_more: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of s and of weight (empty without one); `ds_more` is added to the first before it is rounded."""
    dy = reference.wide(dout)
    n, rstd = _normed(reference.wide(s), eps)
    dn = dy if weight is None else dy * (weight.to(dy.dtype) + weight_offset)
    ds = _before_norm(dn, n, rstd)
    if ds_more is not None:
        ds = ds + ds_more
    return _rounded(ds, s), _over_rows(dy * n, weight, s)


def _gate(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gate and its derivative."""
    sigmoid = torch.sigmoid(z)
    if activation == "sigmoid":
        return sigmoid, sigmoid * (1 - sigmoid)
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


def rms_norm_gated_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float,
    *,
    bias: Tensor | None,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, z, weight and bias; empty for what is None."""
    groups = (-1, group_size or x.shape[-1])
    wide, dy = reference.wide(x), reference.wide(dout)
    gate, slope = (None, None) if z is None else _gate(reference.wide(z), activation)
    s = wide if gate is None or norm_before_gate else wide * gate
    n, rstd = _normed(s.unflatten(-1, groups), eps)
    normed = n.flatten(-2)
    dgate: Tensor | None = None
    if gate is not None and norm_before_gate:
        y = normed if weight is None else normed * weight
        dgate = dy * (y if bias is None else y + bias)
        dy = dy * gate
    dn = dy if weight is None else dy * weight
    ds = _before_norm(dn.unflatten(-1, groups), n, rstd).flatten(-2)
    dx = ds
    if gate is not None and not norm_before_gate:
        dx, dgate = ds * gate, ds * wide
    dz = x.new_empty(0) if z is None or dgate is None or slope is None else _rounded(dgate * slope, z)
    return _rounded(dx, x), dz, _over_rows(dy * normed, weight, x), _over_rows(dy, bias, x)


def _new(like: Tensor | None, x: Tensor) -> Tensor:
    """For a gradient: contiguous. Operators have no optional results: an empty one stands for what is None."""
    return x.new_empty(0) if like is None else torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _dense(value: Any) -> Any:
    """Of a tensor, the elements of a row side by side, and rows where they lie."""
    return value.contiguous() if isinstance(value, Tensor) and value.stride(-1) != 1 else value


def _register(
    formula: Callable[..., tuple[Tensor, ...]], on_cuda: Callable[..., str | None], differentiated: tuple[str, ...]
) -> None:
    """Define and implement the operator of the formula's name, and the fallback of the C++ kernels.

    differentiated: the arguments whose gradients it returns; the first is what the forward calls x. on_cuda: takes the
    arguments, and gradients as `d<argument>`, by name; writes the gradients, or returns why not.
    """
    name, names, x = formula.__name__, tuple(inspect.signature(formula).parameters), differentiated[0]

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, checked as the forward's are."""
        call = dict(zip(names, args, strict=False)) | kwargs
        forward = registry.find(name.removesuffix("_backward"))
        forward.check_metadata({"x": call[x]} | {each: call[each] for each in forward.defaults if each in call})
        for each in ("dout", "ds_more"):
            if call.get(each) is not None:
                checks.like_x(each, call[each], call[x])
        return call

    def gradients_of(call: dict[str, Any]) -> dict[str, Tensor]:
        return {f"d{each}": _new(call[each], call[x]) for each in differentiated}

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """On Triton's kernels, or by the formula where they say why not, or there are no rows."""
        call = bind(args, kwargs)
        if call[x].is_cuda and call[x].numel():
            gradients = gradients_of(call)
            dense = {argument: _dense(value) for argument, value in call.items()}
            if on_cuda(**dense, **gradients) is None:
                return tuple(gradients.values())
        return formula(**call)

    def fake(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(gradients_of(bind(args, kwargs)).values())

    def take_over(*args: Any) -> None:
        """What C++ does not take: again with dense rows where they were not, or the formula."""
        call = bind(args[: len(names)], {})
        dense = {argument: _dense(value) for argument, value in call.items()}
        as_given = all(dense[argument] is call[argument] for argument in names)
        again = formula if as_given else getattr(torch.ops.serving_ops, name).default
        for result, gradient in zip(args[len(names) :], again(**dense), strict=True):
            result.copy_(gradient)

    schema = torch.library.infer_schema(formula, mutates_args=()).replace("SymInt", "int")
    given = schema.partition(") ->")[0].removeprefix("(").replace(" *,", "")
    written = ", ".join(f"Tensor({letter}!) d{each}" for letter, each in zip("abcd", differentiated, strict=False))
    define(name + schema, run, fake)
    define_fallback(name, f"{given}, {written}", take_over)


_register(rms_norm_backward, cuda_backward.norm, ("s", "weight"))
_register(rms_norm_gated_backward, cuda_backward.gated, ("x", "z", "weight", "bias"))
