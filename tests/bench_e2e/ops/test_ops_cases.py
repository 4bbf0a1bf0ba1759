from __future__ import annotations

import math

import pytest

from serving_ops.bench_e2e.ops import cases
from serving_ops.bench_e2e.ops.cases import FUSED_ADD, FUSED_ADD_QUANT, GATED, QK_ROPE, RMS_NORM, Case, plan
from serving_ops.bench_e2e.options import shapes
from serving_ops.ops import registry


def test_cpu_plan_has_every_size_on_every_number_of_threads() -> None:
    planned = plan("ops", "cpu", ["rows"], threads=(1, 2))
    expected = {
        (op, (m, n), threads)
        for op in (FUSED_ADD, RMS_NORM)
        for m in (1, 8, 64, 512, 4096)
        for n in (896, 2048, 4096)
        for threads in (1, 2)
    }
    assert {(case.op, case.shape, case.threads) for case in planned} == expected
    assert len(planned) == len(expected)


def test_decode_plan_has_every_target_size() -> None:
    planned = {case.shape for case in plan("ops", "cuda", ["decode"], ops=[FUSED_ADD])}
    assert planned == {(m, n) for m in (1, 4, 16, 64, 256) for n in (1024, 2048, 4096, 5120, 7168, 8192, 16384)}


@pytest.mark.parametrize("regime", ["prefill", "wide"])
def test_prefill_and_wide_cases_have_at_least_2_to_the_26_elements(regime: str) -> None:
    for case in plan("ops", "cuda", [regime]):
        assert math.prod(case.shape) >= 2**26, case


def test_gated_plan_has_contiguous_and_strided_z_at_every_shape() -> None:
    planned = plan("ops", "cuda", ["gated"])
    layouts = {(case.shape, case.layout) for case in planned}
    assert len(planned) == len(layouts) == 10
    assert {case.shape for case in planned} == {(tokens, 24, 128) for tokens in (1, 32, 256, 8192, 60381)}


def test_given_sizes_go_to_the_regimes_whose_rank_they_have() -> None:
    planned = plan("ops", "cpu", ["rows", "gated"], shapes=[(3, 5), (2, 4, 8)], threads=(1,))
    assert {(case.regime, case.shape) for case in planned} == {("rows", (3, 5)), ("gated", (2, 4, 8))}


def test_sizes_of_a_rotation_have_four_extents() -> None:
    planned = plan("ops", "cuda", ["rope", "decode"], shapes=shapes("3x4x2x64"))
    assert {(case.op, case.shape) for case in planned} == {(QK_ROPE, (3, 4, 2, 64))}


def test_dtype_reaches_every_case() -> None:
    assert {case.dtype for case in plan("ops", "cuda", ["decode", "gated", "gemm"], dtypes=["float16"])} == {"float16"}


@pytest.mark.parametrize(("op", "tensors"), [(FUSED_ADD, 4), (RMS_NORM, 2), (GATED, 3)])
def test_bytes_moved_counts_each_tensor_once(op: str, tensors: int) -> None:
    assert Case("decode", op, (3, 5, 7)).bytes_moved == tensors * 3 * 5 * 7 * 2


def test_quant_plan_has_every_size_in_every_form_and_gated_norms_plain_beside_them() -> None:
    planned = plan("ops", "cuda", ["quant"])
    rows = {(FUSED_ADD_QUANT, form, shape) for form in ("block", "token") for shape in cases.QUANT}
    gated = {(cases.GATED_QUANT, form, shape) for form in ("block", "token") for shape in cases.GATED_ROWS}
    plain = {(GATED, None, shape) for shape in cases.GATED_ROWS}
    assert {(case.op, case.form, case.shape) for case in planned} == rows | gated | plain
    assert len(planned) == 22 + 10 + 10  # plain gated norms with a strided gate too


def test_norms_that_quantize_are_also_measured_between_products_and_in_wide_rows() -> None:
    for regime, shapes_of in (("gemm", {(1, 4096)}), ("wide", {(4096, 16384), (4096, 65536), (2048, 131072)})):
        planned = plan("ops", "cuda", [regime], ops=[FUSED_ADD_QUANT])
        assert {(case.form, case.shape) for case in planned} == {
            (form, shape) for form in ("block", "token") for shape in shapes_of
        }


def test_no_other_regime_has_a_form() -> None:
    forms = "quant", "rope", "host"
    others = plan("ops", "cuda", [name for name in cases.regimes_for("ops", "cuda") if name not in forms])
    others = [case for case in others if case.op != FUSED_ADD_QUANT]
    assert {case.form for case in others} == {None}
    assert len(others) == 147


def test_host_time_is_measured_of_every_op_at_one_row_or_token() -> None:
    planned = plan("ops", "cuda", ["host"])
    assert {case.op for case in planned} == {*registry.OPS} - {"add_rms_norm"}
    assert {case.form for case in planned if case.op.endswith("_quant")} == {"block", "token"}
    assert {case.shape[0] for case in planned} == {1}


def test_int8_is_measured_on_cpu_and_fp8_is_not() -> None:
    planned = plan("ops", "cpu", ["int8"], threads=(1, 2))
    assert {case.form for case in planned} == {"int8"}
    assert len(planned) == 24
    assert "quant" not in cases.regimes_for("ops", "cpu")


def test_rows_that_groups_do_not_divide_are_only_quantized_as_a_whole() -> None:
    assert [case.form for case in plan("ops", "cuda", ["quant"], shapes=[(4, 1000)])] == ["token"]


@pytest.mark.parametrize(("form", "scales"), [("block", 8), ("token", 1)])
def test_bytes_moved_of_a_quantized_norm_count_its_scales(form: str, scales: int) -> None:
    assert Case("quant", FUSED_ADD_QUANT, (3, 1024), form=form).bytes_moved == 3 * (1024 * (3 * 2 + 1) + scales * 4)


def test_rotations_are_measured_with_and_without_a_cache() -> None:
    planned = plan("ops", "cuda", ["rope"])
    assert {(case.shape, case.form) for case in planned} == {
        (shape, form) for shape in cases.ROPE for form in (None, "cached")
    }


def test_bytes_moved_of_a_rotation_count_heads_both_ways_and_the_cache_once() -> None:
    head = 3 * 128 * 2
    assert Case("rope", QK_ROPE, (3, 16, 8, 128)).bytes_moved == 2 * 24 * head
    assert Case("rope", QK_ROPE, (3, 16, 8, 128), form="cached").bytes_moved == (2 * 24 + 3 * 8) * head
