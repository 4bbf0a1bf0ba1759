"""Norms that quantize for the projection after them: which are paired, and what SGLang's methods make of the rows."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package: test_sglang_versions.py runs these")

import fp8_on_cpu
from built_layers import HIDDEN, rms_norm, rows, runner_of
from quantized_layers import (
    COLUMNS,
    TAKEN,
    blocks,
    fp8_method,
    fp8_weight,
    layer_of,
    method,
    per_column,
    projection_of,
)

from serving_ops import QuantFormat, extension, reference
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.sglang import projections, quantizing_rms_norm, startup, switch
from serving_ops.integrations.sglang.quantizing_rms_norm import PAIRED, Rows

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these layers are built for CPU"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    monkeypatch.setattr(quantizing_rms_norm, "why_reference", lambda specs: None)
    fp8_on_cpu.install(monkeypatch)


def report(caplog: pytest.LogCaptureFixture, layer: Any, **server_args: Any) -> str:
    """Switch the layer over; the start-up line."""
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(layer, **server_args))
    return caplog.messages[-1]


def _unfused(norm: Any) -> Callable[..., torch.Tensor]:
    """The norm alone, in the arithmetic of SGLang: the weight is applied before rounding."""
    options = {"weight": norm.weight, "eps": norm.variance_epsilon, "weight_offset": WEIGHT_IN_FP32}

    def run(x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is None:
            return reference.rms_norm(x, **options)
        return reference.add_rms_norm(x, residual, **options)[0]

    return run


@pytest.mark.parametrize("case", TAKEN)
def test_a_projection_of_quantized_rows_gives_the_bits_of_its_own_method(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, name, product = TAKEN[case]
    projection = build()
    own = projection.quant_method.apply
    layer = layer_of(projection)
    line = report(caplog, layer)
    assert f"on for 1 of 1 RMSNorm with {name}, 1 of 1 RMSNorm; " in line
    norm, bias = layer.input_layernorm, rows(COLUMNS, seed=6)
    unfused = _unfused(norm)
    for tokens in (1, 5):
        x, residual = rows(tokens, HIDDEN), rows(tokens, HIDDEN, seed=2)
        for args in ((x,), (x, residual)):
            given = [tensor.clone() for tensor in args]
            normed, result = unfused(*args), norm(*given)
            taken = result if len(args) == 1 else result[0]
            assert type(taken) is Rows
            assert len(args) == 1 or result[1] is given[1]
            if len(args) == 2:
                assert torch.equal(given[1], x + residual)
            fp8_on_cpu.PRODUCTS.clear()
            y = projection.quant_method.apply(projection, taken, bias)
            assert torch.equal(y, own(projection, normed, bias))
            assert [product, product] == fp8_on_cpu.PRODUCTS
            assert y.dtype == torch.bfloat16
            assert torch.equal(projection.quant_method.apply(projection, normed, bias), y)  # not ours: its own method


@pytest.mark.parametrize("case", TAKEN)
def test_weights_that_are_loaded_again_are_those_of_the_product(case: str, caplog: pytest.LogCaptureFixture) -> None:
    projection = TAKEN[case][0]()
    own = projection.quant_method.apply
    layer = layer_of(projection)
    report(caplog, layer)
    x = rows(5, HIDDEN)
    before = projection.quant_method.apply(projection, layer.input_layernorm(x), None)
    for name in ("weight_scale", "weight_scale_inv", "input_scale"):
        if getattr(projection, name, None) is not None:
            again = torch.nn.Parameter(getattr(projection, name) * 2, requires_grad=False)
            delattr(projection, name)
            setattr(projection, name, again)
    projection.weight = torch.ones_like(projection.weight, dtype=torch.float32).to(projection.weight.dtype)
    after = projection.quant_method.apply(projection, layer.input_layernorm(x), None)
    assert torch.equal(after, own(projection, _unfused(layer.input_layernorm)(x), None))
    assert not torch.equal(after, before)


def test_rows_say_what_decoder_layers_ask_of_a_tensor() -> None:
    q, scales = reference.quantize(rows(3, HIDDEN), QuantFormat())
    taken = Rows((q, scales, torch.bfloat16))
    assert (taken.shape, taken.dtype, taken.device) == ((3, HIDDEN), torch.bfloat16, q.device)
    assert (taken.is_cuda, taken.numel()) == (False, 3 * HIDDEN)


def test_what_a_call_brings_beyond_rows_is_normed_and_not_quantized(caplog: pytest.LogCaptureFixture) -> None:
    projection = TAKEN["fp8 token"][0]()
    layer, plain = layer_of(projection), rms_norm()
    report(caplog, layer)
    norm, x, residual = layer.input_layernorm, rows(2, HIDDEN), rows(2, HIDDEN, seed=2)
    for args in (
        (x, residual, rows(2, HIDDEN, seed=7)),
        (x.double(), residual.double()),
        (rows(0, HIDDEN), rows(0, HIDDEN)),
        (x.view(1, 2, HIDDEN),),
    ):
        result, expected = (call(*(tensor.clone() for tensor in args)) for call in (norm, plain))
        torch.testing.assert_close(result, expected)


def test_the_router_of_experts_gets_a_norm_that_does_not_quantize(caplog: pytest.LogCaptureFixture) -> None:
    layer = layer_of(TAKEN["fp8 token"][0](), "sglang.srt.models.qwen3_moe.Qwen3MoeDecoderLayer")
    layer.mlp.gate_up_proj = TAKEN["fp8 token"][0]()
    assert "on for 1 of 1 RMSNorm with FP8 per token, 1 of 1 RMSNorm;" in report(caplog, layer)
    assert type(layer.post_attention_layernorm(rows(2, HIDDEN))) is torch.Tensor


@pytest.mark.parametrize("name", PAIRED)
def test_every_paired_decoder_layer_is_one_of_sglangs_that_builds_the_named_parts(name: str) -> None:
    import inspect

    module, _, cls = name.rpartition(".")
    source = inspect.getsource(getattr(importlib.import_module(module), cls))
    for norm, projection in PAIRED[name]:
        assert f"self.{norm} = RMSNorm(" in source
        assert f"self.{projection.partition('.')[0]} = " in source


def test_layers_that_are_not_known_keep_a_norm_that_does_not_quantize(caplog: pytest.LogCaptureFixture) -> None:
    class Qwen3DecoderLayer(torch.nn.Module):
        """Another model's, with the same parts and maybe other readers."""

    layer = layer_of(TAKEN["fp8 token"][0]())
    layer.__class__ = Qwen3DecoderLayer
    line = report(caplog, layer)
    assert "on for 2 of 2 RMSNorm; prewarmed" in line


