"""SGLang's norm classes on our operators, inside a SGLang, without an engine."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package: test_sglang_versions.py runs these")

from built_layers import HIDDEN, rms_norm, rows, runner_of, with_weight

from serving_ops import PrewarmReport, counters, extension, reference
from serving_ops.integrations.sglang import layers, startup, switch
from serving_ops.integrations.sglang.adapters import ADAPTERS, GATED_MODULES

HEAD = 128

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these layers are built for CPU"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]


@pytest.fixture(autouse=True)
def _auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")


def switched(layer: Any) -> Any:
    """The layer, once the plugin has seen it in a loaded model."""
    startup.on_model_loaded(runner_of(layer))
    assert "sglangs_forward" in vars(layer)
    return layer


def report(caplog: pytest.LogCaptureFixture, *built: torch.nn.Module, **server_args: Any) -> str:
    """The start-up line for layers."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(*built, **server_args))
    (record,) = caplog.records
    return record.message


def kernel_calls() -> dict[str, int]:
    return {op: calls["kernel"] for op, calls in counters.snapshot().items()}


def calls_of(run: Callable[[], Any]) -> dict[str, int]:
    """Calls that reached a kernel of ours, by op."""
    before = kernel_calls()
    run()
    return {op: after - before[op] for op, after in kernel_calls().items() if after != before[op]}


def gemma(size: int = HIDDEN) -> Any:
    from sglang.srt.layers.layernorm import GemmaRMSNorm

    return with_weight(GemmaRMSNorm(size))


def _fla(module: str) -> Any:
    import importlib

    for name in (name.rpartition(".")[0] for name in GATED_MODULES):
        try:
            return importlib.import_module(f"{name}.{module}")
        except ModuleNotFoundError:
            continue
    pytest.fail(f"no {module} in {GATED_MODULES}")


def gated(size: int = HEAD, **options: Any) -> Any:
    return with_weight(_fla("layernorm_gated").RMSNorm(size, **options))


def fused_gated(size: int = HEAD, **options: Any) -> Any:
    return with_weight(_fla("fused_norm_gate").FusedRMSNormGated(size, **options))


def mixer2(monkeypatch: pytest.MonkeyPatch, groups: int = 2) -> Any:
    from sglang.srt.layers.attention.mamba import mixer2_rms_norm_gated as module

    one_rank = {
        "is_dp_attention_enabled": lambda: False,
        "get_parallel": lambda: SimpleNamespace(tp_size=1, tp_rank=0),
        "get_tensor_model_parallel_world_size": lambda: 1,  # asked in 0.5.11
        "get_tensor_model_parallel_rank": lambda: 0,
        "sharded_weight_loader": lambda *_, **__: None,
    }
    for name in one_rank.keys() & vars(module).keys():
        monkeypatch.setattr(module, name, one_rank[name])
    return with_weight(module.Mixer2RMSNormGated(HIDDEN, groups))


NORM_INPUTS = {
    "rows": (rows(5, HIDDEN), None),
    "rows with a residual": (rows(5, HIDDEN), rows(5, HIDDEN, seed=2)),
    "heads in a wider buffer": (rows(5, 4 * HIDDEN)[:, : 2 * HIDDEN].view(5, 2, HIDDEN), None),
    "no rows": (rows(0, HIDDEN), rows(0, HIDDEN)),
}


@pytest.mark.parametrize("case", NORM_INPUTS)
@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_norms_agree_with_sglangs_and_write_what_it_writes(build: Callable[[], Any], case: str) -> None:
    x, residual = NORM_INPUTS[case]
    layer, own = switched(build()), build()
    expected = own(x.clone(), None if residual is None else residual.clone())
    if residual is None:
        kept = x.clone()
        assert calls_of(lambda: torch.testing.assert_close(layer(x), expected)) == {"rms_norm": 1}
        assert torch.equal(x, kept)  # callers go on with it
        return
    x, residual = x.clone(), residual.clone()
    result = layer(x, residual)
    torch.testing.assert_close(result, expected)
    assert [tensor.data_ptr() for tensor in result] == [x.data_ptr(), residual.data_ptr()]


