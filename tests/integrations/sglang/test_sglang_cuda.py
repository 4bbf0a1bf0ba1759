"""SGLang's norm classes on our operators on CUDA, beside SGLang's own kernels there, without an engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package")

from serving_ops import counters, extension
from serving_ops.integrations.sglang import startup
from serving_ops.integrations.sglang.adapters import GATED_MODULES

HIDDEN, HEAD = 2048, 128

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]

CLOSE = {"rtol": 2e-2, "atol": 2e-2}
"""Both sides sum in fp32 and round once to bf16, in another order: a unit in the last place of values below 4."""


@pytest.fixture(autouse=True)
def _auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.bfloat16)


def _built(layer: Any) -> Any:
    layer = layer.to("cuda", torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(rows(layer.weight.numel(), seed=1) * 0.1 + 1)
    return layer


def rms_norm(size: int = HIDDEN) -> Any:
    from sglang.srt.layers.layernorm import RMSNorm

    return _built(RMSNorm(size, eps=1e-6))


def gemma(size: int = HIDDEN) -> Any:
    from sglang.srt.layers.layernorm import GemmaRMSNorm

    return _built(GemmaRMSNorm(size))


def _fla(module: str) -> Any:
    for name in (name.rpartition(".")[0] for name in GATED_MODULES):
        try:
            return importlib.import_module(f"{name}.{module}")
        except ModuleNotFoundError:
            continue
    pytest.fail(f"no {module} in {GATED_MODULES}")


def gated() -> Any:
    return _built(_fla("layernorm_gated").RMSNorm(HEAD))


def fused_gated() -> Any:
    return _built(_fla("fused_norm_gate").FusedRMSNormGated(HEAD, activation="sigmoid"))


def mixer2(monkeypatch: pytest.MonkeyPatch) -> Any:
    from sglang.srt.layers.attention.mamba import mixer2_rms_norm_gated as module

    monkeypatch.setattr(module, "is_dp_attention_enabled", lambda: False)
    monkeypatch.setattr(module, "get_parallel", lambda: SimpleNamespace(tp_size=1, tp_rank=0))
    monkeypatch.setattr(module, "sharded_weight_loader", lambda *_, **__: None)
    return _built(module.Mixer2RMSNormGated(HIDDEN, 8))


def switched(layer: Any) -> Any:
    """The layer, once the plugin has seen it in a loaded model: its kernels are compiled then."""
    startup.on_model_loaded(
        SimpleNamespace(
            model=torch.nn.ModuleList([layer]),
            device="cuda",
            dtype=torch.bfloat16,
            model_config=SimpleNamespace(hidden_size=HIDDEN),
            server_args=SimpleNamespace(),
        )
    )
    assert "sglangs_forward" in vars(layer)
    return layer


def native(layer: Any, *args: torch.Tensor) -> Any:
    """What SGLang's own method for CUDA gives; the global settings that it asks for are those of a default server."""
    return layer.sglangs_forward(*args)


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (importlib.import_module("sglang.srt.layers.layernorm"), _fla("layernorm_gated")):
        if hasattr(module, "check_cuda_graph_backend"):
            monkeypatch.setattr(module, "check_cuda_graph_backend", lambda *_: False)


def calls_of(run: Callable[[], Any]) -> dict[str, int]:
    """Calls that reached a kernel of ours, by op."""
    before = {op: calls["kernel"] for op, calls in counters.snapshot().items()}
    run()
    after = {op: calls["kernel"] for op, calls in counters.snapshot().items()}
    return {op: after[op] - before[op] for op in after if after[op] != before[op]}


