"""The plugin inside a vLLM that has no IR: its RMSNorm is replaced as a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

import hidden
from in_process import DEVICE, HEAD, HIDDEN, SPEC, no_operator_may_run, rows, survey

from serving_ops import PrewarmReport, counters, extension
from serving_ops.integrations.vllm import features, installed, ir_layers, layers, priority, register, startup
from serving_ops.integrations.vllm.adapter import Activations
from serving_ops.integrations.vllm.layers import NormLayer


@pytest.fixture(autouse=True)
def _no_ir(registered: None, in_vllm: Any) -> Iterator[None]:
    """Registered once with vLLM's IR, as other tests need it, then without."""
    from vllm.model_executor.custom_op import op_registry_oot

    hidden.hide("vllm.ir")
    register()
    assert installed.failures == {}
    yield
    hidden.restore()
    op_registry_oot.pop("RMSNorm", None)


pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")


def _norm(size: int = HIDDEN, **options: Any) -> Any:
    from vllm.model_executor.layers.layernorm import RMSNorm

    layer = RMSNorm(size, eps=1e-5, **{"dtype": torch.bfloat16, **options})
    if layer.has_weight:
        layer.weight.data = rows(size, dtype=layer.weight.dtype)
    return layer.to(DEVICE).requires_grad_(False)


def _model() -> torch.nn.Module:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNormGated

    partial = _norm(var_hidden_size=128)
    return torch.nn.ModuleList([_norm(), partial, GemmaRMSNorm(HIDDEN), RMSNormGated(HEAD, dtype=torch.bfloat16)])


def test_features_of_the_ir_are_not_attempted_and_the_class_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [feature for feature in features.FEATURES if features._is_wanted(feature)]
    assert features.RMS_NORM in wanted
    assert not features.NEEDS_IR & set(wanted)
    hidden.restore()
    wanted = [feature for feature in features.FEATURES if features._is_wanted(feature)]
    assert features.RMS_NORM not in wanted
    assert set(wanted) >= features.NEEDS_IR


def test_an_ir_that_vllms_norms_no_longer_call_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers import layernorm

    hidden.restore()
    assert features.has_ir()
    monkeypatch.delattr(layernorm, "ir")
    assert not features.has_ir()


def test_the_class_is_built_by_the_old_name_and_keeps_its_flag_and_attributes() -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    layer = _norm(var_hidden_size=128)
    assert isinstance(layer, RMSNorm)
    assert type(layer).__name__ == "ServingOpsRMSNorm"
    assert type(layer).name == RMSNorm.name == "rms_norm"
    kept = ("hidden_size", "variance_epsilon", "variance_size_override", "has_weight")
    assert [getattr(layer, name) for name in kept] == [HIDDEN, 1e-5, 128, True]
    assert list(layer.state_dict()) == ["weight"]
    assert layer.extra_repr() == f"hidden_size={HIDDEN}, eps=1e-05"
    assert list(_norm(has_weight=False).state_dict()) == []


