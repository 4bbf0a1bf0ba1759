"""`--serving-ops` on SGLang's command lines, inside a SGLang, without an engine."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed beside this package: test_sglang_versions.py runs these")

from built_layers import rms_norm, runner_of

from serving_ops import extension, settings
from serving_ops.integrations.sglang import flag, register, startup

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these layers are built for CPU"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]


def parser_behind(monkeypatch: pytest.MonkeyPatch, switch: str) -> Any:
    """A parser of SGLang's, made behind the plugin, which found this in SERVING_OPS. Both may put the hook in place."""
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.server_args import ServerArgs

    put_in_place: list[str] = []
    monkeypatch.setattr("serving_ops.integrations.sglang._install", lambda: put_in_place.append(settings.mode()))
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    monkeypatch.setattr(ServerArgs, "add_cli_args", staticmethod(ServerArgs.add_cli_args))  # put back afterwards
    monkeypatch.setenv("SERVING_OPS", switch)
    register()
    HookRegistry.apply_hooks()
    made = argparse.ArgumentParser()
    ServerArgs.add_cli_args(made)
    made.put_in_place = put_in_place
    return made


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Any:
    return parser_behind(monkeypatch, "off")


@pytest.mark.parametrize(
    ("words", "value", "put_in_place"),
    [
        ([], "off", []),
        (["--serving-ops", "auto"], "auto", ["auto"]),
        (["--serving-ops=strict,rms_norm"], "strict,rms_norm", ["strict"]),
        (["--serving-ops", "off"], "off", []),
    ],
)
def test_the_flag_is_the_environment_variable(
    parser: Any, words: list[str], value: str, put_in_place: list[str]
) -> None:
    parsed = parser.parse_args(["--model-path", "model", *words])
    assert os.environ["SERVING_OPS"] == value
    assert parser.put_in_place == put_in_place
    assert not hasattr(parsed, "serving_ops")


def test_a_mode_that_does_not_exist_is_refused_with_those_that_do(
    parser: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--model-path", "model", "--serving-ops", "stirct"])
    assert "'stirct' is not known: allowed are off, auto, strict" in capsys.readouterr().err
    assert os.environ["SERVING_OPS"] == "off"


def test_registered_again_there_is_still_one_flag_and_one_look_at_a_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parser_behind(monkeypatch, "auto")
    register()
    twice = argparse.ArgumentParser()
    for _ in range(2):
        flag._add(twice, lambda: None)
    assert twice.format_help().count("--serving-ops MODE") == 2  # in the usage and in the list
    runner = runner_of(rms_norm())

    def hooked_once(runner: Any) -> Any:
        return startup.load_then_report(lambda runner: "loaded", runner)

    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        assert startup.load_then_report(hooked_once, runner) == "loaded"
    assert len(caplog.records) == 1


def test_off_on_the_command_line_wins_over_the_variable_that_had_loading_hooked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parser, layer = parser_behind(monkeypatch, "auto"), rms_norm()
    parser.parse_args(["--model-path", "model", "--serving-ops", "off"])
    assert parser.put_in_place == ["auto"]
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        assert startup.load_then_report(lambda runner: "loaded", runner_of(layer)) == "loaded"
    assert "sglangs_forward" not in vars(layer)
    assert caplog.records == []


def test_the_flag_is_there_though_the_variable_is_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_behind(monkeypatch, "stirct")
    assert parser.put_in_place == []
    parser.parse_args(["--model-path", "model", "--serving-ops", "auto"])
    assert (os.environ["SERVING_OPS"], parser.put_in_place) == ("auto", ["auto"])
