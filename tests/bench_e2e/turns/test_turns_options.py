"""The options of engines in turns, where engines and devices are as a test says."""

from __future__ import annotations

import pytest

from serving_ops.bench_e2e.turns import floor, options


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for check in ("check_variables", "check_installed", "check_preset", "check_sglang"):
        monkeypatch.setattr(options, check, lambda *_: None)
    return monkeypatch


def _on(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(options, "check_device", lambda *_: device)


def test_floors_come_in_one_order_and_once(on: pytest.MonkeyPatch) -> None:
    _on(on, "cuda")
    words = ["--engine", "sglang", "--launch-floor", "--floor", "--floor"]
    assert options.parse(words).floors == [floor.NO_NORMS, floor.EMPTY_NORMS]
    assert options.parse([]).floors == []


@pytest.mark.parametrize(("engine", "device"), [("vllm", "cuda"), ("sglang", "cpu")])
def test_empty_kernels_are_for_sglang_on_cuda(
    on: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str, device: str
) -> None:
    _on(on, device)
    with pytest.raises(SystemExit):
        options.parse(["--engine", engine, "--launch-floor"])
    assert f"--launch-floor is for SGLang on CUDA, this is {engine} on {device}" in capsys.readouterr().err
