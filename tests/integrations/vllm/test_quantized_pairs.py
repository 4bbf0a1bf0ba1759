"""Norms that quantize for the linear layer behind them: which are paired, and what vLLM's kernels are handed."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, imports_at_each_call, model_config, rows

import serving_ops
from serving_ops import PrewarmReport, extension
from serving_ops.integrations.common.norm_classes import Activations
from serving_ops.integrations.vllm import block_product, features, installed, priority, quantized_pairs, startup

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")

CPU = torch.device("cpu")
WIDTH = 512
MODES = ("eager", "compiled")


def _module(module: str, name: str, **children: Any) -> Any:
    """A layer of vLLM's class of this name, with its `forward` and these children."""
    module = f"vllm.model_executor.models.{module}"
    vllms = getattr(importlib.import_module(module), name, None) if importlib.util.find_spec(module) else None
    made = type(name, (torch.nn.Module,), {"__module__": module, "forward": getattr(vllms, "forward", None)})()
    for child, value in children.items():
        setattr(made, child, value)
    return made


def _linear(kernel: Any, linear: Any = None) -> Any:
    linear = linear or torch.nn.Module()
    vars(linear).update(quant_method=SimpleNamespace(kernel=kernel))
    return linear


def _norm(kind: str = "RMSNorm", **options: Any) -> Any:
    from vllm.model_executor.layers import layernorm

    norm = getattr(layernorm, kind)(HIDDEN, **options)
    norm.weight.data = rows(HIDDEN).cpu()
    return norm.requires_grad_(False)