def test_the_weight_is_applied_before_rounding_as_sglang_does() -> None:
    """Rounding twice, as vLLM's definition does, changes a fifth of the elements."""
    x, residual = rows(64, HIDDEN), rows(64, HIDDEN, seed=2)
    layer, own = switched(rms_norm()), rms_norm()
    for args in ((x,), (x, residual)):
        mine, theirs = (norm(*(tensor.clone() for tensor in args)) for norm in (layer, own))
        pairs = zip(*((mine, theirs) if len(args) == 2 else ((mine,), (theirs,))), strict=True)
        assert all((a != b).float().mean() < 0.001 for a, b in pairs)


def test_a_rows_bits_do_not_depend_on_its_batch() -> None:
    layer, x, residual = switched(rms_norm()), rows(64, HIDDEN), rows(64, HIDDEN, seed=2)
    whole = layer(x.clone(), residual.clone())
    for row in (0, 17, 63):
        alone = layer(x[row : row + 1].clone(), residual[row : row + 1].clone())
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, whole, strict=True))


_SAME = rows(4, HIDDEN)

CALLS_LEFT = {
    "an addition after the residual": (rows(4, HIDDEN), rows(4, HIDDEN), rows(4, HIDDEN)),
    "float64": (rows(4, HIDDEN, dtype=torch.float64),),
    "a residual in fp32": (rows(4, HIDDEN), rows(4, HIDDEN, dtype=torch.float32)),
    "a last stride of 4": (rows(HIDDEN, 4).t(),),
    "a residual that is x": (_SAME, _SAME),
}


@pytest.mark.parametrize("case", CALLS_LEFT)
@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_calls_that_we_do_not_take_stay_sglangs(build: Callable[[], Any], case: str) -> None:
    layer, own = switched(build()), build()
    expected = own(*(tensor.clone() for tensor in CALLS_LEFT[case]))
    assert calls_of(lambda: torch.testing.assert_close(layer(*CALLS_LEFT[case]), expected)) == {}


def test_arguments_of_none_beyond_ours_change_nothing() -> None:
    layer = switched(rms_norm())
    assert calls_of(lambda: layer(rows(4, HIDDEN), rows(4, HIDDEN), None)) == {"fused_add_rms_norm": 1}
    assert calls_of(lambda: layer(rows(4, HIDDEN), post_residual_addition=None)) == {"rms_norm": 1}


LAYERS_LEFT = {
    "its variance is over a part of the row": {"var_hidden_size": 128},
    "it rounds before its weight": {"cast_x_before_out_mul": True},
    "it keeps its residual in fp32": {"fp32_residual": True},
    "its result has a dtype of its own": {"override_orig_dtype": torch.float32},
}


@pytest.mark.parametrize("reason", LAYERS_LEFT)
def test_layers_that_do_more_stay_sglangs_and_the_line_says_so(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    layer = rms_norm(**LAYERS_LEFT[reason])
    line = report(caplog, layer, rms_norm())
    assert f"on for 1 of 2 RMSNorm; native: 1 RMSNorm ({reason}); prewarmed 2 norms" in line
    assert calls_of(lambda: layer(rows(4, HIDDEN))) == {}


def test_a_norm_without_a_weight_is_taken() -> None:
    from sglang.srt.layers.layernorm import RMSNorm

    layer, x = RMSNorm(HIDDEN, has_weight=False), rows(4, HIDDEN)
    expected = layer(x)
    switched(layer)
    assert calls_of(lambda: torch.testing.assert_close(layer(x), expected)) == {"rms_norm": 1}


def test_sglang_cannot_run_gated_norms_on_this_cpu_and_ours_can() -> None:
    for build in (gated, fused_gated):
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|driver"):
            build()(rows(4, HEAD), rows(4, HEAD))
        assert calls_of(lambda build=build: switched(build())(rows(4, HEAD), rows(4, HEAD)))["rms_norm_gated"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_before_gate": False},
        {"group_size": 32},
        {"activation": "sigmoid"},
    ],
    ids=str,
)
def test_the_gated_norm_takes_every_option_and_a_strided_gate(options: dict[str, Any]) -> None:
    """The gate as in Qwen3.5's prefill: heads within the rows of a wider projection."""
    x = rows(6, 4, HEAD)
    z = rows(6, 1000)[:, 200 : 200 + 4 * HEAD].view(6, 4, HEAD)
    layer = switched(gated(**options))
    kept = x.clone()
    expected = reference.rms_norm_gated(x, z, layer.weight, layer.eps, **options)
    assert calls_of(lambda: torch.testing.assert_close(layer(x, z), expected)) == {"rms_norm_gated": 1}
    assert torch.equal(x, kept)


