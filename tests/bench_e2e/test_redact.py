from __future__ import annotations

import shlex

import pytest

from serving_ops.bench_e2e import environment, redact

KEY = "q7Rk"  # short and without a known shape: only its name gives it away
HEX = "0123456789abcdef" * 2
SHAPED = ("sk-proj-0a1b2c3d4e5f6g7h8i", "hf_0aB1cD2eF3gH4iJ5kL6m", f"https://me:{KEY}@host/v1", HEX, "Ab1" * 12)
HARMLESS = (
    "--max-num-batched-tokens 2048 --tokenizer /models/tokenizer --long-prefill-token-threshold 512",
    "--model Qwen/Qwen3-Next-80B-A3B-Instruct-FP8 --ssl-keyfile /etc/key.pem",
    f"--revision {HEX} --speculative-config '{{\"num_speculative_tokens\": 3}}'",
)


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", KEY],
        ["--api-key", KEY, KEY + "=", "--eager"],
        [f"--hf-token={KEY}"],
        ["--ssl-keyfile-password", KEY],
        ["--serve-args", f"--max-num-seqs 4 --api-key {KEY}"],
        [f"--serve-args=--api-key={KEY}"],
        ["--serve-args", f"--api-key={KEY}"],
        ["--engine-args", f'{{"load": {{"apiKey": "{KEY}"}}, "tokens": [{{"HFToken": ["{KEY}"]}}]}}'],
        ["--header", f"Authorization: Bearer {KEY}"],
        *(["--model", value] for value in SHAPED),
        *(["--serve-args", f"--lora {value}"] for value in SHAPED),
    ],
)
def test_no_secret_of_a_command_is_recorded(words: list[str]) -> None:
    recorded = redact.text(shlex.join(words))
    assert redact.REDACTED in recorded
    assert not any(secret in recorded for secret in (KEY, *SHAPED))


@pytest.mark.parametrize("command", HARMLESS)
def test_what_is_no_secret_is_recorded_as_it_was(command: str) -> None:
    assert redact.text(command) == command
    quoted = shlex.join(["--serve-args", command])
    assert redact.text(quoted) == quoted


def test_only_the_secret_of_quoted_words_is_replaced() -> None:
    command = redact.text(shlex.join(["--serve-args", f"--api-key {KEY} --max-num-seqs 4"]))
    assert command == "--serve-args '--api-key REDACTED --max-num-seqs 4'"


def test_engine_options_keep_everything_but_their_secrets() -> None:
    options = {"max_model_len": 513, "kv": None, "eager": True, "hf_token": KEY, "auth": {"user": KEY}, "share": 0.45}
    kept = redact.plain(options)
    assert kept == {**options, "hf_token": redact.REDACTED, "auth": redact.REDACTED}


def test_variables_are_recorded_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"VLLM_API_KEY": KEY, "SGLANG_SECRET": KEY, "VLLM_PROXY": SHAPED[2], "VLLM_LOGGING_LEVEL": "DEBUG"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    line = environment.command_line("python -m bench", ["--api-key", KEY])
    assert "VLLM_API_KEY=REDACTED" in line
    assert "VLLM_LOGGING_LEVEL=DEBUG" in line
    assert KEY not in line


def test_every_variable_of_ours_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"SERVING_OPS": "auto", "SERVING_OPS_PDL": "0", "SERVING_OPS_CPU_ISA": "avx2", "SERVING_OPS_PREWARM": "0"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert {f"{name}={value}" for name, value in chosen.items()} <= set(environment.command_line("x", []).split())
