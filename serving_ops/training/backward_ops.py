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

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from serving_ops import checks, reference, support
from serving_ops.schemas import library
from serving_ops.training import cuda_backward

NAME = "rms_norm_backward"
GATED_NAME = "rms_norm_gated_backward"

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


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
    checks.norm_metadata(s, dout, "dout", weight)
    checks.norm_metadata(s, ds_more, "ds_more", None)
    dy = reference.wide(dout)
    n, rstd = _normed(reference.wide(s), eps)
    dn = dy if weight is None else dy * (weight.to(dy.dtype) + weight_offset)
    ds = _before_norm(dn, n, rstd)
    if ds_more is not None:
        ds = ds + ds_more
    return _rounded(ds, s), _over_rows(dy * n, weight, s)


def _dense_rows(tensor: MaybeTensor) -> MaybeTensor:
    """Elements of a row side by side; rows where they lie."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _new(like: Tensor) -> Tensor:
    """For a gradient: contiguous, to be written."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    """Operators have no optional results: an empty tensor stands for the gradient of what is None."""
    return x.new_empty(0) if gradient is None else gradient


def _rms_norm_backward_cuda(
    dout: Tensor, s: Tensor, weight: Tensor | None, eps: float, *, weight_offset: float, ds_more: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`rms_norm_backward` on Triton's kernels, or the formula where they say why not, or there are no rows."""
    checks.norm_metadata(s, dout, "dout", weight)
    checks.norm_metadata(s, ds_more, "ds_more", None)
    if s.numel():
        ds, dweight = _new(s), None if weight is None else _new(weight)
        rows = _dense_rows(dout), _dense_rows(s), _dense_rows(ds_more)
        if cuda_backward.norm(*rows, _dense(weight), eps, weight_offset, ds, dweight) is None:
            return ds, _or_empty(dweight, s)
    return rms_norm_backward(dout, s, weight, eps, weight_offset=weight_offset, ds_more=ds_more)


def _rms_norm_backward_fallback(
    dout: Tensor,
    s: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    ds_more: Tensor | None,
    ds: Tensor,
    dweight: Tensor,
) -> str:
    """What C++ does not take: again with dense rows where they were not, or the formula; or the text of the error."""
    try:
        checks.norm_metadata(s, dout, "dout", weight)
        checks.norm_metadata(s, ds_more, "ds_more", None)
        dense = _dense_rows(dout), _dense_rows(s), _dense(weight), _dense_rows(ds_more)
        as_given = _same((dout, s, weight, ds_more), dense)
        op = rms_norm_backward if as_given else torch.ops.serving_ops.rms_norm_backward.default
        _copy((ds, dweight), op(*dense[:3], eps, weight_offset=weight_offset, ds_more=dense[3]))
    except BaseException as error:  # an interrupt included: none crosses into C++
        return support.text_of(error)
    return ""


def _same(given: Iterable[Tensor | None], dense: Iterable[Tensor | None]) -> bool:
    return all(a is b for a, b in zip(given, dense, strict=True))


def _copy(results: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    for result, gradient in zip(results, gradients, strict=True):
        result.copy_(gradient)


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
    checks.gated_metadata(x, z, weight, bias, activation, group_size, dout)
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


def _rms_norm_gated_backward_cuda(
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
    """As `_rms_norm_backward_cuda`, for `rms_norm_gated_backward`."""
    checks.gated_metadata(x, z, weight, bias, activation, group_size, dout)
    if x.numel():
        dx = _new(x)
        dz, dweight, dbias = (None if tensor is None else _new(tensor) for tensor in (z, weight, bias))
        tensors = _dense_rows(dout), _dense_rows(x), _dense_rows(z), _dense(weight), _dense(bias)
        numbers = eps, norm_before_gate, activation != "sigmoid", group_size or x.shape[-1]
        if cuda_backward.gated(*tensors, *numbers, dx, dz, dweight, dbias) is None:
            return dx, _or_empty(dz, x), _or_empty(dweight, x), _or_empty(dbias, x)
    options = {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
    return rms_norm_gated_backward(dout, x, z, weight, eps, bias=bias, **options)  # type: ignore[arg-type]


def _rms_norm_gated_backward_fallback(
    dout: Tensor,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    eps: float,
    bias: Tensor | None,
    norm_before_gate: bool,
    activation: str,
    group_size: int | None,
    *results: Tensor,
) -> str:
    """As `_rms_norm_backward_fallback`."""
    try:
        checks.gated_metadata(x, z, weight, bias, activation, group_size, dout)
        dense = _dense_rows(dout), _dense_rows(x), _dense_rows(z), _dense(weight), _dense(bias)
        as_given = _same((dout, x, z, weight, bias), dense)
        op: Any = rms_norm_gated_backward if as_given else torch.ops.serving_ops.rms_norm_gated_backward.default
        options = {"norm_before_gate": norm_before_gate, "activation": activation, "group_size": group_size}
        _copy(results, op(*dense[:4], eps, bias=dense[4], **options))
    except BaseException as error:  # an interrupt included: none crosses into C++
        return support.text_of(error)
    return ""


def _like(tensor: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _fake(
    dout: Tensor, s: Tensor, weight: Tensor | None, eps: float, *, weight_offset: float, ds_more: Tensor | None
) -> tuple[Tensor, Tensor]:
    checks.norm_metadata(s, dout, "dout", weight)
    checks.norm_metadata(s, ds_more, "ds_more", None)
    return _like(s, s), _like(weight, s)


def _gated_fake(
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
    checks.gated_metadata(x, z, weight, bias, activation, group_size, dout)
    return _like(x, x), _like(z, x), _like(weight, x), _like(bias, x)


library.impl(NAME, _rms_norm_backward_cuda, "CUDA")
library.impl(NAME, rms_norm_backward, "CompositeExplicitAutograd")
library.impl(GATED_NAME, _rms_norm_gated_backward_cuda, "CUDA")
library.impl(GATED_NAME, rms_norm_gated_backward, "CompositeExplicitAutograd")
library.impl(f"_{NAME}_fallback", _rms_norm_backward_fallback, "CompositeExplicitAutograd")
library.impl(f"_{GATED_NAME}_fallback", _rms_norm_gated_backward_fallback, "CompositeExplicitAutograd")
torch.library.register_fake(f"serving_ops::{NAME}", _fake, lib=library)
torch.library.register_fake(f"serving_ops::{GATED_NAME}", _gated_fake, lib=library)
