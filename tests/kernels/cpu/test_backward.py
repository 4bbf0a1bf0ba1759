"""The C++ gradients of the norm: against the formula in PyTorch, for odd sizes, strides and many rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from numerics import rms_error, rows
from torch import Tensor

from serving_ops import extension
from serving_ops.ops import backward

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SLACK = 1.5
"""Ratio of root-mean-square errors to those of the formula in PyTorch, which adds up rows in another order."""


def assert_no_less_accurate(dout: Tensor, s: Tensor, weight: Tensor | None, offset: float, more: Tensor | None) -> None:
    options = {"weight_offset": offset, "ds_more": more}
    ours = torch.ops.serving_ops.rms_norm_backward(dout, s, weight, 1e-6, **options)
    formula = backward._rms_norm_backward(dout, s, weight, 1e-6, **options)
    options["ds_more"] = None if more is None else more.double()
    exact = backward._rms_norm_backward(
        dout.double(), s.double(), None if weight is None else weight.double(), 1e-6, **options
    )
    for mine, theirs, truth in zip(ours, formula, exact, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        if truth.numel():
            floor = 2.0**-22 * float(truth.square().mean().sqrt())  # one sum of fp32 is luck
            assert rms_error(mine, truth) <= max(SLACK * rms_error(theirs, truth), floor)


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


def test_the_bits_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    dout, s = (rows((3000, 256), torch.bfloat16, seed=seed) for seed in range(2))
    weight = rows((256,), torch.float32, seed=2)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(torch.ops.serving_ops.rms_norm_backward(dout, s, weight, 1e-6, weight_offset=0.0, ds_more=None))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_cpp_does_not_take_is_computed_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "cpu_rms_norm_backward", lambda *_, **__: pytest.fail("C++ was asked"))
    s = rows((3, 8), torch.float64)
    ds, _ = torch.ops.serving_ops.rms_norm_backward(s, s, None, 1e-6, weight_offset=0.0, ds_more=None)
    assert ds.dtype == torch.float64
    torch.ops.serving_ops.rms_norm_backward(s[:0].float(), s[:0].float(), None, 1e-6, weight_offset=0.0, ds_more=None)
