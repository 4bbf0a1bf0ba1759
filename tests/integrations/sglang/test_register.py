"""What `register` does and leaves alone, without SGLang."""

from __future__ import annotations

import logging
import sys

import pytest

from serving_ops.integrations.sglang import register


@pytest.fixture(autouse=True)
def _no_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no SGLang, or one too old for plugins."""
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", None)


@pytest.mark.parametrize("mode", [None, "off", "", "OFF"])
def test_off_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str | None) -> None:
    monkeypatch.delenv("SERVING_OPS", raising=False)
    if mode is not None:
        monkeypatch.setenv("SERVING_OPS", mode)
    with caplog.at_level(logging.DEBUG):
        register()
    assert caplog.records == []


def test_an_unknown_mode_is_an_error_in_the_log_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "stirct")
    register()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "'stirct' is not known" in caplog.text


def test_wrong_variables_are_lines_of_sglangs_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "off")
    monkeypatch.setenv("SERVING_OPS_CPU_ISA", "sse4")
    monkeypatch.setenv("SERVING_OPS_PREWARN", "0")
    register()
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("sglang.serving_ops", "ERROR"),
        ("sglang.serving_ops", "WARNING"),
    ]


def test_without_hooks_auto_is_off_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")
    register()
    (record,) = caplog.records
    assert record.message.startswith("serving_ops is off: ")
    assert "(SGLang " in record.message


def test_without_hooks_strict_ends_the_process_which_no_plugin_loader_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(SystemExit, match=r"^SERVING_OPS=strict: could not hook SGLang: "):
        register()
