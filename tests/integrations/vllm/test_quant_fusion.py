"""vLLM's fused norm and FP8 quantization on our kernels: the operators, their place in its table, calls in place."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any, NamedTuple

import pytest
import torch
from in_process import fp8_linear
from torch import Tensor

import serving_ops
from serving_ops import NormSpec, QuantFormat
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import installed, quant_fusion

FP8 = torch.float8_e4m3fn
EPS = 1e-6


def _inputs(size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, size, generator=generator).bfloat16() for _ in range(2))
    return x, residual, torch.randn(size, generator=generator).bfloat16()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


ROW_MAJOR, COLUMN_MAJOR, ALIGNED_FOR_TMA = (2, 1), (1, 5), (1, 8)
"""Strides of the scales of 5 rows, as vLLM's Triton, CUTLASS and DeepGEMM take them."""


@pytest.mark.parametrize("strides", [ROW_MAJOR, COLUMN_MAJOR, ALIGNED_FOR_TMA])
@pytest.mark.parametrize("fused", [False, True])
def test_the_block_operator_writes_what_the_public_op_returns(fused: bool, strides: tuple[int, int]) -> None:
    _, block = quant_fusion.define()
    x, residual, weight = _inputs()
    memory = torch.full((16,), -1.0)
    result, scale = torch.empty(x.shape, dtype=FP8), memory.as_strided((5, 2), strides)
    total = residual.clone()
    block(
        result=result, input=x, weight=weight, scale=scale, epsilon=EPS, scale_ub=None,
        residual=total if fused else None, group_size=128, is_scale_transposed=strides[0] == 1,
    )  # fmt: skip
    if fused:
        q, scales = serving_ops.fused_add_rms_norm_quant(x, residual, weight, EPS, fmt=QuantFormat())
        assert torch.equal(total, residual)
    else:
        q, scales = serving_ops.rms_norm_quant(x, weight, EPS, fmt=QuantFormat())
    assert torch.equal(_bytes(result), _bytes(q))
    assert torch.equal(scale, scales)
    assert (memory == -1).sum() == memory.numel() - scale.numel()


def test_the_token_operator_writes_what_the_public_op_returns() -> None:
    token, _ = quant_fusion.define()
    x, residual, weight = _inputs()
    result, scale, total = torch.empty(x.shape, dtype=FP8), torch.empty(5, 1), residual.clone()
    token(result=result, input=x, weight=weight, scale=scale, epsilon=EPS, scale_ub=None, residual=total)
    q, scales = serving_ops.fused_add_rms_norm_quant(
        x, residual, weight, EPS, fmt=QuantFormat(granularity="token")
    )  # fmt: skip
    assert torch.equal(_bytes(result), _bytes(q))
    assert torch.equal(scale, scales)
    assert torch.equal(total, residual)


def test_an_upper_bound_of_the_scale_is_refused_before_anything_is_written() -> None:
    token, _ = quant_fusion.define()
    x, residual, weight = _inputs()
    before = residual.clone()
    result, scale = torch.empty(x.shape, dtype=FP8), torch.empty(5, 1)
    with pytest.raises(RuntimeError, match=r"scale_ub is .*: it must be None"):
        token(
            result=result, input=x, weight=weight, scale=scale, epsilon=EPS, scale_ub=torch.ones(1), residual=residual
        )
    assert torch.equal(residual, before)


