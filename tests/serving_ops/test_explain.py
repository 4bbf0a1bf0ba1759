"""What `explain` says of a call is what happens to it, for views of every kind."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

import serving_ops
from serving_ops import counters, reference

ELEMENTS = 2**15
MANY_DIMENSIONS = (2,) * 7  # more than the C++ kernels count, where strides do not let them merge


@st.composite
def views_of(draw: st.DrawFn, buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view with gaps, permuted, expanded or with a last stride other than 1, anywhere in the buffer."""
    order = [*draw(st.permutations(range(len(shape) - 1))), len(shape) - 1]
    if draw(st.integers(0, 9)) == 0:
        order.reverse()
    strides, reach = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = 0 if draw(st.integers(0, 19)) == 0 else reach
        reach = reach * shape[dim] + draw(st.sampled_from([0, 0, 1, shape[-1], 2 * shape[-1]]))
    start = draw(st.sampled_from([0, 1, shape[-1], 2 * shape[-1], 4096, 8192]))
    return torch.as_strided(buffer, shape, strides, start)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """An op with arguments whose rows and vectors may lie in one buffer."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float32, torch.float64]))
    small = st.lists(st.sampled_from([0, 1, 2, 3, 3]), max_size=3).map(tuple)
    leading = draw(st.one_of(small, small, st.just(MANY_DIMENSIONS)))
    shape = (*leading, draw(st.sampled_from([1, 4, 8])))
    buffers = [torch.linspace(-2, 2, ELEMENTS).to(dtype) for _ in range(2)]
    floats = torch.linspace(-2, 2, ELEMENTS)

    def rows() -> Tensor:
        return draw(views_of(draw(st.sampled_from(buffers)), shape))

    def vector() -> Tensor | None:
        buffer = draw(st.sampled_from([None, *buffers, floats]))
        if buffer is None:
            return None
        start = draw(st.sampled_from([0, 4, 8, 24, 4096, 16384]))
        return torch.as_strided(buffer, shape[-1:], (draw(st.sampled_from([1, 1, 1, 2])),), start)

    op = draw(st.sampled_from(["fused_add_rms_norm", "rms_norm", "rms_norm_gated"]))
    x = rows()
    if op == "fused_add_rms_norm":
        return op, (x, rows(), vector()), {}
    z = draw(st.sampled_from([None, x, rows()]))
    out = draw(st.sampled_from([None, x, z, rows()]))
    if op == "rms_norm":
        return op, (x, vector()), {"out": out}
    return op, (x, z, vector()), {"bias": vector(), "out": out, "group_size": draw(st.sampled_from([None, 1]))}


def what_ran(op: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[str, str | None]:
    """The path and the reason that the counters give for a call."""
    before = counters.snapshot()[op]
    getattr(serving_ops, op)(*args, **options)
    after = counters.snapshot()[op]
    if after["kernel"] == before["kernel"] + 1:
        assert after["reference"] == before["reference"]
        return "cpu", None
    (reason,) = (name for name, n in after["reference"].items() if n != before["reference"].get(name, 0))
    return "reference", reason


def on_copies(op: str, args: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    """The reference's results from copies of the arguments."""
    copied = [None if tensor is None else tensor.clone() for tensor in args]
    others = {name: value.clone() if isinstance(value, Tensor) else value for name, value in options.items()}
    others.pop("out", None)
    results = getattr(reference, op)(*copied, **others)
    return list(results) if isinstance(results, tuple) else [results]


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_explain_says_what_runs_and_why(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    op, args, options = call
    try:
        explanation = serving_ops.explain(op, *args, **options)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            getattr(serving_ops, op)(*args, **options)
        return
    expected = on_copies(op, args, options)
    assert what_ran(op, args, options) == (explanation.path, explanation.reason)
    for got, want in zip(args if op == "fused_add_rms_norm" else (options["out"],), expected, strict=False):
        if got is not None:
            torch.testing.assert_close(got, want, rtol=2**-6, atol=2**-6)


ROWS = torch.ones(4, 6, 256)

REFUSED = {
    "seven leading dimensions": ((ROWS.new_ones((3,) * 7 + (8,))[:, :2, :2, :2, :2, :2, :2], None), {}, "more than 6"),
    "weight beside the rows": ((ROWS[..., :128], ROWS[0, 0, 128:]), {"out": ROWS[..., :128]}, "weight may share"),
    "float64": ((ROWS.double(), None), {}, "x.dtype"),
    "elements apart": ((ROWS[..., ::2], None), {}, "x.stride(-1)"),
    "a weight's elements apart": ((ROWS, torch.ones(512)[::2]), {}, "weight.stride(0)"),
    "a result's elements apart": ((ROWS, None), {"out": torch.ones(4, 6, 512)[..., ::2]}, "out.stride(-1)"),
}


@pytest.mark.skipif(serving_ops.cpp_library() is None, reason="the C++ library is not built")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_call_is_explained_by_its_argument(kind: str) -> None:
    args, options, reason = REFUSED[kind]
    explanation = serving_ops.explain("rms_norm", *args, **options)
    assert explanation.path == "reference"
    assert reason in str(explanation.reason)
    assert what_ran("rms_norm", args, options) == ("reference", explanation.reason)


def test_an_unknown_op_cannot_be_explained() -> None:
    with pytest.raises(ValueError, match="layer_norm"):
        serving_ops.explain("layer_norm", torch.ones(1, 4))


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "rms_norm_gated"])
def test_a_call_without_memory_is_refused_by_its_mode_or_device(op: str) -> None:
    def arguments(device: str = "cpu") -> list[Tensor]:
        rows = torch.empty(3, 64, device=device)
        return [rows, *([] if op == "rms_norm" else [rows]), torch.empty(64, device=device)]

    real = arguments()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = arguments()
        with pytest.raises(RuntimeError, match="the mode is FakeTensorMode: explain reads addresses"):
            serving_ops.explain(op, *real)
        with pytest.raises(RuntimeError, match="the mode is FakeTensorMode: explain reads addresses"):
            serving_ops.explain(op, *fake)
    with pytest.raises(RuntimeError, match="the mode is FakeTensorMode: explain reads addresses"):
        serving_ops.explain(op, *fake)
    with pytest.raises(RuntimeError, match=r"x\.device is meta: explain reads addresses"):
        serving_ops.explain(op, *arguments("meta"))
    with pytest.raises(RuntimeError, match=r"weight\.device is meta: it must be x's, cpu"):  # as of the call itself
        serving_ops.explain(op, *real[:-1], arguments("meta")[-1])
