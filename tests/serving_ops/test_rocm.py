"""On ROCm, whose tensors say that they are on CUDA, the reference serves every call, and the reason says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import serving_ops
from serving_ops import counters, doctor, reference, support
from serving_ops.training import cuda_backward

REASON = "no kernels for ROCm"
EPS = 1e-6


class OnRocm(Tensor):
    """A CPU tensor that answers as one on an AMD GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _rocm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    support.no_triton.cache_clear()
    yield
    support.no_triton.cache_clear()


def rows(seed: int) -> Tensor:
    return torch.randn(3, 256, generator=torch.Generator().manual_seed(seed)).as_subclass(OnRocm)


def vector() -> Tensor:
    return rows(9)[0].clone()


def calls_of(op: str) -> Any:
    return counters.snapshot()[op]["reference"].get(REASON, 0)


def test_rms_norm_runs_on_the_reference() -> None:
    x, out, before = rows(1), rows(2), calls_of("rms_norm")
    assert torch.ops.serving_ops._rms_norm_fallback(x, vector(), EPS, 0.0, out) == ""
    assert torch.equal(out, reference.rms_norm(x, vector(), EPS))
    assert calls_of("rms_norm") == before + 1


def test_fused_add_rms_norm_runs_on_the_reference() -> None:
    x, residual, before = rows(1), rows(2), calls_of("fused_add_rms_norm")
    expected = reference.fused_add_rms_norm(x.clone(), residual.clone(), vector(), EPS)
    assert torch.ops.serving_ops._fused_add_rms_norm_fallback(x, residual, vector(), EPS, 0.0) == ""
    assert torch.equal(x, expected[0])
    assert torch.equal(residual, expected[1])
    assert calls_of("fused_add_rms_norm") == before + 1


def test_gradients_are_left_to_the_formula() -> None:
    s, dout = rows(1), rows(2)
    assert cuda_backward.norm(dout, s, None, vector(), EPS, 0.0, rows(3), vector()) == REASON
    gated = (dout, s, rows(4), vector(), None, EPS, True, "silu", 256, rows(5), rows(6), vector(), None)
    assert cuda_backward.gated(*gated) == REASON


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("rms_norm", (rows(1), vector())),
        ("fused_add_rms_norm", (rows(1), rows(2), vector())),
        ("rms_norm_gated", (rows(1), rows(2), vector())),
    ],
)
def test_explain_agrees(op: str, arguments: tuple[Tensor, ...]) -> None:
    assert serving_ops.explain(op, *arguments) == serving_ops.Explanation("reference", REASON)


def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor.examine().kernels["cuda"] == doctor.Finding(False, REASON)