def _cpu_int8(*, symmetric: bool = True) -> tuple[Any, Any]:
    """vLLM's kernel on CPU, and the layer that holds its weights."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

    layer = torch.nn.Module()
    layer.logical_widths, layer.input_scale, layer.input_zero_point, layer.bias = [WIDTH], None, None, None
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (WIDTH, HIDDEN), generator=generator).to(torch.int8)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(torch.rand(WIDTH, 1, generator=generator) / 127, requires_grad=False)
    config = Int8ScaledMMLinearLayerConfig(is_static_input_scheme=False, is_channelwise=True, input_symmetric=symmetric)
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    kernel = CPUInt8ScaledMMLinearKernel(config, names)
    kernel.process_weights_after_loading(layer)
    return kernel, layer


def _decoder(norm: Any, kernel: Any, linear: Any = None, module: str = "qwen3", name: str = "Qwen3DecoderLayer") -> Any:
    """A decoder layer of which only the norm before attention can be paired."""
    attention = _module("qwen3", "Qwen3Attention", qkv_proj=_linear(kernel, linear))
    experts = _module("qwen3_moe", "Qwen3MoeSparseMoeBlock", gate_up_proj=_linear(kernel))
    children = {"input_layernorm": norm, "post_attention_layernorm": _norm(), "self_attn": attention, "mlp": experts}
    return _module(module, name, **children)


def _pairs(layer: Any, device: torch.device = CPU) -> list[quantized_pairs.Pair]:
    x = Activations(torch.bfloat16, HIDDEN, device=device)
    return list(quantized_pairs.pairs_of([torch.nn.ModuleList([layer])], x))


@pytest.fixture(autouse=True)
def undone(request: pytest.FixtureRequest) -> Any:
    if DEVICE.type != "cpu" and not request.node.get_closest_marker("gpu"):
        pytest.skip("vLLM has its kernels for CPU on its CPU platform alone")
    yield
    installed.undo()


def test_a_norm_is_paired_with_the_one_linear_layer_that_reads_its_result(in_vllm: Any) -> None:
    (pair,) = _pairs(_decoder(norm := _norm(eps=1e-5), kernel := _cpu_int8()[0]))
    assert (pair.norm, pair.kernel) == (norm, kernel)
    assert {(spec.size, spec.eps, spec.weight_dtype, spec.weight_offset, spec.fmt) for spec in pair.specs} == {
        (HIDDEN, 1e-5, torch.bfloat16, 0.0, quantized_pairs.INT8)
    }


@pytest.mark.parametrize(
    "layer",
    [
        lambda: _decoder(_norm(), _cpu_int8()[0], module="llama_eagle3", name="LlamaDecoderLayer"),
        lambda: _decoder(_norm(), _cpu_int8()[0], module="another", name="Qwen3DecoderLayer"),
        lambda: _decoder(_norm(var_hidden_size=128), _cpu_int8()[0]),
        lambda: _decoder(torch.nn.RMSNorm(HIDDEN), _cpu_int8()[0]),
        lambda: _decoder(_norm(), _cpu_int8(symmetric=False)[0]),
        lambda: _decoder(_norm(), *_fp8("kFp8StaticTensorSym")),
        lambda: _decoder(_norm(), *_fp8("kFp8DynamicTensorSym")),
        lambda: _decoder(_norm(), *_fp8(input_scale_ub=torch.ones(()))),
        lambda: _rotating(_decoder(_norm(), *_fp8())),
        lambda: _decoder(_norm(), None),
        lambda: _decoder(_norm(), SimpleNamespace()),
    ],
    ids=[
        "a draft model's layer of the same name",
        "a layer of another module",
        "a norm over a part of the row",
        "a norm of PyTorch's",
        "a zero point",
        "a scale that the checkpoint gives",
        "a scale for all rows",
        "scales with an upper bound",
        "a rotation before the product",
        "a layer that is not quantized",
        "an unknown kernel",
    ],
)
def test_what_may_be_read_otherwise_is_not_paired(in_vllm: Any, layer: Any) -> None:
    assert _pairs(layer()) == []


def test_a_rotation_of_the_result_leaves_the_norm_paired(in_vllm: Any) -> None:
    layer = _rotating(_decoder(_norm(), *_fp8()), "output_transform")
    assert len(_pairs(layer)) == 1


@pytest.mark.parametrize("kind", ["RMSNorm", "GemmaRMSNorm"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_paired_layer_computes_on_cpu_what_vllms_own_does(in_vllm: Any, kind: str, fused: bool) -> None:
    """Where a value lies halfway between two, vLLM's rounding may be the other one."""
    kernel, linear = _cpu_int8()
    norm = _norm(kind)
    x, total = rows(5, HIDDEN).cpu(), rows(5, HIDDEN).cpu() * 0.5
    arguments = (x, total) if fused else (x,)
    own = norm(*(given.clone() for given in arguments))
    expected = kernel.apply_weights(linear, own[0] if fused else own)
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel)))
    given = tuple(argument.clone() for argument in arguments)
    result = norm(*given)
    handed = result[0] if fused else result
    assert handed.data.dtype == torch.int8
    torch.testing.assert_close(kernel.apply_weights(linear, handed), expected, rtol=2e-2, atol=2e-2)
    if fused:
        assert result[1] is given[1]
        torch.testing.assert_close(result[1], own[1])


def test_rows_that_our_kernels_do_not_take_and_plain_inputs_are_vllms(in_vllm: Any) -> None:
    kernel, linear = _cpu_int8()
    norm = _norm()
    x = rows(2, 3, HIDDEN).cpu()
    own = norm(x)
    expected = kernel.apply_weights(linear, own)
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel)))
    assert torch.equal(norm(x), own)
    assert torch.equal(kernel.apply_weights(linear, own), expected)


def test_a_layer_whose_weights_vllm_offloads_is_not_paired(in_vllm: Any) -> None:
    kernel, linear = _cpu_int8()
    linear.weight_scale = torch.nn.Parameter(linear.weight_scale.to("meta"), requires_grad=False)
    assert _pairs(_decoder(_norm(), kernel, linear)) == []


def test_vllms_kernels_are_as_they_were_when_it_is_undone(in_vllm: Any) -> None:
    kernel, _ = _cpu_int8()
    before = type(kernel).apply_weights
    quantized_pairs.switch(*_pairs(_decoder(_norm(), kernel)))
    assert type(kernel).apply_weights is not before
    installed.undo()
    assert type(kernel).apply_weights is before


