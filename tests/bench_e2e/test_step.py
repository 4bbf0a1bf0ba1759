"""Engines in turns, on a stand-in for the engine's process that answers in a blink; runs beside each other."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving_ops.bench_e2e import comparison, step
from serving_ops.bench_e2e.environment import detect_device, engine_version, plugin_installed
from serving_ops.bench_e2e.process import Asked, ChildFailed, Children
from serving_ops.bench_e2e.step_engine import StepLoad

STAND_IN = """
import os, sys
from multiprocessing.connection import Connection
from pathlib import Path

folder, pipe = Path(sys.argv[1]), Connection(int(sys.argv[2]))
told = pipe.recv()
if os.environ["SERVING_OPS"] == told["options"].get("dies as"):
    sys.exit("the weights are made of cheese")
if os.environ["SERVING_OPS"] == "auto":
    print("INFO serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm; prewarmed nothing", flush=True)
(folder / "told").write_text(f"{told['model']} {told['load']['prompt_lens']}")

def answer(turn):
    if turn == "layer":
        return {"batch_size": 1, "kernels": [{"name": f"norm of {folder.name}", "us": 1.5}]}
    with (folder.parent / "order").open("a") as order:
        order.write(folder.name + " ")
    return {"tpot_ms_batch_1": 10.0 * turn}

pipe.send("up")
while True:
    turn = pipe.recv()
    if os.environ["SERVING_OPS"] == told["options"].get("dies in its turn as"):
        sys.exit("out of memory")
    pipe.send(answer(turn))
"""
SECONDS = 60
VLLM = """
class LLM:
    def __init__(self, model):
        pass

    def generate(self, prompts, sampling, use_tqdm):
        pass

class SamplingParams:
    def __init__(self, **options):
        pass
"""

LOAD = StepLoad(batch_sizes=(1,), prompt_lens=(512,), decode_steps=32)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> step.Engines:
    """Two of each variant over two rounds, each in a stand-in's process."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(step, "ENGINE", [sys.executable, str(script)])
    chosen = {"engine": "vllm", "model": str(tmp_path), "device": "cpu", "eager": True}
    chosen |= {"kind": "step", "label": "model", "engines": 2, "rounds": 2, "start_timeout": 60, "lock": None}
    made = SimpleNamespace(**chosen)
    return step.Engines(made, ["--rounds", "2"], LOAD, {}, LOAD.labels)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_engine_has_one_turn_a_round_and_the_order_alternates(
    engines: step.Engines, tmp_path: Path, device: str
) -> None:
    engines.chosen.device = device
    engines.run(tmp_path)
    first = ["native-1", "serving_ops-1", "native-2", "serving_ops-2"]
    assert (tmp_path / "order").read_text().split() == [*first, *reversed(first)]
    rounds = engines.measured.run["rounds"]["native"]
    assert [entry["tpot_ms_batch_1"] for entry in rounds[0]] == [10.0, 20.0]
    assert (tmp_path / "native-1" / "told").read_text() == f"{tmp_path} (512,)"


def test_a_pair_of_engines_is_compared_by_the_medians_of_its_rounds(engines: step.Engines, tmp_path: Path) -> None:
    engines.run(tmp_path)
    result = engines.measured
    assert result.pairs == {variant: [{"tpot_ms_batch_1": 15.0}] * 2 for variant in ("native", "serving_ops")}
    assert result.plugin_lines["native"] == [None, None]
    assert "on for 5 of 5 RMSNorm" in result.plugin_lines["serving_ops"][1]
    assert (result.active, result.figures) == (True, {"tpot_ms_batch_1": "TPOT, batch 1"})
    assert "2 engines of each variant, alive at once, in turns over 2 rounds" in result.run["method"]
    assert result.run["command"].endswith("python -m serving_ops.bench_e2e step --rounds 2")


