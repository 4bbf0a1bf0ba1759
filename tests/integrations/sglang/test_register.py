"""SGLang's entry point: nothing yet, said honestly."""

from __future__ import annotations

import logging

import pytest

from serving_ops.integrations.sglang import register


def test_off_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("SERVING_OPS", raising=False)
    with caplog.at_level(logging.DEBUG):
        register()
    assert caplog.records == []


def test_auto_says_once_that_everything_stays_native(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS", "auto")
    register()
    assert [record.message for record in caplog.records] == [
        "serving_ops does not support SGLang yet: every norm stays native"
    ]


def test_strict_stops_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match="does not support SGLang yet"):
        register()
