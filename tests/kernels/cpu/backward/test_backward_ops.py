"""The C++ gradients of the norms: against the formula in PyTorch, for odd sizes, strides and many rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from numerics import rms_error, rows
from torch import Tensor

from serving_ops import extension
from serving_ops.training import backward_ops

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SLACK = 1.5
"""Ratio of root-mean-square errors to those of the formula in PyTorch, which adds up rows in another order."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _assert_no_worse_than(formula: Callable[..., Any], op: Any, arguments: Arguments) -> None:
    args, options = arguments
    wide = tuple(map(_wide, args)), {name: _wide(value) for name, value in options.items()}
    found = (op(*args, **options), formula(*args, **options), formula(*wide[0], **wide[1]))
    for mine, theirs, truth in zip(*found, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert mine.is_contiguous()
        if truth.numel():
            floor = 2.0**-22 * float(truth.square().mean().sqrt())  # one sum of fp32 is luck
            assert rms_error(mine, truth) <= max(SLACK * rms_error(theirs, truth), floor)


def assert_no_less_accurate(dout: Tensor, s: Tensor, weight: Tensor | None, offset: float, more: Tensor | None) -> None:
    options = {"weight_offset": offset, "ds_more": more}
    op = torch.ops.serving_ops.rms_norm_backward
    _assert_no_worse_than(backward_ops.rms_norm_backward, op, ((dout, s, weight, 1e-6), options))


def assert_gated_no_less_accurate(
    dout: Tensor, x: Tensor, z: Tensor | None, weight: Tensor | None, bias: Tensor | None, **changes: Any
) -> None:
    options = {"norm_before_gate": True, "activation": "silu", "group_size": None} | changes
    op = torch.ops.serving_ops.rms_norm_gated_backward
    _assert_no_worse_than(
        backward_ops.rms_norm_gated_backward, op, ((dout, x, z, weight, 1e-6), {"bias": bias, **options})
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1, 7, 31, 33, 128, 1000, 5125])
def test_it_is_the_formula_for_any_size(dtype: torch.dtype, size: int) -> None:
    dout, s, more = (rows((37, size), dtype, seed=seed) for seed in range(3))
    for weight in (None, rows((size,), dtype, seed=3), rows((size,), torch.float32, seed=3)):
        for offset in (0.0, 1.0):
            assert_no_less_accurate(dout, s, weight, offset, None)
            assert_no_less_accurate(dout, s, weight, offset, more)


def test_many_rows_are_summed_without_losing_digits() -> None:
    dout, s = (rows((20000, 64), torch.float32, seed=seed) for seed in range(2))
    assert_no_less_accurate(dout, s, rows((64,), torch.float32, seed=2), 0.0, None)


def test_rows_are_read_where_they_lie() -> None:
    wide = rows((6, 4, 3 * 128), torch.bfloat16)
    dout, s, more = wide.split(128, dim=-1)
    weight = rows((128,), torch.bfloat16, seed=1)
    assert_no_less_accurate(dout, s, weight, 0.0, more)
    assert_no_less_accurate(dout[:1].expand(6, 4, 128), s, weight, 0.0, None)
    transposed = rows((128, 24), torch.bfloat16).t()
    assert_no_less_accurate(transposed, transposed, weight, 0.0, transposed)


def test_columns_of_a_projection_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = rows((5, 2, 3, 4, 128), torch.bfloat16)
    dout, x, z = wide[:, 0, 0], wide[:, 1, 1], wide[:, 0, 2]
    weight = rows((128,), torch.float32, seed=1)
    monkeypatch.setattr(
        Tensor, "contiguous", lambda tensor: pytest.fail("it was copied") if tensor.dim() > 1 else tensor
    )
    for op, args, options in (
        ("rms_norm_backward", (dout, x, weight, 1e-6), {"weight_offset": 0.0, "ds_more": z}),
        ("rms_norm_gated_backward", (dout, x, z, weight, 1e-6), {"bias": None} | GATED_OPTIONS),
    ):
        strided = getattr(torch.ops.serving_ops, op)(*args, **options)
        dense = getattr(torch.ops.serving_ops, op)(*map(_dense, args), **{k: _dense(v) for k, v in options.items()})
        for mine, other in zip(strided, dense, strict=True):
            if mine.shape == x.shape:
                assert torch.equal(mine, other)
            torch.testing.assert_close(mine, other)  # rows are added up in runs of one stride


PLAIN_OPTIONS: dict[str, Any] = {"eps": 1e-6, "weight_offset": 0.0, "ds_more": None}
GATED_OPTIONS: dict[str, Any] = {"norm_before_gate": True, "activation": "silu", "group_size": None}


def _dense(value: Any) -> Any:
    return value.clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("size", "group_size"), [(5, 5), (7, 7), (33, 11), (128, None), (200, 50), (1000, None), (9000, None)]
)
def test_the_gated_norms_is_the_formula_for_any_size(dtype: torch.dtype, size: int, group_size: int | None) -> None:
    dout, x, z = (rows((37, size), dtype, seed=seed) for seed in range(3))
    parameters = (None, rows((size,), dtype, seed=3), rows((size,), torch.float32, seed=4))
    for weight, bias, gate in product(parameters, parameters, (None, z)):
        for before, activation in product((True, False), ("silu", "sigmoid")):
            changes = {"norm_before_gate": before, "activation": activation, "group_size": group_size}
            assert_gated_no_less_accurate(dout, x, gate, weight, bias, **changes)


