"""When vLLM's pass is turned on for FP8 with one scale per token. test_quantization.py asks each vLLM's own models."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, fp8_linear, model_config

import serving_ops
from serving_ops import NormSpec, PrewarmReport
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import quant_fusion, quantization, startup, token_pass

NORM = NormSpec("fused_add_rms_norm", HIDDEN, torch.bfloat16, torch.bfloat16, DEVICE, weight_offset=WEIGHT_IN_FP32)
HEADS = NormSpec("rms_norm", 128, torch.bfloat16, torch.bfloat16, DEVICE, heads=2)


def _config(chosen: bool | None = None, **more: Any) -> Any:
    """A configuration after vLLM's defaults, which leave the pass off where the user chose nothing."""
    passes = SimpleNamespace(fuse_norm_quant=chosen)
    compilation = SimpleNamespace(pass_config=passes, mode=SimpleNamespace(name="VLLM_COMPILE"), backend="inductor")
    config = SimpleNamespace(
        compilation_config=compilation,
        model_config=model_config(),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        lora_config=None,
        quant_config=SimpleNamespace(get_name=lambda: "fp8"),
    )
    token_pass.remember_choice(config)
    passes.fuse_norm_quant = bool(chosen)
    vars(config).update(more)
    return config


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant_fusion, "can_run", lambda: True)


def _should_run(config: Any = None, linears: tuple[Any, ...] | None = None, norms: tuple[NormSpec, ...] = ()) -> bool:
    model = torch.nn.ModuleList([fp8_linear()] if linears is None else linears)
    return token_pass.should_run([model], norms or (NORM, HEADS), config or _config())


def test_the_pass_runs_for_a_dense_model_whose_layers_give_each_token_a_scale() -> None:
    assert _should_run()


def test_it_stays_off_where_our_kernels_may_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant_fusion, "can_run", lambda: False)
    assert not _should_run()


@pytest.mark.parametrize("chosen", [True, False])
def test_the_users_choice_stays(chosen: bool) -> None:
    assert not _should_run(_config(chosen))


@pytest.mark.parametrize(
    "more",
    [{"parallel_config": SimpleNamespace(tensor_parallel_size=2)}, {"lora_config": SimpleNamespace()}],
    ids=["two GPUs", "adapters"],
)
def test_it_stays_off_for_a_model_that_is_served_in_a_way_that_was_not_measured(more: dict[str, Any]) -> None:
    assert not _should_run(_config(**more))


@pytest.mark.parametrize(
    "linears",
    [
        (),
        (("CutlassFP8ScaledMMLinearKernel", "kFp8StaticTensorSym"),),
        (("CutlassFP8ScaledMMLinearKernel",), ("CutlassFP8ScaledMMLinearKernel", "kFp8DynamicTensorSym")),
        (("MarlinFP8ScaledMMLinearKernel",),),
    ],
    ids=["no quantized layer", "static scales", "one layer of another kind", "a kernel for weights alone"],
)
def test_it_stays_off_where_a_layer_wants_another_input(linears: tuple[tuple[str, ...], ...]) -> None:
    assert not _should_run(linears=tuple(fp8_linear(*linear) for linear in linears))


@pytest.mark.parametrize(
    "other",
    [{"weight_dtype": torch.float32}, {"dtype": torch.float16}, {"eps": 1e-3}, {"weight_offset": 1.0}],
    ids=lambda other: next(iter(other)),
)
def test_it_stays_off_where_the_pass_does_not_match_a_norm(other: dict[str, Any]) -> None:
    assert not _should_run(norms=(NORM, dataclasses.replace(NORM, **other)))


BLOCK = "kFp8Dynamic128Sym"


@pytest.mark.parametrize(
    ("kernel", "fuses"),
    [("CutlassFp8BlockScaledMMKernel", True), ("FlashInferFp8DeepGEMMDynamicBlockScaledKernel", False)],
)
def test_our_operators_are_in_a_pass_that_runs_where_a_layer_quantizes_before_its_product(
    monkeypatch: pytest.MonkeyPatch, kernel: str, fuses: bool
) -> None:
    """Whether the norms that the pass leaves are ours or not."""
    taken: list[NormSpec] = []
    monkeypatch.setattr(quant_fusion, "take", taken.extend)
    monkeypatch.setattr(quantization, "why_norms_stay", lambda config: None)
    models = [torch.nn.ModuleList([fp8_linear(kernel, BLOCK)])]
    phrase = token_pass.take(models, [SimpleNamespace(specs=(NORM,))], _config(True))
    assert (phrase is not None, bool(taken)) == (fuses, fuses)


def test_eager_models_have_no_pass_for_our_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's default turns it on for FP8 in blocks whatever the mode."""
    monkeypatch.setattr(quant_fusion, "take", lambda fused: pytest.fail("prewarmed for nothing"))
    config = _config(True)
    config.compilation_config.mode.name = "NONE"
    models = [torch.nn.ModuleList([fp8_linear("CutlassFp8BlockScaledMMKernel", BLOCK)])]
    assert token_pass.take(models, [SimpleNamespace(specs=(NORM,))], config) is None


@pytest.fixture
def of_a_token_model() -> Any:
    return _config(), [torch.nn.ModuleList([fp8_linear()])], [SimpleNamespace(specs=(NORM,))]


def test_it_is_turned_on_once_our_kernels_are_in_it(monkeypatch: pytest.MonkeyPatch, of_a_token_model: Any) -> None:
    config, models, found = of_a_token_model
    monkeypatch.setattr(quant_fusion, "install", lambda: None)
    monkeypatch.setattr(serving_ops, "prewarm", lambda norms: PrewarmReport())
    assert "our kernels run" in (token_pass.take(models, found, config) or "")
    assert config.compilation_config.pass_config.fuse_norm_quant


def _fail(norms: Any) -> PrewarmReport:
    return PrewarmReport(failed=dict.fromkeys(norms, "no compiler"))


@pytest.mark.parametrize(
    ("ours", "fail"), [(serving_ops, "prewarm"), (quant_fusion, "install")], ids=["prewarm", "install"]
)
def test_a_failure_of_ours_leaves_it_off_and_stops_strict_mode(
    monkeypatch: pytest.MonkeyPatch, of_a_token_model: Any, ours: Any, fail: str
) -> None:
    config, models, found = of_a_token_model
    monkeypatch.setattr(ours, fail, _fail if fail == "prewarm" else lambda: 1 / 0)
    worker = SimpleNamespace(vllm_config=config, device=DEVICE)
    monkeypatch.setenv("SERVING_OPS", "auto")
    assert list(startup._beside_norms(models, found, worker)) == []
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(
        RuntimeError, match=r"SERVING_OPS=strict: could not take its fused norms: (no compiler|division)"
    ):
        list(startup._beside_norms(models, found, worker))
    assert not config.compilation_config.pass_config.fuse_norm_quant
