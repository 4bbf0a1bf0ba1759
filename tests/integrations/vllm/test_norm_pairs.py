"""Two norms in a row of vLLM's IR, paired so that the sum between them is not rounded: on graphs of layers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from in_process import HIDDEN, SPEC, rows

from serving_ops import PrewarmReport
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import compile_cache, installed, norm_pairs
from serving_ops.integrations.vllm.layers import NormLayer

TOKENS, EPS = 6, 1e-6
NONE_DONATED: frozenset[int] = frozenset()
X, RESIDUAL = 0, 1
"""The places of a graph's arguments."""

OPS = torch.ops.serving_ops
SINGLE, FIRST, SECOND = (
    getattr(OPS, op).default for op in ("fused_add_rms_norm", "rms_norm_of_sum", "fused_add_two_rms_norm")
)
CLONE = torch.ops.aten.clone.default

Layers = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def _norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.vllm_ir.fused_add_rms_norm.default(x, residual, weight, EPS)
    return found


def _norms(count: int) -> Layers:
    def layers(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each norm but the first gets a product of the one before."""
        x = x @ product
        for place in range(count):
            x = x @ product if place else x
            x, residual = _norm(x, residual, weight)
        return x, residual

    return layers


def _reads_the_sum(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    x, total = _norm(x @ product, residual, weight)
    return *_norm(x @ product, total, weight), total


def _uses_the_sum_as_x(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    x, total = _norm(x @ product, residual, weight)
    return _norm(total, x @ product, weight)


def _reads_x_later(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    of_attention = x @ product
    x, total = _norm(of_attention, residual, weight)
    return *_norm(x @ product, total, weight), of_attention * 2


def _reads_the_residual_later(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    x, total = _norm(x @ product, residual, weight)
    return *_norm(x @ product, total, weight), residual * 2


def _reads_a_view_of_x_later(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    of_attention = x @ product
    x, total = _norm(of_attention, residual, weight)
    return *_norm(x @ product, total, weight), of_attention.view(-1) * 2


def _overwrites_x_between(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    of_attention = x @ product
    x, total = _norm(of_attention, residual, weight)
    of_attention.zero_()
    return _norm(x @ product, total, weight)


def _overwrites_a_view_of_the_residual_between(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    residual = residual * 1
    x, total = _norm(x @ product, residual, weight)
    residual.view(-1).zero_()
    return _norm(x @ product, total, weight)


def _adds_rows_of_a_wider_x(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    wider = torch.nn.functional.pad(x @ product, (0, 8))[:, :HIDDEN]
    x, total = _norm(wider, residual, weight)
    return _norm(x @ product, total, weight)


def _adds_and_keeps_rows_of_wider_tensors(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> Any:
    wider, residual = (torch.nn.functional.pad(rows, (0, 8))[:, :HIDDEN] for rows in (x @ product, residual))
    x, total = _norm(wider, residual, weight)
    return _norm(x @ product, total, weight)


APART = [
    _reads_the_sum,
    _uses_the_sum_as_x,
    _reads_x_later,
    _reads_the_residual_later,
    _reads_a_view_of_x_later,
    _overwrites_x_between,
    _overwrites_a_view_of_the_residual_between,
    _adds_rows_of_a_wider_x,
    _adds_and_keeps_rows_of_wider_tensors,
]


def _arguments(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    x, residual = rows(2 * TOKENS, HIDDEN, dtype=dtype).chunk(2)
    product = rows(HIDDEN, HIDDEN, dtype=dtype) / HIDDEN**0.5
    return x.clone(), residual.clone(), product, 1 + rows(HIDDEN, dtype=dtype) / 8


@pytest.fixture
def lowered(registered: None, in_vllm: Any) -> Callable[..., Any]:
    """lowered(layers, arguments, donated): the module that vLLM's lowering makes of layers, with norms paired."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from vllm.compilation.passes.inductor_pass import get_pass_context, pass_context
    from vllm.compilation.passes.ir.clone_elimination import UnsafeCloneEliminationPass
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass
    from vllm.compilation.passes.utility.post_cleanup import PostCleanupPass
    from vllm.config.utils import Range

    norm_pairs.install()
    passes = [make(in_vllm) for make in (VllmIRLoweringPass, UnsafeCloneEliminationPass, PostCleanupPass)]

    def lower(layers: Layers, arguments: tuple[Tensor, ...], donated: frozenset[int] = frozenset({RESIDUAL})) -> Any:
        traced = make_fx(layers, tracing_mode="fake")(*arguments)
        with pass_context(Range(start=1, end=TOKENS)):
            get_pass_context().donated_input_ids = set(donated)
            for one in passes:
                one(traced.graph)
        traced.graph.lint()
        traced.recompile()
        return traced

    return lower


def _called(module: Any) -> list[Any]:
    """The norms of a graph, in order."""
    return [node.target for node in module.graph.nodes if node.target in {SINGLE, FIRST, SECOND}]


def _exact(count: int, x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`_norms` with the residual never rounded, and all else rounded as there."""
    x, total = x @ product, residual.double()
    for place in range(count):
        total = total + (x @ product if place else x).double()
        exact = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + EPS) * weight.double()
        x = exact.bfloat16()
    return exact, total


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).square().mean().sqrt())


def _copies(module: Any) -> int:
    return sum(node.target is CLONE for node in module.graph.nodes)


@pytest.mark.parametrize(
    ("count", "called"),
    [
        (1, [SINGLE]),
        (2, [FIRST, SECOND]),
        (3, [FIRST, SECOND, SINGLE]),
        (4, [FIRST, SECOND, FIRST, SECOND]),
        (5, [FIRST, SECOND, FIRST, SECOND, SINGLE]),
    ],
)
def test_norms_in_a_row_are_paired_and_each_is_in_one_pair(
    lowered: Callable[..., Any], count: int, called: list[Any]
) -> None:
    module = lowered(_norms(count), _arguments())
    assert _called(module) == called
    assert _copies(module) == 0
    one_by_one = _norms(count)(*_arguments())
    for got, alone, exact in zip(module(*_arguments()), one_by_one, _exact(count, *_arguments()), strict=True):
        assert _error(got, exact) <= 1.02 * _error(alone, exact)


def test_the_residual_of_a_pair_is_rounded_once(lowered: Callable[..., Any]) -> None:
    _, total = lowered(_norms(2), _arguments())(*_arguments())
    _, exact = _exact(2, *_arguments())
    _, alone = _norms(2)(*_arguments())
    assert torch.equal(total, exact.bfloat16())
    assert _error(total, exact) < 0.8 * _error(alone, exact)


@pytest.mark.parametrize("layers", APART)
def test_norms_stay_apart_where_something_else_sees_what_they_add(lowered: Callable[..., Any], layers: Layers) -> None:
    module = lowered(layers, _arguments())
    assert _called(module) == [SINGLE, SINGLE]


@pytest.mark.parametrize("layers", [_norms(2), _norms(4), *APART[:5]])
def test_what_vllm_has_not_donated_keeps_its_values(lowered: Callable[..., Any], layers: Layers) -> None:
    arguments, before = _arguments(), _arguments()
    module = lowered(layers, arguments, NONE_DONATED)
    got = module(*arguments)
    assert all(map(torch.equal, arguments, before))
    for value, expected in zip(got, layers(*before), strict=True):
        assert torch.allclose(value.float(), expected.float(), rtol=0.05, atol=0.05)


def test_x_may_be_an_argument_of_the_graph_and_a_view(lowered: Callable[..., Any]) -> None:
    def layers(x: Tensor, residual: Tensor, product: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        x, total = _norm(x.view(-1, HIDDEN), residual, weight)
        return _norm(x @ product, total, weight)

    arguments = _arguments()
    module = lowered(layers, arguments, frozenset({X, RESIDUAL}))
    assert _called(module) == [FIRST, SECOND]
    residual = _arguments()[RESIDUAL]
    module(*arguments)
    assert torch.equal(arguments[RESIDUAL], residual), "the first norm's residual is read and no more"


def test_norms_of_fp32_have_nothing_to_gain(lowered: Callable[..., Any]) -> None:
    assert _called(lowered(_norms(2), _arguments(torch.float32))) == [SINGLE, SINGLE]


def test_norms_that_vllm_gives_to_another_provider_stay_its_own(lowered: Callable[..., Any]) -> None:
    from vllm import ir

    ir.ops.fused_add_rms_norm.set_default(["native"])
    assert _called(lowered(_norms(2), _arguments())) == []


@pytest.mark.usefixtures("registered")
def test_inductor_calls_a_pair_in_place_for_any_number_of_tokens(in_vllm: Any) -> None:
    from torch._inductor.utils import run_and_get_code
    from vllm.compilation.passes.inductor_pass import pass_context
    from vllm.compilation.passes.pass_manager import PostGradPassManager
    from vllm.config.utils import Range

    norm_pairs.install()
    chosen = in_vllm.compilation_config.pass_config
    chosen.fuse_norm_quant = chosen.fuse_act_quant = False  # which vLLM imports on CUDA alone
    passes = PostGradPassManager()
    passes.configure(in_vllm)
    options = {"post_grad_custom_post_pass": passes, "fx_graph_cache": False}
    torch._dynamo.reset()
    arguments = _arguments()
    for tokens in arguments[:2]:
        torch._dynamo.mark_dynamic(tokens, 0)
    with torch.no_grad(), pass_context(Range(start=1, end=TOKENS)):
        got, code = run_and_get_code(torch.compile(_norms(2), fullgraph=True, options=options), *arguments)
    assert re.findall(r"ops\.serving_ops\.(\w+)\.default\(", code[0]) == list(norm_pairs.PAIR)
    assert "cpp_fused" not in code[0], "something is copied"
    for value, exact in zip(got, _exact(2, *_arguments()), strict=True):
        assert torch.allclose(value.double(), exact, rtol=0.02, atol=0.02)


# The plugin

NORM = dataclasses.replace(SPEC, op="fused_add_rms_norm", weight_offset=WEIGHT_IN_FP32)
COMPILED = SimpleNamespace(compilation_config=SimpleNamespace(mode=SimpleNamespace(name="VLLM_COMPILE")))
EAGER = SimpleNamespace(compilation_config=SimpleNamespace(mode=SimpleNamespace(name="NONE")))


def _layer(*specs: Any, native_because: str | None = None) -> NormLayer:
    return NormLayer("RMSNorm", specs, native_because)


def test_what_is_prewarmed_is_what_pairs_of_the_norms_that_are_on_call() -> None:
    first, second = (dataclasses.replace(NORM, op=op) for op in norm_pairs.PAIR)
    assert norm_pairs.specs([_layer(SPEC, NORM), _layer(NORM)]) == [first, second]
    others = (
        _layer(NORM, native_because="chosen"),
        _layer(dataclasses.replace(NORM, weight_offset=1.0)),
        _layer(dataclasses.replace(NORM, dtype=torch.float32)),
    )
    assert norm_pairs.specs(others) == []


@pytest.fixture
def on_cuda(registered: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A platform with kernels that prewarm; what was prewarmed."""
    from vllm.platforms import current_platform

    prewarmed: list[Any] = []

    def prewarm(specs: Any) -> PrewarmReport:
        prewarmed.extend(specs)
        return PrewarmReport(warmed=list(specs))

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    monkeypatch.setattr(norm_pairs.extension, "cpp_library", lambda: "the library")
    monkeypatch.setattr("serving_ops.prewarm", prewarm)
    return prewarmed


def test_a_compiled_model_on_cuda_is_paired_after_its_prewarm(on_cuda: list[Any]) -> None:
    before = compile_cache.compile_key()
    assert norm_pairs.take([_layer(NORM)], COMPILED) is not None
    assert [spec.op for spec in on_cuda] == list(norm_pairs.PAIR)
    assert compile_cache.compile_key() != before
    installed.undo()
    assert norm_pairs.on == []


def test_inductors_key_has_the_pass(in_vllm: Any, registered: None) -> None:
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass

    without, before = VllmIRLoweringPass.uuid, VllmIRLoweringPass(in_vllm).uuid()
    norm_pairs.install()
    assert VllmIRLoweringPass(in_vllm).uuid() != before
    installed.undo()
    assert VllmIRLoweringPass.uuid is without


@pytest.mark.parametrize(
    ("layers", "config"), [([_layer(NORM)], EAGER), ([_layer(SPEC)], COMPILED), ([], COMPILED)], ids=str
)
def test_nothing_changes_for_other_models(on_cuda: list[Any], layers: list[NormLayer], config: Any) -> None:
    assert norm_pairs.take(layers, config) is None
    assert on_cuda == norm_pairs.on == []


@pytest.mark.usefixtures("registered")
def test_nothing_changes_on_cpu() -> None:
    assert norm_pairs.take([_layer(NORM)], COMPILED) is None
    assert norm_pairs.on == []


def test_norms_stay_apart_whose_prewarm_failed(on_cuda: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={specs[0]: "no compiler"}))
    with pytest.raises(RuntimeError, match="no compiler"):
        norm_pairs.take([_layer(NORM)], COMPILED)
    assert norm_pairs.on == []


def test_an_error_in_the_pass_leaves_the_graph_to_vllm(
    lowered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_pairs, "_pairs", lambda graph: 1 / 0)
    assert _called(lowered(_norms(2), _arguments())) == [SINGLE, SINGLE]