@pytest.mark.parametrize("num_tokens", [1, 16, 300])
@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_with_a_residual_both_are_written_as_sglangs_kernels_write_them(
    build: Callable[[], Any], num_tokens: int
) -> None:
    layer, x, residual = switched(build()), rows(num_tokens, HIDDEN), rows(num_tokens, HIDDEN, seed=2)
    expected = native(layer, x.clone(), residual.clone())
    result: list[Any] = []
    assert calls_of(lambda: result.append(layer(x, residual))) == {"fused_add_rms_norm": 1}
    assert [tensor.data_ptr() for tensor in result[0]] == [x.data_ptr(), residual.data_ptr()]
    torch.testing.assert_close(x, expected[0], **CLOSE)
    assert torch.equal(residual, expected[1])


@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_without_one_nothing_is_written_and_heads_are_read_where_they_lie(build: Callable[..., Any]) -> None:
    for layer, x in (
        (switched(build()), rows(5, HIDDEN)),
        (switched(build(HEAD)), rows(5, 8 * HEAD)[:, : 4 * HEAD].view(5, 4, HEAD)),
    ):
        kept = x.clone()
        result: list[Any] = []
        assert calls_of(lambda layer=layer, x=x, result=result: result.append(layer(x))) == {"rms_norm": 1}
        torch.testing.assert_close(result[0], native(layer, x.clone()).view_as(x), **CLOSE)
        assert torch.equal(x, kept)


def test_gated_norms_agree_with_sglangs_and_read_a_strided_gate() -> None:
    layer, x = switched(gated()), rows(6, 4, HEAD)
    z = rows(6, 1000)[:, 200 : 200 + 4 * HEAD].view(6, 4, HEAD)
    assert calls_of(lambda: torch.testing.assert_close(layer(x, z), native(layer, x, z), **CLOSE)) == {
        "rms_norm_gated": 1
    }
    layer, x, z = switched(fused_gated()), rows(24, HEAD), rows(24, HEAD, seed=3)
    expected = native(layer, x.clone(), z)
    assert layer(x, z).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected, **CLOSE)


def test_mixer2_norms_groups_gated_by_columns_of_a_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, gate = switched(mixer2(monkeypatch)), rows(5, HIDDEN), rows(5, 3 * HIDDEN, seed=4)[:, :HIDDEN]
    assert calls_of(lambda: torch.testing.assert_close(layer(x, gate), native(layer, x, gate), **CLOSE)) == {
        "rms_norm_gated": 1
    }


def test_a_captured_graph_replays_with_new_rows_and_nothing_compiles_while_it_is_captured() -> None:
    layer, x, residual = switched(rms_norm()), rows(4, HIDDEN), rows(4, HIDDEN, seed=2)
    new_x, new_residual = rows(4, HIDDEN, seed=5), rows(4, HIDDEN, seed=6)
    expected = layer(new_x.clone(), new_residual.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a kernel that had to be compiled would be loaded here, and break the capture
        layer(x, residual)
    x.copy_(new_x)
    residual.copy_(new_residual)
    graph.replay()
    assert torch.equal(x, expected[0])
    assert torch.equal(residual, expected[1])


@pytest.mark.parametrize("build", [rms_norm, gemma])
def test_in_batch_invariant_mode_ours_run_and_a_rows_bits_do_not_depend_on_its_batch(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a residual SGLang runs eager PyTorch in that mode; other models' norms it does not make invariant at all."""
    from sglang.srt.layers import layernorm

    layer, x, residual = switched(build()), rows(300, HIDDEN), rows(300, HIDDEN, seed=2)
    monkeypatch.setattr(layernorm, "is_batch_invariant_mode_enabled", lambda: True)
    whole = x.clone(), residual.clone()
    assert calls_of(lambda: layer(*whole)) == {"fused_add_rms_norm": 1}
    plain = layer(x)
    for row in (0, 17, 299):
        alone = x[row : row + 1].clone(), residual[row : row + 1].clone()
        assert torch.equal(layer(alone[0].clone())[0], plain[row])
        layer(*alone)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, whole, strict=True))
    expected = layer.forward_native(x.clone(), residual.clone())
    torch.testing.assert_close(whole[0], expected[0], **CLOSE)
    assert torch.equal(whole[1], expected[1])