def test_heads_in_a_row_each_are_gated_by_a_view_that_keeps_tokens_apart() -> None:
    """As 0.5.23 calls Qwen3.5's norm in prefill on CUDA."""
    x, z = rows(24, HEAD), rows(6, 1000)[:, 200 : 200 + 4 * HEAD].view(6, 4, HEAD)
    layer = switched(gated())
    expected = reference.rms_norm_gated(x.view(6, 4, HEAD), z, layer.weight, layer.eps).view(24, HEAD)
    assert calls_of(lambda: torch.testing.assert_close(layer(x, z), expected)) == {"rms_norm_gated": 1}


def test_the_fused_gated_norm_takes_one_sequence_gated_by_its_tokens() -> None:
    """As Kimi-Linear calls it; x is written all the same."""
    x, g = rows(1, 6, 4, HEAD), rows(6, 5 * HEAD)[:, HEAD:].unflatten(-1, (-1, HEAD))
    layer = switched(fused_gated(activation="sigmoid"))
    expected = reference.rms_norm_gated(x, g[None], layer.weight, layer.eps, activation="sigmoid")
    result: list[torch.Tensor] = []
    assert calls_of(lambda: result.append(layer(x, g))) == {"rms_norm_gated": 1}
    assert result[0].data_ptr() == x.data_ptr()
    torch.testing.assert_close(result[0], expected)


def test_the_fused_gated_norm_writes_into_x_where_x_is_contiguous() -> None:
    layer, z = switched(fused_gated(activation="sigmoid")), rows(24, HEAD, seed=3)
    x, strided = rows(24, HEAD), rows(24, 2 * HEAD)[:, :HEAD]
    expected = reference.rms_norm_gated(x, z, layer.weight, layer.eps, activation="sigmoid")
    result = layer(x, z)
    assert result.data_ptr() == x.data_ptr()
    torch.testing.assert_close(result, expected)
    kept = strided.clone()
    result = layer(strided, z)
    expected = reference.rms_norm_gated(kept, z, layer.weight, layer.eps, activation="sigmoid")
    torch.testing.assert_close(result, expected)
    assert torch.equal(strided, kept)


def test_a_subclass_that_norms_as_its_base_is_ours_and_one_that_does_not_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Grouped(type(gated())):  # type: ignore[misc]
        """As Bailing's, which loads its weight in its own way."""

    class Reshaping(type(rms_norm())):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class ReshapingRMSNorm(Reshaping):
        pass

    line = report(caplog, with_weight(Grouped(HEAD)), with_weight(ReshapingRMSNorm(HIDDEN)))
    assert "on for 1 of 1 RMSNormGated; native: 1 ReshapingRMSNorm (no adapter yet)" in line


def test_mixer2_gates_and_norms_its_groups_with_a_gate_in_a_wider_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, own = switched(mixer2(monkeypatch)), mixer2(monkeypatch)
    x, gate = rows(5, HIDDEN), rows(5, 3 * HIDDEN, seed=4)[:, :HIDDEN]
    expected = own(x.clone(), gate)
    result: list[Any] = []
    assert calls_of(lambda: result.append(layer(x, gate))) == {"rms_norm_gated": 1}
    torch.testing.assert_close(result[0], expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_rms_norm": False}, "it gates without a norm"),
        ({"tp_size": 4}, "its groups are spread over tensor-parallel ranks"),
    ],
)
def test_what_mixer2_does_beyond_a_ranks_rows_stays_sglangs(options: dict[str, Any], reason: str) -> None:
    layer = SimpleNamespace(**{"use_rms_norm": True, "n_groups": 2, "tp_size": 1, **options})
    adapter = next(adapter for adapter in ADAPTERS if adapter.name == "Mixer2RMSNormGated")
    assert adapter.why_native(layer) == reason


