from __future__ import annotations

from functools import partial

import pytest
import torch

from serving_ops import cuda_rope
from serving_ops.bench_e2e.ops import contestants, ops_bench, timing
from serving_ops.bench_e2e.ops.cases import QK_ROPE, Case
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import Contestant, Unsupported, copy, ours
from serving_ops.bench_e2e.ops.inputs import make_inputs
from serving_ops.bench_e2e.ops.ops_table import blocks
from serving_ops.kernels.triton import run_rope
from serving_ops.plan import Plan

CASE = Case("rope-plans", QK_ROPE, (3, 8, 4, 64), dtype="float32")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[Plan]:
    """The plans that the kernel was launched with."""
    found: list[Plan] = []
    run = run_rope.run_qk_norm_rope

    def recorded(plan: Plan, **arguments: object) -> object:
        found.append(plan)
        run(plan=plan, **arguments)  # type: ignore[arg-type]
        return partial(print)  # as on a GPU, a launch that can be repeated

    monkeypatch.setattr(run_rope, "run_qk_norm_rope", recorded)
    if device.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(cuda_rope, "pdl", lambda device: False)
    return found


@pytest.mark.parametrize("form", [None, "cached"])
def test_every_plan_gives_the_right_result_and_differs_from_ours(
    form: str | None, device: torch.device, launched: list[Plan]
) -> None:
    inputs = make_inputs(Case(**(vars(CASE) | {"form": form})), str(device))
    changed = 0
    for contestant in contestants.OF_OURS["rope-plans"][1:]:
        try:
            call = contestant.bind(CASE, inputs)
        except Unsupported:  # the plan itself
            continue
        assert problem(CASE, inputs, call) is None, contestant.name
        changed += 1
    of_ours = cuda_rope.plan_rope(64, 3, 12, cached=form is not None)
    assert changed == len(set(launched)) >= 4
    assert of_ours not in launched


def test_a_copy_is_timed_and_never_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WINDOW_S", 2e-5)
    case = Case("rope", QK_ROPE, (2, 4, 2, 64), threads=1)
    wrong = Contestant("peer", "1", copy.call)
    result = ops_bench.measure(case, [ours, copy, wrong], "cpu")
    assert set(result["times"]) == {"serving_ops", "copy"}
    assert result["problems"]["peer"].startswith("wrong")
    (block,) = blocks({"kind": "ops", "results": [result]})
    cells = dict(zip(block.header, block.lines[0], strict=True))
    assert cells["best peer / ours"] == "-"
    assert [name for name, cell in cells.items() if cell.startswith("**")] == ["serving_ops"]
