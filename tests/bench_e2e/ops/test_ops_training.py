from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from serving_ops import reference
from serving_ops.bench_e2e import cli, table
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import cases, check, peers, timing
from serving_ops.bench_e2e.ops.cases import ADD, BACKWARD, BOTH, GATED, PASSES, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Contestant, Unsupported, eager, inductor, ours, peer
from serving_ops.bench_e2e.ops.inputs import make_inputs
from serving_ops.bench_e2e.ops.ops_bench import measure
from serving_ops.bench_e2e.ops.timing import MOST_SETS, sets_for

CASES = {
    op: Case("rows", op, (3, 2, 64), weight="float32" if op == GATED else "same", passes=BOTH, threads=1)
    for op in cases.ops_of("training")
}
MIB = 1 << 20


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    monkeypatch.setattr(timing, "WINDOW_S", 2e-5)


def _measured(case: Case, *contestants: Contestant) -> dict[str, Any]:
    return measure(case, contestants, "cpu")


def _peer(norm: Callable[..., Any], **options: bool) -> Contestant:
    """norm: of x and the weight."""
    norms = {RMS_NORM: lambda x, weight, eps: norm(x, weight)}
    return peer("peer", "1", norms=norms, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", CASES)
def test_both_passes_are_timed_of_whoever_has_the_right_gradients(op: str, dtype: str) -> None:
    for passes in PASSES["training"]:
        result = _measured(replace(CASES[op], dtype=dtype, passes=passes), ours, eager)
        assert not result["problems"]
        assert result["passes"] == passes
        assert set(result["times"]) == {OURS, "eager"}


def test_inductors_backward_pass_runs_often_on_one_forward_pass() -> None:
    for passes in PASSES["training"]:
        assert not _measured(replace(CASES[RMS_NORM], dtype="float32", passes=passes), ours, inductor)["problems"]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda x, weight: x * weight, "wrong: dx"),
        (lambda x, weight: reference.rms_norm(x, weight.detach(), 1e-6), "failed: RuntimeError"),
    ],
)
def test_wrong_gradients_are_never_timed(wrong: Callable[..., Tensor], problem: str) -> None:
    result = _measured(replace(CASES[RMS_NORM], dtype="float32"), ours, _peer(wrong))
    assert "peer" not in result["times"]
    assert result["problems"]["peer"].startswith(problem)


def test_the_weight_is_compared_over_all_rows_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("rows", ADD, (1000, 64), dtype="float32", passes=BACKWARD)
    inputs = make_inputs(case, "cpu")
    right = ours.bind(case, inputs)
    monkeypatch.setattr(check, "CHUNK_ELEMENTS", 130)
    assert check.problem(case, inputs, right) is None
    with torch.no_grad():
        inputs.x[1] *= 100.0  # a row that is not among those compared alone
    assert "dweight" in str(check.problem(case, inputs, right))