def test_functional_calls_become_calls_in_place_on_the_very_residual() -> None:
    """With vLLM's own rewriting, which knows only its own operators: a functional call copies the residual."""
    from torch._higher_order_ops.auto_functionalize import auto_functionalized
    from torch.fx.experimental.proxy_tensor import make_fx
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass

    _, block = quant_fusion.define()
    x, residual, weight = _inputs()

    def functional(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result, scale = torch.empty_like(x, dtype=FP8), torch.empty(5, 2)
        found = auto_functionalized(
            block, result=result, input=x, weight=weight, scale=scale, epsilon=EPS, scale_ub=None,
            residual=residual, group_size=128, is_scale_transposed=False,
        )  # fmt: skip
        return found[1], found[2], found[3]

    traced = make_fx(functional)(x, weight, residual.clone())
    expected = functional(x, weight, residual.clone())
    vllms_pass = object.__new__(FixFunctionalizationPass)
    quant_fusion.call_in_place(vllms_pass, traced.graph)
    assert auto_functionalized not in {node.target for node in traced.graph.nodes}
    traced.recompile()
    total = residual.clone()
    result, scale, returned = traced(x, weight, total)
    assert returned is total
    assert torch.equal(total, expected[2])
    assert torch.equal(scale, expected[1])
    assert torch.equal(_bytes(result), _bytes(expected[0]))


class _Key(NamedTuple):
    quant: str
    fused_add: bool


QUANTS = ("kFp8DynamicTokenSym", "kFp8Dynamic128Sym", "kFp8Dynamic64Sym")

TOKEN = "Tensor! result, Tensor input, Tensor weight, Tensor! scale, float epsilon, Tensor? scale_ub, Tensor!? residual"


def _operator(arguments: str) -> Any:
    """One of vLLM's, of which only the schema is asked for."""
    return types.SimpleNamespace(_schema=torch._C.parse_schema(f"_C::fused({arguments}) -> ()"))


VLLMS = {quant: _operator(f"{TOKEN}, int group_size, bool is_scale_transposed") for quant in QUANTS}
VLLMS |= {QUANTS[0]: _operator(TOKEN), "static": "_C"}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[_Key, Any]:
    """The table of vLLM's pass, whose module asks for CUDA operators."""
    module = types.ModuleType("vllm.compilation.passes.fusion.rms_quant_fusion")
    module.FusedRMSQuantKey = _Key  # type: ignore[attr-defined]
    for quant in QUANTS:
        setattr(module, quant, quant)
    module.FUSED_OPS = {_Key(quant, fused): VLLMS[quant] for quant in VLLMS for fused in (False, True)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    import vllm.compilation.passes.fusion as package

    monkeypatch.setattr(package, "rms_quant_fusion", module, raising=False)
    return module.FUSED_OPS  # type: ignore[attr-defined, no-any-return]


def test_ours_replace_the_dynamic_forms_in_vllms_table_and_leave_it_when_undone(table: dict[_Key, Any]) -> None:
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass

    before, call = dict(table), FixFunctionalizationPass.__call__
    try:
        quant_fusion.install()
        token, block = quant_fusion.define()
        assert {table[key] for key in table if key.quant == "kFp8DynamicTokenSym"} == {token}
        assert {table[key] for key in table if key.quant in QUANTS[1:]} == {block}
        assert {table[key] for key in table if key.quant == "static"} == {"_C"}
        assert FixFunctionalizationPass.__call__ is not call
    finally:
        installed.undo()
    assert table == before
    assert FixFunctionalizationPass.__call__ is call


def test_a_table_without_one_of_the_forms_stays_as_it_is(table: dict[_Key, Any]) -> None:
    del table[_Key("kFp8Dynamic64Sym", True)]
    before = dict(table)
    with pytest.raises(AttributeError, match="no "):
        quant_fusion.install()
    assert table == before


@pytest.mark.parametrize("quant", QUANTS)
def test_a_table_whose_operators_take_other_arguments_stays_as_it_is(table: dict[_Key, Any], quant: str) -> None:
    table[_Key(quant, True)] = _operator(f"{TOKEN}, int group_size, Tensor? bias")
    before = dict(table)
    with pytest.raises(AttributeError, match=r"takes \(.*, bias\), not \(result, .*\)"):
        quant_fusion.install()
    assert table == before


CONFIG = types.SimpleNamespace(model_config=types.SimpleNamespace(get_hidden_size=lambda: 1024))
PLAIN = [
    NormSpec("rms_norm", 1024, torch.bfloat16, torch.bfloat16, torch.device("cpu")),
    NormSpec("fused_add_rms_norm", 1024, torch.bfloat16, torch.bfloat16, torch.device("cpu")),
    NormSpec("rms_norm", 128, torch.bfloat16, torch.bfloat16, torch.device("cpu"), heads=2),
]


@pytest.mark.parametrize(
    ("key", "formats"),
    [
        ("kFp8DynamicTokenSym", [QuantFormat(granularity="token")]),
        ("kFp8Dynamic128Sym", [QuantFormat()]),
        ("kFp8Dynamic64Sym", [QuantFormat(group_size=64)]),
        ("kFp8StaticTensorSym", []),
        ("kFp8DynamicTensorSym", []),
    ],
)
def test_whole_rows_are_prewarmed_in_the_form_that_linear_layers_want_and_heads_are_not(
    key: str, formats: list[QuantFormat]
) -> None:
    model = torch.nn.ModuleList([fp8_linear(key=key), fp8_linear(key=key)])
    assert [(spec.op, spec.fmt) for spec in quant_fusion.specs([model], [*PLAIN, *PLAIN], CONFIG)] == [
        (op, fmt) for fmt in formats for op in ("rms_norm_quant", "fused_add_rms_norm_quant")
    ]


OPAQUE = ("FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "FlashInferFp8BlockScaledMMKernel")


@pytest.mark.parametrize("kernel", OPAQUE)
def test_nothing_is_fused_with_a_product_that_takes_rows_as_they_are_and_quantizes_inside(kernel: str) -> None:
    model = torch.nn.ModuleList([fp8_linear(kernel, "kFp8Dynamic128Sym")])
    assert quant_fusion.specs([model], PLAIN, CONFIG) == []
    model.append(fp8_linear(key="kFp8Dynamic128Sym"))
    assert {spec.fmt for spec in quant_fusion.specs([model], PLAIN, CONFIG)} == {QuantFormat()}


def test_the_kernel_that_is_prewarmed_rounds_as_the_operators_that_vllm_calls() -> None:
    plain = [dataclasses.replace(spec, weight_offset=WEIGHT_IN_FP32) for spec in PLAIN]
    found = quant_fusion.specs([torch.nn.ModuleList([fp8_linear()])], plain, CONFIG)
    assert [spec.weight_offset for spec in found] == [0.0, 0.0]


@pytest.mark.parametrize(("switch", "warmed"), [("1", 1), ("0", 0)])
def test_the_users_switch_holds_for_the_prewarm_of_fused_norms_too(
    monkeypatch: pytest.MonkeyPatch, switch: str, warmed: int
) -> None:
    asked: list[NormSpec] = []
    monkeypatch.setenv("SERVING_OPS_PREWARM", switch)
    monkeypatch.setattr(quant_fusion, "install", lambda: None)
    monkeypatch.setattr(serving_ops, "prewarm", lambda norms: asked.extend(norms) or serving_ops.PrewarmReport())
    quant_fusion.take(quant_fusion.specs([fp8_linear()], PLAIN[:1], CONFIG))
    assert len(asked) == warmed


def test_nothing_is_taken_on_a_cpu() -> None:
    passes = types.SimpleNamespace(fuse_norm_quant=True)
    config = types.SimpleNamespace(compilation_config=types.SimpleNamespace(pass_config=passes))
    assert not quant_fusion.is_for(config)