def _cutlass_int8() -> Any:
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassInt8ScaledMMLinearKernel

    kernel = CutlassInt8ScaledMMLinearKernel.__new__(CutlassInt8ScaledMMLinearKernel)
    kernel.config = SimpleNamespace(input_symmetric=True, is_static_input_scheme=False)
    kernel.layer_param_names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    return kernel


def _layer(dtype: torch.dtype = torch.int8) -> Any:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones(WIDTH, HIDDEN).to(dtype).t(), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    return layer


def _fp8(key: str = "kFp8DynamicTokenSym", **more: Tensor) -> tuple[Any, Any]:
    """vLLM's kernel for FP8 with this key for its input, and the layer that holds its weights and more."""
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils import quant_utils

    kernel = CutlassFP8ScaledMMLinearKernel.__new__(CutlassFP8ScaledMMLinearKernel)
    quantized = getattr(quant_utils, key)
    kernel.config = SimpleNamespace(activation_quant_key=quantized, out_dtype=torch.bfloat16)
    kernel.quant_fp8 = QuantFP8(static=quantized.scale.static, group_shape=quantized.scale.group_shape)
    kernel.fp8_dtype, kernel.logical_output_size = torch.float8_e4m3fn, WIDTH
    kernel.layer_param_names = ["weight", "weight_scale", "input_scale", "input_scale_ub"]
    layer = _layer(torch.float8_e4m3fn)
    vars(layer).update(more)
    return kernel, layer


def _rotating(decoder: Any, where: str = "input_transform") -> Any:
    """The decoder layer, with a rotation in this attribute of vLLM's method, which runs around the product."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsLinearTransformMethod,
    )

    linear = decoder.self_attn.qkv_proj
    linear.scheme = linear.quant_method
    linear.quant_method = CompressedTensorsLinearTransformMethod(linear.scheme, {}, {})
    assert getattr(linear.quant_method, where) is None
    setattr(linear.quant_method, where, torch.nn.Identity())
    return decoder


def _cutlass_in_blocks() -> tuple[Any, Any]:
    """vLLM's kernel for FP8 in blocks that quantizes in a step of its own, and the layer that holds its weights."""
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFp8BlockScaledMMKernel
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

    kernel = CutlassFp8BlockScaledMMKernel.__new__(CutlassFp8BlockScaledMMKernel)
    kernel.config, kernel.use_triton = SimpleNamespace(out_dtype=torch.bfloat16), False
    options = {"column_major_scales": True, "use_ue8m0": False}
    kernel.quant_fp8 = QuantFP8(static=False, group_shape=GroupShape(1, 128), **options)
    return kernel, _block_weights()


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Any]]:
    """What CUTLASS's product was called with: rows, their scales, and what else it got."""
    from vllm import _custom_ops as ops

    called: list[tuple[Tensor, Tensor, Any]] = []

    def gemm(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, **options: Any) -> Tensor:
        weights = [(operand.data_ptr(), operand.shape, operand.stride()) for operand in (b, scale_b)]
        called.append((a, scale_a, (*weights, options["out_dtype"], options.get("bias"))))
        return torch.zeros(a.shape[0], WIDTH, dtype=torch.bfloat16)

    monkeypatch.setattr(ops, "cutlass_scaled_mm", gemm)
    return called