@pytest.mark.parametrize(
    ("server_args", "reason"),
    [
        ({"enable_lora": True}, "LoRA reads its result too"),
        ({"lora_paths": ["one"]}, "LoRA reads its result too"),
        ({"uno_lora_path": "one"}, "LoRA reads its result too"),
        ({"debug_tensor_dump_output_folder": "one"}, "a dump of tensors reads its result"),
        ({"enable_torch_compile": True}, "torch.compile traces the model"),
        ({"disable_piecewise_cuda_graph": False}, "torch.compile traces the model"),
        ({"enable_dp_attention": True}, "data-parallel attention gathers its result"),
        ({"tp_size": 2}, "not tried with several ranks"),
        (
            {"cuda_graph_config": SimpleNamespace(prefill=SimpleNamespace(backend="tc_piecewise"))},
            "torch.compile traces the model",
        ),
    ],
)
def test_a_server_whose_other_parts_read_a_norms_result_has_plain_norms(
    server_args: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = layer_of(TAKEN["fp8 token"][0]())
    line = report(caplog, layer, **server_args)
    assert f"on for 2 of 2 RMSNorm; quantized apart: 1 ({reason}); " in line
    assert type(layer.input_layernorm(rows(2, HIDDEN))) is torch.Tensor
    assert "apply" not in vars(layer.self_attn.qkv_proj.quant_method)


def _of_another_dtype() -> torch.nn.Module:
    projection = blocks("triton_w8a8_block_fp8_linear")
    projection.weight_scale_inv = projection.weight_scale_inv.to(torch.int32)
    return projection


NOT_TAKEN: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "Marlin": (
        lambda: per_column(fp8_method(use_marlin=True)),
        "no code for its projection's FP8 by Marlin or MXFP8",
    ),
    "packed scales": (
        _of_another_dtype, "no code for its projection's FP8 in blocks of (128, 128) with scales in torch.int32",
    ),
    "a scale for each part": (
        lambda: per_column(fp8_method(), input_scale=torch.ones(3)),
        "no code for its projection's FP8 with input scales (3,) in torch.float32",
    ),
    "another product": (
        lambda: blocks("cutlass_w8a8_block_fp8_linear_with_fallback"),
        "no code for its projection's cutlass_w8a8_block_fp8_linear_with_fallback",
    ),
    "FlashInfer's": (
        lambda: blocks("flashinfer_deepgemm_w8a8_block_fp8_linear_with_fallback"),
        "no code for its projection's flashinfer_deepgemm_w8a8_block_fp8_linear_with_fallback",
    ),
    "another scheme": (
        lambda: projection_of(
            method("compressed_tensors.compressed_tensors", "CompressedTensorsLinearMethod"),
            fp8_weight(COLUMNS, HIDDEN),
            scheme=method("compressed_tensors.schemes", "CompressedTensorsW8A16Fp8"),
        ),
        "no code for its projection's CompressedTensorsW8A16Fp8",
    ),
    "another method": (
        lambda: projection_of(method("blockwise_int8", "BlockInt8LinearMethod"), fp8_weight(COLUMNS, HIDDEN)),
        "no code for its projection's BlockInt8LinearMethod",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_a_method_or_product_that_is_not_known_quantizes_itself(case: str, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = NOT_TAKEN[case]
    layer = layer_of(build())
    assert f"on for 2 of 2 RMSNorm; quantized apart: 1 ({reason}); " in report(caplog, layer)
    assert type(layer.input_layernorm(rows(2, HIDDEN))) is torch.Tensor


def test_deep_gemm_is_given_only_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.layers import deep_gemm_wrapper

    projection = blocks("deepgemm_w8a8_block_fp8_linear_with_fallback")
    form = projections.prequantized(projection, torch.bfloat16)
    assert not isinstance(form, str)
    assert form.fmt.scale_layout == "tma_aligned"
    assert projections.prequantized(projection, torch.float16) == "DeepGEMM does not take its projection"
    monkeypatch.setattr(deep_gemm_wrapper, "DEEPGEMM_SCALE_UE8M0", True)
    assert "no code" in str(projections.prequantized(projection, torch.bfloat16))


def test_where_no_kernel_quantizes_the_norm_stays_plain_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SERVING_OPS", "strict")
    fp8_on_cpu.install(monkeypatch)
    line = report(caplog, layer_of(TAKEN["fp8 token"][0]()))
    assert "on for 2 of 2 RMSNorm; quantized apart: 1 (rms_norm_quant has no kernel for it: " in line


@pytest.mark.parametrize("case", TAKEN)
def test_a_row_goes_through_each_kind_of_product_before_any_norm_quantizes(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build, _, product = TAKEN[case]
    decoders = layer_of(build()), layer_of(build())
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(*decoders))
    assert [product] == fp8_on_cpu.PRODUCTS

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(fp8_on_cpu, "_product", fails)
    monkeypatch.setenv("SERVING_OPS", "auto")
    decoders = layer_of(build()), layer_of(build())
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(*decoders))
    reason = "its projection failed with a quantized row: no kernel image"
    assert f"on for 4 of 4 RMSNorm; quantized apart: 2 ({reason}); " in caplog.messages[-1]
    assert all(type(layer.input_layernorm(rows(2, HIDDEN))) is torch.Tensor for layer in decoders)
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match=f"could not quantize in its norms: {reason}"):
        startup.on_model_loaded(runner_of(layer_of(build())))


def test_switched_off_the_norm_and_its_projection_are_sglangs_again(caplog: pytest.LogCaptureFixture) -> None:
    projection = TAKEN["fp8 token"][0]()
    own, layer = dict(vars(projection.quant_method)), layer_of(projection)
    report(caplog, layer)
    assert "apply" in vars(projection.quant_method)
    switch.off(layer)
    assert vars(projection.quant_method) == own
    assert vars(layer.input_layernorm).keys() - {"_forward_method"} == vars(rms_norm()).keys() - {"_forward_method"}
    assert type(layer.input_layernorm(rows(2, HIDDEN))) is torch.Tensor


def test_an_error_in_the_pairing_leaves_plain_norms_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    projection = TAKEN["fp8 token"][0]()
    del projection.quant_method.use_marlin  # as in a SGLang that names it otherwise
    monkeypatch.setenv("SERVING_OPS", "auto")
    assert "on for 2 of 2 RMSNorm; prewarmed" in report(caplog, layer_of(projection))
    assert "serving_ops could not quantize in its norms: " in caplog.text
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match="could not quantize in its norms"):
        startup.on_model_loaded(runner_of(layer_of(projection)))
