"""The C++ kernels through torch.ops.serving_ops: accuracy, bits, strides, threads, and what goes to the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from numerics import rows

import serving_ops
from serving_ops import QuantFormat, reference, rope_reference
from serving_ops.extension import kernel_calls

pytestmark = pytest.mark.skipif(serving_ops.cpp_library() is None, reason="needs the C++ library")

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = torch.ops.serving_ops


@pytest.mark.parametrize("size", [128, 897, 4096])
def test_row_bits_do_not_depend_on_batch_threads_place_or_strides(size: int) -> None:
    x, weight, threads = rows((300, size), torch.bfloat16), rows((size,), torch.bfloat16), torch.get_num_threads()
    whole = OPS.rms_norm(x, weight, EPS)
    try:
        torch.set_num_threads(1)
        assert torch.equal(OPS.rms_norm(x, weight, EPS), whole)
    finally:
        torch.set_num_threads(threads)
    for row in (0, 1, 150, 299):
        assert torch.equal(OPS.rms_norm(x[row : row + 1], weight, EPS), whole[row : row + 1])
    apart = torch.zeros(300, size + 3, dtype=torch.bfloat16)[:, 1 : size + 1].copy_(x)
    assert torch.equal(OPS.rms_norm(apart, weight, EPS), whole)
    assert torch.equal(OPS.rms_norm(x.flip(0), weight, EPS), whole.flip(0))


def test_a_head_view_is_normalised_in_place_and_its_neighbours_are_left_alone() -> None:
    packed, weight = rows((50, 4096), torch.bfloat16), rows((128,), torch.bfloat16)
    before = packed.clone()
    query = packed[:, :2048].view(50, 16, 128)
    ran = kernel_calls("rms_norm")
    OPS.rms_norm.out(query, weight, EPS, out=query)
    assert kernel_calls("rms_norm") == ran + 1
    assert torch.equal(packed[:, 2048:], before[:, 2048:])
    assert torch.equal(query, OPS.rms_norm(before[:, :2048].reshape(50, 16, 128), weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 896), (13, 1001), (300, 128), (2, 3, 4096)])
def test_an_int8_norm_has_the_bits_of_the_norm_and_the_quantization(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual, weight = rows(shape, dtype), rows(shape, dtype, seed=1), rows(shape[-1:], dtype, seed=2)
    x[0] = 0.0
    fmt, ran = QuantFormat(torch.int8, "token"), kernel_calls("fused_add_rms_norm_quant")
    normed, total = x.clone(), residual.clone()
    q, scales = serving_ops.fused_add_rms_norm_quant(x, residual, weight, fmt=fmt)
    assert kernel_calls("fused_add_rms_norm_quant") == ran + 1
    OPS.fused_add_rms_norm(normed, total, weight, EPS)
    want, want_scales = reference.quantize(normed, fmt)
    assert torch.equal(q, want)
    assert torch.equal(scales, want_scales)
    assert torch.equal(residual, total)


def test_an_int8_norm_with_an_fp32_residual_is_left_to_the_reference_with_its_reason() -> None:
    x, residual = rows((3, 128), torch.bfloat16), rows((3, 128), torch.float32, seed=1)
    fmt = QuantFormat(torch.int8, "token")
    explanation = serving_ops.explain("fused_add_rms_norm_quant", x, residual, None, fmt=fmt)
    assert explanation.path == "reference"
    assert "residual.dtype is float32" in str(explanation.reason)
    want = x + residual
    serving_ops.fused_add_rms_norm_quant(x, residual, None, fmt=fmt)
    assert torch.equal(residual, want)


@pytest.mark.parametrize(
    ("fmt", "reason"),
    [(QuantFormat(granularity="token"), "FP8 on CPU"), (QuantFormat(torch.int8, "group"), "fp32 scale a row")],
)
def test_another_form_than_int8_rows_is_left_to_the_reference_with_its_reason(fmt: QuantFormat, reason: str) -> None:
    x = rows((3, 128), torch.bfloat16)
    explanation = serving_ops.explain("rms_norm_quant", x, None, fmt=fmt)
    assert explanation.path == "reference"
    assert reason in str(explanation.reason)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (128, 32), (128, 128), (256, 64)])
def test_qk_norm_rope_has_the_bits_of_the_norm_and_the_rotation(
    dtype: torch.dtype, is_neox: bool, head_dim: int, rotary_dim: int
) -> None:
    q_heads, kv_heads = 9, 2
    qkv = rows((7, (q_heads + 2 * kv_heads) * head_dim), dtype)
    positions, table = torch.tensor([3, 0, 19, 4, 4, 7, 1]), rows((20, rotary_dim), dtype, seed=1)
    weights = rows((head_dim,), dtype, seed=2), rows((head_dim,), dtype, seed=3)
    want, ran = qkv.clone(), kernel_calls("qk_norm_rope")
    heads = {"num_q_heads": q_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    serving_ops.qk_norm_rope(qkv, positions, table, *weights, **heads, is_neox=is_neox)
    assert kernel_calls("qk_norm_rope") == ran + 1
    q, k, _ = rope_reference.heads_of(want, None, None, q_heads, kv_heads, head_dim)
    angles = rope_reference.cos_and_sin(positions, table, None, False)
    for x, weight in zip((q, k), weights, strict=True):
        x.copy_(rope_reference.rotated(OPS.rms_norm(x, weight, EPS), *angles, is_neox))
    assert torch.equal(qkv, want)


def test_q_and_k_that_are_columns_of_one_tensor_are_rotated_where_they_lie() -> None:
    packed, table = rows((5, 8, 64), torch.bfloat16), rows((9, 64), torch.bfloat16, seed=1)
    together, positions = packed.clone().flatten(1), torch.arange(5)
    heads = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    ran = kernel_calls("qk_norm_rope")
    serving_ops.qk_norm_rope(together, positions, table, None, None, **heads)
    serving_ops.qk_norm_rope(packed[:, :4], positions, table, None, None, **heads, k=packed[:, 4:6])
    assert kernel_calls("qk_norm_rope") == ran + 2
    assert torch.equal(packed.flatten(1), together)


def test_a_position_beyond_the_table_is_an_error_and_nothing_is_rotated() -> None:
    qkv, table = rows((2, 256), torch.bfloat16), rows((9, 64), torch.bfloat16, seed=1)
    before = qkv.clone()
    for position in (-1, 9):
        with pytest.raises(RuntimeError, match=f"positions is a tensor that holds {position}"):
            serving_ops.qk_norm_rope(
                qkv, torch.tensor([0, position]), table, None, None, num_q_heads=2, num_kv_heads=1, head_dim=64
            )
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (2, 0, 1, 3)])
def test_permuted_leading_dimensions_stay_permuted(order: tuple[int, ...]) -> None:
    x = rows((3, 5, 7, 96), torch.bfloat16).permute(order)
    residual = rows((3, 5, 7, 96), torch.bfloat16, seed=1).permute(order)
    flat_x, flat_residual = x.contiguous(), residual.contiguous()
    ran = kernel_calls("fused_add_rms_norm")
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    OPS.fused_add_rms_norm(flat_x, flat_residual, None, EPS)
    assert kernel_calls("fused_add_rms_norm") == ran + 2
    assert torch.equal(x, flat_x)
    assert torch.equal(residual, flat_residual)


def test_a_strided_gate_is_read_where_it_lies() -> None:
    packed = rows((9, 16, 512), torch.bfloat16)
    x, z = rows((9, 16, 128), torch.bfloat16, seed=1), packed[:, :, 384:]
    assert torch.equal(OPS.rms_norm_gated(x, z, None, EPS), OPS.rms_norm_gated(x, z.contiguous(), None, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_special_values_go_through_as_in_the_reference(dtype: torch.dtype, special: float) -> None:
    x, residual = rows((3, 100), dtype), rows((3, 100), dtype, seed=1)
    x[1, 70] = special
    expected = reference.fused_add_rms_norm(x.clone(), residual.clone(), None, EPS)
    gate = torch.tensor([special, 0.0, -200.0, 200.0], dtype=dtype).repeat(3, 25)
    gated, gated_expected = (
        OPS.rms_norm_gated(residual, gate, None, EPS),
        reference.rms_norm_gated(residual, gate, None, EPS),
    )
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    torch.testing.assert_close(x, expected[0], equal_nan=True)
    torch.testing.assert_close(residual, expected[1], equal_nan=True)
    torch.testing.assert_close(gated, gated_expected, equal_nan=True)


def test_subnormal_sums_are_kept() -> None:
    x = torch.full((2, 64), 1e-39, dtype=torch.bfloat16)
    residual = torch.zeros_like(x)
    expected = reference.fused_add_rms_norm(x.clone(), residual.clone(), None, EPS)
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    assert torch.equal(residual, expected[1])
    assert torch.equal(x, expected[0])


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128), (0, 3, 0, 64)])
def test_no_rows_are_fine(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16)
    assert OPS.rms_norm(x, None, EPS).shape == x.shape
    OPS.fused_add_rms_norm(x, torch.empty_like(x), None, EPS)
    assert OPS.rms_norm_gated(x, torch.empty_like(x), None, EPS).shape == x.shape


def test_threads_calling_at_once_do_not_disturb_each_other() -> None:
    x, weight = rows((64, 2048), torch.bfloat16), rows((2048,), torch.bfloat16)
    expected = OPS.rms_norm(x, weight, EPS)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: OPS.rms_norm(x, weight, EPS), range(200)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("name", ["float64", "last stride 2", "more dimensions than collapse"])
def test_what_the_kernels_do_not_take_the_reference_does(name: str) -> None:
    x = {
        "float64": rows((4, 64), torch.float64),
        "last stride 2": rows((4, 128), torch.bfloat16)[:, ::2],
        "more dimensions than collapse": rows((3,) * 7 + (8,), torch.float32)[:, :2, :2, :2, :2, :2, :2],
    }[name]
    ran = kernel_calls("rms_norm")
    result = OPS.rms_norm(x, None, EPS)
    assert kernel_calls("rms_norm") == ran
    assert torch.equal(result, reference.rms_norm(x, None, EPS))


def test_a_refused_call_changes_nothing() -> None:
    x = rows((4, 64), torch.bfloat16)
    before = x.clone()
    with pytest.raises(RuntimeError, match="residual"):
        OPS.fused_add_rms_norm(x, x, None, EPS)
    with pytest.raises(RuntimeError, match="weight"):
        OPS.rms_norm.out(x, torch.ones(63, dtype=torch.bfloat16), EPS, out=x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "portable"])
def test_each_instruction_set_can_be_asked_for(isa: str) -> None:
    if not _has(isa):
        pytest.skip(f"this processor has no {isa}")
    environment = {**os.environ, "SERVING_OPS_CPU_ISA": isa}
    command = [sys.executable, "-c", EVERY_OP_AND_DTYPE]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == isa


EVERY_OP_AND_DTYPE = """
import torch, serving_ops
from serving_ops import extension, reference
print(extension.instruction_set())
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x, other, weight = torch.randn(5, 1001).to(dtype), torch.randn(5, 1001).to(dtype), torch.randn(1001).to(dtype)
    close = {"rtol": 2**-7, "atol": 1e-3} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-6}
    for op, given in (("rms_norm", (x,)), ("rms_norm_gated", (x, other)), ("fused_add_rms_norm", (x, other))):
        results, expected = (
            getattr(module, op)(*(tensor.clone() for tensor in given), weight) for module in (serving_ops, reference)
        )
        torch.testing.assert_close(results, expected, **close)
    form = serving_ops.QuantFormat(torch.int8, "token")
    q, scales = serving_ops.rms_norm_quant(x, weight, fmt=form)
    wanted = reference.quantize(serving_ops.rms_norm(x, weight), form)
    assert torch.equal(q, wanted[0]) and torch.equal(scales, wanted[1])
    for is_neox in (True, False):
        qkv, table, norm = torch.randn(5, 5 * 96).to(dtype), torch.randn(9, 96), torch.randn(96).to(dtype)
        results = [qkv.clone(), qkv.clone()]
        for module, result in zip((serving_ops, serving_ops.rope_reference), results):
            heads = {"num_q_heads": 3, "num_kv_heads": 1, "head_dim": 96, "is_neox": is_neox}
            module.qk_norm_rope(result, torch.arange(5), table, norm, norm, **heads)
        torch.testing.assert_close(*results, rtol=close["rtol"], atol=4 * close["rtol"])