INT8_STEP, FP8_STEP = (0.0, 1.0), (2.0**-3, 2.0**-9)
"""From a value to the next: of itself, and at least, in units of the scale."""


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("kernel_and_layer", "step"),
    [(lambda: (_cutlass_int8(), _layer()), INT8_STEP), (_fp8, FP8_STEP), (_cutlass_in_blocks, FP8_STEP)],
    ids=["INT8 per token", "FP8 per token", "FP8 in blocks"],
)
def test_vllms_gemm_on_cuda_gets_the_operands_of_its_own_quantization(
    in_vllm: Any, operands: Any, kernel_and_layer: Any, step: tuple[float, float], fused: bool
) -> None:
    (kernel, linear), norm = kernel_and_layer(), _norm()
    arguments = (rows(5, HIDDEN).cpu(), rows(5, HIDDEN).cpu() * 0.5)[: 1 + fused]
    own = norm(*(given.clone() for given in arguments))
    expected = kernel.apply_weights(linear, own[0] if fused else own)
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel, linear)))
    result = norm(*arguments)
    product = kernel.apply_weights(linear, result[0] if fused else result)
    assert (product.shape, product.dtype) == (expected.shape, expected.dtype)
    (a, scale, more), (our_a, our_scale, our_more) = operands
    assert more == our_more
    assert (our_a.dtype, our_a.shape, our_a.stride()) == (a.dtype, a.shape, a.stride())
    assert (our_scale.shape, our_scale.stride()) == (scale.shape, scale.stride())
    torch.testing.assert_close(our_scale, scale)
    dequantized, our_dequantized = (
        rows_of.float() * scales.repeat_interleave(HIDDEN // scales.shape[1], 1)
        for rows_of, scales in ((a, scale), (our_a, our_scale))
    )
    of_itself, at_least = step
    torch.testing.assert_close(our_dequantized, dequantized, rtol=of_itself, atol=at_least * float(scale.max()))
    assert (our_dequantized == dequantized).float().mean() > 0.98


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.bfloat16), (torch.float16, torch.float16)])
def test_the_product_for_fp8_has_the_dtype_of_its_kernel_or_else_of_the_norm(
    in_vllm: Any, operands: Any, dtype: torch.dtype | None, expected: torch.dtype
) -> None:
    kernel, linear = _fp8()
    kernel.config.out_dtype = dtype
    norm = _norm()
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel, linear)))
    kernel.apply_weights(linear, norm(rows(5, HIDDEN).cpu()))
    ((*_, (*_, out_dtype, _)),) = operands
    assert out_dtype == expected


def test_rows_that_vllm_itself_has_quantized_go_to_vllms_method(in_vllm: Any, operands: Any) -> None:
    """vLLM 0.32 quantizes behind an activation for a scale that the checkpoint gives."""
    from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym

    quantized_pairs.switch(*_pairs(_decoder(_norm(), *_fp8())))
    kernel, linear = _fp8("kFp8StaticTensorSym")
    x, scale = rows(2, 3, HIDDEN).cpu(), torch.ones(1)
    handed = QuantizedActivation(x.to(torch.float8_e4m3fn), scale, x.dtype, x.shape, kFp8StaticTensorSym)
    assert kernel.apply_weights(linear, handed).shape == (2, 3, WIDTH)
    ((a, scale_a, _),) = operands
    assert a.shape == (6, HIDDEN)
    assert scale_a is scale


def test_a_bias_is_added_as_vllm_adds_it(in_vllm: Any, operands: Any) -> None:
    """Within CUTLASS's product for rows with one scale, and behind the one for blocks."""
    bias = rows(WIDTH).cpu()
    for kernel, linear in (_fp8(), _cutlass_in_blocks()):
        norm = _norm()
        own = norm(rows(5, HIDDEN).cpu())
        expected = kernel.apply_weights(linear, own, bias)
        quantized_pairs.switch(*_pairs(_decoder(norm, kernel, linear)))
        assert torch.equal(kernel.apply_weights(linear, norm(rows(5, HIDDEN).cpu()), bias), expected)
        (*_, of_vllm), (*_, ours) = operands[-2:]
        assert ours == of_vllm