def test_while_sglang_compiles_ours_stay_and_are_traced_whole() -> None:
    layer, x = switched(rms_norm()), rows(4, HIDDEN)
    expected = layer(x)
    layer.enter_torch_compile(num_tokens=4)
    assert layer.is_torch_compile
    compiled = torch.compile(lambda x: layer(x * 1), fullgraph=True, backend="eager")
    assert calls_of(lambda: torch.testing.assert_close(compiled(x), expected)) == {"rms_norm": 1}
    double = rows(4, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(layer(double), layer.forward_native(double))
    layer.leave_torch_compile()
    assert not layer.is_torch_compile
    assert calls_of(lambda: layer(x)) == {"rms_norm": 1}


def test_while_sglang_compiles_the_norms_of_heads_are_left_to_the_compiler() -> None:
    layer, q = switched(rms_norm(HEAD)), rows(4, HEAD)
    expected = layer(q)
    layer.enter_torch_compile(num_tokens=4)
    assert calls_of(lambda: torch.testing.assert_close(layer(q), expected)) == {}
    layer.leave_torch_compile()
    assert calls_of(lambda: layer(q)) == {"rms_norm": 1}


def test_on_cuda_the_line_counts_norms_of_narrow_rows_apart_which_sglang_may_fuse() -> None:
    apart = {adapter.name for adapter in ADAPTERS if layers._kind(adapter, True).endswith(layers.UNLESS_FUSED)}
    assert apart == {"RMSNorm", "GemmaRMSNorm"}
    assert all(layers._kind(adapter, False) == adapter.name for adapter in ADAPTERS)


def test_a_copy_of_a_layer_norms_with_its_own_weight() -> None:
    layer, x = switched(rms_norm()), rows(4, HIDDEN)
    twin = copy.deepcopy(layer)
    twin.weight.zero_()
    assert twin(x).abs().max() < 1e-30
    assert layer(x).abs().max() > 1


def test_switched_off_a_layer_is_sglangs_again() -> None:
    for build in (rms_norm, gated):
        layer = switched(build())
        switch.off(torch.nn.ModuleList([layer]))
        assert vars(layer).keys() - {"_forward_method"} == vars(build()).keys() - {"_forward_method"}
    layer = switched(rms_norm())
    switch.off(torch.nn.ModuleList([layer]))
    assert calls_of(lambda: layer(rows(4, HIDDEN))) == {}


@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_a_norm_that_sglang_joins_to_the_all_reduce_stays_sglangs(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt import distributed
    from sglang.srt.layers import flashinfer_comm_fusion, layernorm

    joined = rows(4, HIDDEN), rows(4, HIDDEN)
    monkeypatch.setattr(flashinfer_comm_fusion, "flashinfer_allreduce_residual_rmsnorm", lambda **_: joined)
    two_ranks = {
        (layernorm, "get_parallel"): lambda: SimpleNamespace(attn_tp_size=2),
        (distributed, "get_attn_tensor_model_parallel_world_size"): lambda: 2,  # asked in 0.5.11
    }
    for (module, name), value in two_ranks.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    layer = switched(build())
    x, residual = rows(4, HIDDEN), rows(4, HIDDEN, seed=2)
    assert calls_of(lambda: layer.forward_with_allreduce_fusion(x, residual)) == {}
    assert layer.forward_with_allreduce_fusion(x, residual) is joined
    assert calls_of(lambda: layer.forward_with_allreduce_fusion(x)) == {"rms_norm": 1}


def test_a_forced_backend_is_left_to_the_user(caplog: pytest.LogCaptureFixture) -> None:
    fused_op = pytest.importorskip("sglang.kernels.fused_op", reason="this SGLang cannot force a backend")
    if not hasattr(rms_norm(), "available_backends"):
        pytest.skip("this SGLang's norms cannot be forced to a backend")
    forced = fused_op.get_fused_op_backend()
    fused_op.set_fused_op_backend(fused_op.KernelBackend.TORCH)
    try:
        assert f"native: 1 RMSNorm ({layers.FORCED})" in report(caplog, rms_norm())
    finally:
        fused_op.set_fused_op_backend(forced)


def test_ops_that_the_user_left_out_and_a_trainers_numbers_are_sglangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = report(caplog, rms_norm(), gated(), rl_on_policy_target="fsdp")
    assert line.count(layers.TRAINERS_NUMBERS) == 2
    monkeypatch.setenv("SERVING_OPS", "strict,rms_norm_gated")
    line = report(caplog, rms_norm(), gated())
    assert "(strict for rms_norm_gated alone, cpu): on for 1 of 1 RMSNormGated" in line
    assert f"native: 1 RMSNorm ({layers.LEFT_OUT})" in line


def test_layers_whose_prewarm_failed_stay_sglangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(specs: Any) -> PrewarmReport:
        return PrewarmReport(failed={spec: "no compiler" for spec in specs if spec.op == "fused_add_rms_norm"})

    monkeypatch.setattr("serving_ops.prewarm", fails)
    layer = rms_norm()
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(layer, gated()))
    assert "native: 1 RMSNorm (the prewarm of fused_add_rms_norm failed)" in caplog.records[-1].message
    assert "on for 1 of 1 RMSNormGated" in caplog.records[-1].message
    assert calls_of(lambda: layer(rows(4, HIDDEN))) == {}


def test_a_drafting_model_has_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    runner = runner_of(rms_norm())
    runner.is_draft_worker = True
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner)
    assert "(auto, cpu, draft model): on for 1 of 1 RMSNorm" in caplog.text


