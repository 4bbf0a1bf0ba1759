"""What `register` does and leaves alone, without an engine."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from serving_ops.integrations.vllm import features, register
from serving_ops.integrations.vllm import installed as record

WANTED = [feature for feature in features.FEATURES if feature != "RMSNorm"]
"""RMSNorm's class is replaced in batch-invariant mode alone."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Features are only listed as they would be installed; kernels count as present."""
    order: list[str] = []
    monkeypatch.setattr(record, "failures", {})
    monkeypatch.setattr(features, "why_no_kernels", lambda: None)
    monkeypatch.setattr(features, "_put", order.append)
    return order


def _break(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    put = features._put

    def put_or_fail(feature: str) -> None:
        if feature == broken:
            raise ImportError(f"no {feature} in this vLLM")
        put(feature)

    monkeypatch.setattr(features, "_put", put_or_fail)


@pytest.mark.parametrize("mode", [None, "off", "", "OFF"])
def test_nothing_is_installed_when_off(monkeypatch: pytest.MonkeyPatch, installed: list[str], mode: str | None) -> None:
    monkeypatch.delenv("SERVING_OPS", raising=False)
    if mode is not None:
        monkeypatch.setenv("SERVING_OPS", mode)
    register()
    assert installed == []


def test_an_unknown_mode_installs_nothing_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, installed: list[str]
) -> None:
    monkeypatch.setenv("SERVING_OPS", "stirct")
    register()
    assert installed == []


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_wrong_variables_are_lines_of_vllms_log_and_install_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, installed: list[str], mode: str
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setenv("SERVING_OPS", mode)
    monkeypatch.setenv("SERVING_OPS_PDL", "maybe")
    monkeypatch.setenv("SERVING_OPS_PREWARN", "0")
    register()
    said = {id(record): record for record in caplog.records}.values()  # vLLM 0.25.1's logger hands each to pytest twice
    assert [(record.name, record.levelname) for record in said] == [
        ("vllm.serving_ops", "ERROR"),
        ("vllm.serving_ops", "WARNING"),
    ]
    assert "SERVING_OPS_PDL='maybe' is not known" in caplog.text
    assert installed == (WANTED if mode == "auto" else [])


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_every_feature_is_installed_in_order(monkeypatch: pytest.MonkeyPatch, installed: list[str], mode: str) -> None:
    monkeypatch.setenv("SERVING_OPS", mode)
    register()
    assert installed == WANTED
    assert record.failures == {}


@pytest.mark.parametrize("broken", WANTED)
def test_a_failing_feature_is_recorded_and_never_raised_in_auto(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], broken: str
) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")
    _break(monkeypatch, broken)
    register()
    assert record.failures[broken] == f"no {broken} in this vLLM"
    assert broken not in installed


@pytest.mark.parametrize("broken", WANTED)
def test_a_failing_feature_stops_start_up_in_strict_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], broken: str
) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    _break(monkeypatch, broken)
    with pytest.raises(RuntimeError, match=f"{broken}: no {broken} in this vLLM"):
        register()


def test_without_a_cache_key_nothing_that_changes_compiled_code_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: list[str]
) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")
    _break(monkeypatch, features.COMPILE_CACHE)
    register()
    assert installed == [features.STARTUP]


def test_without_kernels_only_the_report_is_installed(monkeypatch: pytest.MonkeyPatch, installed: list[str]) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")
    monkeypatch.setattr(features, "why_no_kernels", lambda: "the C++ library was not built")
    register()
    assert installed == [features.STARTUP]
    assert record.failures["RMSNormGated"] == "the C++ library was not built"


def _modules_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_and_the_plugin_imports_no_engine() -> None:
    modules = _modules_after(
        "import serving_ops, serving_ops.integrations.vllm, serving_ops.integrations.sglang\n"
        "serving_ops.integrations.vllm.register()"
    )
    assert "serving_ops" in modules
    assert not modules & {"vllm", "sglang", "triton"}
