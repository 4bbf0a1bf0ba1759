"""Whether two views share memory, against every byte written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serving_ops import checks

BUFFER = torch.zeros(4096, dtype=torch.uint8)
DTYPES = (torch.float32, torch.bfloat16)


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """At most three small dimensions, any strides, anywhere in the first quarter of the buffer."""
    dtype = draw(st.sampled_from(DTYPES))
    dims = draw(st.integers(0, 3))
    shape = draw(st.lists(st.integers(1, 5), min_size=dims, max_size=dims))
    strides = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 16, 20]), min_size=dims, max_size=dims))
    start = draw(st.integers(0, 64))
    return torch.as_strided(BUFFER.view(dtype), shape, strides, start)


def elements(tensor: Tensor) -> list[int]:
    """The address of each element, from the buffer's start, in order."""
    first = tensor.data_ptr() - BUFFER.data_ptr()
    indices = itertools.product(*map(range, tensor.shape))
    offsets = (sum(i * stride for i, stride in zip(index, tensor.stride(), strict=True)) for index in indices)
    return [first + offset * tensor.itemsize for offset in offsets]


def bytes_of(tensor: Tensor) -> set[int]:
    return {start + byte for start in elements(tensor) for byte in range(tensor.itemsize)}


@settings(max_examples=600, deadline=None)
@given(views(), views())
def test_sharing_memory_is_sharing_a_byte(a: Tensor, b: Tensor) -> None:
    assert checks.share_memory(a, b) == bool(bytes_of(a) & bytes_of(b))


@settings(max_examples=600, deadline=None)
@given(views(), views())
def test_the_same_view_is_the_same_element_at_every_index(a: Tensor, b: Tensor) -> None:
    if a.dtype == b.dtype:
        assert checks.same_view(a, b) == (a.shape == b.shape and elements(a) == elements(b))


def test_a_single_rows_stride_does_not_make_it_another_view() -> None:
    x = torch.zeros(4, 128)[:1, :64]
    assert checks.same_view(x, x.view(-1, 64))
    assert x.stride() != x.view(-1, 64).stride()


def test_caches_whose_blocks_take_turns_are_told_apart_by_their_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache has millions of rows: none of them is looked at."""
    monkeypatch.setattr(checks, "_starts", lambda pieces: pytest.fail("rows were compared one by one"))
    both = torch.zeros(3, 2, 4, 5, 8)
    assert not checks.share_memory(both[:, 0], both[:, 1])
    heads_first = torch.zeros(3, 2, 5, 4, 8)
    assert not checks.share_memory(heads_first[:, 0].transpose(1, 2), heads_first[:, 1].transpose(1, 2))