def test_the_first_engine_of_each_variant_says_what_a_layer_is_made_of(engines: step.Engines, tmp_path: Path) -> None:
    engines.run(tmp_path)
    kernels = {variant: [{"name": f"norm of {variant}-1", "us": 1.5}] for variant in ("native", "serving_ops")}
    layer = engines.measured.to_json()["layer"]
    assert layer == {variant: {"batch_size": 1, "kernels": of} for variant, of in kernels.items()}


def test_a_method_counts_in_english() -> None:
    assert LOAD.method(1, 1).startswith("1 engine of each variant, alive at once, in turns over 1 round: median over")
    assert LOAD.method(5, 2).startswith("5 engines of each variant, alive at once, in turns over 2 rounds: median over")


@pytest.mark.parametrize(("when", "words"), [("dies as", "made of cheese"), ("dies in its turn as", "out of memory")])
def test_an_engine_that_dies_ends_the_run_with_its_last_words(
    engines: step.Engines, tmp_path: Path, when: str, words: str
) -> None:
    engines.engine_options[when] = "auto"
    with pytest.raises(ChildFailed, match=words) as failure:
        engines.run(tmp_path)
    assert "serving_ops-1 ended with status 1" in str(failure.value)
    assert engines.measured.pairs["native"] == []


@pytest.mark.parametrize(("held", "starts"), [(fcntl.LOCK_SH, True), (fcntl.LOCK_EX, False)])
def test_a_run_starts_beside_others_that_start_and_measures_when_none_starts_or_measures(
    engines: step.Engines, tmp_path: Path, held: int, starts: bool
) -> None:
    engines.chosen.lock, engines.chosen.device = tmp_path / "of several", "cuda"
    last, order = tmp_path / "serving_ops-2" / "told", tmp_path / "order"
    run = threading.Thread(target=engines.run, args=(tmp_path,))
    with engines.chosen.lock.open("a") as other:
        fcntl.flock(other, held)
        run.start()
        until = time.monotonic() + (SECONDS if starts else 1)
        while not last.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert last.exists() is starts
        time.sleep(0.3)
        assert not order.exists()
    run.join(SECONDS)
    assert len(order.read_text().split()) == 8


def test_engines_on_several_gpus_warm_up_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text(VLLM)
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    load = asdict(StepLoad(batch_sizes=(1,), prompt_lens=(8,), decode_steps=4))
    told = {"engine": "vllm", "model": "model", "options": {}, "load": load, "device": "cpu"}
    with Children() as children, (tmp_path / "warm-up").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        asked = []
        for gpus in (1, 4):
            folder = tmp_path / f"on-{gpus}"
            folder.mkdir()
            asked.append(Asked(children, step.ENGINE, variables, folder, {**told, "gpus": gpus}))
        asked[0].wait(SECONDS)
        assert not asked[1].pipe.poll(1)
        fcntl.flock(other, fcntl.LOCK_UN)
        asked[1].wait(SECONDS)


@pytest.mark.engine
@pytest.mark.skipif(engine_version() is None, reason="vLLM is not installed")
@pytest.mark.skipif(not plugin_installed(), reason="serving-ops is not installed, vLLM would not find the plugin")
@pytest.mark.parametrize("words", [pytest.param((), marks=pytest.mark.slow), ("--quantization", "int8-token")])
def test_real_engines_with_and_without_the_plugin_are_compared(tmp_path: Path, words: tuple[str, ...]) -> None:
    if detect_device() != "cpu":
        pytest.skip("vLLM's INT8 is tested on CPU")
    small = ("--engines", "1", "--rounds", "1", "--prompt-lens", "64", "--decode-steps", "4")
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "step", *words, *small]
    done = subprocess.run([*command, "--out", str(tmp_path / "real.json")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TTFT, 64 tokens" in done.stdout
    result = comparison.load(tmp_path / "real.json")
    assert result.run["model"] == "-".join(["preset dense", *words[1:]])
    assert result.plugin_lines["native"] == [None]
    assert result.active