def _block_weights() -> Any:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(rows(WIDTH, HIDDEN).cpu().to(torch.float8_e4m3fn), requires_grad=False)
    scales = torch.rand(WIDTH // 128, HIDDEN // 128, generator=torch.Generator().manual_seed(0))
    layer.weight_scale_inv = torch.nn.Parameter(scales, requires_grad=False)
    return layer


def _in_blocks() -> tuple[Any, Any]:
    """A kernel of vLLM's that quantizes inside its product, and the layer that holds its weights."""
    from vllm.model_executor.kernels.linear.scaled_mm import flashinfer

    cls = flashinfer.FlashInferFp8DeepGEMMDynamicBlockScaledKernel
    kernel = cls.__new__(cls)
    kernel.config = SimpleNamespace(out_dtype=torch.bfloat16)
    return kernel, _block_weights()


def _blocks(scales: Tensor, rows_of_one: int) -> Tensor:
    return scales.double().repeat_interleave(rows_of_one, 0).repeat_interleave(128, 1)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Whose product was called with rows, and the strides of their scales."""
    from vllm.utils import deep_gemm, flashinfer

    called: list[tuple[str, tuple[int, ...]]] = []

    def multiply(whose: str, q: Tensor, scales: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        called.append((whose, scales.stride()))
        dequantized = q.double() * _blocks(scales, 1)
        return (dequantized @ (weight.double() * _blocks(weight_scale, 128)).T).bfloat16()

    def flashinfers(*, input: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor, **_: Any) -> Tensor:
        return multiply("FlashInfer", input, input_scale, weight, weight_scale)

    def deep_gemms(rows: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], out: Tensor) -> None:
        out.copy_(multiply("DeepGEMM", *rows, *weights))

    monkeypatch.setattr(flashinfer, "flashinfer_fp8_blockscale_gemm", flashinfers)
    monkeypatch.setattr(deep_gemm, "fp8_gemm_nt", deep_gemms)
    return called


@pytest.mark.parametrize("kind", ["RMSNorm", "GemmaRMSNorm"])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("count", "product"),
    [
        *((1, ("FlashInfer", (1, 4))), (31, ("FlashInfer", (1, 32)))),
        *((32, ("DeepGEMM", (1, 32))), (33, ("DeepGEMM", (1, 36)))),
    ],
)
def test_a_product_that_quantizes_inside_gets_rows_that_are_quantized(
    in_vllm: Any, products: Any, count: int, product: Any, fused: bool, traced: bool, kind: str
) -> None:
    kernel, linear = _in_blocks()
    norm = _norm(kind)
    arguments = tuple(rows(count, HIDDEN).cpu() * (1 + place) for place in range(1 + fused))
    own = norm(*(given.clone() for given in arguments))
    exact = (own[0] if fused else own).double() @ (linear.weight.double() * _blocks(linear.weight_scale_inv, 128)).T
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel)))

    def paired(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        result = norm(*arguments)
        handed, total = result if fused else (result, arguments[0])
        return kernel.apply_weights(linear, handed), total

    run = torch.compile(paired, fullgraph=True, backend="aot_eager", dynamic=True) if traced else paired
    found, total = run(*(given.clone() for given in arguments))
    assert products == [product]
    assert (found.dtype, found.shape) == (torch.bfloat16, (count, WIDTH))
    assert (found.double() - exact).norm() < 0.05 * exact.norm()  # FP8's rounding: 0.03
    if fused:
        torch.testing.assert_close(total, own[1])


def test_no_product_imports_at_each_call() -> None:
    products = [consumer.product for consumer in quantized_pairs.CONSUMERS.values()]
    assert not any(map(imports_at_each_call, (*products, block_product._product)))


def test_a_bias_is_added_behind_the_product_of_quantized_rows(in_vllm: Any, products: Any) -> None:
    kernel, linear = _in_blocks()
    norm, bias = _norm(), rows(WIDTH).cpu()
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel)))
    handed = norm(rows(5, HIDDEN).cpu())
    without, found = (kernel.apply_weights(linear, handed, given) for given in (None, bias))
    assert torch.equal(found, without + bias)


@pytest.mark.parametrize("fused", [False, True])
def test_a_paired_layer_is_traced_whole_and_computes_what_it_does_untraced(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any, fused: bool
) -> None:
    from vllm import _custom_ops as ops

    def gemm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype, **_: Any) -> Tensor:
        return (a.float() @ b.float()).to(out_dtype)

    monkeypatch.setattr(ops, "cutlass_scaled_mm", gemm)
    kernel, linear, norm = _cutlass_int8(), _layer(), _norm()
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel)))

    def paired(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        result = norm(*arguments)
        handed, total = result if fused else (result, arguments[0])
        return kernel.apply_weights(linear, handed), total

    arguments = tuple(rows(5, HIDDEN).cpu() for _ in range(1 + fused))
    expected = paired(*(given.clone() for given in arguments))
    traced = torch.compile(paired, fullgraph=True, backend="aot_eager")
    for got, want in zip(traced(*arguments), expected, strict=True):
        assert torch.equal(got, want)


def _int8_on_gpu() -> tuple[Any, Any]:
    weight = torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(0)) * 30
    return _cutlass_int8(), _layer_on_gpu(weight.clamp(-127, 127).to(torch.int8))


def _fp8_on_gpu() -> tuple[Any, Any]:
    return _fp8()[0], _layer_on_gpu(rows(WIDTH, HIDDEN).to(torch.float8_e4m3fn))


def _layer_on_gpu(weight: Tensor) -> Any:
    """The layer that holds a kernel's weights, with scales from a seed."""
    layer, generator = torch.nn.Module(), torch.Generator().manual_seed(0)
    layer.weight_scale = torch.nn.Parameter(torch.rand(WIDTH, 1, generator=generator) + 0.5, requires_grad=False)
    layer.weight = torch.nn.Parameter(weight.cuda().t(), requires_grad=False)
    return layer.cuda()


def _blocks_on_gpu() -> tuple[Any, Any]:
    kernel, layer = _cutlass_in_blocks()
    return kernel, layer.cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("made", [_int8_on_gpu, _fp8_on_gpu, _blocks_on_gpu], ids=["INT8", "FP8", "FP8 in blocks"])
@pytest.mark.parametrize("kind", ["RMSNorm", "GemmaRMSNorm"])
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu_a_paired_layer_computes_what_vllms_own_does(in_vllm: Any, made: Any, kind: str, fused: bool) -> None:
    """Where a value lies between two, vLLM's rounding may be the other one: a part of a thousand of the largest."""
    kernel, linear = made()
    norm = _norm(kind).cuda()
    arguments = (rows(5, HIDDEN).cuda(), rows(5, HIDDEN).cuda() * 0.5) if fused else (rows(5, HIDDEN).cuda(),)
    own = norm(*(given.clone() for given in arguments))
    expected = kernel.apply_weights(linear, own[0] if fused else own).float()
    quantized_pairs.switch(*_pairs(_decoder(norm, kernel, linear), linear.weight.device))
    result = norm(*arguments)
    product = kernel.apply_weights(linear, result[0] if fused else result).float()
    assert (product - expected).abs().max() <= 0.02 * expected.abs().max()
    assert (product - expected).abs().mean() <= 0.002 * expected.abs().max()


def _config(mode: str = "NONE", **more: Any) -> Any:
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(mode=SimpleNamespace(name=mode)),
        quant_config=None,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        lora_config=None,
        model_config=model_config(),
    )
    vars(config).update(more)
    return config


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take every norm."""
    monkeypatch.setattr(quantized_pairs, "why_reference", lambda specs: None)
    monkeypatch.setattr(priority, "user_chose_any", lambda config: False)
    monkeypatch.setenv("SERVING_OPS", "auto")


def _take(config: Any, of: tuple[Any, Any] | None = None) -> tuple[str | None, bool]:
    """The phrase, and whether the norm quantizes. of: a kernel and its layer."""
    layer = _decoder(_norm(), *(of or _cpu_int8()))
    phrase = quantized_pairs.take([torch.nn.ModuleList([layer])], config, CPU)
    return phrase, not isinstance(layer.input_layernorm(rows(5, HIDDEN).cpu()), Tensor)


def test_the_start_up_line_says_how_many_norms_quantize(everywhere: None, in_vllm: Any) -> None:
    assert _take(_config()) == ("1 norms quantize for the layer after them, where our kernels run", True)


def test_norms_are_vllms_again_when_it_is_undone(everywhere: None, in_vllm: Any) -> None:
    layer = _decoder(_norm(), *_cpu_int8())
    quantized_pairs.take([layer], _config(), CPU)
    installed.undo()
    assert isinstance(layer.input_layernorm(rows(5, HIDDEN).cpu()), Tensor)


def test_eager_norms_quantize_only_where_plain_ones_are_ours(everywhere: None, in_vllm: Any) -> None:
    unknown = SimpleNamespace(get_name=lambda: "quark")
    assert _take(_config(quant_config=unknown)) == (None, False)


@pytest.mark.parametrize(
    "more",
    [{"parallel_config": SimpleNamespace(tensor_parallel_size=2)}, {"lora_config": SimpleNamespace()}],
    ids=["an all-reduce between", "adapters read it too"],
)
def test_a_result_that_others_read_stays_as_it_is(everywhere: None, in_vllm: Any, more: dict[str, Any]) -> None:
    assert _take(_config(**more)) == (None, False)


def test_an_ir_priority_that_the_user_gave_holds(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    monkeypatch.setattr(priority, "user_chose_any", lambda config: True)
    assert _take(_config()) == (None, False)


def test_batch_invariant_models_are_not_taken(everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    monkeypatch.setattr(features, "is_batch_invariant", lambda: True)
    assert _take(_config()) == (None, False)


@pytest.mark.parametrize(("given", "chose"), [(None, False), (["vllm_c", "native"], True)])
def test_an_order_unlike_the_platforms_default_is_the_users(in_vllm: Any, given: list[str] | None, chose: bool) -> None:
    from vllm.config import KernelConfig, VllmConfig

    kernels = KernelConfig() if given is None else KernelConfig(ir_op_priority={"rms_norm": given})
    assert priority.user_chose_any(VllmConfig(kernel_config=kernels)) == chose


def test_a_user_who_leaves_an_op_out_gets_vllms(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto,rms_norm")
    assert _take(_config()) == (None, False)


CONSUMERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "CPUInt8ScaledMMLinearKernel": (_cpu_int8, ("eager",)),
    "CutlassInt8ScaledMMLinearKernel": (lambda: (_cutlass_int8(), _layer()), MODES),
    "FlashInferFp8DeepGEMMDynamicBlockScaledKernel": (_in_blocks, MODES),
    "CutlassFp8BlockScaledMMKernel": (_cutlass_in_blocks, ("eager",)),
    "CutlassFP8ScaledMMLinearKernel": (_fp8, ("eager",)),
}
"""vLLM's classes of kernels -> one with its layer, and the modes in which it takes quantized rows."""


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_norm_quantizes_for_each_kernel_in_the_modes_in_which_that_was_measured_to_be_faster(
    everywhere: None, in_vllm: Any, products: Any, operands: Any, name: str
) -> None:
    made, modes = CONSUMERS[name]
    taken = {"eager": _take(_config("NONE"), made())[1], "compiled": _take(_config("VLLM_COMPILE"), made())[1]}
    assert taken == {mode: mode in modes for mode in MODES}


