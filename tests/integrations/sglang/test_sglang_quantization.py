"""What a quantized model keeps of SGLang's, inside a SGLang, without an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package: test_sglang_versions.py runs these")

from built_layers import HIDDEN, rms_norm, runner_of

from serving_ops import extension
from serving_ops.integrations.sglang import startup

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these layers are built for CPU"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]


def _projection(method: type, **options: Any) -> torch.nn.Module:
    """A projection of a method of SGLang's, as far as a norm before it looks."""
    projection = torch.nn.Linear(HIDDEN, HIDDEN)
    projection.quant_method = object.__new__(method)
    vars(projection.quant_method).update(options)
    return projection


def _fp8(*, scale: bool, block: bool = False) -> torch.nn.Module:
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    projection = _projection(Fp8LinearMethod, block_quant=block, use_mxfp8=False, use_marlin=False)
    projection.input_scale = torch.ones(1) if scale else None
    return projection


def _compressed(scheme: str, **options: Any) -> torch.nn.Module:
    from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors, schemes

    projection = _projection(compressed_tensors.CompressedTensorsLinearMethod)
    projection.scheme = object.__new__(getattr(schemes, scheme))
    vars(projection.scheme).update(options)
    projection.input_scale = torch.ones(1)
    return projection


IN_ONE_KERNEL: dict[str, Callable[[], torch.nn.Module]] = {
    "fp8 static": lambda: _fp8(scale=True),
    "compressed fp8 static": lambda: _compressed("CompressedTensorsW8A8Fp8", is_static_input_scheme=True),
}
"""What a norm that knows its projection computes and quantizes at once, since 0.5.23."""

BEHIND_THE_NORM: dict[str, Callable[[], torch.nn.Module]] = {
    "not quantized": lambda: torch.nn.Linear(HIDDEN, HIDDEN),
    "fp8 token": lambda: _fp8(scale=False),
    "fp8 block": lambda: _fp8(scale=True, block=True),
    "compressed fp8 token": lambda: _compressed("CompressedTensorsW8A8Fp8", is_static_input_scheme=False),
    "compressed int8 token": lambda: _compressed("CompressedTensorsW8A8Int8", is_static_input_scheme=False),
}


def _norm_before(projection: torch.nn.Module) -> Any:
    norm = rms_norm()
    if not hasattr(norm, "fuse_input_quant"):
        pytest.skip("this SGLang's norms know no projection: it quantizes behind them")
    norm.fuse_input_quant(projection)
    return norm


def _report(norm: torch.nn.Module, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(norm))
    return caplog.messages[-1]


@pytest.mark.parametrize("case", IN_ONE_KERNEL)
def test_a_norm_that_quantizes_for_its_consumer_stays_sglangs_and_that_is_no_fallback(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    norm = _norm_before(IN_ONE_KERNEL[case]())
    before = dict(vars(norm))
    assert "on for no layer; native: 1 RMSNorm (its consumer quantizes to FP8)" in _report(norm, caplog)
    assert vars(norm) == before


@pytest.mark.parametrize("case", BEHIND_THE_NORM)
def test_a_norm_whose_result_is_quantized_by_another_kernel_is_ours(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    assert "on for 1 of 1 RMSNorm; " in _report(_norm_before(BEHIND_THE_NORM[case]()), caplog)
