"""Norms that quantize for SGLang's projections on CUDA, beside its own kernels for both, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package")

from built_layers import HIDDEN, rows, runner_of
from quantized_layers import COLUMNS, TAKEN, layer_of

from serving_ops import counters, extension
from serving_ops.integrations.sglang import projections, startup
from serving_ops.integrations.sglang.quantizing_rms_norm import Rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]

CASES = [case for case in TAKEN if "DeepGEMM" not in case]


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a default server, which SGLang's methods ask for."""
    from sglang.srt.layers import layernorm
    from sglang.srt.layers.quantization import fp8_utils

    monkeypatch.setenv("SERVING_OPS", "strict")
    graphs = SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(tc_compiler="eager")))
    monkeypatch.setattr(fp8_utils, "get_exec", lambda: SimpleNamespace(graph=graphs), raising=False)
    if hasattr(layernorm, "check_cuda_graph_backend"):
        monkeypatch.setattr(layernorm, "check_cuda_graph_backend", lambda *_: False)


def _on_gpu(module: torch.nn.Module) -> Any:
    """Weights of projections are plain attributes."""
    for each in module.cuda().modules():
        for name, value in vars(each).items():
            if torch.is_tensor(value):
                vars(each)[name] = value.cuda()
    return module


def _quantized_calls() -> int:
    return sum(calls["kernel"] for op, calls in counters.snapshot().items() if op.endswith("_quant"))


@pytest.mark.parametrize("case", CASES)
def test_a_projection_of_our_rows_agrees_with_sglangs_norm_and_quantization(case: str) -> None:
    """Both round to 8 bits: where they round a value apart, a product moves by a part in a thousand."""
    build, name, _ = TAKEN[case]
    projection = _on_gpu(build())
    own = projection.quant_method.apply
    layer = _on_gpu(layer_of(projection))
    runner = runner_of(layer)
    runner.device = "cuda"
    form = projections.prequantized(projection, torch.bfloat16)
    assert not isinstance(form, str), form
    startup.on_model_loaded(runner)
    norm = layer.input_layernorm
    for tokens in (1, 5, 300):
        x, residual = rows(tokens, HIDDEN).cuda(), rows(tokens, HIDDEN, seed=2).cuda()
        for args in ((x,), (x, residual)):
            native = norm.sglangs_forward(*(tensor.clone() for tensor in args))
            before = _quantized_calls()
            ours = norm(*(tensor.clone() for tensor in args))
            assert _quantized_calls() == before + 1
            taken, normed = (ours, native) if len(args) == 1 else (ours[0], native[0])
            assert type(taken) is Rows
            y = projection.quant_method.apply(projection, taken, None)
            expected = own(projection, normed, None)
            assert y.shape == (tokens, COLUMNS)
            assert y.dtype == torch.bfloat16
            error = (y.double() - expected.double()).norm() / expected.double().norm()
            assert error < 0.01, (name, tokens, float(error))
