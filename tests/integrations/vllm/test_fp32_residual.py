"""The pass that keeps the residual of a compiled CPU model in fp32, on graphs of a model's shape."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from in_process import DEVICE

from serving_ops import counters, extension
from serving_ops.integrations.vllm import features, fp32_residual

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu" or extension.cpp_library() is None, reason="it is for CPUs, and the C++ library's kernels"
)

NORMS, TOKENS, SIZE, EPS = 6, 24, 128, 1e-6
OPS = torch.ops.serving_ops

Layers = Callable[[Tensor, Tensor, Tensor], Any]


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)


def _layers(ids: Tensor, table: Tensor, product: Tensor) -> Tensor:
    """As decoder layers run: each norm adds a product to the residual, in place, and feeds the next product."""
    residual = torch.nn.functional.embedding(ids, table)
    x = OPS.rms_norm(residual, None, EPS)
    for _ in range(NORMS):
        x = x @ product
        OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x


def _in_float64(ids: Tensor, table: Tensor, product: Tensor) -> Tensor:
    """The same with the residual never rounded, and all else rounded as there."""
    residual = torch.nn.functional.embedding(ids, table).double()
    x = OPS.rms_norm(residual.bfloat16(), None, EPS)
    for _ in range(NORMS):
        residual = residual + (x @ product).double()
        x = (residual * torch.rsqrt(residual.square().mean(-1, keepdim=True) + EPS)).bfloat16()
    return x


def _returns_its_residual(ids: Tensor, table: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    residual = torch.nn.functional.embedding(ids, table)
    for _ in range(NORMS):
        x = residual @ product
        OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x, residual


def _reads_its_residual_between(ids: Tensor, table: Tensor, product: Tensor) -> Tensor:
    residual = torch.nn.functional.embedding(ids, table)
    x = residual @ product
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    x = residual @ product
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x


def _reads_its_residual_through_a_view(ids: Tensor, table: Tensor, product: Tensor) -> Tensor:
    residual = torch.nn.functional.embedding(ids, table)
    view = residual.view(-1)
    x = residual @ product
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x + view.view_as(x)


def _writes_an_argument(residual: Tensor, _table: Tensor, product: Tensor) -> Tensor:
    x = residual @ product
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x


def _adds_once(ids: Tensor, table: Tensor, product: Tensor) -> Tensor:
    residual = torch.nn.functional.embedding(ids, table)
    x = residual @ product
    OPS.fused_add_rms_norm(x, residual, None, EPS)
    return x


def _after_the_pass(layers: Layers, *arguments: Tensor) -> tuple[Any, int]:
    """What the graph of the layers returns, and how many residuals the pass copied to fp32."""
    copies = 0

    def backend(module: torch.fx.GraphModule, _inputs: Any) -> Any:
        nonlocal copies
        before = len(module.graph.nodes)
        fp32_residual.Fp32Residual()(module.graph)
        copies += len(module.graph.nodes) - before
        module.graph.lint()
        module.recompile()
        return module

    torch._dynamo.reset()
    return torch.compile(layers, fullgraph=True, backend=backend)(*arguments), copies


def _arguments() -> tuple[Tensor, Tensor, Tensor]:
    return torch.arange(TOKENS), _rows(TOKENS, SIZE), _rows(SIZE, SIZE) / SIZE**0.5


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().mean())


def test_the_residual_of_a_graph_is_added_up_in_fp32_by_kernels() -> None:
    arguments = _arguments()
    exact = _in_float64(*arguments).double()
    rounded_error = _error(_layers(*arguments), exact)
    before = counters.snapshot()["fused_add_rms_norm"]
    got, copies = _after_the_pass(_layers, *arguments)
    after = counters.snapshot()["fused_add_rms_norm"]
    assert copies == 1
    assert _error(got, exact) < 0.1 * rounded_error
    assert after["kernel"] - before["kernel"] == NORMS
    assert after["reference"] == before["reference"]


def test_inductor_runs_the_pass() -> None:
    arguments = _arguments()
    exact = _in_float64(*arguments).double()
    options = {fp32_residual.KEY: fp32_residual.Fp32Residual()}
    torch._dynamo.reset()
    got = torch.compile(_layers, fullgraph=True, options=options)(*arguments)
    assert _error(got, exact) < 0.1 * _error(_layers(*arguments), exact)


@pytest.mark.parametrize(
    "layers", [_returns_its_residual, _reads_its_residual_between, _reads_its_residual_through_a_view, _adds_once]
)
def test_a_residual_that_something_else_reads_later_keeps_its_dtype_and_bits(layers: Layers) -> None:
    got, copies = _after_the_pass(layers, *_arguments())
    expected = layers(*_arguments())
    assert copies == 0
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_an_argument_of_the_graph_is_written_as_before() -> None:
    residual, expected = _rows(TOKENS, SIZE), _rows(TOKENS, SIZE)
    _, table, product = _arguments()
    _, copies = _after_the_pass(_writes_an_argument, residual, table, product)
    _writes_an_argument(expected, table, product)
    assert copies == 0
    assert torch.equal(residual, expected)


def _config(**options: Any) -> Any:
    compilation = SimpleNamespace(inductor_compile_config=options)
    return SimpleNamespace(model_config=SimpleNamespace(), quant_config=None, compilation_config=compilation)


@pytest.mark.usefixtures("registered")
def test_the_plugin_gives_vllm_the_pass_unless_the_user_named_one() -> None:
    config, chosen = _config(), _config(**{fp32_residual.KEY: "the user's"})
    for one in (config, chosen):
        features.install_for(one, strict=True)
    assert isinstance(config.compilation_config.inductor_compile_config[fp32_residual.KEY], fp32_residual.Fp32Residual)
    assert chosen.compilation_config.inductor_compile_config[fp32_residual.KEY] == "the user's"


@pytest.mark.usefixtures("registered")
def test_a_model_whose_norms_stay_vllms_is_configured_as_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.quantization, "why_norms_stay", lambda _: "its consumer quantizes")
    config = _config()
    features.install_for(config, strict=True)
    assert config.compilation_config.inductor_compile_config == {}


def test_vllm_has_a_key_for_a_configuration_with_the_pass() -> None:
    from vllm.config import CompilationConfig

    def key(**options: Any) -> str:
        return str(CompilationConfig(inductor_compile_config=options).compute_hash())

    with_pass = [key(**{fp32_residual.KEY: fp32_residual.Fp32Residual()}) for _ in range(2)]
    assert with_pass[0] == with_pass[1] != key()


def test_a_configuration_with_the_pass_can_be_sent_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(fp32_residual.Fp32Residual()))
    assert sent.uuid() == fp32_residual.Fp32Residual().uuid()
