"""Engines in turns, on a stand-in for the engine's process that answers in a blink."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from serving_ops.bench_e2e.process import ChildFailed
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.turns import run as turns
from serving_ops.bench_e2e.turns import sglang_scheduler

STAND_IN = """
import json, os, sys
from importlib.metadata import entry_points
from pathlib import Path
from serving_ops.bench_e2e.turns.mailbox import Mailbox

folder = Path(sys.argv[1])
told = json.loads((folder / "engine.json").read_text())["options"]
if os.environ["SERVING_OPS"] == told.get("dies as"):
    sys.exit("the weights are made of cheese")
if os.environ["SERVING_OPS"] == "auto":
    print("INFO serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm; prewarmed nothing", flush=True)
(folder / "plugins").write_text(" ".join(point.name for point in entry_points(group="sglang.srt.plugins")))
(folder / "allowed").write_text(os.environ.get("SGLANG_PLUGINS", ""))
mailbox = Mailbox(folder)
mailbox.answer(0, {})
for turn in range(1, 100):
    mailbox.await_turn(turn)
    with (folder.parent / "order").open("a") as order:
        order.write(folder.name + " ")
    mailbox.answer(turn, {"tpot_ms_batch_1": 10.0 * turn})
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(turns, "ENGINE", [sys.executable, str(script)])
    return {"engine": "vllm", "model": str(tmp_path), "options": {}, "load": {}, "device": "cpu"}


def _run(settings: dict[str, Any], work: Path, *, engines: int, rounds: int) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    with Progress(Console(quiet=True), 1) as progress:
        turns.run(settings, engines, rounds, work, 60, progress, measured)
    return measured


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_engine_has_one_turn_a_round_and_the_order_alternates(
    settings: dict[str, Any], tmp_path: Path, device: str
) -> None:
    engines = _run({**settings, "device": device}, tmp_path, engines=2, rounds=2)
    first = ["native-1", "serving_ops-1", "native-2", "serving_ops-2"]
    assert (tmp_path / "order").read_text().split() == [*first, *reversed(first)]
    assert {variant: len(runs) for variant, runs in engines.items()} == {"native": 2, "serving_ops": 2}
    assert [entry["tpot_ms_batch_1"] for entry in engines["native"][0].rounds] == [10.0, 20.0]


def test_the_plugins_line_is_kept_with_the_engine_that_said_it(settings: dict[str, Any], tmp_path: Path) -> None:
    engines = _run(settings, tmp_path, engines=1, rounds=1)
    assert engines["native"][0].plugin_line is None
    assert "on for 5 of 5 RMSNorm" in str(engines["serving_ops"][0].plugin_line)


def test_an_engine_that_dies_ends_the_run_with_its_last_words(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["options"]["dies as"] = "auto"
    with pytest.raises(ChildFailed, match="made of cheese") as failure:
        _run(settings, tmp_path, engines=1, rounds=1)
    assert "serving_ops 1 ended with status 1" in str(failure.value)


def test_the_engines_process_is_told_what_to_build_and_to_measure(settings: dict[str, Any], tmp_path: Path) -> None:
    _run(settings, tmp_path, engines=1, rounds=1)
    told = json.loads((tmp_path / "native-1" / "engine.json").read_text())
    assert told == settings


def test_a_sglang_engine_finds_the_plugin_that_its_scheduler_is_asked_through(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "serving_ops")
    _run({**settings, "engine": "sglang"}, tmp_path, engines=1, rounds=1)
    assert sglang_scheduler.NAME in (tmp_path / "native-1" / "plugins").read_text().split()
    assert (tmp_path / "native-1" / "allowed").read_text() == f"serving_ops,{sglang_scheduler.NAME}"


def test_an_empty_choice_of_plugins_still_means_all_of_them(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "")
    _run({**settings, "engine": "sglang"}, tmp_path, engines=1, rounds=1)
    assert (tmp_path / "serving_ops-1" / "allowed").read_text() == ""