assert not any(calls["reference"] for calls in serving_ops.counters.snapshot().values())
"""


def _has(isa: str) -> bool:
    """Whether this processor has what the kernels of that name are compiled for."""
    flags = set(re.findall(r"[a-z0-9_]+", Path("/proc/cpuinfo").read_text()))
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"},
        "avx2": {"avx2", "fma", "f16c"},
        "neon": {"asimd"},
        "portable": set(),
    }
    return needed[isa] <= flags


def test_a_result_too_large_to_allocate_is_an_error_that_keeps_no_argument() -> None:
    weight, x = torch.ones(1024), torch.ones(1, 1024).expand(2**36, 1024)
    calls = (
        lambda: serving_ops.rms_norm(x, weight),
        lambda: serving_ops.rms_norm_gated(x, x, weight, bias=weight),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="out of memory"):
            call()
    assert weight._use_count() == 1
    assert x._use_count() == 1


@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "seven dimensions", "elements apart", "float64"])
def test_add_rms_norm_is_the_op_in_place_on_copies(layout: str) -> None:
    deep = rows((3,) * 7 + (8,), torch.float32)[:, :2, :2, :2, :2, :2, :2]
    x, residual = {
        "rows": (rows((3, 64), torch.bfloat16), rows((3, 64), torch.bfloat16, seed=1)),
        "columns": rows((3, 5, 256), torch.bfloat16).chunk(2, dim=-1),
        "transposed": (rows((64, 3), torch.bfloat16).t(), rows((64, 3), torch.bfloat16, seed=1).t()),
        "seven dimensions": (deep, deep),
        "elements apart": (rows((3, 64), torch.float16)[:, ::2], rows((3, 64), torch.float16, seed=1)[:, 1::2]),
        "float64": (rows((3, 64), torch.float64), rows((3, 64), torch.float64, seed=1)),
    }[layout]
    weight, given = rows(x.shape[-1:], torch.float32).to(x.dtype), (x.clone(), residual.clone())
    out, total = OPS.add_rms_norm(x, residual, weight, EPS, weight_offset=1.0)
    assert out.is_contiguous()
    assert total.is_contiguous()
    assert torch.equal(x, given[0])
    assert torch.equal(residual, given[1])
    in_place = [tensor.contiguous() for tensor in given]
    OPS.fused_add_rms_norm(*in_place, weight, EPS, weight_offset=1.0)
    assert torch.equal(out, in_place[0])
    assert torch.equal(total, in_place[1])
    assert [tensor._use_count() for tensor in (weight, out, total)] == [1, 1, 1]


def test_add_rms_norm_names_the_wrong_argument() -> None:
    x, weight = rows((3, 64), torch.bfloat16), rows((64,), torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"residual\.shape is \(64,\)"):
        OPS.add_rms_norm(x, weight, weight, EPS)
    with pytest.raises(RuntimeError, match=r"weight\.shape is \(3, 64\)"):
        OPS.add_rms_norm(x, x, x, EPS)
    assert [tensor._use_count() for tensor in (x, weight)] == [1, 1]