def test_every_kernel_that_takes_quantized_rows_is_among_these() -> None:
    assert set(quantized_pairs.CONSUMERS) == set(CONSUMERS)


def test_eager_norms_that_would_be_launched_from_python_stay_plain(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any, operands: Any
) -> None:
    monkeypatch.setattr(quantized_pairs, "extension", SimpleNamespace(cpp_library=lambda: None))
    assert _take(_config("NONE"), _fp8()) == (None, False)
    assert _take(_config("VLLM_COMPILE"), (_cutlass_int8(), _layer()))[1]


def test_a_product_for_fp8_that_takes_other_rows_leaves_the_norm_to_vllm(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    from vllm import _custom_ops as ops

    def of_another_vllm(*, rows: Any) -> Tensor:
        raise AssertionError("it takes other arguments")

    monkeypatch.setattr(ops, "cutlass_scaled_mm", of_another_vllm)
    for made in (_fp8, _cutlass_in_blocks):
        with pytest.raises(TypeError, match="of_another_vllm"):
            _take(_config("NONE"), made())


def test_a_norm_without_a_kernel_is_vllms(everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    monkeypatch.setattr(quantized_pairs, "why_reference", lambda specs: "no kernels for it on cpu")
    assert _take(_config()) == (None, False)


def test_a_kernel_that_takes_other_rows_leaves_the_norm_to_vllm_and_does_not_stop_it(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm import _custom_ops as ops

    def onednn_scaled_mm(handler: Any, x: Tensor, output: Tensor) -> Tensor:
        raise AssertionError("this vLLM's takes other arguments")

    kernel, linear = _cpu_int8()
    layer = _decoder(_norm(), kernel, linear)
    own = layer.input_layernorm._forward_method
    with monkeypatch.context() as other, caplog.at_level("WARNING", "vllm.serving_ops"):
        other.setattr(ops, "onednn_scaled_mm", onednn_scaled_mm)
        worker = SimpleNamespace(vllm_config=_config(), device=CPU)
        assert list(startup._beside_norms([torch.nn.ModuleList([layer])], [], worker)) == []
        monkeypatch.setenv("SERVING_OPS", "strict")
        with pytest.raises(RuntimeError, match=r"strict: could not have its norms quantize: .*onednn_scaled_mm"):
            list(startup._beside_norms([torch.nn.ModuleList([layer])], [], worker))
    assert re.search(r"could not have its norms quantize: .*onednn_scaled_mm\(\) takes", caplog.text)
    assert quantized_pairs.NAME in installed.failures
    assert layer.input_layernorm._forward_method == own
    assert isinstance(layer.input_layernorm(rows(5, HIDDEN).cpu()), Tensor)


@pytest.mark.parametrize("product", ["flashinfer.flashinfer_fp8_blockscale_gemm", "deep_gemm.fp8_gemm_nt"])
def test_a_product_of_few_or_of_many_rows_that_takes_others_leaves_the_norm_to_vllm(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any, products: Any, product: str
) -> None:
    def of_another_vllm(*, rows: Any) -> Tensor:
        raise AssertionError("it takes other arguments")

    monkeypatch.setattr(f"vllm.utils.{product}", of_another_vllm)
    with pytest.raises(TypeError, match="of_another_vllm"):
        _take(_config("VLLM_COMPILE"), _in_blocks())


def test_where_attention_layers_cannot_be_taken_no_norm_quantizes(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def take(found: Any, config: Any) -> None:
        raise AttributeError("this vLLM's configurations are others")

    monkeypatch.setattr(startup.qk_norm_rope_layer, "take", take)
    layer = _decoder(_norm(), *_cpu_int8())
    worker = SimpleNamespace(
        get_model=lambda: torch.nn.ModuleList([layer]),
        model_runner=SimpleNamespace(),
        device=CPU,
        vllm_config=_config(),
    )
    with caplog.at_level("WARNING", "vllm.serving_ops"):
        startup._then_report(worker, lambda: None)()
    assert "whose norms stay vLLM's own: this vLLM's configurations are others" in caplog.text
    assert isinstance(layer.input_layernorm(rows(5, HIDDEN).cpu()), Tensor)


@pytest.mark.parametrize("spoilt", ["Qwen3DecoderLayer", "Qwen3Attention"])
def test_a_layer_with_a_step_that_is_not_known_is_not_paired(in_vllm: Any, spoilt: str) -> None:
    def forward(self: Any, hidden_states: Tensor) -> Any:
        return self.mlp(hidden_states), self.route(hidden_states)

    layer = _decoder(_norm(), *_cpu_int8())
    assert len(_pairs(layer)) == 1
    cls = next(type(part) for part in layer.modules() if type(part).__name__ == spoilt)
    cls.forward = forward
    assert _pairs(layer) == []


def test_where_the_prewarm_fails_nothing_changes_and_cached_graphs_are_told_apart(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    monkeypatch.setattr(serving_ops, "prewarm", lambda specs: PrewarmReport(failed=dict.fromkeys(specs, "no compiler")))
    layer = _decoder(_norm(), *_cpu_int8())
    with pytest.raises(RuntimeError, match="no compiler"):
        quantized_pairs.take([torch.nn.ModuleList([layer])], _config(), CPU)
    assert isinstance(layer.input_layernorm(rows(5, HIDDEN).cpu()), Tensor)
    assert installed.failures == {quantized_pairs.NAME: "no compiler"}
