"""The plugin inside vLLM's own mechanisms, in this process and without an engine."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, OURS_FIRST, SPEC, no_operator_may_run, rows, survey, vllm_config

from serving_ops import Explanation, NormSpec, PrewarmReport, counters, extension, settings
from serving_ops.integrations.common.norm_layers import after_failures
from serving_ops.integrations.vllm import (
    compile_cache,
    features,
    installed,
    ir_providers,
    layers,
    priority,
    register,
    startup,
)
from serving_ops.integrations.vllm.layers import NormLayer

pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and extension.cpp_library() is None, reason="the C++ library was not built"
    ),
    pytest.mark.usefixtures("registered"),
]


def _default_priority(**chosen: list[str]) -> Any:
    """What vLLM would default to, for a configuration in which the user chose these priorities."""
    from vllm.config.kernel import IrOpPriorityConfig
    from vllm.platforms import current_platform

    user = IrOpPriorityConfig(**chosen)
    compilation = SimpleNamespace(backend="eager", mode=0)
    kernel = SimpleNamespace(ir_op_priority=user)
    config = SimpleNamespace(kernel_config=kernel, compilation_config=compilation, quant_config=None)
    return current_platform.get_default_ir_op_priority(config)


def _what_the_plugin_changes() -> dict[str, object]:
    from vllm import envs, ir
    from vllm.config import VllmConfig
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.platforms import current_platform
    from vllm.v1.worker.worker_base import WorkerBase

    return {
        "workers": WorkerBase.__init__,
        "priority": type(current_platform).get_default_ir_op_priority.__func__,
        "defaults": VllmConfig._apply_optimization_level_defaults,
        "variables": dict(envs.environment_variables),
        "rms_norm": (dict(ir.ops.rms_norm.impls), ir.ops.rms_norm.get_priority()),
        "fused_add_rms_norm": (dict(ir.ops.fused_add_rms_norm.impls), ir.ops.fused_add_rms_norm.get_priority()),
        "classes": dict(op_registry_oot),
    }


def test_registering_again_changes_nothing() -> None:
    before = _what_the_plugin_changes()
    register()
    assert _what_the_plugin_changes() == before


def test_undo_restores_vllm_after_everything_was_installed_and_given_back() -> None:
    installed.undo()
    before = _what_the_plugin_changes()
    register()
    features.install_for(vllm_config(has_inner_state=True), strict=True)
    now = _what_the_plugin_changes()
    assert [name for name in before if now[name] == before[name]] == []
    startup.give_back(settings.OPS)
    installed.failures["a feature"] = "a reason"
    installed.undo()
    assert _what_the_plugin_changes() == before
    assert (installed.failures, installed.given_back) == ({}, set())


def test_undo_leaves_what_another_plugin_has_put_over_ours() -> None:
    from vllm.model_executor.custom_op import op_registry_oot

    class Theirs:
        pass

    op_registry_oot["RMSNormGated"] = Theirs
    installed.undo()
    assert op_registry_oot.pop("RMSNormGated") is Theirs


def test_the_default_priority_holds_serving_ops_once_and_ends_as_before() -> None:
    for op in priority.OPS:
        providers = getattr(_default_priority(), op)
        assert providers[0] == ir_providers.PROVIDER
        assert providers[-1] == "native"
        assert providers.count(ir_providers.PROVIDER) == 1


def test_on_cuda_ours_is_first_and_when_compiled_takes_norms_of_whole_rows_alone() -> None:
    compiled, eager = ["native"], ["vllm_c", "native"]
    ours, rows = ir_providers.PROVIDER, ir_providers.ROWS_PROVIDER
    assert priority.with_ours("rms_norm", compiled, cuda=True) == [rows, "native"]
    assert priority.with_ours("fused_add_rms_norm", compiled, cuda=True) == [ours, "native"]
    for op in priority.OPS:
        assert priority.with_ours(op, eager, cuda=True) == [ours, "vllm_c", "native"]


def test_in_eager_mode_vllms_c_kernels_go_before_a_launch_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_ops.extension.cpp_library", lambda: None)
    for op in priority.OPS:
        assert priority.with_ours(op, ["vllm_c", "native"], cuda=True) == ["vllm_c", ir_providers.PROVIDER, "native"]
    assert not features._is_wanted("GemmaRMSNorm")


def test_a_priority_that_the_user_gave_is_not_added_to() -> None:
    defaults = _default_priority(rms_norm=["native"])
    assert ir_providers.PROVIDER not in defaults.rms_norm
    assert ir_providers.PROVIDER in defaults.fused_add_rms_norm


def test_defaults_merged_into_the_configuration_do_not_count_as_the_users() -> None:
    assert ir_providers.PROVIDER in _default_priority(rms_norm=OURS_FIRST).rms_norm


def test_an_op_that_the_user_left_out_gets_no_provider_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "fused_add_rms_norm")
    defaults = _default_priority()
    assert ir_providers.OURS.isdisjoint(defaults.rms_norm)
    assert defaults.fused_add_rms_norm[0] == ir_providers.PROVIDER


def test_a_class_is_replaced_where_none_of_its_ops_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "rms_norm,rms_norm_gated")
    wanted = {feature for feature in features.FEATURES if features._is_wanted(feature)}
    assert wanted == {*features.FEATURES} - {"GemmaRMSNorm", "RMSNorm"}


def test_vllm_copies_all_our_variables_to_its_ray_workers() -> None:
    from vllm.ray.ray_env import get_env_vars_to_copy
    from vllm.v1.executor.ray_utils import WORKER_SPECIFIC_ENV_VARS

    assert {variable.name for variable in settings.VARIABLES} <= get_env_vars_to_copy(WORKER_SPECIFIC_ENV_VARS)


def test_the_compile_cache_key_changes_with_dependent_launch_and_not_with_prewarming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm import envs

    before = envs.compile_factors()
    monkeypatch.setenv("SERVING_OPS_PREWARM", "off")
    monkeypatch.setenv("SERVING_OPS_PDL", "yes")
    assert envs.compile_factors() == before
    monkeypatch.setenv("SERVING_OPS_PDL", "no")
    assert envs.compile_factors() != before


@pytest.mark.parametrize("other", ["strict", "off", "rms_norm"])
def test_the_compile_cache_key_changes_with_the_mode(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    from vllm import envs

    factors = envs.compile_factors()
    assert factors[compile_cache.VARIABLE] == compile_cache.compile_key()
    monkeypatch.setenv("SERVING_OPS", other)
    assert envs.compile_factors() != factors


def test_the_compile_cache_key_changes_with_what_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [compile_cache.compile_key()]
    installed.given_back.add("rms_norm_gated")
    keys.append(compile_cache.compile_key())
    monkeypatch.setitem(installed.failures, "GemmaRMSNorm", "another plugin's")
    keys.append(compile_cache.compile_key())
    assert len(set(keys)) == len(keys)


SUPPORTED = {
    "bf16 weight": (rows(4, 256), rows(256)),
    "fp32 weight": (rows(4, 256), rows(256, dtype=torch.float32)),
    "no weight": (rows(4, 256), None),
    "heads in a wider buffer": (rows(4, 1024)[:, :512].view(4, 4, 128), rows(128)),
    "fp32": (rows(4, 256, dtype=torch.float32), rows(256, dtype=torch.float32)),
}

UNSUPPORTED = {
    "float64": (rows(4, 256, dtype=torch.float64), rows(256, dtype=torch.float64), None),
    "a last stride of 4": (rows(256, 4).t(), rows(256), None),
    "bf16 weight, fp32 x": (rows(4, 256, dtype=torch.float32), rows(256), None),
    "variance over half of the row": (rows(4, 256), rows(256), 128),
}


@pytest.mark.parametrize("case", SUPPORTED)
def test_supported_rows_go_to_serving_ops_and_agree_with_native(case: str) -> None:
    from vllm import ir

    x, weight = SUPPORTED[case]
    op = ir.ops.rms_norm
    assert op.dispatch(x, weight, 1e-6).provider == ir_providers.PROVIDER
    torch.testing.assert_close(op(x, weight, 1e-6), op.impls["native"].impl_fn(x, weight, 1e-6))


@pytest.mark.parametrize("case", SUPPORTED)
def test_the_fused_provider_works_in_place_and_agrees_with_native(case: str) -> None:
    from vllm import ir

    given, weight = SUPPORTED[case]
    x, residual = given.clone(), given.clone() * 0.5
    op = ir.ops.fused_add_rms_norm
    assert op.dispatch(x, residual, weight, 1e-6).provider == ir_providers.PROVIDER
    expected = op.impls["native"].impl_fn(x, residual, weight, 1e-6)
    result = op.maybe_inplace(x, residual, weight, 1e-6)
    assert [tensor.data_ptr() for tensor in result] == [x.data_ptr(), residual.data_ptr()]
    torch.testing.assert_close(result, expected)


def _share_unequal(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result != expected).double().mean())


def _rounded_once(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.double()).to(x.dtype)


def test_the_providers_apply_the_weight_before_the_only_rounding() -> None:
    """Rounded before the weight too, a quarter of the values would differ."""
    from vllm import ir

    x, residual, weight = rows(64, 576), rows(64, 576).flip(0), rows(576)
    assert _share_unequal(ir.ops.rms_norm(x, weight, 1e-6), _rounded_once(x, weight)) < 1e-3
    total = x.float() + residual.float()
    normed, _ = ir.ops.fused_add_rms_norm.maybe_inplace(x.clone(), residual.clone(), weight, 1e-6)
    assert _share_unequal(normed, _rounded_once(total, weight).to(x.dtype)) < 1e-3


@pytest.mark.slow
def test_compiled_vllm_has_the_bits_of_our_providers_up_to_the_order_of_sums() -> None:
    from vllm import ir

    x, weight = rows(64, 576), rows(576)
    native = ir.ops.rms_norm.impls["native"].impl_fn
    compiled = torch.compile(lambda x, weight: native(x, weight, 1e-6))
    assert _share_unequal(ir.ops.rms_norm(x, weight, 1e-6), compiled(x, weight)) < 1e-3


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_rows_stay_native(case: str) -> None:
    from vllm import ir

    x, weight, variance_size = UNSUPPORTED[case]
    assert ir.ops.rms_norm.dispatch(x, weight, 1e-6, variance_size).provider == "native"
    fused = ir.ops.fused_add_rms_norm
    assert fused.dispatch(x, x.clone(), weight, 1e-6, variance_size).provider == "native"


def test_a_residual_that_is_x_itself_stays_native() -> None:
    from vllm import ir

    x = rows(4, 256)
    assert ir.ops.fused_add_rms_norm.dispatch(x, x, rows(256), 1e-6).provider == "native"


@pytest.mark.parametrize("op", priority.OPS)
def test_predicates_and_bodies_take_what_vllms_definition_takes(op: str) -> None:
    import inspect

    from vllm import ir

    implementation = getattr(ir.ops, op).impls[ir_providers.PROVIDER]
    parameters = inspect.signature(getattr(ir.ops, op).impls["native"].impl_fn).parameters
    assert list(inspect.signature(implementation.impl_fn).parameters) == list(parameters)
    assert list(inspect.signature(implementation._supports_args).parameters) == list(parameters)


def _gated(**options: Any) -> Any:
    from vllm.model_executor.layers.layernorm import RMSNormGated

    layer = RMSNormGated(128, eps=1e-6, norm_before_gate=True, dtype=torch.bfloat16, **options)
    with torch.no_grad():
        layer.weight.copy_(rows(128))
    return layer.to(DEVICE).requires_grad_(False)


def test_the_gated_class_is_built_by_the_old_name_and_keeps_its_flag_and_attributes(in_vllm: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNormGated

    layer = _gated(activation="sigmoid", group_size=64)
    assert isinstance(layer, RMSNormGated)
    assert type(layer) is not RMSNormGated
    assert type(layer).name == RMSNormGated.name == "rms_norm_gated"
    kept = ("eps", "activation", "group_size", "norm_before_gate", "bias")
    assert [getattr(layer, name) for name in kept] == [1e-6, "sigmoid", 64, True, None]
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


GATED_INPUTS = {
    "contiguous": (rows(3, 16, 128), rows(3, 16, 128)),
    "strided z": (rows(3, 16, 128), rows(3, 6144)[:, 4096:].view(3, 16, 128)),
    "no gate": (rows(3, 16, 128), None),
    "a last stride of 16": (rows(3, 16, 128), rows(3, 128, 16).transpose(1, 2)),
    "z in fp32": (rows(3, 16, 128), rows(3, 16, 128, dtype=torch.float32)),
    "z of one head": (rows(3, 16, 128), rows(3, 1, 128)),
    "float64": (rows(3, 16, 128, dtype=torch.float64), None),
}
GATED_TAKEN = ("contiguous", "strided z", "no gate")


@pytest.mark.parametrize("case", GATED_INPUTS)
def test_the_gated_layer_agrees_with_vllms_on_what_it_takes_and_on_what_it_leaves(in_vllm: Any, case: str) -> None:
    from vllm.model_executor.layers.layernorm import RMSNormGated

    if DEVICE.type == "cuda" and case not in GATED_TAKEN:
        pytest.skip("on CUDA what it leaves runs on vLLM's own kernel, which does not take all of these")
    x, z = GATED_INPUTS[case]
    layer = _gated()
    before = counters.snapshot()["rms_norm_gated"]
    result = layer(x, z)
    after = counters.snapshot()["rms_norm_gated"]
    assert after["kernel"] - before["kernel"] == (case in GATED_TAKEN)
    assert after["reference"] == before["reference"]
    torch.testing.assert_close(result, RMSNormGated.forward_native(layer, x, z))


def test_another_plugins_gated_class_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.custom_op import op_registry_oot

    class Theirs:
        pass

    monkeypatch.setitem(op_registry_oot, "RMSNormGated", Theirs)
    register()
    assert "Theirs already replaces RMSNormGated" in installed.failures["RMSNormGated"]
    assert op_registry_oot["RMSNormGated"] is Theirs


def _model(in_vllm: Any) -> torch.nn.Module:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

    class Mixer2RMSNormGated(torch.nn.Module):
        """Named as one of vLLM's classes that the plugin does not adapt yet."""

    norms = [RMSNorm(256, dtype=torch.bfloat16), RMSNorm(256, var_hidden_size=128), GemmaRMSNorm(256), _gated()]
    return torch.nn.ModuleList([*norms, Mixer2RMSNormGated()])


