"""The form of a quantized result: its values, its scales' layout, and the numbers of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import rows
from op_calls import formats

import serving_ops
from serving_ops import QuantFormat, reference

X = rows((6, 256), torch.bfloat16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", torch.float16),
        ("granularity", "row"),
        ("group_size", 96),
        ("group_size", 128.0),
        ("scale_format", "fp16"),
        ("scale_layout", "packed"),
    ],
)
def test_another_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} is .*{value}.*allowed are"):
        QuantFormat(**{field: value})


@pytest.mark.parametrize("value", ["fp8", None])
def test_what_is_no_format_is_refused_by_name(value: Any) -> None:
    message = rf"fmt is {value!r}: it must be a serving_ops.QuantFormat"
    with pytest.raises(TypeError, match=message):
        serving_ops.rms_norm_quant(X, None, fmt=value)
    with pytest.raises(TypeError, match=message):
        serving_ops.fused_add_rms_norm_quant(X, X.clone(), None, fmt=value)
    with pytest.raises(TypeError, match=message):
        serving_ops.rms_norm_gated_quant(X, X, None, fmt=value)


def test_a_given_scale_has_no_other_format_or_layout() -> None:
    with pytest.raises(ValueError, match="granularity is 'tensor'"):
        QuantFormat(granularity="tensor", scale_format="ue8m0")


def test_a_group_must_divide_the_row() -> None:
    with pytest.raises(RuntimeError, match=r"fmt.group_size is 128: it must divide N = 192"):
        serving_ops.rms_norm_quant(X[:, :192], None, fmt=QuantFormat())


def test_a_scale_is_given_where_all_rows_share_it_and_nowhere_else() -> None:
    for fmt, scale in ((QuantFormat(), torch.ones(())), (QuantFormat(granularity="tensor"), None)):
        with pytest.raises(RuntimeError, match=r"scale is .*granularity is 'tensor'"):
            serving_ops.rms_norm_quant(X, None, fmt=fmt, scale=scale)


@pytest.mark.parametrize(
    ("layout", "stride"), [("row_major", (2, 1)), ("column_major", (1, 6)), ("tma_aligned", (1, 8))]
)
def test_scales_lie_as_the_layout_says(layout: str, stride: tuple[int, int]) -> None:
    _, scales = serving_ops.rms_norm_quant(X, None, fmt=QuantFormat(scale_layout=layout))
    assert scales.shape == (6, 2)
    assert scales.stride() == stride


def test_powers_of_2_are_the_next_ones_and_pack_into_bytes() -> None:
    y = torch.zeros(1, 5 * 64)
    amax = [448.0, 449.0, 447.0, 0.0, 448.0 * 2**-9]
    y[0, ::64] = torch.tensor(amax)
    exponents = [0, 1, 0, -42, -9]  # of 1e-10 / 448 the next is 2^-42
    _, scales = reference.quantize(y, QuantFormat(group_size=64, scale_format="fp32_power_of_2"))
    assert scales.tolist() == [[2.0**e for e in exponents]]
    _, packed = reference.quantize(y, QuantFormat(group_size=64, scale_format="ue8m0"))
    assert packed.view(torch.uint8).tolist() == [[e + 127 for e in exponents] + [0, 0, 0]]


def test_zeros_and_what_is_not_finite_have_the_scales_that_are_documented() -> None:
    y = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
    for dtype, least in ((torch.float8_e4m3fn, reference.MIN_TOKEN_SCALE), (torch.int8, 0.0)):
        q, scales = reference.quantize(y, QuantFormat(dtype, "token"))
        assert scales[0] == least
        assert q[0].float().tolist() == [0.0, 0.0]
        assert scales[1].isnan()
        assert scales[2] == torch.inf


def test_int8_rows_are_multiplied_by_127_over_amax_rounded_once() -> None:
    y = torch.tensor([[6.28125, -3.140625], [4.75, -2.375]])  # 63.5 steps: half an ulp in the factor turns the tie
    q, _ = reference.quantize(y, QuantFormat(torch.int8, "token"))
    exact = torch.tensor(127.0).double() / y.double().abs().amax(dim=-1, keepdim=True)
    assert torch.equal(q, (y * exact.float()).round().to(torch.int8))


@pytest.mark.parametrize(("dtype", "limits"), [(torch.float8_e4m3fn, (-448.0, 448.0)), (torch.int8, (-128.0, 127.0))])
def test_what_a_given_scale_does_not_reach_saturates(dtype: torch.dtype, limits: tuple[float, float]) -> None:
    q, _ = reference.quantize(torch.tensor([[-1e9, 1e9]]), QuantFormat(dtype, "tensor"), torch.ones(()))
    assert tuple(q[0].float().tolist()) == limits


def test_the_bits_are_those_of_the_norm_and_a_quantization() -> None:
    weight = rows((256,), torch.float32, seed=3)
    for fmt in (QuantFormat(), QuantFormat(torch.int8, "token")):
        normed = torch.empty_like(X)
        q, scales = serving_ops.rms_norm_quant(X, weight, fmt=fmt, normed=normed)
        norm = (
            serving_ops.rms_norm
            if serving_ops.explain("rms_norm_quant", X, weight, fmt=fmt).path == "cpu"
            else reference.rms_norm
        )
        want, want_scales = reference.quantize(norm(X, weight), fmt)
        assert torch.equal(normed, norm(X, weight))
        assert torch.equal(q.view(torch.uint8), want.view(torch.uint8))
        assert torch.equal(scales, want_scales)


def test_a_format_is_read_back_from_its_text() -> None:
    for fmt in formats(128):
        assert QuantFormat.parse(fmt.text) == fmt
    assert QuantFormat().text == "float8_e4m3fn group 128 fp32 row_major"


@pytest.mark.parametrize(
    "text", ["", "int8", "int8 token 128 fp32", "int8 token many fp32 row_major", "int16 token 128 fp32 row_major"]
)
def test_a_text_of_no_format_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        QuantFormat.parse(text)