def test_many_gated_rows_are_summed_without_losing_digits() -> None:
    dout, x, z = (rows((20000, 64), torch.float32, seed=seed) for seed in range(3))
    assert_gated_no_less_accurate(dout, x, z, *(rows((64,), torch.float32, seed=seed) for seed in (3, 4)))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_a_gate_far_from_zero_loses_no_digits(activation: str, before: bool) -> None:
    dout, x = (rows((9, 64), torch.float32, seed=seed) for seed in range(2))
    z = torch.linspace(-80, 80, 9 * 64).view(9, 64)
    changes = {"norm_before_gate": before, "activation": activation}
    assert_gated_no_less_accurate(dout, x, z, None, None, **changes)


@pytest.mark.parametrize("shape", [(3000, 256), (40, 30, 256)], ids=str)
def test_the_bits_do_not_depend_on_the_number_of_threads(threads: None, shape: tuple[int, ...]) -> None:
    dout, x, z = (rows(shape, torch.bfloat16, seed=seed) for seed in range(3))
    weight = rows((256,), torch.float32, seed=3)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        plain = torch.ops.serving_ops.rms_norm_backward(dout, x, weight, 1e-6, weight_offset=0.0, ds_more=None)
        gated = torch.ops.serving_ops.rms_norm_gated_backward(dout, x, z, weight, 1e-6, bias=weight, **GATED_OPTIONS)
        found.append((*plain, *gated))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_rows_gradient_has_the_same_bits_in_any_batch() -> None:
    for size in (64, 1000):
        dout, x, z = (rows((37, size), torch.bfloat16, seed=seed) for seed in range(3))
        options = {"weight_offset": 0.0, "ds_more": None}
        plain = torch.ops.serving_ops.rms_norm_backward(dout, x, None, 1e-6, **options)[0]
        gated = torch.ops.serving_ops.rms_norm_gated_backward(dout, x, z, None, 1e-6, bias=None, **GATED_OPTIONS)[0]
        for m in (0, 5, 36):
            one = [tensor[m : m + 1] for tensor in (dout, x, z)]
            alone = torch.ops.serving_ops.rms_norm_backward(*one[:2], None, 1e-6, **options)[0]
            assert torch.equal(alone, plain[m : m + 1])
            alone = torch.ops.serving_ops.rms_norm_gated_backward(*one, None, 1e-6, bias=None, **GATED_OPTIONS)[0]
            assert torch.equal(alone, gated[m : m + 1])


def test_what_cpp_does_not_take_is_computed_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    step = backward_ops._before_norm  # of both formulas
    monkeypatch.setattr(backward_ops, "_before_norm", lambda *given: (computed.append(given), step(*given))[1])
    deep = rows((3,) * 7 + (8,), torch.float32)[:, :2, :2, :2, :2, :2, :2]
    for x, taken in ((rows((3, 8), torch.float64), False), (deep, False), (torch.empty(0, 2, 8), True)):
        dx, dweight = torch.ops.serving_ops.rms_norm_backward(x, x, x.new_ones(8), **PLAIN_OPTIONS)
        dense = torch.ops.serving_ops.rms_norm_backward(*[_dense(x)] * 2, x.new_ones(8), **PLAIN_OPTIONS)
        assert (dx.dtype, dx.shape) == (x.dtype, x.shape)
        torch.testing.assert_close((dx, dweight), dense)
        computed.clear()
        gated = torch.ops.serving_ops.rms_norm_gated_backward(x, x, x, None, 1e-6, bias=None, **GATED_OPTIONS)
        assert (gated[0].dtype, gated[1].shape, gated[2].shape) == (x.dtype, x.shape, (0,))
        assert (not computed) == taken


def test_rows_and_weights_with_gaps_are_copied_for_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a sum has strides of 0."""
    monkeypatch.setattr(backward_ops, "_before_norm", lambda *_: pytest.fail("the formula was asked"))
    x, weight = rows((5, 32), torch.float32)[:, ::2], rows((32,), torch.float32)[::2]
    dout = torch.ones(()).expand(5, 16)
    for op, args, options in (
        ("rms_norm_backward", (dout, x, weight), PLAIN_OPTIONS),
        ("rms_norm_gated_backward", (dout, x, x, weight, 1e-6), {"bias": weight} | GATED_OPTIONS),
    ):
        strided = getattr(torch.ops.serving_ops, op)(*args, **options)
        dense = getattr(torch.ops.serving_ops, op)(*map(_dense, args), **{k: _dense(v) for k, v in options.items()})
        assert all(map(torch.equal, strided, dense))


WITH_LITTLE_MEMORY = """
import os
import resource
import sys
import torch
import serving_ops

torch.set_num_threads(1)  # threads do not live on in a child
size = 2**20
x = torch.ones(1, size, dtype=torch.bfloat16).expand(64, size)
weight = torch.ones(size)
ops = torch.ops.serving_ops
plain = {"weight_offset": 0.0, "ds_more": None}
gated = {"bias": None, "norm_before_gate": True, "activation": "silu", "group_size": None}
calls = (
    lambda: ops.rms_norm_backward(x, x, weight, 1e-6, **plain),
    lambda: ops.rms_norm_gated_backward(x, x, None, weight, 1e-6, **gated),
)


def in_child(call, megabytes):
    used = 4096 * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
    try:
        call()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)


for call in calls:
    for megabytes in (64, 140):  # the gradient of the rows takes 128, that of the weight 4, the sums over rows 16
        child = os.fork()
        if child == 0:
            in_child(call, megabytes)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit("a child died")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_too_little_memory_is_an_error_wherever_it_ends() -> None:
    ran = subprocess.run([sys.executable, "-c", WITH_LITTLE_MEMORY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("allocating the result") == 2
    assert ran.stdout.count("allocating the sums over rows") == 2