TAKEN = {
    "rows": ({}, rows(4, HIDDEN), None),
    "rows with a residual": ({}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "an fp32 weight": ({"dtype": torch.float32}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "no weight": ({"has_weight": False}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "heads in a wider buffer": ({}, rows(4, 8 * HIDDEN)[:, : 4 * HIDDEN].view(4, 4, HIDDEN), None),
    "no rows": ({}, rows(0, HIDDEN), rows(0, HIDDEN)),
}

_SAME = rows(4, HIDDEN)

LEFT = {
    "a variance over half of the row": ({"var_hidden_size": 128}, rows(4, HIDDEN), None),
    "float64": ({"dtype": torch.float64}, rows(4, HIDDEN, dtype=torch.float64), None),
    "a bf16 weight for fp32 rows": ({}, rows(4, HIDDEN, dtype=torch.float32), None),
    "a last stride of 4": ({}, rows(HIDDEN, 4).t(), None),
    "a residual in fp32": ({}, rows(4, HIDDEN), rows(4, HIDDEN, dtype=torch.float32)),
    "a residual with a last stride of 4": ({}, rows(4, HIDDEN), rows(HIDDEN, 4).t()),
    "a residual that is x": ({}, _SAME, _SAME),
}


def _native(layer: Any, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
    """What vLLM's definition gives, on copies."""
    from vllm import ir

    weight = layer.weight if layer.has_weight else None
    if residual is None:
        return ir.ops.rms_norm.impls["native"].impl_fn(x, weight, layer.variance_epsilon)
    return ir.ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, layer.variance_epsilon)


@pytest.mark.parametrize("case", TAKEN)
def test_it_agrees_with_vllms_in_place_where_there_is_a_residual(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    options, x, residual = TAKEN[case]
    layer = _norm(**options)
    x, residual = x if residual is None else x.clone(), None if residual is None else residual.clone()
    expected = _native(layer, x, residual)
    for vllms in ("forward_native", "forward_cuda"):
        monkeypatch.setattr(RMSNorm, vllms, lambda *_: pytest.fail("vLLM's own code ran"))
    result = layer(x) if residual is None else layer(x, residual)
    torch.testing.assert_close(result, expected)
    if residual is not None:
        assert result[0] is x
        assert result[1] is residual


@pytest.mark.parametrize("case", LEFT)
def test_what_it_does_not_take_stays_vllms(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    options, x, residual = LEFT[case]
    layer = _norm(**options)
    no_operator_may_run(monkeypatch)
    reached: list[object] = []
    monkeypatch.setattr(RMSNorm, "forward_native", lambda *args: reached.append(args))
    layer(x, residual)
    assert len(reached) == 1


def test_compiled_the_class_calls_our_operators_and_never_the_reference() -> None:
    layer = _norm()
    x, residual = rows(4, HIDDEN), rows(4, HIDDEN) * 0.5
    expected = _native(layer, x, residual)
    before = counters.snapshot()
    compiled = torch.compile(lambda x, residual: layer.forward_native(x * 1, residual * 1), fullgraph=True)
    torch.testing.assert_close(compiled(x, residual), expected)
    after = counters.snapshot()
    assert after["fused_add_rms_norm"]["kernel"] == before["fused_add_rms_norm"]["kernel"] + 1
    assert after["fused_add_rms_norm"]["reference"] == before["fused_add_rms_norm"]["reference"]


def test_the_start_up_line_counts_these_layers_and_says_why_others_stay_native() -> None:
    line = startup.describe(survey(_model()), DEVICE.type, "")
    assert "on for 1 of 2 RMSNorm, 1 of 1 GemmaRMSNorm, 1 of 1 RMSNormGated; " in line
    assert "native: 1 RMSNorm (its variance is over a part of the row)" in line


def test_prewarm_asks_for_what_these_layers_call() -> None:
    heads = SimpleNamespace(hidden=[_norm()], heads=[_norm(HEAD, has_weight=False)])
    asked = [
        [(spec.op, spec.size, spec.weight_dtype, spec.heads) for spec in survey(layer)[0].specs]
        for layer in (*heads.hidden, *heads.heads)
    ]
    assert asked == [
        [("rms_norm", 256, torch.bfloat16, 1), ("fused_add_rms_norm", 256, torch.bfloat16, 1)],
        [("rms_norm", 128, None, 1), ("fused_add_rms_norm", 128, None, 1), ("rms_norm", 128, None, 2)],
    ]


def test_layers_whose_prewarm_failed_are_native_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    spec = dataclasses.replace(SPEC, op="fused_add_rms_norm")
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={spec: "no compiler"}))
    layer = _norm()
    startup.prewarm([NormLayer("RMSNorm", (spec,), None)])
    no_operator_may_run(monkeypatch)
    monkeypatch.setattr(RMSNorm, "forward_native", lambda *_: "vLLM's")
    assert layer(rows(4, HIDDEN), rows(4, HIDDEN)) == "vLLM's"
    assert survey(layer)[0].native_because == "its prewarm failed"


def test_a_layer_is_on_whatever_priority_the_ir_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ir_layers, "_why_dispatched_elsewhere", lambda spec: pytest.fail("vLLM's IR was asked"))
    assert [layer.native_because for layer in survey(_model())][2:] == [None, None]


def test_layers_of_vllms_own_classes_are_reported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.layernorm import RMSNorm

    class Narrowed(RMSNorm):
        """A subclass is built as itself."""

    model = torch.nn.ModuleList([Narrowed(HIDDEN, dtype=torch.bfloat16)])
    assert survey(model)[0].native_because == "it was built as Narrowed"
    monkeypatch.delitem(op_registry_oot, "RMSNorm")
    monkeypatch.setitem(installed.failures, features.RMS_NORM, "Theirs already replaces RMSNorm")
    assert survey(_norm())[0].native_because == "Theirs already replaces RMSNorm"
    monkeypatch.setenv("SERVING_OPS", "rms_norm")
    assert survey(_norm())[0].native_because == layers.LEFT_OUT


def test_compiled_cuda_graphs_leave_norms_of_heads_to_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Activations(torch.bfloat16, torch.device("cuda"), HIDDEN, HEAD)
    eager, compiled = _norm(HEAD), _norm(HEAD)
    eager._forward_method, compiled._forward_method = eager.forward_cuda, compiled.forward_native
    assert [cuda.leaves_heads_to_inductor(layer) for layer in (eager, compiled)] == [False, True]
    hidden = _norm()
    hidden._forward_method = hidden.forward_native
    assert not cuda.leaves_heads_to_inductor(hidden)


def test_an_ir_op_is_given_back_only_where_there_is_an_ir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "drop", lambda op: pytest.fail("vLLM's IR was asked"))
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={SPEC: "no compiler"}))
    assert startup.prewarm([NormLayer("RMSNorm", (SPEC,), None)]).failed == {"rms_norm": "no compiler"}