def _worker(model: torch.nn.Module) -> Any:
    return SimpleNamespace(
        get_model=lambda: model, model_runner=SimpleNamespace(), device=DEVICE, vllm_config=vllm_config()
    )


@pytest.mark.parametrize("name", ["drafter", "speculator"])
def test_a_draft_model_is_found_also_behind_a_graph(name: str) -> None:
    served, draft = torch.nn.Identity(), torch.nn.Identity()
    for model in (draft, SimpleNamespace(unwrap=lambda: draft)):
        runner = SimpleNamespace(**{name: SimpleNamespace(model=model)})
        worker = SimpleNamespace(get_model=lambda: served, model_runner=runner)
        assert list(layers.models_of(worker)) == [served, draft]


def test_the_start_up_line_counts_layers_and_says_why_others_stay_native(in_vllm: Any) -> None:
    line = startup.describe(survey(_model(in_vllm)), DEVICE.type, "prewarmed 5 norms in 0.0 s")
    assert "on for 1 of 2 RMSNorm, 1 of 1 GemmaRMSNorm, 1 of 1 RMSNormGated" in line
    assert "1 RMSNorm (its variance is over a part of the row)" in line
    assert "1 Mixer2RMSNormGated (no adapter yet)" in line


def test_a_layer_that_the_users_priority_keeps_is_reported(in_vllm: Any) -> None:
    from vllm import ir

    ir.ops.rms_norm.set_default(["native"])
    reasons = {layer.native_because for layer in survey(_model(in_vllm)) if layer.kind == "GemmaRMSNorm"}
    assert reasons == {"the IR priority of rms_norm starts with native"}