def _load(runner: Any) -> str:
    result: str = startup.load_then_report(lambda runner: "what SGLang returns", runner)
    return result


def test_a_fallback_stops_the_start_in_strict_mode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(rms_norm(), rms_norm(fp32_residual=True))
    assert _load(runner) == "what SGLang returns"
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match=r"^SERVING_OPS=strict: .*\(it keeps its residual in fp32\)"):
        _load(runner)


@pytest.mark.parametrize("name", ["variance_epsilon", "_original_forward_method"])
def test_an_error_of_ours_gives_every_layer_back_with_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = rms_norm()
    delattr(layer, name)  # as in a SGLang that calls it otherwise
    runner = runner_of(rms_norm(), layer)
    assert _load(runner) == "what SGLang returns"
    (record,) = caplog.records
    assert record.message.startswith("serving_ops is off: ")
    assert name in record.message
    assert not any("sglangs_forward" in vars(layer) for layer in runner.model.modules())
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match=f"^SERVING_OPS=strict: .*{name}"):
        _load(runner)


def test_the_hook_is_on_the_method_that_loads_models() -> None:
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.plugins.hook_registry import HookRegistry

    original = ModelRunner.load_model
    startup.install()
    HookRegistry.apply_hooks()
    try:
        assert ModelRunner.load_model.__wrapped__ is original
    finally:
        ModelRunner.load_model = original


def test_a_sglang_that_loads_models_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "TARGET", "sglang.srt.model_executor.model_runner.ModelRunner.load")
    with pytest.raises(AttributeError, match="load"):
        startup.install()


def test_a_layer_that_its_model_pins_to_a_method_stays_sglangs(caplog: pytest.LogCaptureFixture) -> None:
    called, pinned = rms_norm(), rms_norm()
    called(rows(4, HIDDEN))
    if not hasattr(pinned, "available_backends"):
        pytest.skip("this SGLang chooses a method as it builds a layer")
    pinned._forward_method = pinned.forward_cuda
    assert f"on for 1 of 2 RMSNorm; native: 1 RMSNorm ({layers.PINNED})" in report(caplog, called, pinned)
