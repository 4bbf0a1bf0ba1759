"""Wrong input raises, names the argument, its value and what is allowed, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import rows

import serving_ops

N = 64


def make(device: torch.device) -> dict[str, Any]:
    return {
        "x": rows((4, N), torch.bfloat16, device, 1),
        "other": rows((4, N), torch.bfloat16, device, 2),
        "weight": rows((N,), torch.bfloat16, device, 3),
        "options": {},
    }


def change(**kwargs: Any) -> Callable[[dict[str, Any]], None]:
    return lambda call: call.update({k: v(call) for k, v in kwargs.items()})


EVERY_OP = {
    "integer x": (change(x=lambda c: c["x"].int()), ["x.dtype", "int32", "bfloat16"]),
    "no dimension": (change(x=lambda c: c["x"][0, 0]), ["x.shape", "()"]),
    "N of 0": (change(x=lambda c: c["x"][:, :0]), ["x.shape", "(4, 0)"]),
    "weight too short": (change(weight=lambda c: c["weight"][:-1]), ["weight.shape", "(63,)", "(64,)"]),
    "weight of two dimensions": (
        change(weight=lambda c: c["weight"][None]),
        ["weight.shape", "(1, 64)", "(64,)"],
    ),
    "weight of a third dtype": (
        change(weight=lambda c: c["weight"].half()),
        ["weight.dtype", "float16", "bfloat16"],
    ),
    "weight elsewhere": (change(weight=lambda c: c["weight"].to("meta")), ["weight.device", "meta"]),
}
SECOND_TENSOR = {
    "other shape": (change(other=lambda c: c["other"][:3]), [".shape", "(3, 64)", "(4, 64)"]),
    "other dtype": (change(other=lambda c: c["other"].float()), [".dtype", "float32", "bfloat16"]),
    "other device": (change(other=lambda c: c["other"].to("meta")), [".device", "meta"]),
}
WRITTEN = {
    "expanded": (
        change(other=lambda c: c["other"][:1].expand(4, N)),
        ["other.stride()", "(0, 1)", "share memory"],
    ),
    "overlapping rows": (
        change(other=lambda c: c["other"].flatten().as_strided((4, N), (32, 1))),
        ["other.stride()", "(32, 1)", "share memory"],
    ),
    "shifted over x": (
        change(other=lambda c: c["x"].flatten().as_strided((3, N), (N, 1), 32), x=lambda c: c["x"][:3]),
        ["overlap", "x"],
    ),
}
GATED = {
    "unknown activation": (
        change(options=lambda c: {"activation": "relu"}),
        ["activation", "'relu'", "silu", "sigmoid"],
    ),
    "group that does not divide": (change(options=lambda c: {"group_size": 48}), ["group_size", "48", "64"]),
    "group of zero": (change(options=lambda c: {"group_size": 0}), ["group_size", "0"]),
    "bias too long": (
        change(options=lambda c: {"bias": rows((N + 1,), torch.bfloat16, c["x"].device)}),
        ["bias.", "65"],
    ),
}


def fused(call: dict[str, Any]) -> Any:
    return serving_ops.fused_add_rms_norm(call["x"], call["other"], call["weight"], **call["options"])


def plain(call: dict[str, Any]) -> Any:
    return serving_ops.rms_norm(call["x"], call["weight"], **call["options"])


def plain_out(call: dict[str, Any]) -> Any:
    return serving_ops.rms_norm(call["x"], call["weight"], out=call["other"], **call["options"])


def gated(call: dict[str, Any]) -> Any:
    return serving_ops.rms_norm_gated(call["x"], call["other"], call["weight"], **call["options"])


def gated_out(call: dict[str, Any]) -> Any:
    return serving_ops.rms_norm_gated(call["x"], None, call["weight"], out=call["other"], **call["options"])


def cases() -> list[Any]:
    tables = {
        fused: EVERY_OP | SECOND_TENSOR | WRITTEN,
        plain: EVERY_OP,
        plain_out: EVERY_OP | SECOND_TENSOR | WRITTEN,
        gated: EVERY_OP | SECOND_TENSOR | GATED,
        gated_out: EVERY_OP | SECOND_TENSOR | WRITTEN | GATED,
    }
    return [
        pytest.param(op, *case, id=f"{op.__name__}-{name}")
        for op, table in tables.items()
        for name, case in table.items()
    ]


SECOND_NAME = {"fused": "residual", "plain_out": "out", "gated": "z", "gated_out": "out"}


@pytest.mark.parametrize(("op", "spoil", "words"), cases())
def test_wrong_input_is_named_and_changes_nothing(
    device: torch.device,
    op: Callable[[dict[str, Any]], Any],
    spoil: Callable[[dict[str, Any]], None],
    words: list[str],
) -> None:
    call = make(device)
    spoil(call)
    tensors = [t for t in call.values() if isinstance(t, torch.Tensor) and t.device.type != "meta"]
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError) as raised:
        op(call)
    for word in words:
        assert word.replace("other", SECOND_NAME.get(op.__name__, "other")) in str(raised.value)
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_x_and_residual_must_not_be_one_tensor(device: torch.device) -> None:
    x = rows((4, N), torch.bfloat16, device)
    before = x.clone()
    with pytest.raises(RuntimeError, match=r"residual.*x"):
        serving_ops.fused_add_rms_norm(x, x, None)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["x", "other"])
@pytest.mark.parametrize("op", [fused, plain_out, gated_out])
def test_what_is_written_in_place_does_not_differentiate_and_says_so(
    device: torch.device, op: Callable[[dict[str, Any]], Any], name: str
) -> None:
    call = make(device)
    before = call[name].clone()
    call[name].requires_grad_()
    with pytest.raises(RuntimeError, match=r"requires_grad is True.*no_grad"):
        op(call)
    assert torch.equal(call[name], before)
    with torch.no_grad():
        op(call)
    assert not torch.equal(call["x" if op is fused else "other"], before)


def test_an_unknown_op_cannot_be_explained() -> None:
    with pytest.raises(ValueError, match="layer_norm"):
        serving_ops.explain("layer_norm", torch.ones(1, 4))