def test_norms_of_heads_left_to_inductor_are_reported_and_are_no_fallback(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import RMSNorm

    monkeypatch.setenv("SERVING_OPS", "strict")
    ir.ops.rms_norm.set_default([ir_providers.ROWS_PROVIDER, "native"])
    model = torch.nn.ModuleList([RMSNorm(size, dtype=torch.bfloat16).to(DEVICE) for size in (HIDDEN, HEAD)])
    assert [layer.native_because for layer in survey(model)] == [None, layers.HEADS_IN_ONE_KERNEL]
    startup.on_model_loaded(_worker(model), strict=True)


def test_the_provider_for_rows_leaves_heads_to_the_next(in_vllm: Any) -> None:
    from vllm import ir

    ir.ops.rms_norm.set_default([ir_providers.ROWS_PROVIDER, "native"])
    assert ir.ops.rms_norm.dispatch(rows(4, 128), rows(128), 1e-6).provider == ir_providers.ROWS_PROVIDER
    assert ir.ops.rms_norm.dispatch(rows(4, 2, 128), rows(128), 1e-6).provider == "native"


def test_layers_whose_ops_the_user_left_out_are_reported_and_are_no_fallback(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import RMSNorm

    monkeypatch.setenv("SERVING_OPS", "strict,rms_norm_gated")
    for op in priority.OPS:
        getattr(ir.ops, op).set_default(["native"])
    model = torch.nn.ModuleList([RMSNorm(size, dtype=torch.bfloat16).to(DEVICE) for size in (HIDDEN, HEAD)])
    assert [(layer.native_because, layer.specs) for layer in survey(model)] == [(layers.LEFT_OUT, ())] * 2
    startup.on_model_loaded(_worker(model), strict=True)


def test_a_layer_of_which_one_op_was_left_out_is_on_for_the_other(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import RMSNorm

    monkeypatch.setenv("SERVING_OPS", "fused_add_rms_norm")
    ir.ops.rms_norm.set_default(["native"])
    (layer,) = survey(RMSNorm(HIDDEN, dtype=torch.bfloat16).to(DEVICE))
    assert layer.native_because is None
    assert [spec.op for spec in layer.specs] == ["fused_add_rms_norm"]


def test_the_start_up_line_says_which_op_of_a_layer_was_left_out(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    monkeypatch.setenv("SERVING_OPS", "auto,rms_norm")
    model = torch.nn.ModuleList([RMSNorm(size, dtype=torch.bfloat16).to(DEVICE) for size in (HIDDEN, HEAD)])
    line = startup.describe(survey(model), DEVICE.type, "")
    assert "on for 1 of 1 RMSNorm without fused_add_rms_norm, 1 of 1 RMSNorm; " in line


def test_a_gated_layer_without_a_kernel_for_its_size_stays_vllms(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    why = Explanation("reference", "groups too wide")
    monkeypatch.setattr("serving_ops.explain", lambda *_, **__: why)
    layer = _gated()
    assert survey(layer)[0].native_because == "rms_norm_gated has no kernel for it: groups too wide"
    no_operator_may_run(monkeypatch)
    layer(*GATED_INPUTS["contiguous"])


def test_strict_stops_start_up_with_the_reason_when_a_layer_falls_back(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match="its variance is over a part of the row"):
        startup.on_model_loaded(_worker(_model(in_vllm)), strict=True)


@pytest.mark.parametrize(("failing", "name"), [(features, "install_for"), (startup, "on_model_loaded")])
def test_a_failure_of_ours_around_loading_does_not_stop_the_engine_in_auto(
    monkeypatch: pytest.MonkeyPatch, failing: Any, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(failing, name, fail)
    worker = _worker(torch.nn.Module())
    assert startup._then_report(worker, lambda: "loaded")() == "loaded"
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match="broken"):
        startup._then_report(worker, lambda: "loaded")()


def test_prewarm_asks_for_each_norm_of_the_layers_that_are_on_once(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    asked: list[NormSpec] = []
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: asked.extend(specs) or PrewarmReport())
    found = survey(_model(in_vllm))
    startup.prewarm([*found, *found])
    assert [(spec.op, spec.size, spec.weight_dtype, spec.heads) for spec in asked] == [
        ("rms_norm", 256, torch.bfloat16, 1),
        ("fused_add_rms_norm", 256, torch.bfloat16, 1),
        ("rms_norm", 256, torch.float32, 1),
        ("fused_add_rms_norm", 256, torch.float32, 1),
        ("rms_norm_gated", 128, torch.bfloat16, 1),
        ("rms_norm_gated", 128, torch.bfloat16, 2),
    ]


def test_a_norm_of_heads_is_prewarmed_on_views_of_wider_rows_too(in_vllm: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    q_norm = survey(RMSNorm(128, dtype=torch.bfloat16))[0]
    layouts = [(spec.op, spec.heads > 1, spec.token_stride is not None) for spec in q_norm.specs]
    assert layouts == [("rms_norm", False, False), ("fused_add_rms_norm", False, False), ("rms_norm", True, True)]


def test_prewarm_asks_for_nothing_when_it_is_off(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    monkeypatch.setenv("SERVING_OPS_PREWARM", "0")
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: pytest.fail("prewarm ran"))
    assert startup.prewarm(survey(_model(in_vllm))).summary == "prewarm off"


@pytest.mark.parametrize("op", ["rms_norm", "fused_add_rms_norm"])
def test_an_ir_op_whose_prewarm_failed_is_native_again(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    from vllm import ir

    spec = dataclasses.replace(SPEC, op=op)
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={spec: "no compiler"}))
    layer = NormLayer("RMSNorm", (spec,), None)
    outcome = startup.prewarm([layer])
    assert getattr(ir.ops, op).get_priority() == ["native"]
    assert after_failures(layer, outcome).native_because == f"the prewarm of {op} failed"


def test_gated_layers_whose_prewarm_failed_are_native_again(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    def break_down(specs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("serving_ops.prewarm", break_down)
    layer = _gated()
    startup.prewarm(survey(torch.nn.ModuleList([layer])))
    no_operator_may_run(monkeypatch)
    layer(*GATED_INPUTS["contiguous"])
    assert survey(layer)[0].native_because == "its prewarm failed"
