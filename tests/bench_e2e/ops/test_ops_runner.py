from __future__ import annotations

import pytest

from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import ops_table, timing
from serving_ops.bench_e2e.ops.cases import FUSED_ADD, FUSED_ADD_QUANT, PAIR, QK_ROPE, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import OF_OURS, Call, Contestant, Unsupported, copy, eager, ours
from serving_ops.bench_e2e.ops.inputs import Inputs
from serving_ops.bench_e2e.ops.ops_bench import measure

CASE = Case("rows", RMS_NORM, (2, 64), threads=1)


def _raises(case: Case, inputs: Inputs) -> Call:
    raise RuntimeError("no kernel image\nis available")


def _leaves_out(case: Case, inputs: Inputs) -> Call:
    raise Unsupported("odd sizes only")


def _returns_its_input(case: Case, inputs: Inputs) -> Call:
    return lambda: inputs.x


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WINDOW_S", 2e-5)


def test_who_fails_is_named_with_the_reason_and_the_others_are_timed() -> None:
    result = measure(CASE, [ours, Contestant("broken", "1", _raises), eager], "cpu")
    assert result["problems"] == {"broken": "failed: RuntimeError: no kernel image"}
    assert set(result["times"]) == {OURS, "eager"}


def test_a_wrong_contestant_is_never_timed() -> None:
    result = measure(CASE, [ours, Contestant("copies", "1", _returns_its_input)], "cpu")
    assert result["problems"]["copies"].startswith("wrong: result is off")
    assert "copies" not in result["times"]


def test_what_a_contestant_does_not_offer_is_no_failure() -> None:
    result = measure(CASE, [ours, Contestant("peer", "1", _leaves_out)], "cpu")
    assert result["problems"] == {"peer": "unsupported: odd sizes only"}


def test_ratios_are_of_the_others_over_ours() -> None:
    result = measure(CASE, [ours, eager], "cpu")
    assert set(result["ratios"]) == {"eager"}
    assert result["ratios"]["eager"]["median"] == pytest.approx(
        result["times"]["eager"]["median_us"] / result["times"][OURS]["median_us"], rel=0.5
    )


def test_variants_run_beside_the_plain_call() -> None:
    case = Case("variants", FUSED_ADD, (2, 64), threads=1)
    result = measure(case, OF_OURS["variants"], "cpu")
    assert not result["problems"]
    assert list(result["times"]) == [variant.name for variant in OF_OURS["variants"]]


def test_calls_of_norms_that_quantize_run_beside_the_plain_call() -> None:
    result = measure(Case("calls", RMS_NORM, (1, 64), threads=1), OF_OURS["calls"], "cpu")
    assert not result["problems"]
    assert list(result["times"]) == [OURS, "to INT8", "to INT8, results given", "the same, no rows"]


@pytest.mark.parametrize("op", PAIR)
def test_norms_of_one_residual_are_measured_beside_the_reference(op: str) -> None:
    result = measure(Case("host", op, (2, 64), threads=1), [ours, eager], "cpu")
    assert not result["problems"]
    assert set(result["times"]) == {OURS, "eager"}


def test_the_json_names_the_case_and_the_path_ours_took() -> None:
    record = measure(CASE, [ours], "cpu")
    assert (record["op"], record["shape"], record["threads"]) == (RMS_NORM, (2, 64), 1)
    assert record["path"] in ("cpu", "reference")
    assert set(record["times"][OURS]) == {"median_us", "p25_us", "p75_us", "rounds"}


@pytest.mark.parametrize("form", ["block", "token"])
def test_a_quantized_norm_is_measured_beside_the_reference_and_has_a_table_a_form(form: str) -> None:
    case = Case("quant", FUSED_ADD_QUANT, (2, 256), threads=1, form=form)
    result = measure(case, [ours, eager], "cpu")
    assert not result["problems"]
    assert set(result["times"]) == {OURS, "eager"}
    record = result
    assert (record["form"], record["path"]) == (form, "reference")
    other = record | {"form": None}
    tables = ops_table.tables({"kind": "ops", "results": [record, record, other]})
    assert [len(rows) for _, rows in tables] == [1 + 2, 1 + 1]


def test_a_copy_is_timed_and_never_the_fastest() -> None:
    wrong = Contestant("peer", "1", copy.call)
    result = measure(Case("rope", QK_ROPE, (2, 4, 2, 64), threads=1), [ours, copy, wrong], "cpu")
    assert set(result["times"]) == {"serving_ops", "copy"}
    assert result["problems"]["peer"].startswith("wrong")
    ((_, (header, line)),) = ops_table.tables({"kind": "ops", "results": [result]})
    cells = dict(zip(header, line, strict=True))
    assert cells["best peer / ours"] == "-"
    assert [name for name, cell in cells.items() if cell.startswith("**")] == ["serving_ops"]