def test_a_contestant_that_overwrites_its_gradient_gets_its_own() -> None:
    class Overwrites(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return reference.rms_norm(x, weight)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
                dx, dweight = torch.autograd.grad(reference.rms_norm(*leaves), leaves, dout)
            return dout.copy_(dx), dweight

    overwriting = _peer(Overwrites.apply, overwrites_dout=True)
    assert not _measured(replace(CASES[RMS_NORM], dtype="float32"), overwriting, ours)["problems"]


def test_bytes_are_those_of_every_tensor_once() -> None:
    backward = Case("rows", RMS_NORM, (10, 64), passes=BACKWARD)
    assert backward.bytes_moved == 3 * 10 * 64 * 2
    assert replace(backward, passes=BOTH).bytes_moved == 5 * 10 * 64 * 2
    assert replace(backward, op=GATED).bytes_moved == 5 * 10 * 64 * 2


@pytest.mark.parametrize("regimes", [(), ("large", "narrow")])
def test_sizes_that_are_given_are_measured_once_an_op(regimes: tuple[str, ...]) -> None:
    sizes = ((8, 64), (16, 64))
    planned = cases.plan("training", "cuda", regimes, ops=(RMS_NORM, ADD), shapes=sizes)
    assert [(case.op, case.shape, case.passes) for case in planned] == [
        (op, shape, passes) for op in (RMS_NORM, ADD) for shape in sizes for passes in (BACKWARD, BOTH)
    ]


def test_a_residual_is_measured_at_the_rows_that_a_norm_without_one_is() -> None:
    with_one, without = (
        [case.shape for case in cases.plan("training", "cuda", ("rows",), ops=(op,))] for op in (ADD, RMS_NORM)
    )
    assert with_one == without


def test_rows_do_not_stay_in_the_l2_between_calls() -> None:
    assert sets_for(16 * MIB, 60 * MIB, trained=True) == 15
    assert sets_for(4096 * MIB, 60 * MIB, trained=True) == 1
    assert sets_for(1024, 60 * MIB, trained=True) == MOST_SETS


def test_a_run_is_written_and_becomes_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    monkeypatch.setenv("SERVING_OPS_PDL", "0")
    words = ["--device", "cpu", "--op", "rms_norm", "--sizes", "4x64", "--dtype", "bfloat16,float32", "--threads", "1"]
    assert cli.main(["training", *words, "--contestants", "eager", "--out", str(out)]) == 0
    run = json.loads(out.read_text())
    assert "SERVING_OPS_PDL=0 python -m serving_ops.bench_e2e training --device cpu" in run["command"]
    results = run["results"]
    assert [(result["dtype"], result["passes"]) for result in results] == [
        *(("bfloat16", BACKWARD), ("bfloat16", BOTH)),
        *(("float32", BACKWARD), ("float32", BOTH)),
    ]
    capsys.readouterr()
    assert table.main([str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| 4 x 64 |") == 4
    assert "rms_norm, float32, 1 thread, backward: us a call" in shown


def test_unknown_names_are_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["training", "--device", "cpu", "--regime", "narrow"])
    assert "rows, gated" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["training", "--device", "cpu", "--contestants", "Quark"])


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(functions)


def _right(contestants: list[Contestant], op: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for contestant in contestants:
        case = replace(CASES[op], dtype="float32")
        inputs = make_inputs(case, "cpu")
        try:
            found[contestant.name] = check.problem(case, inputs, contestant.bind(case, inputs))
        except Unsupported as reason:
            found[contestant.name] = f"unsupported: {reason}"
    return found


def test_quack_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def rmsnorm(
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        residual_dtype: torch.dtype | None = None,
        eps: float = 1e-6,
        prenorm: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        out = reference.rms_norm(total, weight, eps)
        return (out, total) if prenorm else out

    _stand_in(monkeypatch, "quack.rmsnorm", rmsnorm=rmsnorm, _rmsnorm_fwd=None)
    assert _right(peers.quack(), RMS_NORM) == {"Quack": None}
    assert _right(peers.quack(), ADD) == {"Quack": None}
    assert _right(peers.quack(), GATED) == {"Quack": "unsupported: no rms_norm_gated"}


def test_liger_is_called_as_it_wants_and_by_its_row_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    class LigerRMSNormFunction:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, eps: float, *more: object) -> Tensor:
            seen.append(more)
            return reference.rms_norm(x, weight, eps)

    class LigerFusedAddRMSNormFunction:
        @staticmethod
        def apply(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
            return reference.rms_norm(x + residual, weight, eps), x + residual

    _stand_in(monkeypatch, "liger_kernel.ops.rms_norm", LigerRMSNormFunction=LigerRMSNormFunction)
    module = ModuleType("liger_kernel.ops.fused_add_rms_norm")
    module.LigerFusedAddRMSNormFunction = LigerFusedAddRMSNormFunction  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert _right(peers.liger(), RMS_NORM) == {"Liger": None, "Liger rows": None}
    assert seen == [(), (0.0, "llama", True, True)]  # offset, casting_mode, in_place, row_mode
    assert _right(peers.liger(), ADD) == {"Liger": None, "Liger rows": "unsupported: no add_rms_norm"}


def test_fla_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def rmsnorm_fn(x: Tensor, weight: Tensor, bias: None, z: Tensor | None = None, eps: float = 1e-6) -> Tensor:
        return reference.rms_norm_gated(x, z, weight, eps)

    def rms_norm_gated(
        x: Tensor, g: Tensor, weight: Tensor, bias: None, activation: str = "swish", eps: float = 1e-6
    ) -> Tensor:
        return reference.rms_norm_gated(x, g, weight, eps)

    _stand_in(monkeypatch, "fla.modules.layernorm_gated", rmsnorm_fn=rmsnorm_fn)
    module = ModuleType("fla.modules.fused_norm_gate")
    module.rms_norm_gated = rms_norm_gated  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert _right(peers.fla(), GATED) == {"FLA layernorm_gated": None, "FLA fused_norm_gate": None}


def test_a_project_that_is_not_installed_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    quack = _peer(lambda x, weight: x)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.fused_add_rms_norm", None)
    found, absent = peers.load({"Quack": lambda: [quack], "Liger": peers.liger})
    assert (found, list(absent)) == ([quack], ["Liger"])
    assert peers.adapters_for("training", "cpu", libraries=True) == {}
