from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from serving_ops.bench_e2e.ops.cases import (
    FUSED_ADD,
    FUSED_ADD_QUANT,
    GATED,
    GATED_QUANT,
    QK_ROPE,
    RMS_NORM,
    RMS_NORM_QUANT,
    Case,
)
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import OF_OURS, Contestant, eager, ours
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs

CASES = [
    Case("rows", FUSED_ADD, (5, 96)),
    Case("rows", FUSED_ADD, (5, 95), layout="strided", dtype="float16"),
    Case("rows", RMS_NORM, (300, 96), dtype="float32"),
    Case("gated", GATED, (3, 4, 128), weight="float32"),
    Case("gated", GATED, (3, 4, 128), weight="float32", layout="strided"),
    Case("quant", FUSED_ADD_QUANT, (5, 1024), form="block"),
    Case("host", RMS_NORM_QUANT, (5, 1024), form="block"),
    Case("host", GATED_QUANT, (5, 3, 128), form="token", weight="float32"),
    Case("quant", FUSED_ADD_QUANT, (300, 1024), form="token", dtype="float16"),
    Case("rope", QK_ROPE, (5, 4, 2, 64)),
    Case("rope", QK_ROPE, (300, 2, 1, 128), form="cached", dtype="float16"),
]


@pytest.mark.parametrize("contestant", [ours, eager], ids=lambda contestant: contestant.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_contestants_pass(contestant: Contestant, case: Case) -> None:
    inputs = make_inputs(case, "cpu")
    assert problem(case, inputs, contestant.bind(case, inputs)) is None


@pytest.mark.parametrize("op", [FUSED_ADD, RMS_NORM])
def test_every_variant_of_ours_passes_on_its_own_case(op: str) -> None:
    for variant in OF_OURS["variants"]:
        case = variant.case(Case("variants", op, (4, 96)))
        inputs = make_inputs(case, "cpu")
        assert problem(case, inputs, variant.bind(case, inputs)) is None, variant.name


def _wrong(change: Callable[[Inputs], object]) -> str | None:
    case = Case("rows", FUSED_ADD, (4, 64))
    inputs = make_inputs(case, "cpu")
    right = ours.bind(case, inputs)

    def call() -> None:
        right()
        change(inputs)

    return problem(case, inputs, call)


def test_a_wrong_last_row_is_found() -> None:
    assert "result is off" in str(_wrong(lambda inputs: inputs.x[-1].mul_(1.1)))


def test_a_residual_that_was_not_written_is_found() -> None:
    assert "residual is off" in str(_wrong(lambda inputs: inputs.residual.normal_()))  # type: ignore[union-attr]


def test_an_element_nobody_wrote_is_found() -> None:
    case = Case("rows", RMS_NORM, (4, 64))
    inputs = make_inputs(case, "cpu")
    assert problem(case, inputs, lambda: None) == "wrong: result has values that are not finite"


def test_a_result_of_another_dtype_is_found() -> None:
    case = Case("rows", RMS_NORM, (4, 64))
    inputs = make_inputs(case, "cpu")
    assert "torch.float32" in str(problem(case, inputs, lambda: inputs.x.float()))


def test_every_check_draws_new_numbers() -> None:
    case = Case("rows", RMS_NORM, (4, 64))
    inputs = make_inputs(case, "cpu")
    before = inputs.x.clone()
    problem(case, inputs, ours.bind(case, inputs))
    assert not torch.equal(before, inputs.x)


WRONG: dict[str, tuple[str, Callable[[Inputs], object]]] = {
    "a scale 10% off": ("result is off", lambda inputs: inputs.scales_out[-1, -1].mul_(1.1)),  # type: ignore[index]
    "a scale not written": ("not finite", lambda inputs: inputs.scales_out[0, 0].fill_(torch.nan)),  # type: ignore[index]
    "a value not written": ("not finite", lambda inputs: inputs.out[0, 0].fill_(torch.nan)),  # type: ignore[index]
    "a norm 2% off": ("result is off", lambda inputs: inputs.scales_out.mul_(1.02)),  # type: ignore[union-attr]
    "the residual": ("residual is off", lambda inputs: inputs.residual.normal_()),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("form", ["block", "token"])
@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_a_quantized_result_is_found(form: str, fault: str) -> None:
    case = Case("quant", FUSED_ADD_QUANT, (4, 1024), form=form)
    inputs = make_inputs(case, "cpu")
    right, (said, change) = ours.bind(case, inputs), WRONG[fault]

    def call() -> None:
        right()
        change(inputs)

    assert said in str(problem(case, inputs, call))


@pytest.mark.parametrize("name", ["qkv", "key_cache", "value_cache"])
def test_what_is_wrong_with_rotated_heads_or_a_cache_is_found(name: str) -> None:
    case = Case("rope", QK_ROPE, (16, 4, 2, 64), form="cached")
    inputs = make_inputs(case, "cpu")
    right = ours.bind(case, inputs)

    def call() -> None:
        right()
        inputs.call[name][-1] *= 1.1

    assert f"{'result' if name == 'qkv' else name} is off" in str(problem(case, inputs, call))
