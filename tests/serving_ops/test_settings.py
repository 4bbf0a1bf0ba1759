"""What `SERVING_OPS` may say, and what it means."""

from __future__ import annotations

import pytest

from serving_ops import settings

EVERYTHING = frozenset(settings.OPS)


@pytest.mark.parametrize(
    ("value", "mode", "ops"),
    [
        (None, "off", EVERYTHING),
        ("", "off", EVERYTHING),
        (" Auto ", "auto", EVERYTHING),
        ("strict", "strict", EVERYTHING),
        ("rms_norm", "auto", {"rms_norm"}),
        ("strict, rms_norm,rms_norm_gated", "strict", {"rms_norm", "rms_norm_gated"}),
        ("off,rms_norm", "off", {"rms_norm"}),
    ],
)
def test_a_mode_and_names_of_ops(monkeypatch: pytest.MonkeyPatch, value: str | None, mode: str, ops: set[str]) -> None:
    if value is None:
        monkeypatch.delenv("SERVING_OPS", raising=False)
    else:
        monkeypatch.setenv("SERVING_OPS", value)
    assert settings.mode() == mode
    assert settings.ops() == ops


@pytest.mark.parametrize("value", ["on", "1", "auto,rmsnorm", "auto,strict", "rms_norm;fused_add_rms_norm"])
def test_anything_else_is_an_error_that_names_what_is_allowed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVING_OPS", value)
    for read in (settings.mode, settings.ops, settings.choice):
        with pytest.raises(ValueError, match=f"SERVING_OPS='{value}'.*off, auto, strict"):
            read()


def test_the_choice_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    assert settings.choice() == "strict"
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")
    assert settings.choice() == "auto for fused_add_rms_norm, rms_norm alone"
